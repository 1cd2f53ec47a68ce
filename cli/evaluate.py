"""`apprentice evaluate`: run a policy and keep what it did: videos, frames, returns."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from apprentice import exit_codes
from apprentice.config_family import SPLITS, SplitName
from cli.failure import CommandFailed

if TYPE_CHECKING:
    import numpy as np

    from apprentice.config import Experiment
    from apprentice.demonstrations.context import ContextChoice
    from apprentice.evaluation import Episode, Evaluation

_FORMATS = ("mp4", "gif", "webp")
FILE_SUFFIXES = (".hdf5", ".h5")
"""What asks for demonstrations by the name of their file ends so; all else is a number or ids."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        default="latest",
        metavar="ID",
        help="RUN, RUN:latest, RUN:best, RUN:STEP, latest, or the path of a checkpoint's folder",
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument("--episodes", type=_positive, default=1, metavar="N", help="of each task")
    parser.add_argument(
        "--task",
        metavar="ID",
        help="another task than the checkpoint's; train, validation or test for a family's, whose default is test",
    )
    parser.add_argument(
        "--context",
        metavar="N|IDS|FILE",
        help="demonstrations shown to a policy that infers its task: how many, drawn with the seed (1); ids:7,9: these "
        "of the task's; or all of a file of your own (.hdf5), in whose task it then acts",
    )
    parser.add_argument("--seed", type=_not_negative, default=0, help="seed of the first episode")
    parser.add_argument(
        "--stochastic", action="store_true", help="draw actions instead of taking the likeliest"
    )
    parser.add_argument("--max-steps", type=_positive, metavar="N", help="cut episodes short")
    parser.add_argument("--format", choices=(*_FORMATS, "json"), default="mp4")
    parser.add_argument("--no-frames", action="store_true", help="write no single pictures (PNG)")
    parser.add_argument("--fps", type=_positive, default=25, help="frames a second, in real time")
    parser.add_argument("--width", type=_size, default=320)
    parser.add_argument("--height", type=_size, default=320)
    parser.add_argument("--camera", type=int, default=0, help="number of the camera; -1 is free")
    parser.add_argument("--quality", choices=("full", "look", "fast"), default="look")
    parser.add_argument(
        "--deadline", type=float, default=3600.0, metavar="SECONDS", help="give up after this long"
    )


def run(arguments: argparse.Namespace) -> int:
    file = _file_of_context(arguments)
    path = find_checkpoint(arguments.checkpoint, arguments.runs)
    from apprentice.checkpoint import CheckpointError, experiment_of, load_policy
    from apprentice.environments import RenderingUnavailable
    from apprentice.evaluation import EvaluationError, evaluate

    try:
        policy, manifest = load_policy(path, seed=arguments.seed)
        experiment = experiment_of(manifest)
    except CheckpointError as error:
        raise CommandFailed(f"{path}: {error}", exit_codes.CONFIGURATION) from None
    seeds = range(arguments.seed, arguments.seed + arguments.episodes)
    tasks, context = _tasks_and_context(arguments, file, path, experiment)
    if arguments.format != "json":
        _require_camera(arguments.camera, tasks[0], experiment)
    try:
        evaluation = evaluate(
            policy,
            tasks,
            seeds,
            observation=experiment.acting_keys,
            settings=experiment.environment,
            deterministic=not arguments.stochastic,
            max_steps=arguments.max_steps,
            keep_trajectories=0 if arguments.format == "json" else arguments.episodes * len(tasks),
            deadline_seconds=arguments.deadline,
            context=context,
        )
    except EvaluationError as error:
        raise CommandFailed(f"{path}: {error}") from None
    except RenderingUnavailable as error:
        raise CommandFailed(f"{path}: the policy reads pixels: {error}") from None
    report = {
        "checkpoint": path.name,
        "run": manifest.run,
        "steps": manifest.steps,
        "task": arguments.task or (tasks[0] if len(tasks) == 1 else experiment.task),
        **evaluation.report(),
        **({} if file is None else {"context_file": file}),
    }
    report_file = arguments.out / "evaluation.json"
    _make_folder(arguments.out)
    try:
        written = _write_pictures(arguments, experiment, evaluation)
        report_file.write_text(json.dumps(report, indent=2) + "\n")
    except OSError as error:
        raise CommandFailed(f"--out: cannot write to {arguments.out}: {error}") from None
    for episode in evaluation.episodes:
        where = f"{episode.task}, " if len(tasks) > 1 else ""
        print(
            f"{where}seed {episode.seed}: return {episode.environment_return:.1f}, {episode.length} steps"
        )
    print(f"mean return {report['return_mean']:.1f} over {len(evaluation.episodes)} episodes")
    for name, value in evaluation.metrics_mean.items():
        print(f"mean {name} {value:.3g}")
    for file in (*written, report_file):
        print(file)
    return 0


def find_checkpoint(text: str, runs: Path, flag: str = "--checkpoint") -> Path:
    """Return the folder of the checkpoint that the user means with `flag`, by path or by id."""
    if Path(text).exists():
        return Path(text)
    from apprentice.runs import Catalogue, InvalidCheckpointId, UnknownCheckpoint

    try:
        return Catalogue(runs).resolve(text).path
    except (InvalidCheckpointId, UnknownCheckpoint) as error:
        raise CommandFailed(f"{flag}: {error}", exit_codes.CONFIGURATION) from None


def _tasks(asked: str | None, experiment: Experiment) -> list[str]:
    """Return ids of the tasks to evaluate in: one, or a division of a family."""
    from apprentice.environments import UnknownTask, environment_spec, experiment_specs
    from apprentice.environments.families import task_split

    if experiment.is_family and asked in (None, *SPLITS):
        split = task_split(experiment.task, experiment.environment.family)
        name: SplitName = next((name for name in SPLITS if name == asked), "test")
        return [task.task_id for task in split.of(name)]
    if asked is None:
        return [experiment.task]
    keys, settings = experiment.acting_keys, experiment.environment
    try:
        found = environment_spec(asked, keys, settings)
    except (UnknownTask, ValueError) as error:
        raise CommandFailed(f"--task: {error}", exit_codes.CONFIGURATION) from None
    expected = experiment_specs(experiment.task, keys, settings)[0]
    if (found.observation, found.action) != (expected.observation, expected.action):
        raise CommandFailed(
            f"--task: expected a task that looks like {experiment.task}, found {asked} with observations "
            f"{ {k: list(s.shape) for k, s in found.observation.items()} } and {found.action_size} actions",
            exit_codes.CONFIGURATION,
        )
    return [asked]


def _file_of_context(arguments: argparse.Namespace) -> str | None:
    """Return the file that is to be shown, where it is one; refuse what is neither that nor a number or ids."""
    asked: str | None = arguments.context
    if asked is None:
        return None
    if not asked.lower().endswith(FILE_SUFFIXES):
        if Path(asked).exists() and not asked.isdecimal():
            raise CommandFailed(
                f"--context: expected a demonstration file ({' or '.join(FILE_SUFFIXES)}), how many demonstrations, or "
                f"ids:7,9; found {asked}",
                exit_codes.CONFIGURATION,
            )
        return None
    if arguments.task in SPLITS:
        raise CommandFailed(
            f"--task: expected none with --context {asked}, whose task is acted in, or that task's id; found "
            f"{arguments.task}",
            exit_codes.CONFIGURATION,
        )
    return asked


def _tasks_and_context(
    arguments: argparse.Namespace, file: str | None, checkpoint: Path, experiment: Experiment
) -> tuple[list[str], ContextChoice | None]:
    """Return the tasks, and what is shown in them to a policy that infers its task."""
    from apprentice.demonstrations.context import choose_context
    from apprentice.demonstrations.format import DemonstrationError
    from apprentice.demonstrations.own_context import context_of_file

    try:
        if file is not None:
            task, choice = context_of_file(Path(file), experiment, arguments.task)
            return _tasks(task, experiment), choice
        tasks = _tasks(arguments.task, experiment)
        return tasks, choose_context(arguments.context, checkpoint, experiment.infers_task, tasks)
    except DemonstrationError as error:
        raise CommandFailed(f"--context: {error}", exit_codes.CONFIGURATION) from None


def _require_camera(camera: int, task: str, experiment: Experiment) -> None:
    from apprentice.evaluation import require_camera

    try:
        require_camera(task, experiment.environment, camera)
    except ValueError as error:
        raise CommandFailed(f"--camera: {error}", exit_codes.CONFIGURATION) from None


def _write_pictures(
    arguments: argparse.Namespace, experiment: Experiment, evaluation: Evaluation
) -> list[Path]:
    """Render every kept episode into a video, and its frames beside it."""
    if arguments.format == "json":
        return []
    from apprentice.environments import RenderingUnavailable, environment_spec
    from apprentice.evaluation import playback_fps
    from apprentice.video import EncodingError, encode_gif, encode_mp4, encode_webp

    encode = {"mp4": encode_mp4, "gif": encode_gif, "webp": encode_webp}[arguments.format]
    rate = playback_fps(
        environment_spec(
            evaluation.episodes[0].task, experiment.acting_keys, experiment.environment
        ).step_seconds,
        arguments.fps,
    )
    written = []
    for number, episode in enumerate(evaluation.episodes):
        video = arguments.out / f"episode-{number:03}.{arguments.format}"
        frames = _rendered(arguments, experiment, episode)
        if not arguments.no_frames:
            frames = _kept(frames, arguments.out / f"episode-{number:03}")
        begun = time.monotonic()
        try:
            encode(frames, rate, video)
        except RenderingUnavailable as error:
            raise CommandFailed(f"{error}; --format json needs no rendering") from None
        except EncodingError as error:
            raise CommandFailed(f"{video}: {error}; --format json needs no pictures") from None
        print(f"{video.name}: {time.monotonic() - begun:.1f} s", file=sys.stderr)
        written.append(video)
    return written


def _rendered(
    arguments: argparse.Namespace, experiment: Experiment, episode: Episode
) -> Iterator[np.ndarray]:
    from apprentice.evaluation import render_trajectory

    assert episode.trajectory is not None
    return render_trajectory(
        episode.task,
        experiment.environment,
        episode.trajectory,
        width=arguments.width,
        height=arguments.height,
        camera=arguments.camera,
        fps=arguments.fps,
        quality=arguments.quality,
    )


def _kept(frames: Iterable[np.ndarray], folder: Path) -> Iterator[np.ndarray]:
    """Pass frames on, and write each as PNG."""
    from PIL import Image

    _make_folder(folder)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"frame-{number:05}.png", compress_level=1)
        yield frame


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandFailed(f"--out: cannot write to {folder}: {error}") from None


def _whole_number(text: str, low: int, high: int | None = None) -> int:
    limits = f"from {low}" + (f" to {high}" if high is not None else " on")
    try:
        number = int(text)
    except ValueError:
        number = None
    if number is None or number < low or (high is not None and number > high):
        raise argparse.ArgumentTypeError(f"expected a whole number {limits}, found {text!r}")
    return number


def _positive(text: str) -> int:
    return _whole_number(text, 1)


def _not_negative(text: str) -> int:
    return _whole_number(text, 0)


def _size(text: str) -> int:
    number = _whole_number(text, 16, 640)
    if number % 2:
        raise argparse.ArgumentTypeError(f"expected an even number, found {text}")
    return number
