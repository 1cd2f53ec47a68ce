"""What a policy that infers its task makes of demonstrations: where tasks lie in its latent space, and how clearly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from apprentice.config_family import SPLITS, SplitName
from apprentice.demonstrations.context import ContextLibrary
from apprentice.networks import Policy
from apprentice.types import Metrics

RIDGE = 1e-3
"""Weight of the probe's squared coefficients, whose inputs have deviation 1."""


class LatentPoint(NamedTuple):
    """What one demonstration says by itself."""

    number: int
    task_id: str
    split: SplitName
    mean: np.ndarray  # [Z]
    std: np.ndarray  # [Z]


def latent_points(policy: Policy, library: ContextLibrary) -> list[LatentPoint]:
    """Return what every demonstration says, each shown alone."""
    points = []
    for number in range(len(library)):
        one = library[number]
        mean, std = policy.believe([one.steps])
        points.append(LatentPoint(number, one.task_id, one.split, mean, std))
    return points


def latent_metrics(points: Sequence[LatentPoint], parameters: dict[str, np.ndarray]) -> Metrics:
    """Return how well latents tell tasks, with `parameters` [P] by task id.

    `probe_train`, `probe_validation`, `probe_test`: the coefficient of determination of a linear (ridge) map from
    latent to the task's parameters, fitted on the train tasks. `latent_spread`: deviation of the tasks' means,
    averaged over dimensions; `latent_spread_over_noise`: the same over the mean deviation of all points of one task,
    their own and that of the Gaussian; large is clear.
    """
    by_split = {split: [p for p in points if p.split == split] for split in SPLITS}
    train = by_split["train"]
    inputs = np.stack([point.mean for point in train])
    shift, scale = inputs.mean(0), inputs.std(0) + 1e-6
    fit = _ridge((inputs - shift) / scale, _told(train, parameters))
    metrics: Metrics = {}
    for split, own in by_split.items():
        if own:
            told = _told(own, parameters)
            predicted = _predict(fit, (np.stack([point.mean for point in own]) - shift) / scale)
            unexplained = float(((told - predicted) ** 2).sum())
            spread_of_tasks = float(((told - told.mean(0)) ** 2).sum())
            if spread_of_tasks > 0.0:  # One task alone has nothing to be told from.
                metrics[f"probe_{split}"] = 1.0 - unexplained / spread_of_tasks
    means, variances = [], []
    for task_id in dict.fromkeys(point.task_id for point in train):
        own = [point for point in train if point.task_id == task_id]
        within = np.stack([point.mean for point in own])
        means.append(within.mean(0))
        variances.append(within.var(0) + np.stack([point.std**2 for point in own]).mean(0))
    spread = float(np.stack(means).std(0).mean())
    noise = float(np.sqrt(np.stack(variances).mean(0)).mean())
    return {
        **metrics,
        "latent_spread": spread,
        "latent_spread_over_noise": spread / max(noise, 1e-9),
    }


def principal_plane(points: Sequence[LatentPoint]) -> np.ndarray:
    """Return every point's place [N, 2] on the plane in which the train tasks' points vary most."""
    means = np.stack([point.mean for point in points])
    train = np.stack([point.mean for point in points if point.split == "train"])
    centre = train.mean(0)
    _, _, directions = np.linalg.svd(train - centre, full_matrices=False)
    plane = directions[:2]
    if len(plane) < 2:
        plane = np.concatenate([plane, np.zeros((2 - len(plane), means.shape[1]))])
    placed: np.ndarray = (means - centre) @ plane.T
    return placed


def _told(points: Sequence[LatentPoint], parameters: dict[str, np.ndarray]) -> np.ndarray:
    return np.stack([parameters[point.task_id] for point in points])


def _ridge(inputs: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    shift = targets.mean(0)
    size = inputs.shape[1]
    gram = inputs.T @ inputs + RIDGE * len(inputs) * np.eye(size)
    weights: np.ndarray = np.linalg.solve(gram, inputs.T @ (targets - shift))
    return weights, shift


def _predict(fit: tuple[np.ndarray, np.ndarray], inputs: np.ndarray) -> np.ndarray:
    predicted: np.ndarray = inputs @ fit[0] + fit[1]
    return predicted
