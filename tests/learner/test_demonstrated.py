"""What a learner makes of a file of demonstrations before it learns from it: what it refuses, and what it says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from apprentice.config import EnvironmentSettings, Experiment
from apprentice.demonstrations.choosing import find_demonstrations, require_demonstrations
from apprentice.demonstrations.format import DemonstrationError, DemonstrationSet
from apprentice.demonstrations.reading import read_demonstrations
from apprentice.demonstrations.writing import write_demonstrations
from apprentice.environments import environment_spec
from apprentice.types import Ending
from learner.demonstrated import load_demonstrated
from tests.learner.test_learning import CPU

TASK = "reacher-easy"
SMALL = EnvironmentSettings(action_repeat=4, width=16, height=16, camera=1, render_quality="fast")


def experiment(file: Path, *, pixels: bool = False, **environment: Any) -> Experiment:
    keys = ["pixels"] if pixels else ["state"]
    return Experiment.model_validate(
        {
            "name": "test",
            "task": TASK,
            "environment": {**SMALL.model_dump(), **environment},
            "reads": {"policy": keys, "critic": keys, "discriminator": keys},
            "imitation": {"method": "dac", "demonstrations": {"file": str(file)}},
        }
    )


def load(made: Experiment) -> None:
    load_demonstrated(made, environment_spec(TASK, made.observation_keys, made.environment), CPU)


def bundled() -> DemonstrationSet:
    return read_demonstrations(find_demonstrations(TASK, "")).chosen([0, 1])


def seen() -> DemonstrationSet:
    """Return demonstrations with black pictures, that say how they were drawn."""
    whole = bundled()
    black = np.zeros((len(whole.trajectories[0].action) + 1, 16, 16, 3), np.uint8)
    episodes = tuple(
        episode._replace(observation={**episode.observation, "pixels": black})
        for episode in whole.trajectories
    )
    spec = environment_spec(TASK, ("state", "pixels"), SMALL)
    stated = {"environment": spec.to_dict(), "settings": SMALL}
    return replace(whole, metadata=whole.metadata.model_copy(update=stated), trajectories=episodes)


both = pytest.mark.parametrize("use", [require_demonstrations, load])


@both
@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"camera": 0}, "environment.camera: expected 0 as in the experiment, found 1; `apprentice demos render`"),
        ({"render_quality": "look"}, "environment.render_quality: expected 'look' .* found 'fast'; `apprentice demos"),
    ],
)  # fmt: skip
def test_pixels_that_were_drawn_otherwise_are_refused_where_they_are_read(
    tmp_path: Path, use: Callable[[Experiment], None], environment: dict[str, Any], message: str
) -> None:
    path = tmp_path / "demos.hdf5"
    write_demonstrations(path, seen())
    use(experiment(path, pixels=True, frame_stack=2))
    use(experiment(path, **environment))  # Nothing reads the pixels.
    with pytest.raises(DemonstrationError, match=message):
        use(experiment(path, pixels=True, **environment))


@both
def test_a_termination_in_a_task_that_cannot_terminate_is_refused(
    tmp_path: Path, use: Callable[[Experiment], None]
) -> None:
    path, whole = tmp_path / "demos.hdf5", bundled()
    ended = whole.trajectories[1]._replace(ending=Ending.TERMINATED)
    write_demonstrations(path, replace(whole, trajectories=(whole.trajectories[0], ended)))
    message = (
        "terminations, episode 1: expected none, since reacher-easy cannot terminate, found one .* "
        "it belongs in `truncations`"
    )
    with pytest.raises(DemonstrationError, match=message):
        use(experiment(path))


def test_the_share_of_cut_actions_is_told_where_there_is_one(tmp_path: Path) -> None:
    path = tmp_path / "demos.hdf5"
    for share, said in ((0.0, []), (0.25, [(0.25, str(path))])):
        write_demonstrations(path, replace(bundled(), clipped_share=share))
        with capture_logs() as logs:
            load(experiment(path))
        warned = [entry for entry in logs if "cut before atanh" in entry["event"]]
        assert [(entry["share"], entry["source"]) for entry in warned] == said
