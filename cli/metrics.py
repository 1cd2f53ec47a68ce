"""`apprentice metrics RUN`: a run's metrics as CSV, one row for each line of its `metrics.jsonl`.

The columns are `time, steps, updates` and then, sorted, every key that stands anywhere in the file. A row
without a key has an empty cell there, so no value ever comes under the name of another.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import math
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from apprentice import exit_codes
from cli.failure import CommandFailed

if TYPE_CHECKING:
    from apprentice.metrics import MetricsRow
    from apprentice.runs import RunFolder

_MOMENT = ("time", "steps", "updates")
_STANDARD_OUTPUT = "-"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run's name, or latest: the newest")
    parser.add_argument(
        "--out", required=True, metavar="FILE", help="CSV file to write; - is standard output"
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), metavar="DIR", help="folder of runs (runs)"
    )


def run(arguments: argparse.Namespace) -> int:
    from apprentice.metrics import read_metrics

    folder = find_run(arguments.run, arguments.runs)
    try:
        rows, num_torn = read_metrics(folder.metrics)
    except OSError as error:
        raise CommandFailed(f"{folder.metrics} cannot be read: {error.strerror}") from None
    if num_torn:
        print(f"torn lines of {folder.metrics} skipped: {num_torn}", file=sys.stderr)
    if not rows:
        print(f"run {folder.path.name} has no metrics yet", file=sys.stderr)
    if arguments.out == _STANDARD_OUTPUT:
        write_csv(rows, sys.stdout)
        return 0
    with _whole_file(Path(arguments.out)) as file:
        write_csv(rows, file)
    return 0


def find_run(name: str, runs: Path) -> RunFolder:
    """Return the run that the user means; end the command, saying which there are, where it is none."""
    from apprentice.runs import Catalogue, UnknownCheckpoint

    catalogue = Catalogue(runs)
    newest = catalogue.runs()[:1] if name == "latest" else ()
    try:
        return newest[0] if newest else catalogue.find_run(name)
    except UnknownCheckpoint as error:
        raise CommandFailed(f"{name} in {runs}: {error}", exit_codes.CONFIGURATION) from None


def write_csv(rows: Sequence[MetricsRow], file: TextIO) -> None:
    """Write a header and the rows; each number reads back as the very same one."""
    keys = sorted({key for row in rows for key in row.metrics})
    writer = csv.writer(file)
    writer.writerow((*_MOMENT, *keys))
    for row in rows:
        values = (row.metrics.get(key) for key in keys)
        writer.writerow((repr(row.time), row.steps, row.updates, *map(_cell, values)))


def _cell(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else repr(value)


@contextlib.contextmanager
def _whole_file(path: Path) -> Iterator[TextIO]:
    """Open a file beside `path` that takes its place once it is complete."""
    if path.exists() and not path.is_file():
        raise CommandFailed(
            f"--out {path}: expected the name of a file, found something else there; "
            "- writes to standard output",
            exit_codes.CONFIGURATION,
        )
    target = path.resolve()
    stage = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        # The csv module ends lines itself.
        with stage.open("w", encoding="utf-8", newline="") as file:
            yield file
        os.rename(stage, target)
    except OSError as error:
        raise CommandFailed(f"--out {path}: cannot be written: {error.strerror}") from None
    finally:
        stage.unlink(missing_ok=True)
