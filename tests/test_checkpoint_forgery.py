"""Nothing forged, pickled or of the future is loaded, and nothing is allocated for it."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apprentice.checkpoint import (
    CheckpointError,
    CorruptCheckpoint,
    FutureCheckpoint,
    PickledCheckpoint,
    load_policy,
    newest_checkpoint,
    read_tensors,
    verify_checkpoint,
)
from apprentice.checkpoint_format import FileEntry, TensorEntry, decode_manifest, encode_manifest
from apprentice.checkpoint_tensors import check_header
from tests.checkpoint_cases import LOADERS, assert_refused, write_example

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_example(tmp_path_factory.mktemp("intact"), 1)


@pytest.fixture
def checkpoint(intact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(intact, tmp_path / intact.name))


def forge_manifest(path: Path, **changes: Any) -> None:
    manifest = verify_checkpoint(path).model_copy(update=changes)
    (path / "manifest.json").write_bytes(encode_manifest(manifest))


def forge_file(
    path: Path,
    header: dict[str, Any] | bytes,
    body: bytes,
    entries: dict[str, TensorEntry] | None = None,
) -> None:
    """Replace the policy's file by any bytes, with a manifest that vouches for them."""
    manifest = verify_checkpoint(path)
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    content = struct.pack("<Q", len(text)) + text + body
    (path / "policy.safetensors").write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    files = {**manifest.files, "policy": FileEntry(bytes=len(content), sha256=sha256)}
    tensors = manifest.tensors if entries is None else {**manifest.tensors, "policy": entries}
    forged = manifest.model_copy(update={"files": files, "tensors": tensors})
    (path / "manifest.json").write_bytes(encode_manifest(forged))


def entry(*shape: int, dtype: str = "float32") -> TensorEntry:
    return TensorEntry.model_validate({"dtype": dtype, "shape": shape})


def stored(start: int, end: int, *shape: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


TWO = {"a": entry(2), "b": entry(2)}
FORGED: dict[str, tuple[dict[str, Any] | bytes, dict[str, TensorEntry]]] = {
    "overlapping tensors": ({"a": stored(0, 8, 2), "b": stored(4, 12, 2)}, TWO),
    "the same bytes twice": ({"a": stored(0, 8, 2), "b": stored(0, 8, 2)}, TWO),
    "a gap": ({"a": stored(0, 8, 2), "b": stored(12, 20, 2)}, TWO),
    "bytes left over": ({"a": stored(0, 8, 2)}, {"a": entry(2)}),
    "beyond the end": ({"a": stored(0, 8, 2), "b": stored(2**40, 2**40 + 8, 2)}, TWO),
    "negative offsets": ({"a": stored(-8, 0, 2), "b": stored(0, 8, 2)}, TWO),
    "wrong dtype": ({"a": stored(0, 8, 2, dtype="I32"), "b": stored(8, 16, 2)}, TWO),
    "unknown dtype": ({"a": stored(0, 8, 2, dtype="X9"), "b": stored(8, 16, 2)}, TWO),
    "wrong shape": ({"a": stored(0, 8, 1, 2), "b": stored(8, 16, 2)}, TWO),
    "huge shape": ({"a": stored(0, 8, 2**31, 2**31), "b": stored(8, 16, 2)}, TWO),
    "missing tensor": ({"a": stored(0, 16, 4)}, TWO),
    "extra tensor": ({"a": stored(0, 8, 2), "b": stored(8, 16, 2), "c": stored(16, 16, 0)}, TWO),
    "metadata": ({"__metadata__": {"x": "y"}, "a": stored(0, 8, 2), "b": stored(8, 16, 2)}, TWO),
    "extra key": ({"a": {**stored(0, 8, 2), "x": 1}, "b": stored(8, 16, 2)}, TWO),
    "entry is a list": ({"a": [], "b": stored(8, 16, 2)}, TWO),
    "offsets are text": (
        {"a": {**stored(0, 8, 2), "data_offsets": "08"}, "b": stored(8, 16, 2)},
        TWO,
    ),
    "header is a list": (b"[]", TWO),
    "header is nested": (b"[" * 10_000, TWO),
    "header is no JSON": (b"\xff\xfe{}", TWO),
}


@pytest.mark.parametrize("case", FORGED)
def test_a_crafted_header_is_refused_before_a_tensor_is_made(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    header, entries = FORGED[case]
    forge_file(checkpoint, header, bytes(16), entries)
    made: list[bytes] = []
    real = safetensors.torch.load

    def load(raw: bytes) -> dict[str, torch.Tensor]:
        made.append(raw)
        return real(raw)

    monkeypatch.setattr(safetensors.torch, "load", load)
    assert_refused(checkpoint, match=r"policy\.safetensors")
    assert made == []


def test_what_the_forgeries_differ_from_is_accepted(checkpoint: Path) -> None:
    forge_file(checkpoint, {"a": stored(0, 8, 2), "b": stored(8, 16, 2)}, bytes(16), TWO)
    manifest = verify_checkpoint(checkpoint)
    assert torch.equal(read_tensors(checkpoint, "policy", manifest)["b"], torch.zeros(2))


@pytest.mark.parametrize("length", [2**20 + 1, 100_000_000, 2**63, 2**64 - 1])
def test_a_header_longer_than_the_cap_is_refused_unread(checkpoint: Path, length: int) -> None:
    path = checkpoint / "policy.safetensors"
    content = struct.pack("<Q", length) + path.read_bytes()[8:]
    path.write_bytes(content)
    assert_refused(checkpoint, match="expected a header of at most 1048576 bytes")


def test_a_sparse_terabyte_is_refused_without_being_read(checkpoint: Path) -> None:
    with (checkpoint / "policy.safetensors").open("r+b") as file:
        file.truncate(2**40)
    assert_refused(
        checkpoint, match=r"policy\.safetensors: expected \d+ bytes, found 1099511627776"
    )


def test_a_million_tensors_are_refused(checkpoint: Path) -> None:
    forge_manifest(
        checkpoint,
        tensors={
            **verify_checkpoint(checkpoint).tensors,
            "policy": {f"t{number}": entry(0) for number in range(5_000)},
        },
    )
    assert_refused(checkpoint, match="more than 4096 tensors")
    (checkpoint / "manifest.json").write_bytes(b" " * (4 * 2**20 + 1))
    assert_refused(checkpoint, match="expected at most 4194304 bytes")


def test_too_many_tensors_are_not_written(tmp_path: Path) -> None:
    tensors = {"policy": {f"t{number}": torch.zeros(0) for number in range(4097)}}
    with pytest.raises(CheckpointError, match="expected at most 4096 tensors, found 4097"):
        write_example(tmp_path, 1, tensors=tensors)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_weights_are_refused_by_name(checkpoint: Path, value: float) -> None:
    body = struct.pack("<4f", 0.0, value, 1.0, 1.0)
    forge_file(checkpoint, {"a": stored(0, 8, 2), "b": stored(8, 16, 2)}, body, TWO)
    assert_refused(checkpoint, match="policy/a: expected finite values, found 1 of 2")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"environment_digest": "0" * 16}, "environment: expected digest"),
        ({"environment": {}}, "environment: KeyError"),
        ({"tensors": {}}, "names missing"),
        ({"steps": -1}, "steps"),
        ({"files": {}, "tensors": {}}, "names not expected"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    checkpoint: Path, changes: dict[str, Any], match: str
) -> None:
    forge_manifest(checkpoint, **changes)
    assert_refused(checkpoint, match=match)


def test_a_file_name_in_the_manifest_cannot_lead_out_of_the_folder(checkpoint: Path) -> None:
    manifest = verify_checkpoint(checkpoint)
    name = "../elsewhere"
    forge_manifest(
        checkpoint,
        files={**manifest.files, name: manifest.files["policy"]},
        tensors={**manifest.tensors, name: manifest.tensors["policy"]},
    )
    assert_refused(checkpoint, match="no file name of a checkpoint")


def test_a_future_format_is_refused_with_what_to_do_and_kept(checkpoint: Path) -> None:
    forge_manifest(checkpoint, format_version=2)
    assert_refused(
        checkpoint, FutureCheckpoint, "expected format version 1 or older, found 2; use the version"
    )
    assert newest_checkpoint(checkpoint.parent) is None
    assert (checkpoint.parent / "quarantine" / checkpoint.name / "manifest.json").is_file()


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=300)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
        ),
        max_leaves=8,
    ).map(lambda value: json.dumps(value).encode())
)
def test_any_bytes_are_a_manifest_or_refused(raw: bytes) -> None:
    with pytest.raises(CheckpointError):
        decode_manifest(raw)
    with pytest.raises(CorruptCheckpoint):
        check_header("policy", raw, len(raw) + 8, TWO)


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.canary),))


def pickles(canary: Path) -> dict[str, bytes]:
    bomb = Bomb(canary)
    found = {f"protocol {p}": pickle.dumps({"x": bomb}, protocol=p) for p in range(2, 6)}
    with tempfile.NamedTemporaryFile() as file:
        torch.save({"x": bomb}, file.name)
        found["zip"] = Path(file.name).read_bytes()
        torch.save({"x": bomb}, file.name, _use_new_zipfile_serialization=False)
        found["legacy"] = Path(file.name).read_bytes()
    return found


def test_the_bombs_work(tmp_path: Path) -> None:
    for name, content in pickles(tmp_path / "canary").items():
        if name.startswith("protocol"):
            pickle.loads(content)  # noqa: S301 - this is what must never happen elsewhere
            assert (tmp_path / "canary").is_dir()
            (tmp_path / "canary").rmdir()


@pytest.mark.parametrize(
    "name", ["weights.pt", "weights.pth", "step-000000000001", "x.safetensors"]
)
def test_a_pickled_file_is_refused_with_what_to_do(tmp_path: Path, name: str) -> None:
    for content in pickles(tmp_path / "canary").values():
        (tmp_path / name).write_bytes(content)
        for load in LOADERS:
            with pytest.raises(
                PickledCheckpoint, match=r"found a pickled file.*never does.*Train anew"
            ):
                load(tmp_path / name)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pkl", ".pickle", ".ckpt"])
def test_a_file_named_like_a_pickle_is_refused_as_one(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "canary"), protocol=0))
    with pytest.raises(PickledCheckpoint):
        load_policy(path)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", ["policy.safetensors", "manifest.json"])
def test_a_pickle_in_the_place_of_a_file_is_refused(checkpoint: Path, name: str) -> None:
    for content in pickles(checkpoint.parent / "canary").values():
        (checkpoint / name).write_bytes(content)
        assert_refused(checkpoint, PickledCheckpoint, f"{name}: expected a checkpoint folder")
    assert not (checkpoint.parent / "canary").exists()


def test_a_header_that_begins_like_a_pickle_is_no_pickle(tmp_path: Path) -> None:
    """Length 0x280 is stored as 80 02 00..., the first bytes of every protocol-2 pickle."""
    rest = len('{"":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}')
    tensors = {"policy": {"x" * (0x280 - rest): torch.zeros(1)}}
    path = write_example(tmp_path, 1, tensors=tensors)
    assert (path / "policy.safetensors").read_bytes()[:8] == b"\x80\x02" + bytes(6)
    verify_checkpoint(path)


def test_loading_never_looks_up_a_class_to_unpickle(checkpoint: Path) -> None:
    script = """
import sys
from pathlib import Path
import apprentice.checkpoint as module
events = []
sys.addaudithook(lambda event, args: events.append(event) if "pickle" in event or "marshal" in event else None)
path = Path(sys.argv[1])
policy, manifest = module.load_policy(path)
for name in manifest.files:
    module.read_tensors(path, name, manifest)
assert module.newest_checkpoint(path.parent) is not None
try:
    module.load_policy(Path(sys.argv[2]))
    raise SystemExit("the bomb was loaded")
except module.PickledCheckpoint:
    pass
assert "pickle.find_class" not in events, events
import pickle
pickle.loads(pickle.dumps(Path))
assert "pickle.find_class" in events, "the hook does not work"
"""
    bomb = checkpoint.parent / "bomb.pt"
    bomb.write_bytes(pickles(checkpoint.parent / "canary")["zip"])
    child = subprocess.run(
        [sys.executable, "-c", script, str(checkpoint), str(bomb)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    assert not (checkpoint.parent / "canary").exists()
