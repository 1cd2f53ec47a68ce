"""Which file an experiment means, and which of its episodes are for training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from apprentice.config import Experiment
from apprentice.config_context import ContextSettings
from apprentice.config_family import SPLITS
from apprentice.demonstrations.bundled import BUNDLED, bundled_names
from apprentice.demonstrations.family import FamilyDemonstrations, read_family
from apprentice.demonstrations.format import DemonstrationError, DemonstrationSet, refused
from apprentice.demonstrations.reading import read_demonstrations
from apprentice.environments.families import TaskSplit, task_split
from apprentice.suite_tasks import terminates
from apprentice.types import Ending, EnvironmentSpec


def find_demonstrations(reference: str | None, task: str) -> Path:
    """Return the file that a path or a bundled name means; None is the task's bundled one.

    Raises DemonstrationError where there is none.
    """
    name = task if reference is None else reference
    if reference is not None and (reference.endswith((".hdf5", ".h5")) or "/" in reference):
        path = Path(reference)
        if path.is_file():
            return path
        raise DemonstrationError(
            f"imitation.demonstrations.file: expected a file of demonstrations, found nothing at {reference}"
        )
    if name in bundled_names():
        return BUNDLED / f"{name}.hdf5"
    there = ", ".join(bundled_names()) or "none"
    raise DemonstrationError(
        f"imitation.demonstrations.file: expected a path that ends in .hdf5, or a bundled file ({there}); "
        f"found {name!r}: `apprentice demos record` makes one"
    )


def split_demonstrations(
    demonstrations: DemonstrationSet, num_train: int | None, num_held_out: int, seed: int
) -> tuple[DemonstrationSet, DemonstrationSet | None]:
    """Return episodes to train on and others to measure on; None trains on all that are not held out.

    Both come from one random order, so that no episode is in both. Raises DemonstrationError where there
    are too few.
    """
    found = len(demonstrations.trajectories)
    wanted = (1 if num_train is None else num_train) + num_held_out
    if wanted > found:
        raise DemonstrationError(
            f"imitation.demonstrations: expected at least {wanted} episodes "
            f"({num_held_out} of them held out), found {found}"
        )
    order = [int(n) for n in np.random.default_rng(seed).permutation(found)]
    held_out, rest = order[:num_held_out], order[num_held_out:]
    train = sorted(rest[:num_train])
    chosen = demonstrations.chosen(sorted(held_out)) if held_out else None
    return demonstrations.chosen(train), chosen


def require_demonstrations(experiment: Experiment) -> None:
    """Raise DemonstrationError where an experiment's demonstrations are missing or are of another task.

    Reads the whole file, but builds no environment: the learner compares every shape.
    """
    if experiment.imitation.method == "none":
        return
    if experiment.is_family:
        require_family(experiment)
        return
    settings = experiment.imitation.demonstrations
    path = find_demonstrations(settings.file, experiment.task)
    demonstrations = read_demonstrations(path)
    split_demonstrations(demonstrations, settings.episodes, settings.held_out, settings.seed)
    spec = demonstrations.metadata.spec
    if spec is not None:
        _require_task(path, spec, experiment)
    require_fit(str(path), demonstrations, experiment)


def _require_task(path: Path, spec: EnvironmentSpec, experiment: Experiment) -> None:
    if spec.task_id != experiment.task:
        fitting = experiment.task in bundled_names()
        raise DemonstrationError(
            f"{path}: task: expected {experiment.task!r} as in the experiment, found {spec.task_id!r}"
            + (f"; the bundled file {experiment.task!r} would fit" if fitting else "")
        )
    _require_repeat(str(path), spec, experiment)


def _require_repeat(source: str, spec: EnvironmentSpec, experiment: Experiment) -> None:
    wanted = experiment.environment.action_repeat
    if spec.action_repeat != wanted:
        raise DemonstrationError(
            f"{source}: environment.action_repeat: expected {wanted} as in the experiment, found {spec.action_repeat}"
        )


def require_fit(source: str, demonstrations: DemonstrationSet, experiment: Experiment) -> None:
    """Raise DemonstrationError where episodes end, or pixels were drawn, as an experiment's never are."""
    for number, episode in enumerate(demonstrations.trajectories):
        if episode.ending == Ending.TERMINATED and not terminates(experiment.task):
            raise refused(
                source,
                f"terminations, episode {number}",
                f"none, since {experiment.task} cannot terminate",
                "one at the last step; where the episode was only cut, it belongs in `truncations`",
            )
    spec, found = demonstrations.metadata.spec, demonstrations.metadata.settings
    if spec is None or "pixels" not in spec.observation:
        return
    if "pixels" not in experiment.observation_keys:
        return
    for name in ("camera", "render_quality"):
        wanted, drawn = getattr(experiment.environment, name), getattr(found, name)
        if wanted != drawn:
            raise refused(
                source,
                f"environment.{name}",
                f"{wanted!r} as in the experiment",
                f"{drawn!r}; `apprentice demos render` draws the same episodes again",
            )


def require_family(experiment: Experiment) -> FamilyDemonstrations:
    """Return the demonstrations of an experiment's family, refused where they are of another division of its tasks.

    Raises DemonstrationError, with what would fit.
    """
    settings = experiment.imitation.demonstrations
    where = "imitation.demonstrations.file"
    if settings.file is None or not Path(settings.file).is_dir():
        raise DemonstrationError(
            f"{where}: expected the folder of {experiment.task}'s demonstrations, found {settings.file!r}; "
            "`apprentice demos record --checkpoint EXPERT --episodes 8 --out FOLDER` makes one"
        )
    family = read_family(Path(settings.file))
    index = family.index
    if index.family != experiment.task:
        raise DemonstrationError(
            f"{where}: expected demonstrations of {experiment.task}, found {index.family}'s"
        )
    split = fitting_split(experiment)
    if index.split_digest != split.digest():
        raise DemonstrationError(
            f"{where}: expected the division {experiment.environment.family.split!r} of {index.family} "
            f"({split.digest()}), found {index.settings.split!r} ({index.split_digest}); set environment.family to the "
            f"demonstrations': {index.settings.model_dump_json(exclude_defaults=True)}"
        )
    for name in SPLITS:
        missing = {t.task_id for t in split.of(name)} - {t.task_id for t in family.tasks(name)}
        if missing:
            raise DemonstrationError(
                f"{where}: expected demonstrations of all {name} tasks, found none of {sorted(missing)[:3]}"
            )
    _require_sets(experiment, family)
    fewest = min(len(task.query) for task in family.tasks("train"))
    if settings.episodes is not None and settings.episodes > fewest:
        raise DemonstrationError(
            f"imitation.demonstrations.episodes: expected at most {fewest} to imitate of each task, found "
            f"{settings.episodes}"
        )
    if experiment.infers_task:
        _require_shown(experiment.context, family)
    return family


def _require_sets(experiment: Experiment, family: FamilyDemonstrations) -> None:
    """Refuse demonstrations of a task that do not fit the experiment."""
    settings = experiment.imitation.demonstrations
    for task_id, demonstrations in family.sets.items():
        spec = demonstrations.metadata.spec
        assert spec is not None  # or it was refused when it was read
        _require_repeat(task_id, spec, experiment)
        require_fit(task_id, demonstrations, experiment)
        num = len(demonstrations.metadata.experts)
        if num not in (0, settings.experts):
            raise DemonstrationError(
                f"imitation.demonstrations.experts: expected {num}, as many as acted in {settings.file}, found "
                f"{settings.experts}; name another file, or set it to {num}"
            )


def fitting_split(experiment: Experiment) -> TaskSplit:
    """Return the division of an experiment's tasks, of which a batch has rows enough.

    Raises FamilyError and DemonstrationError.
    """
    split = task_split(experiment.task, experiment.environment.family)
    require_rows(experiment, len(split.train))
    return split


def require_rows(experiment: Experiment, num_tasks: int) -> None:
    """Raise DemonstrationError where a batch that an experiment imitates with has no row of each task drawn for it."""
    drawn = experiment.replay.tasks_per_batch
    tasks = f"{num_tasks} train tasks (replay.tasks_per_batch draws some)"
    if drawn is not None and drawn <= num_tasks:
        num_tasks, tasks = drawn, f"{drawn} tasks drawn (replay.tasks_per_batch)"
    rows = {"sac.batch_size": experiment.sac.batch_size}
    own = experiment.imitation.discriminator.batch_size
    if own is not None and experiment.imitation.adversarial:
        rows["imitation.discriminator.batch_size"] = own
    for key, number in rows.items():
        if number < num_tasks:
            raise DemonstrationError(
                f"{key}: expected a row or more of each of the {tasks}, found {number}"
            )


def shown_limits(
    settings: ContextSettings, of_train: int, of_validation: int
) -> Iterator[tuple[str, int, int]]:
    """Yield key, number asked for and the most there is, of all that says how many demonstrations are shown."""
    if settings.episodes is not None:
        yield "context.episodes", settings.episodes, of_train
    yield "context.most", settings.most, of_train
    yield "context.fewest", settings.fewest, of_validation
    if settings.information_coefficient:
        yield (
            "twice context.most, with context.information_coefficient",
            2 * settings.most,
            of_train,
        )


def _require_shown(settings: ContextSettings, family: FamilyDemonstrations) -> None:
    """Refuse settings that ask for more demonstrations to be shown than there are."""
    fewest = {
        split: min(family.tasks(split), key=lambda task: len(task.context))
        for split in ("train", "validation")
    }
    there = (len(fewest[split].context) for split in ("train", "validation"))
    for key, asked, most in shown_limits(settings, *there):
        if asked > most:
            task = fewest["validation" if key == "context.fewest" else "train"]
            raise DemonstrationError(
                f"{key}: expected at most {most}, as many as {task.task_id} has to be shown, found {asked}"
            )
