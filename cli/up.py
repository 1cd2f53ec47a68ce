"""`apprentice up`: train an experiment on this machine, all services under one supervisor."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from apprentice import exit_codes
from cli.evaluate import find_checkpoint
from cli.failure import CommandFailed
from cli.launch import Launch, exit_code_of, new_run, read_experiment, resumed_run, supervise
from cli.preparing import prepare
from cli.view import LiveView, PlainView, View

if TYPE_CHECKING:
    from cli.supervisor import Outcome


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("experiment", nargs="?", help="name under experiments/, or path of a file")
    parser.add_argument("--resume", metavar="RUN", help="go on with this run of the runs folder")
    parser.add_argument(
        "--warm-start",
        metavar="ID",
        help="begin with the policy of this checkpoint (--set learner.warm_start_networks=all: critics too)",
    )
    parser.add_argument(
        "--exit-when-done",
        action="store_true",
        help="stop the evaluation server too when the run has finished",
    )
    parser.add_argument("--plain", action="store_true", help="plain lines, even on a terminal")
    add_experiment_arguments(parser)
    add_folder_arguments(parser)


def add_experiment_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what selects one variant of an experiment and changes its settings."""
    parser.add_argument("--variant", type=int, metavar="N", help="variant of the experiment's grid")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a setting, as in --set sac.batch_size=128; may be repeated",
    )


def add_folder_arguments(parser: argparse.ArgumentParser) -> None:
    """Add where runs and replay checkpoints are kept."""
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), metavar="DIR", help="folder of runs (runs)"
    )
    parser.add_argument(
        "--replay-checkpoints",
        type=Path,
        default=Path("replay-checkpoints"),
        metavar="DIR",
        help="folder of the replay server's checkpoints (replay-checkpoints)",
    )


def run(arguments: argparse.Namespace) -> int:
    launch = _prepare(arguments)
    if launch is None:
        return 0
    return exit_code_of(
        watch(launch, exit_when_done=arguments.exit_when_done, plain=arguments.plain)
    )


def watch(
    launch: Launch, *, exit_when_done: bool, plain: bool, seconds: float | None = None
) -> Outcome:
    """Run until the end under the user's eyes, and tell them how it ended."""
    print(introduction(launch), flush=True)
    view = _make_view(launch, plain)
    try:
        outcome = supervise(
            launch,
            exit_when_done=exit_when_done,
            seconds=seconds,
            on_event=view.event,
            on_tick=view.tick,
        )
    finally:
        view.close()
    print(conclusion(launch, outcome), flush=True)
    return outcome


def introduction(launch: Launch) -> str:
    """Say what is about to run, where it is kept and where it can be reached."""
    return (
        f"run {launch.folder.path.name}: {launch.experiment.task}, "
        f"{launch.experiment.learner.max_steps:,} steps, in {launch.folder.path}\n"
        f"{_reach(launch)}\n"
        f"warning: the replay server (port {launch.ports.replay}) listens on all interfaces and "
        "asks nobody who they are; Reverb cannot do otherwise"
    )


def conclusion(launch: Launch, outcome: Outcome) -> str:
    """Say how the run ended, what it left behind, and how to go on."""
    name = launch.folder.path.name
    status = launch.folder.read_status()
    lines = []
    if outcome.kind == "failed":
        lines += [f"  {line}" for line in outcome.last_lines]
        lines.append(f"failed: {outcome.reason}")
        lines.append(f"its log: {launch.folder.logs / outcome.culprit}.log")
    elif status is not None:
        returns = status.evaluation_returns
        last = f", last evaluation {returns[-1]:,.1f}" if returns else ""
        lines.append(f"{status.state} at {status.steps:,} steps{last}")
    checkpoints = sorted(launch.folder.checkpoints.glob("step-*"))
    lines.append(f"last checkpoint: {checkpoints[-1] if checkpoints else 'none'}")
    if status is None or status.state != "finished":
        lines.append(f"go on with: apprentice up --resume {name}")
    elif checkpoints:
        lines.append(f"look at it: apprentice evaluate --checkpoint {name} --out rollouts")
    return "\n".join(lines)


def _reach(launch: Launch) -> str:
    url = launch.evaluation_url
    return (
        f"page: {url}/\n  curl -o rollout.mp4 '{url}/evaluate?checkpoint={launch.folder.path.name}'"
    )


def _prepare(arguments: argparse.Namespace) -> Launch | None:
    folders = (arguments.runs, arguments.replay_checkpoints)
    if arguments.resume is None:
        if arguments.experiment is None:
            raise CommandFailed("expected an EXPERIMENT or --resume RUN", exit_codes.CONFIGURATION)
        overrides = list(arguments.overrides)
        if arguments.warm_start is not None:
            path = find_checkpoint(arguments.warm_start, arguments.runs, "--warm-start").absolute()
            overrides.append(f"learner.warm_start={path}")
        experiment = read_experiment(arguments.experiment, arguments.variant, tuple(overrides))
        prepare(
            experiment,
            *folders,
            watch=lambda launch: watch(launch, exit_when_done=True, plain=arguments.plain),
        )
        return new_run(experiment, *folders)
    if arguments.overrides or arguments.variant is not None or arguments.warm_start is not None:
        raise CommandFailed(
            "--resume goes on with the experiment that the run was started with; "
            "leave out --set, --variant and --warm-start",
            exit_codes.CONFIGURATION,
        )
    launch = resumed_run(arguments.resume, *folders)
    if arguments.experiment not in (None, launch.experiment.name):
        raise CommandFailed(
            f"--resume: expected a run of {arguments.experiment}, "
            f"found one of {launch.experiment.name}",
            exit_codes.CONFIGURATION,
        )
    status = launch.folder.read_status()
    if status is not None and status.state == "finished":
        print(f"run {launch.folder.path.name} has finished at {status.steps:,} steps already")
        return None
    return launch


def _make_view(launch: Launch, plain: bool) -> View:
    read_status = launch.folder.read_status
    if plain or not sys.stdout.isatty():
        return PlainView(read_status)
    from rich.console import Console

    title = f"{launch.folder.path.name} · {launch.experiment.task}"
    return LiveView(Console(), title, _reach(launch), read_status)
