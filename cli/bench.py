"""`apprentice bench`: runs the scripts under `benchmarks/` and keeps their results as CSV.

A benchmark is a script whose docstring's first line says what it measures, which takes `--json`
and then prints one JSON list of rows: `benchmark, unit, ours, peer_name, peer` for speed, or the
columns of learning. What identifies the run (command, commit, hardware, date) is added here.
"""

from __future__ import annotations

import argparse
import ast
import csv
import json
import runpy
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from apprentice import exit_codes
from cli.failure import CommandFailed
from cli.machine import describe_commit, describe_hardware

_FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
_LONGEST_SECONDS = 24 * 3600.0

Row = dict[str, str | float | int | None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="benchmarks to run")
    parser.add_argument("--list", action="store_true", help="list the benchmarks and run none")
    parser.add_argument("--all", action="store_true", help="run all; some train for hours")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument(
        "--arguments",
        default="",
        metavar="TEXT",
        help="further arguments of the one script named, as in --arguments='--seconds 5'",
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=_FOLDER / "results",
        metavar="DIR",
        help="folder of the CSV files that rows are added to (default: benchmarks/results)",
    )
    parser.add_argument("--scripts", type=Path, default=_FOLDER, help=argparse.SUPPRESS)


def run(arguments: argparse.Namespace) -> int:
    registry = benchmarks(arguments.scripts)
    if arguments.list:
        for name, line in registry.items():
            print(f"{name:28} {line}")
        return 0
    names = list(registry) if arguments.all else arguments.names
    if not names:
        raise CommandFailed(
            f"expected benchmarks to run, or --all; there are {', '.join(registry)}",
            exit_codes.CONFIGURATION,
        )
    unknown = [name for name in names if name not in registry]
    if unknown:
        raise CommandFailed(
            f"expected benchmarks out of {', '.join(registry)}; found {', '.join(unknown)}",
            exit_codes.CONFIGURATION,
        )
    if arguments.arguments and len(arguments.names) != 1:
        raise CommandFailed(
            "--arguments: name the one benchmark it is for", exit_codes.CONFIGURATION
        )
    rows: list[Row] = []
    for name in names:
        new = _measure(arguments.scripts, name, shlex.split(arguments.arguments))
        append_rows(arguments.results / f"{name}.csv", new, _columns_of(new))
        rows += new
    if arguments.json:
        print(json.dumps(rows, indent=2))
    else:
        _print_table(rows)
    return 0


def benchmarks(folder: Path = _FOLDER) -> dict[str, str]:
    """Return the name of each benchmark and the line that says what it measures."""
    found = {}
    for script in sorted(folder.glob("*.py")):
        source = script.read_text()
        if "__main__" in source:
            found[script.stem] = (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
    return found


def append_rows(path: Path, rows: Sequence[Row], columns: Sequence[str]) -> None:
    """Add rows to a CSV file, which is made with its header if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    if not is_new:
        with path.open(newline="") as existing:
            header = next(csv.reader(existing), [])
        if header != list(columns):
            raise CommandFailed(
                f"{path}: expected the columns {', '.join(columns)}; found {', '.join(header)}; "
                "move the file away"
            )
    with path.open("a", newline="") as output:
        writer = csv.DictWriter(output, columns, extrasaction="raise")
        if is_new:
            writer.writeheader()
        writer.writerows(rows)


def _measure(folder: Path, name: str, further: Sequence[str]) -> list[Row]:
    """Run one benchmark and return its rows, complete."""
    command = [sys.executable, str(folder / f"{name}.py"), "--json", *further]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603
    try:
        output, _ = process.communicate(timeout=_LONGEST_SECONDS)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(timeout=10)
    if process.returncode != 0:
        raise CommandFailed(f"{name}: exited with {process.returncode}; see its messages above")
    measured = _read_rows(name, output)
    stamp: Row = {
        "command": f"apprentice bench {name}"
        + (f" --arguments={shlex.quote(shlex.join(further))}" if further else ""),
        "commit": describe_commit(),
        "hardware": describe_hardware(),
        "date": datetime.now(UTC).date().isoformat(),
    }
    return [_complete(name, row, stamp) for row in measured]


def _read_rows(name: str, output: str) -> list[Row]:
    try:
        rows = json.loads(output)
    except ValueError:
        rows = None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise CommandFailed(
            f"{name}: expected a JSON list of rows on standard output, found {output[:200]!r}"
        )
    return rows


def _complete(name: str, measured: Mapping[str, str | float | int | None], stamp: Row) -> Row:
    row: Row = {**measured, **stamp}
    if "benchmark" in row:
        row["ratio"] = _ratio(row.get("ours"), row.get("peer"))
    columns = _columns_of([row])
    missing = [column for column in columns if column not in row]
    surplus = sorted(set(measured) - set(columns))
    if missing or surplus:
        raise CommandFailed(
            f"{name}: expected {', '.join(columns)}; lacks {missing}, has {surplus}"
        )
    return {column: row[column] for column in columns}


def _ratio(ours: str | float | int | None, peer: str | float | int | None) -> float | None:
    if isinstance(ours, int | float) and isinstance(peer, int | float) and peer:
        return round(ours / peer, 4)
    return None


def _columns_of(rows: Sequence[Row]) -> tuple[str, ...]:
    schema = runpy.run_path(str(_FOLDER / "results_schema.py"))
    key = "SPEED_COLUMNS" if "benchmark" in rows[0] else "LEARNING_COLUMNS"
    columns: tuple[str, ...] = schema[key]
    return columns


def _print_table(rows: Sequence[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    hidden = {"command", "commit", "hardware", "date"}
    for kind in (True, False):
        chosen = [row for row in rows if ("benchmark" in row) is kind]
        if not chosen:
            continue
        columns = [column for column in chosen[0] if column not in hidden]
        table = Table(*columns)
        for row in chosen:
            table.add_row(*(_show(row[column]) for column in columns))
        Console().print(table)


def _show(value: str | float | int | None) -> str:
    if value is None:
        return ""
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
