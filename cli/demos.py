"""`apprentice demos`: record demonstrations, look at them, and take them elsewhere."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from apprentice import exit_codes
from apprentice.config_family import SPLITS
from cli.evaluate import find_checkpoint
from cli.failure import CommandFailed

if TYPE_CHECKING:
    from apprentice.config_family import FamilySettings
    from apprentice.demonstrations.family import FamilyDemonstrations
    from apprentice.demonstrations.format import DemonstrationSet


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    record = actions.add_parser("record", help="let a checkpoint act and keep whole episodes")
    record.add_argument(
        "--checkpoint",
        required=True,
        nargs="+",
        action="extend",
        metavar="ID",
        help="RUN:latest, RUN:STEP, …; of a family several, which act in turn",
    )
    record.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR")
    record.add_argument(
        "--episodes",
        type=_positive,
        required=True,
        metavar="N",
        help="episodes; of a family's expert so many of every task to be imitated, and as many to be shown",
    )
    record.add_argument("--seed", type=int, default=None, help="seed of the first episode")
    record.add_argument(
        "--minimum-return", type=float, metavar="R", help="keep only episodes with this return"
    )
    record.add_argument(
        "--stochastic", action="store_true", help="draw actions instead of taking the likeliest"
    )
    record.add_argument(
        "--split",
        metavar="NAME",
        help="division of the family's tasks to record, where it is not the one that the expert learned on",
    )
    _with_output(record, "FILE.hdf5, or a folder for a family")
    for name, line in (
        ("inspect", "show what a file holds"),
        ("validate", "read a file whole and say whether it can be used"),
    ):
        one = actions.add_parser(name, help=line)
        one.add_argument("file", metavar="FILE.hdf5", help="or the folder of a family")
        one.add_argument("--task", help="the task that it must be of")
    split = actions.add_parser("split", help="make two files without an episode in common")
    split.add_argument("file", metavar="FILE.hdf5")
    split.add_argument("--held-out", type=_positive, required=True, metavar="N")
    split.add_argument("--seed", type=int, default=0)
    split.add_argument("--train", type=Path, required=True, metavar="FILE.hdf5")
    split.add_argument("--test", type=Path, required=True, metavar="FILE.hdf5")
    join = actions.add_parser("join", help="make a family's folder of a file for each of its tasks")
    join.add_argument("files", nargs="+", metavar="FILE.hdf5")
    join.add_argument(
        "--context",
        type=_positive,
        required=True,
        metavar="N",
        help="episodes of each task to be shown",
    )
    _with_output(join, "FOLDER")
    render = actions.add_parser("render", help="add pixels, drawn from the states in the file")
    render.add_argument("file", metavar="FILE.hdf5")
    render.add_argument("--width", type=_positive, default=84)
    render.add_argument("--height", type=_positive, default=84)
    render.add_argument("--camera", type=int, default=0)
    render.add_argument("--frame-stack", type=_positive, default=3)
    render.add_argument("--quality", choices=("full", "look", "fast"), default="look")
    _with_output(render, "FILE.hdf5")
    export = actions.add_parser("export", help="write what others read")
    export.add_argument("file", metavar="FILE.hdf5")
    export.add_argument("--format", choices=("npz", "minari"), default="npz")
    _with_output(export, "FILE.npz or FOLDER")
    imported = actions.add_parser(
        "import", help="read what `export` wrote as npz, or Minari's HDF5"
    )
    imported.add_argument("file", metavar="FILE")
    imported.add_argument(
        "--rescale-actions",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="what the lowest and highest action of Minari's file are, to be scaled to -1 and 1; never guessed",
    )
    _with_output(imported, "FILE.hdf5")


def run(arguments: argparse.Namespace) -> int:
    from apprentice.checkpoint import CheckpointError
    from apprentice.demonstrations.format import DemonstrationError
    from apprentice.environments import RenderingUnavailable
    from apprentice.evaluation import EvaluationError

    action: Callable[[argparse.Namespace], None] = {
        "record": _record,
        "inspect": _inspect,
        "validate": _validate,
        "split": _split,
        "join": _join,
        "render": _render,
        "export": _export,
        "import": _import,
    }[arguments.action]
    try:
        action(arguments)
    except (DemonstrationError, CheckpointError) as error:
        raise CommandFailed(str(error), exit_codes.CONFIGURATION) from None
    except (EvaluationError, RenderingUnavailable, OSError) as error:
        raise CommandFailed(str(error)) from None
    return 0


def _record(arguments: argparse.Namespace) -> None:
    from apprentice.demonstrations.recording import (
        FIRST_SEED,
        record_demonstrations,
        record_family,
    )

    _require_free(arguments.out)
    checkpoints = [find_checkpoint(one, arguments.runs) for one in arguments.checkpoint]
    first_seed = FIRST_SEED if arguments.seed is None else arguments.seed
    if arguments.out.suffix not in (".hdf5", ".h5"):
        if arguments.minimum_return is not None:
            raise CommandFailed(
                "--minimum-return: expected nothing with a family, whose tasks are all kept as they come",
                exit_codes.CONFIGURATION,
            )
        family = record_family(
            checkpoints,
            arguments.episodes,
            arguments.episodes,
            arguments.out,
            first_seed=first_seed,
            deterministic=not arguments.stochastic,
            settings=_other_division(arguments.split, checkpoints[0]),
        )
        _show_family(arguments.out, family)
        return
    if len(checkpoints) > 1:
        raise CommandFailed(
            f"--checkpoint: expected one, or the experts of a family and a folder for --out, found {len(checkpoints)}",
            exit_codes.CONFIGURATION,
        )
    demonstrations = record_demonstrations(
        checkpoints[0],
        arguments.episodes,
        first_seed=first_seed,
        deterministic=not arguments.stochastic,
        minimum_return=arguments.minimum_return,
    )
    _write(arguments.out, demonstrations)
    _show(arguments.out, demonstrations)


def _other_division(split: str | None, checkpoint: Path) -> FamilySettings | None:
    """Return the settings of another division than the one that a family's expert learned on."""
    if split is None:
        return None
    from apprentice.checkpoint import experiment_of
    from apprentice.checkpoint_reading import verify_checkpoint
    from apprentice.environments.families import FamilyError, load_family

    experiment = experiment_of(verify_checkpoint(checkpoint))
    settings = experiment.environment.family.model_copy(update={"split": split})
    try:
        load_family(experiment.task).check_split(settings)
    except FamilyError as error:
        raise CommandFailed(f"--split: {error}", exit_codes.CONFIGURATION) from None
    return settings


def _inspect(arguments: argparse.Namespace) -> None:
    if Path(arguments.file).is_dir():
        _show_family(Path(arguments.file), _read_family(arguments))
        return
    path, demonstrations = _read(arguments)
    _show(path, demonstrations)
    for number, episode in enumerate(demonstrations.trajectories):
        print(
            f"episode {number}: seed {episode.seed}, {len(episode.action)} steps, "
            f"return {demonstrations.returns[number]:.1f}, {episode.ending.name.lower()}"
        )


def _validate(arguments: argparse.Namespace) -> None:
    if Path(arguments.file).is_dir():
        family = _read_family(arguments)
        num = sum(len(found.trajectories) for found in family.sets.values())
        print(f"{arguments.file}: {num} episodes of {len(family.sets)} tasks can be used")
        return
    path, demonstrations = _read(arguments)
    print(
        f"{path}: {len(demonstrations.trajectories)} episodes of {demonstrations.num_steps} steps can be used"
    )
    _warn_of_units(demonstrations)


def _split(arguments: argparse.Namespace) -> None:
    from apprentice.demonstrations.choosing import split_demonstrations

    if arguments.train.resolve() == arguments.test.resolve():
        raise CommandFailed(
            f"--test: expected another file than --train's, found {arguments.test} for both",
            exit_codes.CONFIGURATION,
        )
    _require_free(arguments.train)
    _require_free(arguments.test)
    _, demonstrations = _read(arguments)
    train, test = split_demonstrations(demonstrations, None, arguments.held_out, arguments.seed)
    assert test is not None
    for path, part in ((arguments.train, train), (arguments.test, test)):
        _write(path, part)
        print(f"{path}: {len(part.trajectories)} episodes")


def _join(arguments: argparse.Namespace) -> None:
    from apprentice.demonstrations.joining import join_family

    _require_free(arguments.out)
    files = [Path(file) for file in arguments.files]
    _show_family(arguments.out, join_family(files, arguments.context, arguments.out))


def _render(arguments: argparse.Namespace) -> None:
    from pydantic import ValidationError

    from apprentice.config import EnvironmentSettings
    from apprentice.demonstrations.recording import render_demonstrations
    from apprentice.setting_problems import describe_problems

    _require_free(arguments.out)
    _, demonstrations = _read(arguments)
    try:
        settings = EnvironmentSettings(
            width=arguments.width,
            height=arguments.height,
            camera=arguments.camera,
            frame_stack=arguments.frame_stack,
            render_quality=arguments.quality,
        )
    except ValidationError as error:
        problems = "; ".join(describe_problems(EnvironmentSettings, error))
        raise CommandFailed(problems, exit_codes.CONFIGURATION) from None
    rendered = render_demonstrations(demonstrations, settings)
    _write(arguments.out, rendered)
    _show(arguments.out, rendered)


def _export(arguments: argparse.Namespace) -> None:
    from apprentice.demonstrations.exchange import export_minari, export_npz

    _require_free(arguments.out)
    _, demonstrations = _read(arguments)
    write = {"npz": export_npz, "minari": export_minari}[arguments.format]
    write(arguments.out, demonstrations)
    print(arguments.out)


def _import(arguments: argparse.Namespace) -> None:
    from apprentice.demonstrations.exchange import import_npz
    from apprentice.demonstrations.reading import read_demonstrations

    _require_free(arguments.out)
    path, bounds = Path(arguments.file), arguments.rescale_actions
    if bounds is not None and (path.suffix == ".npz" or not bounds[0] < bounds[1]):
        raise CommandFailed(
            f"--rescale-actions: expected LOW below HIGH, and Minari's HDF5; found {bounds} and {path}",
            exit_codes.CONFIGURATION,
        )
    if path.suffix == ".npz":
        demonstrations = import_npz(path)
    else:
        demonstrations = read_demonstrations(
            path, action_bounds=None if bounds is None else (bounds[0], bounds[1])
        )
    _write(arguments.out, demonstrations)
    _show(arguments.out, demonstrations)


def _read(arguments: argparse.Namespace) -> tuple[Path, DemonstrationSet]:
    """Return the file that was named, by path or as one of the bundled ones, and what it holds."""
    from apprentice.demonstrations.choosing import find_demonstrations
    from apprentice.demonstrations.format import DemonstrationError
    from apprentice.demonstrations.reading import read_demonstrations

    path = find_demonstrations(arguments.file, "")
    demonstrations = read_demonstrations(path)
    task, spec = getattr(arguments, "task", None), demonstrations.metadata.spec
    if task is not None and (spec is None or spec.task_id != task):
        found = "none stated" if spec is None else repr(spec.task_id)
        raise DemonstrationError(f"{path}: task: expected {task!r}, found {found}")
    return path, demonstrations


def _read_family(arguments: argparse.Namespace) -> FamilyDemonstrations:
    from apprentice.demonstrations.family import read_family
    from apprentice.demonstrations.format import DemonstrationError

    family = read_family(Path(arguments.file))
    if arguments.task not in (None, family.index.family):
        raise DemonstrationError(
            f"{arguments.file}: family: expected {arguments.task!r}, found {family.index.family!r}"
        )
    return family


def _show_family(path: Path, family: FamilyDemonstrations) -> None:
    index = family.index
    size = sum(file.stat().st_size for file in path.iterdir())
    print(f"{path}: {size / 1e6:.2f} MB")
    print(f"family {index.family}, division {index.settings.split!r} ({index.split_digest})")
    for split in SPLITS:
        tasks = family.tasks(split)
        returns = [value for task in tasks for value in family.sets[task.task_id].returns]
        if returns:
            shown = sum(len(task.context) for task in tasks)
            print(
                f"{split}: {len(tasks)} tasks, {shown} episodes to be shown and {len(returns) - shown} to be imitated, "
                f"returns: mean {sum(returns) / len(returns):.1f}, {min(returns):.1f} to {max(returns):.1f}"
            )
    acted = {expert.run: None for one in family.sets.values() for expert in one.metadata.experts}
    print(f"experts: {', '.join(acted) or 'not known'}")
    if alike := family.num_starting_alike():
        print(
            f"{alike} episodes start as one of another task does: record them with seeds of their own"
        )


def _write(path: Path, demonstrations: DemonstrationSet) -> None:
    """Write a file that appears once it was read again: what it is refused for is seen now, not in a training run."""
    from apprentice.demonstrations.format import DemonstrationError
    from apprentice.demonstrations.reading import read_demonstrations
    from apprentice.demonstrations.writing import move_file, write_demonstrations

    path.parent.mkdir(parents=True, exist_ok=True)
    tried = path.with_name(f".{path.name}.{os.getpid()}.tried")
    try:
        write_demonstrations(tried, demonstrations)
        read_demonstrations(tried)
        move_file(tried, path)
    except DemonstrationError as error:
        raise DemonstrationError(str(error).replace(tried.name, path.name)) from None
    finally:
        tried.unlink(missing_ok=True)


def _show(path: Path, demonstrations: DemonstrationSet) -> None:
    metadata, spec = demonstrations.metadata, demonstrations.metadata.spec
    returns = demonstrations.returns
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")
    if spec is not None:
        print(f"task {spec.task_id}, action repeat {spec.action_repeat}")
    shapes = {k: list(v.shape[1:]) for k, v in demonstrations.trajectories[0].observation.items()}
    print(
        f"{len(returns)} episodes, {demonstrations.num_steps} steps, observations {shapes}, "
        f"actions [{demonstrations.trajectories[0].action.shape[1]}]"
    )
    print(
        f"returns: mean {sum(returns) / len(returns):.1f}, {min(returns):.1f} to {max(returns):.1f}"
    )
    for expert in metadata.experts:
        print(f"expert {expert.run} at step {expert.steps}, manifest {expert.digest[:16]}")
        if expert.return_mean is not None:
            print(
                f"expert's mean return {expert.return_mean:.1f} over {expert.return_episodes} "
                "episodes that nobody picked"
            )
    _warn_of_units(demonstrations)
    if demonstrations.clipped_share:
        print(f"{demonstrations.clipped_share:.2%} of action entries were cut before atanh")


def _warn_of_units(demonstrations: DemonstrationSet) -> None:
    from apprentice.demonstrations.format import doubt_of_units

    doubt = doubt_of_units(demonstrations)
    if doubt is not None:
        print(f"warning: {doubt}")


def _require_free(path: Path) -> None:
    if path.exists():
        raise CommandFailed(
            f"--out: expected a path that is free, found {path}: remove it or choose another",
            exit_codes.CONFIGURATION,
        )


def _with_output(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar=what)


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, found {text!r}")
    return number
