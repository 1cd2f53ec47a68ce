"""Every committed result can still be read, and its command can still be given."""

from __future__ import annotations

import ast
import csv
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from benchmarks.results_schema import FAMILY_COLUMNS, LEARNING_COLUMNS, SPEED_COLUMNS
from cli.main import parse

_ROOT = Path(__file__).resolve().parents[2]
_RESULTS = sorted((_ROOT / "benchmarks" / "results").glob("*.csv"))


def _complaints(path: Path) -> list[str]:
    """Say what is wrong with a file of results; [] where nothing is."""
    with path.open(newline="") as source:
        reader = csv.DictReader(source)
        columns = tuple(reader.fieldnames or ())
        rows = list(reader)
    if columns not in (SPEED_COLUMNS, LEARNING_COLUMNS, FAMILY_COLUMNS):
        return [f"columns are {columns}"]
    complaints = [] if rows else ["no rows"]
    numbers = ("ours", "peer", "ratio") if columns == SPEED_COLUMNS else ("return", "normalised")
    for row in rows:
        wrong = [
            f"{name} is {row[name]!r}, no number" for name in numbers if not _is_number(row[name])
        ]
        complaints += wrong
        if columns == SPEED_COLUMNS and row["peer"] and not wrong:
            ratio = float(row["ours"]) / float(row["peer"])
            if abs(float(row["ratio"]) - ratio) > 1e-3 * max(1.0, ratio):
                complaints.append(f"ratio is {row['ratio']}, ours / peer is {ratio}")
        complaint = _complaint_of_command(row["command"])
        complaints += [complaint] if complaint else []
    return complaints


def _is_number(text: str | None) -> bool:
    try:
        float(text or "0")  # Empty where there is nothing to compare with.
    except (TypeError, ValueError):
        return False
    return True


@cache
def _complaint_of_command(command: str) -> str:
    """Return "" for a command that today's parsers accept."""
    words = shlex.split(command)
    if words[:1] == ["apprentice"]:
        try:
            parsed = parse(words[1:])
        except SystemExit:
            return f"{command!r}: the parser of `apprentice` refuses it"
        if parsed.command != "bench":
            return ""
        further = shlex.split(parsed.arguments)
        scripts = [f"benchmarks/{name}.py" for name in parsed.names]
        return next(filter(None, (_complaint_of_script(s, further) for s in scripts)), "")
    if len(words) > 1 and words[0].startswith("python") and words[1].startswith("benchmarks/"):
        return _complaint_of_script(words[1], words[2:])
    return f"{command!r}: starts neither with `apprentice` nor with `python benchmarks/`"


def _complaint_of_script(script: str, arguments: list[str]) -> str:
    if not (_ROOT / script).exists():
        return f"{script}: there is no such script"
    usage = _help_of(script)
    flags = [word.partition("=")[0] for word in arguments if word.startswith("--")]
    unknown = [flag for flag in [*flags, "--json"] if flag not in usage]
    return f"{script}: has no {', '.join(unknown)}" if unknown else ""


@cache
def _help_of(script: str) -> frozenset[str]:
    """Return the words of what `--help` prints."""
    done = subprocess.run(
        [sys.executable, str(_ROOT / script), "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=_ROOT,
        check=True,
    )
    separators = str.maketrans(dict.fromkeys("[],=", " "))
    return frozenset(done.stdout.translate(separators).split())


@pytest.mark.parametrize("path", _RESULTS, ids=lambda path: path.stem)
def test_committed_results_have_known_columns_and_commands_that_parse(path: Path) -> None:
    assert _complaints(path) == []


@pytest.mark.parametrize(
    "script", sorted((_ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.stem
)
def test_every_script_says_what_it_is(script: Path) -> None:
    assert (ast.get_docstring(ast.parse(script.read_text())) or "").strip()


_GOOD = {
    "benchmark": "wheels",
    "unit": "1/s",
    "ours": "3.0",
    "peer_name": "cart",
    "peer": "2.0",
    "ratio": "1.5",
    "command": "apprentice bench --list",
    "commit": "0123456789ab",
    "hardware": "abacus",
    "date": "2026-01-01",
}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({}, ""),
        ({"peer": "", "peer_name": "", "ratio": ""}, ""),
        ({"command": "apprentice bench --lst"}, "refuses it"),
        ({"command": "apprentice bench no_such_benchmark"}, "there is no such script"),
        ({"command": "make fast"}, "starts neither"),
        ({"command": "python benchmarks/gone.py --json"}, "there is no such script"),
        ({"ours": "fast"}, "no number"),
        ({"ratio": "1.6"}, "ours / peer is 1.5"),
    ],
)
def test_the_check_itself_finds_what_is_wrong(
    tmp_path: Path, change: dict[str, str], complaint: str
) -> None:
    path = tmp_path / "wheels.csv"
    with path.open("w", newline="") as output:
        writer = csv.DictWriter(output, SPEED_COLUMNS)
        writer.writeheader()
        writer.writerow(_GOOD | change)
    found = _complaints(path)
    assert len(found) == (1 if complaint else 0)
    assert complaint in "".join(found)


def test_the_check_finds_unknown_columns_and_empty_files(tmp_path: Path) -> None:
    path = tmp_path / "wheels.csv"
    path.write_text("benchmark,ours\nwheels,3\n")
    assert _complaints(path) == ["columns are ('benchmark', 'ours')"]
    path.write_text(",".join(LEARNING_COLUMNS) + "\n")
    assert _complaints(path) == ["no rows"]


def test_the_check_finds_flags_that_a_script_has_lost(tmp_path: Path) -> None:
    script = tmp_path / "wheels.py"
    script.write_text(
        "import argparse\nparser = argparse.ArgumentParser()\n"
        "parser.add_argument('--json', action='store_true')\n"
        "parser.add_argument('--rounds')\nparser.parse_args()\n"
    )
    assert _complaint_of_script(str(script), ["--rounds", "3"]) == ""
    assert "--seconds" in _complaint_of_script(str(script), ["--seconds=3"])
