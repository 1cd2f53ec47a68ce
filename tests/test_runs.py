"""Run folders, their lock and status, and the catalogue that no id leads out of."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote

import pytest
from structlog.testing import capture_logs

from apprentice.checkpoint import pin_checkpoint, record_best
from apprentice.runs import (
    Catalogue,
    InvalidCheckpointId,
    RunFolder,
    RunLocked,
    RunStatus,
    UnknownCheckpoint,
)
from tests.checkpoint_cases import EXPERIMENT, write_example

REPOSITORY = Path(__file__).resolve().parents[1]
NOON = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)


def status(**changes: object) -> RunStatus:
    fields: dict[str, object] = {
        "run": "r", "experiment": "small", "task": "reacher-easy", "state": "training", "max_steps": 10,
    }  # fmt: skip
    return RunStatus.model_validate({**fields, **changes})


def test_a_run_knows_the_code_that_it_went_on_with(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, EXPERIMENT, NOON)
    assert folder.read_commits() == ()
    for commit in ("abc", "abc", "def-dirty", "abc"):
        folder.note_commit(commit)
    assert folder.read_commits() == ("abc", "def-dirty", "abc")
    begun = RunFolder.create(tmp_path, EXPERIMENT, NOON)
    begun.write_status(status())
    begun.note_commit("abc")
    assert begun.read_commits() == ("unknown", "abc")


def test_a_new_run_is_named_by_experiment_variant_seed_and_time(tmp_path: Path) -> None:
    experiment = EXPERIMENT.model_copy(update={"variant": 3, "seed": 7})
    folder = RunFolder.create(tmp_path / "runs", experiment, NOON)
    assert folder.path == tmp_path / "runs" / "small-3-7-20260131T120000"
    assert folder.read_experiment() == experiment
    assert sorted(os.listdir(folder.path)) == [
        "checkpoints", "evaluations", "experiment.yaml", "logs", "tensorboard",
    ]  # fmt: skip


def test_two_runs_of_one_second_get_two_names(tmp_path: Path) -> None:
    names = [RunFolder.create(tmp_path, EXPERIMENT, NOON).path.name for _ in range(3)]
    base = "small-0-0-20260131T120000"
    assert names == [base, f"{base}-2", f"{base}-3"]
    assert [folder.path.name for folder in Catalogue(tmp_path).runs()] == names[::-1]


def test_every_path_of_a_run_lies_in_its_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    paths = [
        folder.experiment, folder.status, folder.metrics, folder.tensorboard, folder.checkpoints,
        folder.evaluations, folder.context, folder.logs,
    ]  # fmt: skip
    assert [path.name for path in paths] == [
        "experiment.yaml", "status.json", "metrics.jsonl", "tensorboard", "checkpoints",
        "evaluations", "context", "logs",
    ]  # fmt: skip
    assert {path.parent for path in paths} == {folder.path}


def test_a_second_learner_is_refused_and_told_who_holds_the_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    holder = f"locked by process {os.getpid()} on host {socket.gethostname()}: stop that one"
    with folder.lock():
        with pytest.raises(RunLocked, match=holder), RunFolder(tmp_path / "run").lock():
            pytest.fail("two learners hold one run")
        script = """
import sys
from pathlib import Path
from apprentice.runs import RunFolder, RunLocked
try:
    with RunFolder(Path(sys.argv[1])).lock():
        print("locked")
except RunLocked as error:
    print(error)
"""
        command = [sys.executable, "-c", script, str(tmp_path / "run")]
        child = subprocess.run(
            command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=True
        )
        assert holder in child.stdout
    with folder.lock():
        pass


def test_a_killed_learner_frees_the_run(tmp_path: Path) -> None:
    script = """
import os, sys
from pathlib import Path
from apprentice.runs import RunFolder
with RunFolder(Path(sys.argv[1])).lock():
    os.kill(os.getpid(), 9)
"""
    command = [sys.executable, "-c", script, str(tmp_path / "run")]
    child = subprocess.run(command, cwd=REPOSITORY, timeout=60, check=False)
    assert child.returncode == -9
    assert "pid" in (tmp_path / "run" / ".lock").read_text()
    with RunFolder(tmp_path / "run").lock():
        assert json.loads((tmp_path / "run" / ".lock").read_text())["pid"] == os.getpid()


def test_an_error_under_the_lock_frees_it(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(ValueError, match="mine"), folder.lock():
        raise ValueError("mine")
    with folder.lock():
        pass


def test_a_status_reads_back_with_its_times(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    written = status(steps=5, actors=({"slot": 0, "host": "a"},), evaluation_returns=(1.5, 2.5))
    folder.write_status(written)
    first = folder.read_status()
    assert first is not None and first.created is not None and first.updated == first.created
    assert first.model_copy(update={"created": None, "updated": None}) == written
    RunFolder(tmp_path).write_status(status(steps=6))
    second = folder.read_status()
    assert second is not None and second.steps == 6
    assert second.created == first.created, "a restart keeps the time of the first status"
    assert sorted(os.listdir(tmp_path)) == ["status.json"]


def test_values_that_are_not_finite_are_left_out_of_a_status(tmp_path: Path) -> None:
    nan = float("nan")
    RunFolder(tmp_path).write_status(status(replay_ratio=nan, evaluation_returns=(1.0, nan)))
    found = RunFolder(tmp_path).read_status()
    assert found is not None and found.replay_ratio is None and found.evaluation_returns == (1.0,)
    assert "NaN" not in (tmp_path / "status.json").read_text()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"state": "dancing"}', "\x00" * 100])
def test_a_damaged_status_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "status.json").write_text(text)
    assert RunFolder(tmp_path).read_status() is None


def test_a_status_of_a_newer_version_is_read(tmp_path: Path) -> None:
    content = {**status().model_dump(mode="json"), "added_later": 1}
    (tmp_path / "status.json").write_text(json.dumps(content))
    assert RunFolder(tmp_path).read_status() == status()


def test_a_status_that_cannot_be_written_is_logged_and_given_up(tmp_path: Path) -> None:
    with capture_logs() as logs:
        RunFolder(tmp_path / "missing").write_status(status())
    assert [entry["log_level"] for entry in logs] == ["error"]


OLD, NEW, EMPTY = (
    "small-0-0-20260101T000000",
    "small-0-0-20260131T120000",
    "small-0-0-20260201T000000",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("catalogue") / "runs"
    for run, steps in ((OLD, (100, 200)), (NEW, (10, 20, 30))):
        for number in steps:
            write_example(root / run / "checkpoints", number)
    record_best(root / NEW / "checkpoints", "step-000000000020", 900.0)
    pin_checkpoint(root / NEW / "checkpoints" / "step-000000000010")
    RunFolder(root / EMPTY).path.mkdir()
    RunFolder(root / EMPTY).write_status(status(run=EMPTY))
    (root / "notes").mkdir()
    (root / ".hidden").mkdir()
    (root / "file").write_text("no run")
    # Everything below lies outside, and links to it lie inside.
    canary = root.parent / "outside"
    write_example(canary / "checkpoints", 666)
    (canary / "canary.txt").write_text("secret")
    (root / "linked").symlink_to(canary)
    (root / "half-linked").mkdir()
    (root / "half-linked" / "checkpoints").symlink_to(canary / "checkpoints")
    (root / NEW / "checkpoints" / "step-000000000666").symlink_to(
        canary / "checkpoints" / "step-000000000666"
    )
    return root


@pytest.mark.parametrize(
    ("identifier", "expected"),
    [
        ("latest", f"{NEW}:30"),
        (NEW, f"{NEW}:30"),
        (f"{NEW}:latest", f"{NEW}:30"),
        (f"{NEW}:best", f"{NEW}:20"),
        (f"{NEW}:10", f"{NEW}:10"),
        (f"{NEW}:000000000010", f"{NEW}:10"),
        (f"{OLD}:latest", f"{OLD}:200"),
        (f"{OLD}:100", f"{OLD}:100"),
    ],
)
def test_an_id_finds_its_checkpoint(root: Path, identifier: str, expected: str) -> None:
    entry = Catalogue(root).resolve(identifier)
    assert entry.id == expected
    assert entry.path == root / entry.run / "checkpoints" / f"step-{entry.steps:012d}"
    assert Catalogue(root).resolve(entry.id) == entry


def test_runs_are_listed_newest_first_and_links_are_no_runs(root: Path) -> None:
    names = [folder.path.name for folder in Catalogue(root).runs()]
    assert [name for name in names if name != "half-linked"] == [EMPTY, NEW, OLD]
    assert Catalogue(root).checkpoints("half-linked") == ()


def test_checkpoints_are_listed_with_what_is_special_about_them(root: Path) -> None:
    entries = Catalogue(root).checkpoints(NEW)
    assert [(e.steps, e.latest, e.best, e.pinned) for e in entries] == [
        (10, False, False, True),
        (20, False, True, False),
        (30, True, False, False),
    ]
    assert Catalogue(root).checkpoints(EMPTY) == ()


def test_the_newest_run_is_known_by_name_then_status_then_time_of_the_folder(
    tmp_path: Path,
) -> None:
    write_example(tmp_path / OLD / "checkpoints", 1)
    for name in ("by-status", "by-folder"):
        write_example(tmp_path / name / "checkpoints", 1)
    (tmp_path / "by-status" / "status.json").write_text(
        status(created="2026-01-02T00:00:00+00:00").model_dump_json()
    )
    os.utime(tmp_path / "by-folder", (1_767_400_000, 1_767_400_000))  # 2026-01-03
    os.utime(tmp_path / OLD, (2_000_000_000, 2_000_000_000))
    catalogue = Catalogue(tmp_path)
    assert [folder.path.name for folder in catalogue.runs()] == ["by-folder", "by-status", OLD]
    assert catalogue.resolve("latest").run == "by-folder"


def test_an_impossible_time_in_a_name_is_no_time(tmp_path: Path) -> None:
    write_example(tmp_path / "x-99999999T999999" / "checkpoints", 1)
    assert Catalogue(tmp_path).resolve("latest").steps == 1


@pytest.mark.parametrize(
    ("identifier", "match"),
    [
        ("nobody", f"no such run; newest of the 4 runs: .*{NEW}"),
        (f"{NEW}:11", "no checkpoint '11': expected latest, best, or one of the steps 10, 20, 30"),
        (f"{OLD}:best", "no checkpoint 'best': it has not been evaluated yet"),
        (EMPTY, "has no checkpoint yet"),
        (f"{NEW}:666", "no checkpoint '666'"),
        ("linked", "no such run"),
        ("half-linked", "has no checkpoint yet"),
        ("notes", "no such run"),
        ("file", "no such run"),
        (".hidden", "no such run"),
    ],
)
def test_an_unknown_id_says_what_there_is(root: Path, identifier: str, match: str) -> None:
    with pytest.raises(UnknownCheckpoint, match=match):
        Catalogue(root).resolve(identifier)


def test_an_empty_or_missing_catalogue_has_no_latest(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UnknownCheckpoint, match="found none yet"):
            Catalogue(folder).resolve("latest")


def test_a_best_that_was_removed_is_unknown(tmp_path: Path) -> None:
    write_example(tmp_path / NEW / "checkpoints", 1)
    record_best(tmp_path / NEW / "checkpoints", "step-000000000009", 1.0)
    with pytest.raises(UnknownCheckpoint):
        Catalogue(tmp_path).resolve(f"{NEW}:best")


TRAVERSALS = [
    "", ".", "..", "...", "../", "../outside", "../outside:666", "../outside:latest", "./", "/", "//",
    "/etc/passwd", "/etc/passwd:latest", "~", "~root", "$HOME", "${HOME}", "`id`", "$(id)", ";id", "|id",
    "..\\outside", "..\\..\\outside", "\\\\host\\share", "C:\\Windows", "c:/windows", "file:///etc/passwd",
    "http://127.0.0.1/x", "https://example.org/c.pt", "%2e%2e", "%2e%2e%2foutside", "%252e%252e%252foutside",
    "..%2foutside", "..%5coutside", "%2e%2e/outside", "..%c0%afoutside", "%00", "latest%00.pt", "latest\x00",
    "latest\x00/../outside", "latest\n", "\nlatest", "latest\r\nSet-Cookie: a=b", "latest ", " latest",
    "latest\t", "\u2024\u2024/outside", "\uff0e\uff0e\uff0foutside", "\u2025/outside", "..\u2215outside",
    "\u202elatest", "l\u0430test", "latest\ufeff", "\u0661\u0662", f"{NEW}:\u0661\u0660", f"{NEW}:-10",
    f"{NEW}:+10", f"{NEW}:1e1", f"{NEW}:10.0", f"{NEW}:0x0a", f"{NEW}: 10", f"{NEW}:1_0", f"{NEW}:",
    f"{NEW}:..", f"{NEW}:../10", f"{NEW}:10/../../../outside", f"{NEW}/../../outside", f"{NEW}/checkpoints",
    f"{NEW}/", f"./{NEW}", f"{NEW}:step-000000000010", f"{NEW}:10:latest", f"{NEW}::10", ":", ":latest",
    ":10", "::", "latest:", "latest:latest:latest", "linked:666", "linked/checkpoints:666", f"{NEW}:666",
    "half-linked:666", f"{NEW}:9" + "9" * 40, "a" * 129, "a" * 100_000, "*", "?", "[a-z]", f"{NEW[:-1]}*",
    f"{NEW}:LATEST", f"{NEW}:Best", "LATEST", "PINNED", "quarantine", f"{NEW}:quarantine", "-rf", "--help",
    "<script>alert(1)</script>", "'; DROP TABLE runs; --", "{{7*7}}", "%s%s%n", "CON", "NUL", "COM1",
    f"{NEW.upper()}", "con.txt", "latest.pt", f"{NEW}.pt", "\x7f", "\x1b[31mlatest", "\ud800",
]  # fmt: skip

_watching: list[str] | None = None


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if _watching is None or event not in ("open", "os.listdir", "os.scandir"):
        return
    if not isinstance(arguments[0], int):  # a descriptor: its path was seen when it was opened
        _watching.append(os.fsdecode(arguments[0]))  # type: ignore[arg-type]


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """Every path that Python opens or lists while the test runs."""
    global _watching
    if not getattr(_watch, "installed", False):
        sys.addaudithook(_watch)
        _watch.installed = True  # type: ignore[attr-defined]
    found: list[str] = []
    _watching = found
    yield found
    _watching = None


def test_there_are_enough_payloads() -> None:
    assert len(set(TRAVERSALS)) >= 60


def test_no_id_leads_out_of_the_catalogue(root: Path, opened: list[str]) -> None:
    catalogue = Catalogue(root)
    catalogue.resolve("latest")
    assert any(path.startswith(str(root)) for path in opened), "the watch does not work"
    for payload in TRAVERSALS:
        for identifier in (payload, unquote(payload), unquote(unquote(payload))):
            try:
                entry = catalogue.resolve(identifier)
            except (InvalidCheckpointId, UnknownCheckpoint) as error:
                assert str(root) not in str(error), "an error tells where the catalogue lies"
                assert "\n" not in str(error) and "<" not in str(error)
            else:
                pytest.fail(f"{identifier!r} found {entry}")
    outside = [
        path for path in opened if not path.startswith(str(root) + os.sep) and path != str(root)
    ]
    assert outside == []
    assert not [
        path
        for path in opened
        if "outside" in path or "666" in path or "linked" in Path(path).parts
    ]


def test_an_id_that_can_be_no_id_is_told_apart_from_an_unknown_one(root: Path) -> None:
    for identifier in ("../x", "a/b", "", "a:b:c", "a\x00", "x" * 129, f"{NEW}:ten", "latest\n"):
        with pytest.raises(InvalidCheckpointId, match="expected"):
            Catalogue(root).resolve(identifier)
    for identifier in ("..", ".", "x" * 128):
        with pytest.raises(UnknownCheckpoint):
            Catalogue(root).resolve(identifier)
