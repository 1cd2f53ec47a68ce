"""Checkpoints that are damaged, foreign, too many, deleted by Reverb, or do not fit on the disk."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from replay.checkpointing import CheckpointStore
from replay.errors import CheckpointFailed, CheckpointUnloadable, ForeignEntries
from replay.loading import try_load_within
from replay.reader import FeedReader
from replay.tables import replay_digest
from replay.writer import SegmentWriter
from tests.replay.cases import SETTINGS, STATE, make_segment, wait_until
from tests.replay.conftest import MakeServer
from tests.replay.serving import ServerProcess

NAMES = [f"2026-01-0{day}T00:00:00.000000000+00:00" for day in range(1, 10)]


def reverb_writes(store: CheckpointStore, name: str, contents: str) -> Path:
    """Do what Reverb does: write an entry, delete all but the last by name."""
    path = store.live / name
    path.mkdir()
    for file in ("tables.tfrecord", "items.tfrecord", "chunks.tfrecord"):
        (path / file).write_text(contents)
    (path / "DONE").touch()
    for entry in sorted(store.live.iterdir())[:-1]:
        shutil.rmtree(entry)
    return path


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path, "digest")


def loads(live: Path) -> None:
    assert len(list(live.iterdir())) == 1


def contents(store: CheckpointStore) -> str:
    (entry,) = store.live.iterdir()
    return (entry / "chunks.tfrecord").read_text()


def test_two_checkpoints_are_kept_and_the_newest_is_loaded(store: CheckpointStore) -> None:
    for number in range(4):
        store.keep(reverb_writes(store, NAMES[number], f"contents {number}"))
    kept = sorted(p.name for p in store.live.with_name("digest.kept").iterdir() if p.is_dir())
    assert kept == [f"000003-{NAMES[2]}", f"000004-{NAMES[3]}"]
    prepared = store.prepare(loads)
    assert (prepared.loaded, prepared.degraded) == (NAMES[3], None)
    assert contents(store) == "contents 3"


def damage_bit(path: Path) -> None:
    data = bytearray((path / "chunks.tfrecord").read_bytes())
    data[3] ^= 1
    (path / "chunks.tfrecord").write_bytes(data)


def truncate(path: Path) -> None:
    os.truncate(path / "items.tfrecord", 2)


def remove(path: Path) -> None:
    (path / "tables.tfrecord").unlink()


def add(path: Path) -> None:
    (path / "more").touch()


def unfinish(path: Path) -> None:
    (path / "DONE").unlink()


def lose_manifest(path: Path) -> None:
    path.with_name(f"{path.name}.json").unlink()


@pytest.mark.parametrize(
    "damage", [damage_bit, truncate, remove, add, unfinish, lose_manifest], ids=lambda f: f.__name__
)
def test_a_damaged_checkpoint_goes_to_quarantine_and_the_one_before_is_loaded(
    store: CheckpointStore, damage, tmp_path: Path
) -> None:
    for number in range(2):
        store.keep(reverb_writes(store, NAMES[number], f"contents {number}"))
    damage(tmp_path / "digest.kept" / f"000002-{NAMES[1]}")
    prepared = CheckpointStore(tmp_path, "digest").prepare(loads)
    assert prepared.loaded == NAMES[0]
    assert prepared.degraded is not None
    assert NAMES[1] in prepared.degraded
    assert contents(store) == "contents 0"
    assert [p.name for p in (tmp_path / "quarantine").iterdir()] == [f"000002-{NAMES[1]}"]


def test_an_empty_folder_remains_where_nothing_can_be_loaded(store: CheckpointStore) -> None:
    def unloadable(live: Path) -> None:
        raise CheckpointUnloadable("no")

    for number in range(2):
        store.keep(reverb_writes(store, NAMES[number], "x"))
    prepared = store.prepare(unloadable)
    assert prepared.loaded is None
    assert prepared.degraded is not None
    assert list(store.live.iterdir()) == []
    assert store.prepare(unloadable) == (None, None)


def test_a_finished_checkpoint_that_was_not_kept_before_a_crash_is_used(
    store: CheckpointStore,
) -> None:
    store.keep(reverb_writes(store, NAMES[0], "old"))
    reverb_writes(store, NAMES[1], "new")
    assert store.prepare(loads).loaded == NAMES[1]
    assert contents(store) == "new"


def test_an_unfinished_checkpoint_is_deleted(store: CheckpointStore) -> None:
    store.keep(reverb_writes(store, NAMES[0], "old"))
    (reverb_writes(store, NAMES[1], "new") / "DONE").unlink()
    assert store.prepare(loads) == (NAMES[0], None)
    assert contents(store) == "old"


def test_a_clock_that_goes_back_costs_nothing(store: CheckpointStore) -> None:
    store.keep(reverb_writes(store, NAMES[5], "before"))
    path = reverb_writes(store, NAMES[2], "after")
    assert not path.exists()  # Reverb deleted it itself
    with pytest.raises(CheckpointFailed, match="is not there"):
        store.keep(path)
    store.make_way()
    store.keep(reverb_writes(store, NAMES[2], "after"))
    assert store.prepare(loads).loaded == NAMES[2]
    assert contents(store) == "after"


@pytest.mark.parametrize("name", ["lost+found", "latest", "tmp"])
def test_foreign_entries_are_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "digest" / name).mkdir(parents=True)
    with pytest.raises(ForeignEntries, match=r"found \['" + name.replace("+", r"\+")):
        CheckpointStore(tmp_path, "digest")


@pytest.mark.slow
def test_a_load_that_hangs_is_ended(tmp_path: Path) -> None:
    checkpoint = tmp_path / NAMES[0]
    checkpoint.mkdir()
    for file in ("tables.tfrecord", "items.tfrecord", "chunks.tfrecord"):
        os.mkfifo(checkpoint / file)  # reading one waits for a writer that never comes
    (checkpoint / "DONE").touch()
    with pytest.raises(CheckpointUnloadable, match="took longer than 12 s"):
        try_load_within(tmp_path, (STATE,), SETTINGS, 12.0)


def fill(server: ServerProcess, episodes: range) -> None:
    writer = SegmentWriter(server.address, server.specs, server.settings)
    for number in episodes:
        writer.append(make_segment(episode=number))
    writer.close()


def stored(server: ServerProcess) -> set[int]:
    reader = FeedReader(server.address, server.specs, server.settings)
    found = {segment.episode for segment in reader.recover(set())}
    reader.close()
    return found


def test_a_server_with_a_corrupt_checkpoint_falls_back_and_says_degraded(
    make_server: MakeServer,
) -> None:
    settings = SETTINGS.model_copy(update={"checkpoint_period_seconds": 0.4})
    server = make_server(settings=settings).start()
    fill(server, range(2))
    server.wait_for_checkpoints(server.status()["checkpoints"] + 2)
    server.kill()
    (live,) = server.folder.glob("*/2*")
    # A newer one, which Reverb finished and the server did not get to verify, is damaged.
    newer = live.with_name("2999-01-01T00:00:00.000000000+00:00")
    shutil.copytree(live, newer)
    os.truncate(newer / "items.tfrecord", (newer / "items.tfrecord").stat().st_size // 2)
    server.restart()
    status = server.status()
    assert status["state"] == "degraded"
    assert newer.name in status["not_loaded"]
    assert "corrupted record" in status["not_loaded"]
    assert status["loaded"] == live.name
    assert stored(server) == {0, 1}
    assert newer.name in [
        p.name.partition("-")[2] for p in (server.folder / "quarantine").iterdir()
    ]
    fill(server, range(7, 8))
    assert stored(server) == {0, 1, 7}


def test_a_changed_spec_never_finds_old_data(make_server: MakeServer) -> None:
    server = make_server().start()
    fill(server, range(3))
    assert server.terminate() == 0
    changed = dataclasses.replace(STATE, action_repeat=2)
    server.restart(specs=(changed,))
    assert server.status()["loaded"] is None
    assert stored(server) == set()


def test_a_folder_with_foreign_entries_is_refused_with_78(make_server: MakeServer) -> None:
    server = make_server()
    live = server.folder / replay_digest((STATE,), SETTINGS)
    (live / "lost+found").mkdir(parents=True)
    assert "found ['lost+found']" in server.refused()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a file system is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_is_counted_and_the_server_goes_on(
    make_server: MakeServer, small_disk: Path
) -> None:
    settings = SETTINGS.model_copy(update={"checkpoint_period_seconds": 0.4})
    server = make_server(settings=settings, folder=small_disk / "replay").start()
    server.wait_for_checkpoints(1)
    ballast = small_disk / "ballast"
    free = shutil.disk_usage(small_disk).free
    ballast.write_bytes(b"x" * (free - 8192))
    fill(server, range(4))
    reader = FeedReader(server.address, server.specs, server.settings)
    for number in range(4, 50):
        fill_one = SegmentWriter(server.address, server.specs, server.settings)
        fill_one.append(make_segment(episode=number))
        fill_one.close()
        reader.poll(8, 0.2)
        if server.status()["checkpoint_failures"]:
            break
    reader.close()
    wait_until(lambda: server.status()["checkpoint_failures"] >= 1)
    assert "could not" in server.log.read_text()
    assert server.process.poll() is None
    ballast.unlink()
    before = server.status()["checkpoints"]
    server.wait_for_checkpoints(before + 1)
    episodes = stored(server)
    assert server.terminate() == 0
    server.restart()
    assert stored(server) == episodes
    assert json.loads((server.folder / "status.json").read_text())["state"] == "serving"
