"""`apprentice profile`: where the wall time of each process of a run goes.

Runs the experiment for a while, as `apprentice up` does, and prints what its processes measured of
themselves; then what an evaluation of its last checkpoint takes: loading, acting, drawing, encoding.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from apprentice import exit_codes
from apprentice.profiling import Profile
from cli.failure import CommandFailed
from cli.launch import new_run, read_experiment, supervise
from cli.spans import ProcessProfile, describe_sum, process_profile, read_profiles, to_json
from cli.up import add_experiment_arguments
from cli.view import PlainView

if TYPE_CHECKING:
    from apprentice.runs import RunFolder

_EVALUATION_SECONDS = 600.0
_FPS = 25.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("experiment", help="name under experiments/, or path of a file")
    parser.add_argument(
        "--seconds", type=float, default=120.0, metavar="S", help="time to run for (120)"
    )
    parser.add_argument("--json", action="store_true", help="print the table as JSON")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="keep the run there (default: thrown away)"
    )
    add_experiment_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    experiment = read_experiment(
        arguments.experiment, arguments.variant, tuple(arguments.overrides)
    )
    with tempfile.TemporaryDirectory(prefix="apprentice-profile-") as scratch:
        root = arguments.keep or Path(scratch)
        launch = new_run(experiment, root / "runs", root / "replay-checkpoints")
        view = _ProgressView(launch.folder.read_status)
        outcome = supervise(
            launch,
            exit_when_done=True,
            seconds=arguments.seconds,
            on_event=view.event,
            on_tick=view.tick,
        )
        if outcome.kind in ("failed", "killed"):
            end = "".join(f"\n  {line}" for line in outcome.last_lines)
            raise CommandFailed(f"the run {outcome.kind}: {outcome.reason}{end}", exit_codes.FAILED)
        profiles = read_profiles(launch.folder.path)
        if profiles:
            profiles += _evaluation_profiles(launch.folder)
    if not profiles:
        raise CommandFailed(
            f"no spans arrived within {arguments.seconds:g} seconds; try more --seconds"
        )
    if arguments.json:
        print(json.dumps(to_json(experiment.name, arguments.seconds, profiles), indent=2))
    else:
        _print_tables(profiles)
    return 0


def _evaluation_profiles(folder: RunFolder) -> tuple[ProcessProfile, ...]:
    """Evaluate the last checkpoint for an episode and make a video of it; nothing where there is none to use."""
    from apprentice.checkpoint import experiment_of, load_policy, newest_checkpoint
    from apprentice.demonstrations.context import choose_context
    from apprentice.environments import RenderingUnavailable, experiment_specs
    from apprentice.evaluation import evaluate, playback_fps, render_trajectory
    from apprentice.video import encode_mp4

    found = newest_checkpoint(folder.checkpoints, repair=False)
    if found is None:
        return ()
    path, _ = found
    profile = Profile()
    policy, manifest = load_policy(path)
    profile.lap("checkpoint loading")
    experiment = experiment_of(manifest)
    settings = experiment.environment
    spec = experiment_specs(experiment.task, experiment.acting_keys, settings)[0]
    try:
        evaluation = evaluate(
            policy,
            spec.task_id,
            range(1),
            observation=experiment.acting_keys,
            settings=settings,
            keep_trajectories=1,
            deadline_seconds=_EVALUATION_SECONDS,
            context=choose_context(None, path, experiment.infers_task, [spec.task_id]),
        )
        (episode,) = evaluation.episodes
        profile.lap("evaluation", episode.length)
        assert episode.trajectory is not None
        fps = playback_fps(spec.step_seconds, _FPS)
        drawn = render_trajectory(
            spec.task_id, settings, episode.trajectory, width=320, height=240, fps=fps
        )
        frames = list(drawn)
        profile.lap("rendering", len(frames))
        encode_mp4(iter(frames), fps)
        profile.lap("encoding", len(frames))
    except RenderingUnavailable as error:
        print(f"drawing is not measured: {error}", file=sys.stderr)
    spans = {name: span for name, span in profile.snapshot().items() if name != "other"}
    return (process_profile("an evaluation, as a video of 320 x 240", spans),)


def _print_tables(profiles: Iterable[ProcessProfile]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for profile in profiles:
        table = Table(title=profile.process, title_justify="left", caption_justify="left")
        table.caption = describe_sum(profile)
        table.add_column("span")
        for heading in ("seconds", "units", "µs per unit", "share of wall"):
            table.add_column(heading, justify="right")
        for span in profile.spans:
            per_unit = span.microseconds_per_unit
            table.add_row(
                span.name,
                f"{span.seconds:,.2f}",
                f"{span.units:,}",
                "" if per_unit is None else f"{per_unit:,.2f}",
                f"{100 * span.share:.1f} %",
            )
        console.print(table)


class _ProgressView(PlainView):
    """Plain lines on standard error: standard output is the table's."""

    def show(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)
