"""Nothing that is waited for, leased or ordered depends on the time of day, which may jump."""

from __future__ import annotations

import ast
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from apprentice.checkpoint import newest_checkpoint, prune_checkpoints
from tests.checkpoint_cases import write_example

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("actor", "apprentice", "cli", "evalserver", "learner", "replay")
GENERATED = ROOT / "apprentice" / "rpc" / "v1"
WALL_CLOCK = {
    "time.time",
    "time.time_ns",
    "time.localtime",
    "time.gmtime",
    "time.ctime",
    "datetime.now",
    "datetime.utcnow",
    "datetime.today",
    "date.today",
    "datetime.datetime.now",
    "datetime.datetime.utcnow",
    "datetime.datetime.today",
    "datetime.date.today",
    "time.clock_gettime",
    "os.path.getmtime",
}
FILE_TIMES = {"st_mtime", "st_mtime_ns", "st_ctime", "st_ctime_ns", "st_birthtime"}
SHOWN_ONLY = {
    ("apprentice/checkpoint.py", "datetime.now"): "`created` in the manifest",
    (
        "apprentice/demonstrations/context.py",
        "st_mtime_ns",
    ): "whether a folder is the one that was read",
    ("apprentice/event_file.py", "time.time"): "TensorBoard's time axis",
    ("apprentice/metrics.py", "time.time"): "`time` of a line of metrics.jsonl",
    ("apprentice/runs.py", "datetime.now"): "a run's name, and `updated` in status.json",
    ("apprentice/runs.py", "st_mtime"): "when a run without a name or status of ours began",
    ("cli/bench.py", "datetime.now"): "the date of a result",
    ("evalserver/page.py", "datetime.now"): "how old a run's status is, on the page",
    ("evalserver/routes.py", "st_mtime_ns"): "whether a file is the one that is in the cache",
}
"""Who may read the time of day, and for what."""


def readings(text: str) -> Iterator[str]:
    """Find where a module reads the time of day or a file's."""
    tree = ast.parse(text)
    imported: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported.update({a.asname or a.name: a.name for a in node.names})
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names = {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
            imported.update(names)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in FILE_TIMES:
            yield node.attr
        if not isinstance(node, ast.Attribute | ast.Name) or not isinstance(node.ctx, ast.Load):
            continue
        name = ast.unparse(node)
        first, dot, rest = name.partition(".")
        full = imported.get(first, first) + dot + rest
        short = full.removeprefix("datetime.") if full.count(".") > 1 else full
        if full in WALL_CLOCK:
            yield short


def found_in_sources() -> set[tuple[str, str]]:
    return {
        (str(file.relative_to(ROOT)), reading)
        for package in PACKAGES
        for file in (ROOT / package).rglob("*.py")
        if GENERATED not in file.parents
        for reading in readings(file.read_text())
    }


def test_only_what_is_shown_reads_the_time_of_day() -> None:
    assert found_in_sources() == SHOWN_ONLY.keys()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import time\ndeadline = time.time() + 3", ["time.time"]),
        ("import time as clock\nclock.time()", ["time.time"]),
        ("from time import time\ntime()", ["time.time"]),
        ("from time import time as now\nLeases(30.0, now)", ["time.time"]),
        ("from datetime import datetime, UTC\ndatetime.now(UTC)", ["datetime.now"]),
        ("import datetime\ndatetime.datetime.now()", ["datetime.now"]),
        ("path.stat().st_mtime", ["st_mtime"]),
        ("import time\ntime.monotonic(); time.sleep(1); time.perf_counter()", []),
        ("def f(time): return time.seconds", []),
    ],
)
def test_the_search_finds_each_way_to_read_it(text: str, expected: list[str]) -> None:
    assert list(readings(text)) == expected


def test_checkpoints_are_ordered_by_steps_whatever_the_clock_said(tmp_path: Path) -> None:
    for steps in (
        30,
        20,
        10,
    ):  # the clock stepped back: the furthest one is the oldest by its files
        path = write_example(tmp_path, steps)
        ahead = time.time() + 86_400 * (40 - steps)
        for file in (*path.iterdir(), path):
            os.utime(file, (ahead, ahead))
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert found[1].steps == 30
    prune_checkpoints(tmp_path, 1)
    assert [path.name for path in sorted(tmp_path.glob("step-*"))] == ["step-000000000030"]
