"""What the page shows of a run on a family: its tasks, and how the policy does in those that it never learned."""

from __future__ import annotations

import json
import math
import urllib.parse
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from markupsafe import Markup

from apprentice.checkpoint_files import read_text
from apprentice.config import Experiment
from apprentice.config_family import SPLITS, SplitName
from apprentice.experiments import ExperimentError
from apprentice.family_record import FamilyEvaluation, TaskResult, read_family_evaluation
from apprentice.runs import RunFolder
from evalserver.curves import Point, draw_curve
from evalserver.scatter import Axis, Colouring, Mark, colourings, draw_marks, draw_scale

MOST_TILES = 64
MOST_PROBLEMS = 3
TILE_PIXELS = 160
LARGEST_INDEX_BYTES = 4 << 20
OVER = "demonstrations shown"
LATENT_WORDS: Mapping[str, str] = {
    "probe_train": "task told from latent, train tasks (R²)",
    "probe_validation": "task told from latent, validation tasks (R²)",
    "probe_test": "task told from latent, test tasks (R²)",
    "latent_spread_over_noise": "spread of latents over their noise",
    "swapped_return": "return with another task's demonstration",
}
"""What is said of the numbers beside the picture of the latents, in this order."""


class RunUnreadable(Exception):
    """A run's settings, or its family's division, cannot be read; the message says why, not where the run lies."""


class TaskChoice(NamedTuple):
    """A task that can be picked."""

    task_id: str
    label: str
    shown: tuple[int, ...]  # numbers of its demonstrations, where the policy infers its task


class Tile(NamedTuple):
    """A test task whose rollout is played on a click."""

    task_id: str
    label: str
    colour: str
    link: str | None  # none before the first checkpoint
    result: TaskResult | None


class FamilyView(NamedTuple):
    """All that the page shows of a family."""

    name: str
    num_shown: int  # demonstrations that every task has, 0 where the policy infers nothing
    groups: tuple[tuple[SplitName, tuple[TaskChoice, ...]], ...]
    tiles: tuple[Tile, ...]
    num_test: int
    metrics: tuple[str, ...]  # what the family measures beside the return
    evaluation: FamilyEvaluation | None
    numbers: tuple[tuple[str, float], ...]
    charts: tuple[tuple[str, Markup], ...]
    latents: tuple[
        tuple[str, Markup, Markup], ...
    ]  # label, the latents, and what their colours mean


class _Task(NamedTuple):
    task_id: str
    split: SplitName
    parameters: Mapping[str, float]
    label: str


def describe_family(folder: RunFolder, checkpoint: str | None) -> FamilyView | None:
    """Return what is to be shown of a run, played with a checkpoint; None for a run that is not of a family.

    Raises RunUnreadable where its tasks cannot be told, and says why.
    """
    if not folder.experiment.exists():
        return None
    try:
        experiment = folder.read_experiment()
    except ExperimentError as error:
        raise RunUnreadable("; ".join(error.problems[:MOST_PROBLEMS])) from None
    if not experiment.is_family:
        return None
    try:
        axes, tasks = _tasks_of(experiment)
    except ValueError as error:  # of a division that this version does not have
        raise RunUnreadable(str(error)) from None
    colours = colourings(axes, {task.task_id: task.parameters for task in tasks})
    evaluation = read_family_evaluation(folder.evaluations)
    shown = _shown(folder) if experiment.infers_task else {}
    test = [task for task in tasks if task.split == "test"]
    return FamilyView(
        name=experiment.task,
        num_shown=min(map(len, shown.values()), default=0),
        groups=tuple(
            (
                split,
                tuple(
                    TaskChoice(t.task_id, t.label, shown.get(t.task_id, ()))
                    for t in tasks
                    if t.split == split
                ),
            )
            for split in reversed(SPLITS)
        ),
        tiles=_tiles(test[:MOST_TILES], colours[0], evaluation, checkpoint),
        num_test=len(test),
        metrics=tuple(evaluation.results[0].metrics) if evaluation and evaluation.results else (),
        evaluation=evaluation,
        numbers=() if evaluation is None else _numbers(evaluation),
        charts=() if evaluation is None else _charts(evaluation),
        latents=_latents(evaluation, tasks, axes, colours, checkpoint),
    )


def _tasks_of(experiment: Experiment) -> tuple[tuple[Axis, ...], list[_Task]]:
    # The first family that is shown brings dm_control along, which no other page needs.
    from apprentice.environments.families import load_family, task_split

    family = load_family(experiment.task)
    split = task_split(experiment.task, experiment.environment.family)
    axes = tuple(Axis(p.name, p.low, p.high, p.unit) for p in family.parameters)
    return axes, [
        _Task(task.task_id, name, task.parameters, _label(axes, task.parameters))
        for name in SPLITS
        for task in split.of(name)
    ]


def _label(axes: Sequence[Axis], parameters: Mapping[str, float]) -> str:
    return ", ".join(f"{axis.name}\N{NO-BREAK SPACE}{parameters[axis.name]:.3g}" for axis in axes)


def _shown(folder: RunFolder) -> dict[str, tuple[int, ...]]:
    """Return the numbers of each task's demonstrations in a run's context, as `ContextLibrary` counts them; none
    where there is no context."""
    found: dict[str, tuple[int, ...]] = {}
    try:
        index: dict[str, Any] = json.loads(
            read_text(folder.context_index, LARGEST_INDEX_BYTES) or "{}"
        )
        first = 0
        for task in index["tasks"]:
            num = len(task["context"])
            found[task["task_id"]] = tuple(range(first, first + num))
            first += num
    except (ValueError, KeyError, TypeError):
        return {}
    return found


def _tiles(
    tasks: Sequence[_Task],
    colours: Colouring,
    evaluation: FamilyEvaluation | None,
    checkpoint: str | None,
) -> tuple[Tile, ...]:
    results: dict[str, TaskResult] = {}
    for result in evaluation.results if evaluation is not None else ():
        results.setdefault(result.task_id, result)  # those of the fewest demonstrations come first
    return tuple(
        Tile(
            task.task_id,
            task.label,
            colours.of_task[task.task_id],
            _link(checkpoint, task=task.task_id, width=TILE_PIXELS, height=TILE_PIXELS),
            results.get(task.task_id),
        )
        for task in tasks
    )


def _numbers(evaluation: FamilyEvaluation) -> tuple[tuple[str, float], ...]:
    return tuple(
        (words, evaluation.latent[name])
        for name, words in LATENT_WORDS.items()
        if math.isfinite(evaluation.latent.get(name, math.nan))
    )


def _charts(evaluation: FamilyEvaluation) -> tuple[tuple[str, Markup], ...]:
    """Return the return and each metric against the number of demonstrations; nothing where there is but one."""
    sizes = evaluation.sizes
    if len(sizes) < 2:
        return ()
    values = {"return": [evaluation.mean_return(size) for size in sizes]}
    for metric in evaluation.results[0].metrics:
        values[metric] = [
            fmean(r.metrics.get(metric, math.nan) for r in evaluation.of_size(s)) for s in sizes
        ]
    levels = []
    for label, found in (
        ("the expert", [r.expert_return for r in evaluation.of_size(sizes[0])]),
        ("random actions", [r.random_return for r in evaluation.of_size(sizes[0])]),
    ):
        known = [value for value in found if value is not None and math.isfinite(value)]
        if known and len(known) == len(found):
            levels.append((label, fmean(known)))
    charts = []
    for name, means in values.items():
        if all(map(math.isfinite, means)):
            points = [Point(size, mean) for size, mean in zip(sizes, means, strict=True)]
            drawn = draw_curve(name, points, OVER, levels if name == "return" else ())
            charts.append((name, Markup(drawn)))  # noqa: S704 - escaped where drawn
    return tuple(charts)


def _latents(
    evaluation: FamilyEvaluation | None,
    tasks: Sequence[_Task],
    axes: Sequence[Axis],
    colours: Sequence[Colouring],
    checkpoint: str | None,
) -> tuple[tuple[str, Markup, Markup], ...]:
    """Return a picture of the latents for each way to colour tasks, with what its colours mean."""
    if evaluation is None or not evaluation.points:
        return ()
    of_id = {task.task_id: task for task in tasks}
    pictures = []
    for colouring in colours:
        marks = [
            Mark(
                point.x,
                point.y,
                colouring.of_task[point.task_id],
                point.split,
                f"#{point.number}: {of_id[point.task_id].label} ({point.split})",
                point.task_id,
                _shown_link(checkpoint, point.task_id, point.number),
                f"ids:{point.number}",
            )
            for point in evaluation.points
            if point.task_id in of_id
        ]
        if colouring.axis is not None:
            key = draw_scale(colouring.axis)
        else:
            across, up = (axis.name for axis in axes)
            places = [
                Mark(
                    task.parameters[across],
                    task.parameters[up],
                    colouring.of_task[task.task_id],
                    task.split,
                    f"{task.label} ({task.split})",
                )
                for task in tasks
            ]
            key = draw_marks(f"the tasks by {across} and {up}", places)
        drawn = draw_marks(f"latents, coloured by {colouring.label}", marks)
        pictures.append((colouring.label, Markup(drawn), Markup(key)))  # noqa: S704 - escaped
    return tuple(pictures)


def _shown_link(checkpoint: str | None, task_id: str, number: int) -> str | None:
    return _link(checkpoint, task=task_id, context=f"ids:{number}", beside="expert")


def _link(checkpoint: str | None, **asked: Any) -> str | None:
    """Return the address of a rollout of a checkpoint."""
    if checkpoint is None:
        return None
    return "/evaluate?" + urllib.parse.urlencode({"checkpoint": checkpoint, **asked})
