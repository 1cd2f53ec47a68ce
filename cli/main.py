"""The `apprentice` command: finds the subcommand and runs it.

Only the module of the chosen subcommand is imported, and each imports what is slow once it runs, so
`apprentice --help` answers at once and most commands work without TensorFlow.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from cli.failure import CommandFailed

COMMANDS = {
    "up": "train: start all services of an experiment on this machine",
    "grid": "run all variants of an experiment, one after the other",
    "control": "pause, resume, stop or checkpoint a run that is going on",
    "pin": "keep a checkpoint for good, whatever newer ones a run writes",
    "choose": "choose or make the run that services in containers work on",
    "experiments": "list the experiments and what they resolve to",
    "evaluate": "evaluate a checkpoint: videos, frames and returns into a folder",
    "demos": "record, look at and convert demonstrations",
    "families": "measure final policies in tasks of their family that they never learned",
    "report": "measure the final policies of runs: rows, a table, a plot",
    "heatmap": "draw the reward that a run learned over two coordinates",
    "metrics": "write the metrics of a run as CSV",
    "profile": "show where the time of a run goes",
    "bench": "measure ourselves against others",
    "doctor": "check this machine: versions, rendering, ports, disk",
}
"""Subcommand and its line of help. Its module `cli.<name>` has `add_arguments` and `run`."""


def build_parser(command: str | None) -> argparse.ArgumentParser:
    """Return the parser of `apprentice`, with the arguments of `command` only."""
    parser = argparse.ArgumentParser(
        prog="apprentice", description="Learns control policies from demonstrations."
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, line in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=line, description=line.capitalize() + ".")
        if name == command:
            importlib.import_module(f"cli.{name}").add_arguments(subparser)
    return parser


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse a command line without `apprentice`; exits with 2, saying why, where it is wrong."""
    command = next((word for word in arguments if not word.startswith("-")), None)
    return build_parser(command if command in COMMANDS else None).parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    parsed = parse(sys.argv[1:] if arguments is None else arguments)
    command = importlib.import_module(f"cli.{parsed.command}")
    try:
        return int(command.run(parsed))
    except CommandFailed as failure:
        print(f"apprentice {parsed.command}: {failure}", file=sys.stderr)
        return failure.exit_code
    except KeyboardInterrupt:
        print(f"apprentice {parsed.command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (`head`, say) has gone; there is nobody left to tell.
        sys.stderr.close()
        return 0
