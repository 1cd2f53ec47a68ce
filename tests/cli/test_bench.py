from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from cli.main import main

_FASTER = '''"""Wheels turned per second."""
import argparse, json
if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--ours", type=float, default=30.0)
    ours = parser.parse_args().ours
    row = dict(benchmark="wheels", unit="1/s", ours=ours, peer_name="cart", peer=20.0)
    print(json.dumps([row]))
'''


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    folder = tmp_path / "scripts"
    folder.mkdir()
    (folder / "wheels.py").write_text(_FASTER)
    (folder / "shared_parts.py").write_text('"""No benchmark: nothing runs here."""\n')
    return folder


def _bench(scripts: Path, tmp_path: Path, *arguments: str) -> int:
    results = str(tmp_path / "results")
    return main(["bench", "--scripts", str(scripts), "--results", results, *arguments])


def _rows(tmp_path: Path) -> list[dict[str, str]]:
    with (tmp_path / "results" / "wheels.csv").open(newline="") as source:
        return list(csv.DictReader(source))


def test_result_is_stored_with_ratio_command_commit_hardware_and_date(
    scripts: Path, tmp_path: Path
) -> None:
    assert _bench(scripts, tmp_path, "wheels") == 0
    assert _bench(scripts, tmp_path, "wheels", "--arguments=--ours 10") == 0
    first, second = _rows(tmp_path)
    assert ",".join(first) == (
        "benchmark,unit,ours,peer_name,peer,ratio,command,commit,hardware,date"
    )
    assert (first["ratio"], second["ratio"]) == ("1.5", "0.5")
    assert first["command"] == "apprentice bench wheels"
    assert second["command"] == "apprentice bench wheels --arguments='--ours 10'"
    assert "cores" in first["hardware"]
    assert len(first["date"]) == 10


def test_json_goes_to_standard_output_alone(
    scripts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _bench(scripts, tmp_path, "--all", "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["ratio"] == 1.5


def test_list_names_scripts_that_run_and_no_others(
    scripts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _bench(scripts, tmp_path, "--list") == 0
    assert capsys.readouterr().out.split() == ["wheels", "Wheels", "turned", "per", "second."]


def test_unknown_benchmark_is_refused_before_any_runs(
    scripts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _bench(scripts, tmp_path, "wheels", "sails") == 78
    assert _bench(scripts, tmp_path) == 78
    assert "found sails" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("raise SystemExit(3)", "exited with 3"),
        ("print('fast')", "expected a JSON list"),
        ('print(\'[{"benchmark": "x"}]\')', "lacks ['unit', 'ours', 'peer_name', 'peer']"),
    ],
)
def test_broken_benchmark_leaves_no_row(
    scripts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], body: str, complaint: str
) -> None:
    (scripts / "wheels.py").write_text(f'if __name__ == "__main__":\n    {body}\n')
    assert _bench(scripts, tmp_path, "wheels") == 1
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_file_with_other_columns_is_left_alone(scripts: Path, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "wheels.csv").write_text("benchmark,ours\n")
    assert _bench(scripts, tmp_path, "wheels") == 1
    assert (tmp_path / "results" / "wheels.csv").read_text() == "benchmark,ours\n"
