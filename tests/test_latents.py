"""What is said of latents, where they are made up."""

from __future__ import annotations

import numpy as np
import pytest

from apprentice.config_family import SplitName
from apprentice.latents import LatentPoint, latent_metrics


def points(split: SplitName, tasks: dict[str, float]) -> list[LatentPoint]:
    """Return two demonstrations of each task, whose latents say its parameter."""
    return [
        LatentPoint(0, task, split, np.array([value, noise]), np.full(2, 0.01))
        for task, value in tasks.items()
        for noise in (-0.1, 0.1)
    ]


def test_a_latent_that_holds_the_parameter_tells_tasks_of_every_division() -> None:
    tasks: dict[SplitName, dict[str, float]] = {
        "train": {"a": -1.0, "b": 0.0, "c": 1.0},
        "validation": {"d": 0.5, "e": -0.5},
        "test": {"f": 0.25, "g": -0.25},
    }
    parameters = {name: np.array([v]) for of in tasks.values() for name, v in of.items()}
    found = latent_metrics(
        [p for split, of in tasks.items() for p in points(split, of)], parameters
    )
    for split in tasks:
        assert found[f"probe_{split}"] == pytest.approx(1.0, abs=0.01)


def test_a_division_of_one_task_has_no_probe() -> None:
    parameters = {"a": np.array([-1.0]), "b": np.array([1.0]), "d": np.array([0.5])}
    made = points("train", {"a": -1.0, "b": 1.0}) + points("validation", {"d": 0.5})
    found = latent_metrics(made, parameters)
    assert "probe_train" in found
    assert "probe_validation" not in found
