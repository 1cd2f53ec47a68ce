"""Damage is found wherever it lies, and the newest valid checkpoint whatever happened before."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from apprentice.checkpoint import (
    CheckpointError,
    Manifest,
    collect_stale_stages,
    list_checkpoints,
    load_policy,
    newest_checkpoint,
    pin_checkpoint,
    prune_checkpoints,
    read_tensors,
    verify_checkpoint,
)
from tests.checkpoint_cases import assert_refused, example_tensors, write_example

REPOSITORY = Path(__file__).resolve().parents[1]
FILES = ["manifest.json", "policy.safetensors", "random.safetensors", "rings.safetensors"]


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_example(tmp_path_factory.mktemp("intact"), 1)


@pytest.fixture
def checkpoint(intact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(intact, tmp_path / intact.name))


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(FILES), st.integers(0, 2**31), st.integers(1, 255))
def test_a_changed_byte_anywhere_is_found(intact: Path, name: str, where: int, mask: int) -> None:
    content = (intact / name).read_bytes()
    damaged = bytearray(content)
    damaged[where % len(content)] ^= mask
    try:
        (intact / name).write_bytes(damaged)
        assert_refused(intact, CheckpointError)
    finally:
        (intact / name).write_bytes(content)
    verify_checkpoint(intact)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(FILES), st.integers(0, 2**31), st.booleans())
def test_a_truncated_or_lengthened_file_is_found(
    intact: Path, name: str, where: int, longer: bool
) -> None:
    content = (intact / name).read_bytes()
    cut = where % len(content)
    try:
        (intact / name).write_bytes(content + content[: cut + 1] if longer else content[:cut])
        assert_refused(intact, CheckpointError)
    finally:
        (intact / name).write_bytes(content)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    assert_refused(checkpoint, match=name)


@pytest.mark.parametrize("name", FILES)
def test_an_empty_file_is_found(checkpoint: Path, name: str) -> None:
    (checkpoint / name).write_bytes(b"")
    assert_refused(checkpoint, match=name)


@pytest.mark.parametrize("name", ["critic.safetensors", "notes.txt", "policy.pkl"])
def test_an_extra_file_is_named(checkpoint: Path, name: str) -> None:
    (checkpoint / name).write_bytes(b"extra")
    assert_refused(checkpoint, match=name)


def test_swapped_files_are_found(checkpoint: Path) -> None:
    (checkpoint / "policy.safetensors").rename(checkpoint / "swap")
    (checkpoint / "rings.safetensors").rename(checkpoint / "policy.safetensors")
    (checkpoint / "swap").rename(checkpoint / "rings.safetensors")
    assert_refused(checkpoint)


def test_a_manifest_of_another_checkpoint_is_found(checkpoint: Path, tmp_path: Path) -> None:
    other = write_example(tmp_path / "other", 2)
    shutil.copy(other / "manifest.json", checkpoint / "manifest.json")
    assert_refused(checkpoint, match="is of step-000000000002")


def test_a_renamed_checkpoint_is_found(checkpoint: Path) -> None:
    renamed = checkpoint.rename(checkpoint.with_name("step-000000000009"))
    assert_refused(renamed, match="step-000000000001, but lies in another folder")


def test_a_file_that_is_a_link_is_refused_even_to_the_right_bytes(checkpoint: Path) -> None:
    elsewhere = (checkpoint / "policy.safetensors").rename(checkpoint.parent / "elsewhere")
    (checkpoint / "policy.safetensors").symlink_to(elsewhere)
    assert_refused(checkpoint, match="policy.safetensors: expected a file, found a link")


def test_a_pipe_in_the_place_of_a_file_does_not_block(checkpoint: Path) -> None:
    (checkpoint / "policy.safetensors").unlink()
    os.mkfifo(checkpoint / "policy.safetensors")
    assert_refused(checkpoint, match="policy.safetensors: expected a file")


def test_a_linked_or_missing_checkpoint_is_refused(checkpoint: Path) -> None:
    link = checkpoint.parent / "step-000000000002"
    link.symlink_to(checkpoint)
    with pytest.raises(CheckpointError, match="found a file or a link"):
        verify_checkpoint(link)
    with pytest.raises(CheckpointError, match="there is no such checkpoint"):
        load_policy(checkpoint.parent / "step-000000000003")


class CheckpointHistory(RuleBasedStateMachine):
    """Save, damage, crash, prune, restart in any order: the newest valid checkpoint is always found."""

    def __init__(self) -> None:
        super().__init__()
        self.parent = Path(tempfile.mkdtemp())
        self.valid: set[int] = set()
        self.damaged: set[int] = set()
        self.pinned: set[int] = set()
        self.steps = 0

    @initialize()
    def first(self) -> None:
        self.save(1)

    @rule(more=st.integers(1, 3))
    def save(self, more: int) -> None:
        self.steps += more
        write_example(self.parent, self.steps)
        self.valid.add(self.steps)

    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(list_checkpoints(self.parent) or (None,)))
        if path is None:
            return
        stored_file = path / data.draw(st.sampled_from(FILES))
        content = bytearray(stored_file.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= 0x10
        stored_file.write_bytes(content)
        steps = int(path.name[5:])
        self.valid.discard(steps)
        if steps in self.damaged:  # the same bit twice mends it
            self.damaged.discard(steps)
            self._judge(path, steps)
        else:
            self.damaged.add(steps)

    @rule()
    def crash_while_writing(self) -> None:
        stage = self.parent / ".stage-step-000000000099-00000000"
        stage.mkdir(exist_ok=True)
        (stage / "policy.safetensors").write_bytes(b"half")

    @precondition(lambda self: self.valid)
    @rule(keep=st.integers(1, 3))
    def prune(self, keep: int) -> None:
        removed = {int(name[5:]) for name in prune_checkpoints(self.parent, keep)}
        assert not removed & self.pinned
        self.valid -= removed
        self.damaged -= removed

    @precondition(lambda self: self.valid)
    @rule()
    def pin_the_newest(self) -> None:
        steps = max(self.valid)
        pin_checkpoint(self.parent / f"step-{steps:012d}")
        self.pinned.add(steps)

    @rule()
    def restart(self) -> None:
        collect_stale_stages(self.parent)
        found = newest_checkpoint(self.parent)
        newest = max(self.valid, default=None)
        assert (found[1].steps if found else None) == newest
        gone = {steps for steps in self.damaged if newest is None or steps > newest}
        for steps in gone:
            assert (self.parent / "quarantine" / f"step-{steps:012d}").is_dir()
        self.damaged -= gone
        if found:
            self._check_loads(*found)
            assert (self.parent / "LATEST").read_text().strip() in os.listdir(self.parent)

    @invariant()
    def the_newest_valid_one_is_found(self) -> None:
        found = newest_checkpoint(self.parent, repair=False)
        assert (found[1].steps if found else None) == max(self.valid, default=None)

    def _judge(self, path: Path, steps: int) -> None:
        try:
            verify_checkpoint(path)
            self.valid.add(steps)
        except CheckpointError:
            self.damaged.add(steps)

    def _check_loads(self, path: Path, manifest: Manifest) -> None:
        found = read_tensors(path, "policy", manifest)
        for key, tensor in example_tensors(manifest.steps)["policy"].items():
            assert torch.equal(found[key], tensor)

    def teardown(self) -> None:
        shutil.rmtree(self.parent)


TestCheckpointHistory = CheckpointHistory.TestCase
TestCheckpointHistory.settings = settings(
    max_examples=15, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
)
