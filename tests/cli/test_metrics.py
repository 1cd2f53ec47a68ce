"""A run's metrics as CSV: every value under its own name."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest

from apprentice import exit_codes
from apprentice.config import Experiment
from apprentice.metrics import MetricsWriter
from apprentice.runs import RunFolder
from cli.main import main

EXPERIMENT = Experiment(name="grasp", task="reacher-easy")


def make_run(root: Path, *rows: tuple[int, int, dict[str, float]]) -> RunFolder:
    folder = RunFolder.create(root, EXPERIMENT)
    if rows:
        with MetricsWriter(folder.metrics) as writer:
            for row in rows:
                writer.write(*row)
    return folder


def export(folder: RunFolder, *, code: int = 0) -> Path:
    out = folder.path.parent / "out.csv"
    runs = str(folder.path.parent)
    assert main(["metrics", folder.path.name, "--out", str(out), "--runs", runs]) == code
    return out


def read(file: Path) -> list[dict[str, Any]]:
    """Read a table whose rows all have as many cells as its header."""
    with file.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert all(None not in row and None not in row.values() for row in rows)
    return rows


def test_values_stand_under_their_names_whatever_a_row_lacks_and_however_it_is_ordered(
    tmp_path: Path,
) -> None:
    folder = make_run(
        tmp_path,
        (0, 0, {"replay/ratio": 0.0, "actor/count": 1.0}),
        (10, 4, {"actor/count": 2.0, "learner/entropy": 1.5, "replay/ratio": 0.5}),
        (20, 4, {"evaluation/return_mean": 7.25}),
        (30, 9, {"learner/entropy": 1.25, "actor/count": 3.0}),
    )
    rows = read(export(folder))
    assert list(rows[0]) == [
        *("time", "steps", "updates"),
        *("actor/count", "evaluation/return_mean", "learner/entropy", "replay/ratio"),
    ]
    assert [[row["steps"], row["updates"]] for row in rows] == [
        ["0", "0"],
        ["10", "4"],
        ["20", "4"],
        ["30", "9"],
    ]
    assert [list(row.values())[3:] for row in rows] == [
        ["1.0", "", "", "0.0"],
        ["2.0", "", "1.5", "0.5"],
        ["", "7.25", "", ""],
        ["3.0", "", "1.25", ""],
    ]


def test_numbers_read_back_equal_and_what_was_not_finite_is_empty(tmp_path: Path) -> None:
    values = {
        "a/third": 1 / 3,
        "a/tiny": 5e-324,
        "a/huge": -1.7976931348623157e308,
        "a/tenth": 0.1,
        'a/not, a "number"': float("nan"),
        "a/infinite": float("inf"),
    }
    folder = make_run(tmp_path, (123456789, 987654321, values))
    (row,) = read(export(folder))
    assert (int(row["steps"]), int(row["updates"])) == (123456789, 987654321)
    assert float(row["time"]) == json.loads(folder.metrics.read_text())["time"]
    for name in ("a/third", "a/tiny", "a/huge", "a/tenth"):
        assert float(row[name]) == values[name]
    assert row['a/not, a "number"'] == row["a/infinite"] == ""


def test_lines_end_as_rfc_4180_says_and_odd_names_are_quoted(tmp_path: Path) -> None:
    folder = make_run(tmp_path, (1, 2, {'a/"b", c': 0.5}))
    header, row, end = export(folder).read_bytes().split(b"\r\n")
    assert header == b'time,steps,updates,"a/""b"", c"'
    assert row.endswith(b",1,2,0.5")
    assert end == b""


def test_a_torn_line_is_left_out_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run(tmp_path, (1, 1, {"a/b": 1.0}), (2, 2, {"a/b": 2.0}))
    os.truncate(folder.metrics, folder.metrics.stat().st_size - 5)
    rows = read(export(folder))
    assert [row["a/b"] for row in rows] == ["1.0"]
    assert capsys.readouterr().err == f"torn lines of {folder.metrics} skipped: 1\n"


def test_a_run_without_metrics_is_an_empty_table_and_a_word_about_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run(tmp_path)
    assert export(folder).read_bytes() == b"time,steps,updates\r\n"
    assert capsys.readouterr().err == f"run {folder.path.name} has no metrics yet\n"


def test_the_table_goes_to_standard_output_where_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path, (3, 4, {"a/b": 0.5}))
    assert main(["metrics", "latest", "--out", "-", "--runs", str(tmp_path)]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header == "time,steps,updates,a/b"
    assert row.endswith(",3,4,0.5")


def test_an_unknown_run_is_refused_with_those_that_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run(tmp_path, (1, 1, {"a/b": 1.0}))
    for name in ("grasp-1", "../" + folder.path.name, ""):
        arguments = ["metrics", name, "--out", str(tmp_path / "out.csv"), "--runs", str(tmp_path)]
        assert main(arguments) == exit_codes.CONFIGURATION
        assert f"newest of the 1 runs: {folder.path.name}" in capsys.readouterr().err
    assert not (tmp_path / "out.csv").exists()
    empty = ["metrics", "latest", "--out", "-", "--runs", str(tmp_path / "nowhere")]
    assert main(empty) == exit_codes.CONFIGURATION
    assert "newest of the 0 runs: none yet" in capsys.readouterr().err


def test_a_table_replaces_the_one_before_it_whole(tmp_path: Path) -> None:
    folder = make_run(tmp_path, (1, 1, {"a/b": 1.0}))
    out = tmp_path / "out.csv"
    out.write_text("before")
    with out.open() as reader:
        assert export(folder) == out
        assert reader.read() == "before"  # whoever reads the old table reads it to its end
    assert [row["a/b"] for row in read(out)] == ["1.0"]
    assert sorted(os.listdir(tmp_path)) == sorted([folder.path.name, "out.csv"])


def test_what_is_no_file_is_not_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run(tmp_path, (1, 1, {"a/b": 1.0}))
    os.mkfifo(tmp_path / "pipe")
    for out in (tmp_path, tmp_path / "pipe"):
        arguments = ["metrics", folder.path.name, "--out", str(out), "--runs", str(tmp_path)]
        assert main(arguments) == exit_codes.CONFIGURATION
        assert "expected the name of a file" in capsys.readouterr().err
    assert (tmp_path / "pipe").is_fifo()


def test_a_table_that_cannot_be_written_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run(tmp_path, (1, 1, {"a/b": 1.0}))
    out = tmp_path / "missing" / "out.csv"
    arguments = ["metrics", folder.path.name, "--out", str(out), "--runs", str(tmp_path)]
    assert main(arguments) == exit_codes.FAILED
    assert f"--out {out}: cannot be written: No such file or directory" in capsys.readouterr().err
    assert os.listdir(tmp_path) == [folder.path.name]
