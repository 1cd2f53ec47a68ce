"""`apprentice profile`: where the wall time of each process of a run goes.

Runs the experiment for a while, as `apprentice up` does, and prints what its processes measured of
themselves.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from apprentice import exit_codes
from cli.failure import CommandFailed
from cli.launch import new_run, read_experiment, supervise
from cli.spans import ProcessProfile, describe_sum, read_profiles, to_json
from cli.up import add_experiment_arguments
from cli.view import PlainView


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
    if not profiles:
        raise CommandFailed(
            f"no spans arrived within {arguments.seconds:g} seconds; try more --seconds"
        )
    if arguments.json:
        print(json.dumps(to_json(experiment.name, arguments.seconds, profiles), indent=2))
    else:
        _print_tables(profiles)
    return 0


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
