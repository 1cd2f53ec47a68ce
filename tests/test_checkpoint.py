"""Checkpoints are written whole, read back bit for bit, kept and pruned by their steps."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from structlog.testing import capture_logs

import apprentice.checkpoint as checkpoint_module
from apprentice import checkpoint_files
from apprentice.checkpoint import (
    BestCheckpoint,
    CheckpointError,
    collect_stale_stages,
    experiment_of,
    list_checkpoints,
    load_policy,
    newest_checkpoint,
    pin_checkpoint,
    pinned_checkpoints,
    prune_checkpoints,
    read_best,
    read_tensors,
    record_best,
    unpin_checkpoint,
    verify_checkpoint,
)
from apprentice.networks import Policy, build_policy
from tests.checkpoint_cases import EXPERIMENT, SPEC, example_tensors, write_example


def names(parent: Path) -> list[str]:
    return [path.name for path in list_checkpoints(parent)]


def test_a_checkpoint_reads_back_bit_for_bit(tmp_path: Path) -> None:
    path = write_example(tmp_path, 10_000)
    manifest = verify_checkpoint(path)
    assert path == tmp_path / "step-000000010000"
    assert (manifest.steps, manifest.updates, manifest.policy_version) == (10_000, 5_000, 3)
    assert manifest.state == {"counters": {"steps": 10_000}, "evaluation_returns": [0.1, 900.25]}
    assert manifest.environment_digest == SPEC.digest()
    assert manifest.libraries["torch"] == torch.__version__
    for name, expected in example_tensors(10_000).items():
        found = read_tensors(path, name, manifest)
        assert found.keys() == expected.keys()
        for key in expected:
            assert found[key].dtype == expected[key].dtype
            assert torch.equal(found[key], expected[key]), f"{name}/{key}"


def test_every_dtype_and_layout_survives(tmp_path: Path) -> None:
    square = torch.arange(16, dtype=torch.float32).reshape(4, 4)
    group = {
        "float64": torch.tensor([1.0, -0.0, 5e-324], dtype=torch.float64),
        "bfloat16": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "float16": torch.tensor([[0.5]], dtype=torch.float16),
        "int64": torch.tensor([-(2**63), 2**63 - 1]),
        "int32": torch.tensor([7], dtype=torch.int32),
        "uint8": torch.tensor([0, 255], dtype=torch.uint8),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4, dtype=torch.int64),
        "transposed": square.T,
        "view": square[1],
        "same_storage": square,
    }
    path = write_example(tmp_path, 1, tensors={"all": group})
    found = read_tensors(path, "all", verify_checkpoint(path))
    for key, tensor in group.items():
        assert found[key].dtype == tensor.dtype and torch.equal(found[key], tensor), key


def test_a_dtype_without_a_place_in_the_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"odd/z: expected one of the dtypes .* found torch.complex64"
    ):
        write_example(tmp_path, 1, tensors={"odd": {"z": torch.zeros(1, dtype=torch.complex64)}})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_non_finite_tensor_is_refused_by_name_and_nothing_is_written(
    tmp_path: Path, value: float
) -> None:
    tensors = example_tensors(1)
    tensors["policy"]["trunk.0.bias"][3] = value
    with pytest.raises(
        CheckpointError, match=r"policy/trunk\.0\.bias: expected finite values, found 1 of 8"
    ):
        write_example(tmp_path, 1, tensors=tensors)
    assert list(tmp_path.iterdir()) == []


def test_a_non_finite_number_in_the_state_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected finite numbers in the checkpoint's state"):
        write_example(tmp_path, 1, state={"evaluation_returns": [float("nan")]})
    assert names(tmp_path) == []


def test_state_that_is_not_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="state"):
        write_example(tmp_path, 1, state={"array": np.zeros(3)})


def test_latest_names_the_newest(tmp_path: Path) -> None:
    write_example(tmp_path, 1)
    write_example(tmp_path, 2)
    assert (tmp_path / "LATEST").read_text() == "step-000000000002\n"


def test_checkpoints_are_ordered_by_steps_and_not_by_time(tmp_path: Path) -> None:
    for steps in (900, 5, 10_000):
        write_example(tmp_path, steps)
    for age, path in enumerate(list_checkpoints(tmp_path)):
        os.utime(path, (1_000_000 - age, 1_000_000 - age))
    found = newest_checkpoint(tmp_path)
    assert found is not None and found[1].steps == 10_000
    assert names(tmp_path) == ["step-000000000005", "step-000000000900", "step-000000010000"]


def test_there_is_no_newest_in_an_empty_or_missing_folder(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / "missing") is None


def test_a_checkpoint_of_the_same_steps_is_replaced(tmp_path: Path) -> None:
    write_example(tmp_path, 7, updates=1)
    path = write_example(tmp_path, 7, updates=2)
    assert verify_checkpoint(path).updates == 2
    assert sorted(os.listdir(tmp_path)) == ["LATEST", "step-000000000007"]


def test_a_crash_between_the_renames_of_a_replacement_loses_nothing(tmp_path: Path) -> None:
    path = write_example(tmp_path, 7)
    path.rename(tmp_path / ".replaced-step-000000000007")
    found = newest_checkpoint(tmp_path)
    assert found is not None and found[0] == path


def test_a_bad_replacement_gives_way_to_what_it_replaced(tmp_path: Path) -> None:
    path = write_example(tmp_path, 7, updates=1)
    path.rename(tmp_path / ".replaced-step-000000000007")
    (write_example(tmp_path / "other", 7, updates=2)).rename(path)
    (path / "policy.safetensors").write_bytes(b"")
    found = newest_checkpoint(tmp_path)
    assert found is not None and found[1].updates == 1
    assert os.listdir(tmp_path / "quarantine") == ["step-000000000007"]


def test_newest_steps_back_over_refused_ones_with_a_warning_and_keeps_them(tmp_path: Path) -> None:
    for steps in (1, 2, 3):
        write_example(tmp_path, steps)
    (tmp_path / "step-000000000003" / "rings.safetensors").unlink()
    (tmp_path / "step-000000000002" / "manifest.json").write_text("{}")
    with capture_logs() as logs:
        found = newest_checkpoint(tmp_path)
    assert found is not None and found[1].steps == 1
    refused = [entry for entry in logs if entry["log_level"] == "warning"]
    assert [entry["checkpoint"] for entry in refused] == ["step-000000000003", "step-000000000002"]
    assert "rings.safetensors" in refused[0]["reason"]
    assert sorted(os.listdir(tmp_path / "quarantine")) == ["step-000000000002", "step-000000000003"]
    assert (tmp_path / "LATEST").read_text() == "step-000000000001\n"


def test_a_second_refused_checkpoint_of_a_name_does_not_replace_the_first(tmp_path: Path) -> None:
    for content in (b"first", b"second"):
        path = write_example(tmp_path, 5)
        (path / "manifest.json").write_bytes(content)
        assert newest_checkpoint(tmp_path) is None
    quarantine = tmp_path / "quarantine"
    kept = {p.name: (p / "manifest.json").read_bytes() for p in quarantine.iterdir()}
    assert kept == {"step-000000000005": b"first", "step-000000000005.2": b"second"}
    assert not (tmp_path / "LATEST").exists()


def test_a_reader_beside_the_writer_moves_nothing(tmp_path: Path) -> None:
    write_example(tmp_path, 1)
    (write_example(tmp_path, 2) / "manifest.json").write_text("{}")
    before = sorted(os.listdir(tmp_path))
    found = newest_checkpoint(tmp_path, repair=False)
    assert found is not None and found[1].steps == 1
    assert sorted(os.listdir(tmp_path)) == before


def test_pruning_keeps_the_newest_the_best_and_the_pinned(tmp_path: Path) -> None:
    for steps in range(1, 9):
        write_example(tmp_path, steps)
    pin_checkpoint(tmp_path / "step-000000000002")
    record_best(tmp_path, "step-000000000003", 812.5)
    removed = prune_checkpoints(tmp_path, keep=2, protected=["step-000000000004"])
    assert removed == ("step-000000000001", "step-000000000005", "step-000000000006")
    assert names(tmp_path) == [f"step-{steps:012d}" for steps in (2, 3, 4, 7, 8)]
    for path in list_checkpoints(tmp_path):
        verify_checkpoint(path)


def test_an_unpinned_checkpoint_is_pruned(tmp_path: Path) -> None:
    first, second = write_example(tmp_path, 1), write_example(tmp_path, 2)
    pin_checkpoint(first)
    pin_checkpoint(second)
    unpin_checkpoint(first)
    assert pinned_checkpoints(tmp_path) == {"step-000000000002"}
    assert prune_checkpoints(tmp_path, keep=1) == ("step-000000000001",)


def test_pinning_does_not_touch_what_the_manifest_covers(tmp_path: Path) -> None:
    path = write_example(tmp_path, 1)
    pin_checkpoint(path)
    verify_checkpoint(path)


def test_only_a_checkpoint_can_be_pinned(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected a checkpoint to pin"):
        pin_checkpoint(tmp_path / "step-000000000001")


def test_pruning_to_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        prune_checkpoints(tmp_path, keep=0)


def test_foreign_entries_are_ignored_and_never_deleted(tmp_path: Path) -> None:
    foreign = ["lost+found", "step-1", "step-000000000009.bak", "stage", "zzz"]
    for name in foreign:
        (tmp_path / name).mkdir()
        (tmp_path / name / "content").write_text("mine")
    (tmp_path / "step-000000000099").write_text("a file, not a folder")
    (tmp_path / "step-000000000098").symlink_to(tmp_path / "zzz")
    (tmp_path / ".stage-link").symlink_to(tmp_path / "zzz")
    for steps in (1, 2, 3):
        write_example(tmp_path, steps)
    assert names(tmp_path) == [f"step-{steps:012d}" for steps in (1, 2, 3)]
    prune_checkpoints(tmp_path, keep=1)
    collect_stale_stages(tmp_path)
    assert newest_checkpoint(tmp_path) is not None
    for name in foreign:
        assert (tmp_path / name / "content").read_text() == "mine"
    assert (tmp_path / "step-000000000099").is_file()
    assert (tmp_path / "step-000000000098").is_symlink() and (tmp_path / ".stage-link").is_symlink()


def test_the_best_is_remembered_and_nonsense_is_none(tmp_path: Path) -> None:
    assert read_best(tmp_path) is None
    record_best(tmp_path, "step-000000000003", 812.123456789)
    assert read_best(tmp_path) == BestCheckpoint("step-000000000003", 812.123456789)
    for nonsense in ("", "step-000000000003", "step-000000000003 high", "../x 1.0", "\xff\x00"):
        (tmp_path / "BEST").write_text(nonsense)
        assert read_best(tmp_path) is None
    with pytest.raises(ValueError, match="finite score"):
        record_best(tmp_path, "step-000000000003", float("nan"))


def test_stale_stages_are_collected_before_the_next_write(tmp_path: Path) -> None:
    (tmp_path / ".stage-step-000000000001-0a0b0c0d").mkdir(parents=True)
    (tmp_path / ".stage-step-000000000001-0a0b0c0d" / "policy.safetensors").write_bytes(b"half")
    (tmp_path / ".stage-LATEST-0a0b0c0d").write_text("step")
    assert collect_stale_stages(tmp_path) == 2
    assert os.listdir(tmp_path) == []
    assert collect_stale_stages(tmp_path / "missing") == 0


def test_too_little_space_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_example(tmp_path, 1)
    monkeypatch.setattr(checkpoint_files, "free_bytes", lambda path: 100_000)
    with pytest.raises(
        CheckpointError, match=r"expected [\d,]+ free bytes .* found 100,000: free disk space"
    ):
        write_example(tmp_path, 2)
    assert sorted(os.listdir(tmp_path)) == ["LATEST", "step-000000000001"]


def test_a_disk_that_returns_other_bytes_is_found_out_by_reading_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_example(tmp_path, 1)
    real = checkpoint_files.sync_folder

    def flip_a_byte(folder: Path) -> None:
        real(folder)
        for stored in folder.glob("step-000000000002/policy.safetensors"):
            content = bytearray(stored.read_bytes())
            content[-1] ^= 1
            stored.write_bytes(content)

    monkeypatch.setattr(checkpoint_module, "sync_folder", flip_a_byte)
    with pytest.raises(
        CheckpointError, match=r"did not read back as it was written: policy.safetensors"
    ):
        write_example(tmp_path, 2)
    assert names(tmp_path) == ["step-000000000001"]
    assert (tmp_path / "LATEST").read_text() == "step-000000000001\n"


def test_a_loaded_policy_acts_like_the_module_it_was_made_of(tmp_path: Path) -> None:
    module = build_policy(EXPERIMENT, SPEC)
    tensors = {**example_tensors(1), "policy": module.state_dict()}
    path = write_example(tmp_path, 1, tensors=tensors)
    observation = {"state": np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)}
    policy, manifest = load_policy(path, seed=3)
    same = Policy(module, seed=3)
    for deterministic in (True, False):
        found = policy.act(observation, deterministic=deterministic)
        expected = same.act(observation, deterministic=deterministic)
        assert np.array_equal(found.action, expected.action)
    assert experiment_of(manifest) == EXPERIMENT


def test_loading_a_policy_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    path = write_example(tmp_path, 1)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    load_policy(path)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_policy_of_another_size_is_refused_by_the_tensors_name(tmp_path: Path) -> None:
    tensors = example_tensors(1)
    tensors["policy"]["trunk.0.weight"] = torch.zeros(9, 6)
    path = write_example(tmp_path, 1, tensors=tensors)
    with pytest.raises(
        CheckpointError, match=r"trunk\.0\.weight: expected .*\(8, 6\), found .*\(9, 6\)"
    ):
        load_policy(path)


def test_a_huge_network_is_refused_before_it_is_built(tmp_path: Path) -> None:
    network = EXPERIMENT.network.model_copy(update={"hidden_size": 4096, "num_hidden_layers": 8})
    path = write_example(tmp_path, 1, experiment=EXPERIMENT.model_copy(update={"network": network}))
    with pytest.raises(
        CheckpointError, match=r"not the policy its experiment describes: trunk\.0\."
    ):
        load_policy(path)


def test_an_experiment_of_another_version_is_refused_with_its_key(tmp_path: Path) -> None:
    manifest = verify_checkpoint(write_example(tmp_path, 1))
    older = manifest.model_copy(update={"experiment": {**manifest.experiment, "no_such": 1}})
    with pytest.raises(CheckpointError, match=r"no_such: .* use the version that made it"):
        experiment_of(older)


def test_an_unknown_group_of_tensors_is_refused(tmp_path: Path) -> None:
    path = write_example(tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"expected one of \['policy', 'random', 'rings'\]"):
        read_tensors(path, "critic", verify_checkpoint(path))


@pytest.mark.parametrize("name", ["../policy", "a/b", "", ".hidden", "a" * 65])
def test_a_group_name_that_is_no_file_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="expected a file name"):
        write_example(tmp_path, 1, tensors={name: {}})


def test_the_manifest_is_plain_json_with_a_digest(tmp_path: Path) -> None:
    content = json.loads((write_example(tmp_path, 1) / "manifest.json").read_text())
    assert content["files"].keys() == content["tensors"].keys() == {"policy", "random", "rings"}
    assert len(content["digest"]) == 64
    assert content["tensors"]["policy"]["trunk.0.weight"] == {"dtype": "float32", "shape": [8, 6]}
