"""Metrics survive crashes, full disks and odd values, and TensorBoard reads them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from apprentice.metrics import MetricsWriter, read_metrics

REPOSITORY = Path(__file__).resolve().parents[1]


def run_python(script: str, *arguments: str) -> str:
    child = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    return child.stdout


def test_rows_read_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    with MetricsWriter(path) as writer:
        writer.write(100, 50, {"learner/critic_loss": 0.5, "actor/count": 2})
        writer.write(200, 150, {"learner/critic_loss": 0.25})
    rows, num_torn = read_metrics(path)
    assert [(row.steps, row.updates, row.metrics) for row in rows] == [
        (100, 50, {"learner/critic_loss": 0.5, "actor/count": 2.0}),
        (200, 150, {"learner/critic_loss": 0.25}),
    ]
    assert num_torn == 0 and rows[0].time <= rows[1].time


def test_each_line_is_one_json_object(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsWriter(path) as writer:
        writer.write(1, 2, {"a/b": 3.0})
    (line,) = path.read_text().splitlines()
    content = json.loads(line)
    assert content.pop("time") > 1.6e9
    assert content == {"steps": 1, "updates": 2, "metrics": {"a/b": 3.0}}


def test_a_file_that_is_not_there_yet_has_no_rows(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl") == ((), 0)


def test_non_finite_values_become_null_and_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsWriter(path, tmp_path / "tensorboard") as writer:
        writer.write(1, 1, {"a": float("nan"), "b": float("inf"), "c": float("-inf"), "d": 1.0})
        assert writer.num_non_finite == 3
    assert read_metrics(path).rows[0].metrics == {"a": None, "b": None, "c": None, "d": 1.0}
    assert "NaN" not in path.read_text() and "Infinity" not in path.read_text()


@settings(deadline=None)
@given(cut=st.integers(0, 200))
def test_a_line_torn_anywhere_costs_that_line_only(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    path = tmp_path_factory.mktemp("torn") / "metrics.jsonl"
    with MetricsWriter(path) as writer:
        writer.write(1, 1, {"a": 1.0})
        first = path.stat().st_size
        writer.write(2, 2, {"a": 2.0})
        second = path.stat().st_size - first
    kept = cut % second
    os.truncate(path, first + kept)
    whole = kept == second - 1  # only the line's end is missing
    torn = 0 if whole or kept == 0 else 1
    assert read_metrics(path).num_torn == torn
    with MetricsWriter(path) as writer:
        writer.write(3, 3, {"a": 3.0})
    rows, num_torn = read_metrics(path)
    assert [row.steps for row in rows] == ([1, 2, 3] if whole else [1, 3])
    assert num_torn == torn


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        "{}",
        "null",
        '{"time": 1}',
        '{"time": 1, "steps": 1, "updates": 1, "metrics": []}',
        "[" * 5000,
    ],
)
def test_lines_of_another_kind_are_skipped_and_counted(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(line + "\n")
    with MetricsWriter(path) as writer:
        writer.write(1, 1, {})
    rows, num_torn = read_metrics(path)
    assert [row.steps for row in rows] == [1] and num_torn == 1


def test_a_killed_writer_leaves_only_whole_rows(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    script = """
import sys
from pathlib import Path
from apprentice.metrics import MetricsWriter
writer = MetricsWriter(Path(sys.argv[1]))
values = {f"learner/value_{n}": n * 0.1 for n in range(100)}
for steps in range(10**9):
    writer.write(steps, steps, values)
    if steps == 200:
        print("going", flush=True)
"""
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(path)], cwd=REPOSITORY, stdout=subprocess.PIPE
    )
    assert child.stdout is not None and child.stdout.readline() == b"going\n"
    child.send_signal(signal.SIGKILL)
    child.wait(20)
    rows, num_torn = read_metrics(path)
    assert [row.steps for row in rows] == list(range(len(rows))) and len(rows) > 200
    assert num_torn == 0
    assert all(len(row.metrics) == 100 for row in rows)


def test_a_full_disk_costs_rows_and_leaves_no_torn_line(tmp_path: Path) -> None:
    """RLIMIT_FSIZE makes the kernel take part of a write, and then none, like a disk that fills up."""
    script = """
import resource, signal, sys
from pathlib import Path
from apprentice.metrics import MetricsWriter
writer = MetricsWriter(Path(sys.argv[1]), Path(sys.argv[2]))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
writer.write(1, 1, {"a": 1.0})
size = Path(sys.argv[1]).stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, resource.RLIM_INFINITY))
writer.write(2, 2, {"a": 2.0})
writer.write(3, 3, {"a": 3.0})
assert writer.num_failed == 2, writer.num_failed
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
writer.write(4, 4, {"a": 4.0})
assert writer.num_failed == 2
"""
    path = tmp_path / "metrics.jsonl"
    output = run_python(script, str(path), str(tmp_path / "tensorboard"))
    rows, num_torn = read_metrics(path)
    assert [row.steps for row in rows] == [1, 4] and num_torn == 0
    assert output.count("metrics could not be written") == 1, (
        "one log line for a series of failures"
    )


def test_a_failed_write_is_logged_and_training_goes_on(tmp_path: Path) -> None:
    writer = MetricsWriter(Path("/dev/full"))
    with capture_logs() as logs:
        writer.write(1, 1, {"a": 1.0})
        writer.write(2, 2, {"a": 1.0})
    assert writer.num_failed == 2
    assert [(entry["log_level"], entry["reason"]) for entry in logs] == [
        ("error", "[Errno 28] No space left on device")
    ]


def test_tensorboard_reads_the_same_values_and_tensorflow_is_never_imported(tmp_path: Path) -> None:
    write = """
import sys
from pathlib import Path
from apprentice.metrics import MetricsWriter
for start in (0, 10):
    with MetricsWriter(Path(sys.argv[1]) / "metrics.jsonl", Path(sys.argv[1]) / "tensorboard") as writer:
        writer.write(start + 1, 1, {"learner/critic_loss": 0.5, "learner/bad": float("nan")})
        writer.write(start + 2, 2, {"learner/critic_loss": 0.25})
heavy = {"tensorflow", "torch", "reverb"} & sys.modules.keys()
assert not heavy, heavy
"""
    read = """
import sys
sys.modules["tensorflow"] = None  # tensorboard then uses its own reader
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
accumulator = EventAccumulator(sys.argv[1])
accumulator.Reload()
print(accumulator.Tags()["scalars"])
print([(event.step, event.value) for event in accumulator.Scalars("learner/critic_loss")])
"""
    run_python(write, str(tmp_path))
    lines = run_python(read, str(tmp_path / "tensorboard")).splitlines()
    assert lines[-2:] == ["['learner/critic_loss']", "[(1, 0.5), (2, 0.25), (11, 0.5), (12, 0.25)]"]


def test_reading_metrics_needs_no_tensorboard(tmp_path: Path) -> None:
    run_python(
        "import sys; sys.modules['tensorboard'] = None; from apprentice.metrics import read_metrics"
    )
