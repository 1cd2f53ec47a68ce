"""Files that are torn, changed, in other units or of other shapes, and bombs: refused whole, within bounds."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from apprentice.demonstrations.exchange import export_npz, import_npz
from apprentice.demonstrations.format import DemonstrationError
from apprentice.demonstrations.reading import read_demonstrations
from apprentice.demonstrations.writing import write_demonstrations
from cli.main import main
from tests.demonstrations.cases import demonstrations
from tests.demonstrations.reading_child import complaints

ROOT = Path(__file__).resolve().parents[2]
MOST_RISEN_MIB = 64.0
many = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "demos.hdf5"
    write_demonstrations(path, demonstrations(2, 5))
    return path


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "demos.npz"
    export_npz(path, demonstrations(2, 5))
    return path


def child(*arguments: object, timeout: float = 90.0) -> dict[str, Any]:
    """Read in a process of its own: a crash ends it with a signal, a hang with the time limit."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.demonstrations.reading_child", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def foreign(path: Path, action: np.ndarray) -> None:
    """Write an episode with these actions [L, A] as another program would."""
    length = len(action)
    with h5py.File(path, "w") as written:
        group = written.create_group("episode_0")
        group["observations"] = np.zeros((length + 1, 3), np.float32)
        group["actions"] = action
        group["rewards"] = np.ones(length, np.float32)
        group["terminations"] = np.zeros(length, bool)
        group["truncations"] = np.arange(length) == length - 1


# Units: row 6.


@many
@given(
    action=hnp.arrays(
        np.float64, st.tuples(st.integers(1, 6), st.integers(1, 4)), elements=st.floats(-1, 1)
    ),
    scale=st.sampled_from([180.0 / np.pi, 180.0, 2.0, 1.0, 0.5]),
    shift=st.sampled_from([0.0, 0.5, -1.0, 90.0]),
)
@example(action=np.array([[0.1, 0.9], [0.2, -0.9]]), scale=180.0 / np.pi, shift=0.0)
def test_actions_in_other_units_are_refused_by_dimension_and_range(
    tmp_path: Path, action: np.ndarray, scale: float, shift: float
) -> None:
    path = tmp_path / "units.hdf5"
    other = action * scale + shift
    foreign(path, other)
    beyond = np.flatnonzero(np.abs(other).max(0) > 1.0 + 1e-6)
    if not len(beyond):
        found = read_demonstrations(path).trajectories[0].action
        np.testing.assert_allclose(found, other, atol=1e-6)  # as they are: nothing is guessed
        return
    low, high = other[:, beyond[0]].min(), other[:, beyond[0]].max()
    with pytest.raises(DemonstrationError) as caught:
        read_demonstrations(path)
    expected = "episode_0/actions: expected entries from -1 to 1"
    assert str(caught.value).startswith(f"{path}: {expected}")
    assert f"found dimension {beyond[0]} from {low:g} to {high:g}" in str(caught.value)


def test_small_actions_are_read_with_a_warning(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "halved.hdf5"
    foreign(path, 0.5 * np.linspace(-1.0, 1.0, 8)[:, None])
    assert main(["demos", "import", str(path), "--out", str(tmp_path / "ours.hdf5")]) == 0
    assert "warning: actions reach 0.5 of the environment's bounds" in capsys.readouterr().out


def test_halved_actions_of_a_file_of_ours_are_refused(file: Path) -> None:
    with h5py.File(file, "a") as opened:
        opened["episode_0/actions"][:] *= 0.5
    with pytest.raises(DemonstrationError, match="pre_tanh_action: expected atanh of the actions"):
        read_demonstrations(file)


# Truncation: row 7; tests/demonstrations/test_files.py has HDF5's.


def test_a_truncated_archive_is_refused_wherever_it_ends(archive: Path, tmp_path: Path) -> None:
    content = archive.read_bytes()
    for number in range(64):
        archive.write_bytes(content[: number * len(content) // 64])
        with pytest.raises(DemonstrationError, match=r"demos\.npz: expected a numpy archive"):
            import_npz(archive)
    out = tmp_path / "out.hdf5"
    assert main(["demos", "import", str(archive), "--out", str(out)]) == 78
    assert [path.name for path in tmp_path.iterdir()] == [archive.name]


def test_a_truncated_file_says_how_many_bytes_it_should_have(file: Path) -> None:
    size = file.stat().st_size
    os.truncate(file, size - 100)
    with pytest.raises(DemonstrationError, match=rf"{size - 100}\b.*{size}\b"):
        read_demonstrations(file)


# Changed bytes and made-up arrays: row 9.


@pytest.mark.parametrize("suffix", [".hdf5", ".npz"])
@pytest.mark.parametrize(
    "num", [300, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
)
def test_a_file_with_changed_bytes_is_refused_or_sound(
    file: Path, archive: Path, suffix: str, num: int
) -> None:
    path = file if suffix == ".hdf5" else archive
    found = child("mutate", path, 0, num, timeout=800.0)
    wrong = [line for line in found["wrong"] if suffix == ".hdf5" or "not finite" not in line]
    assert wrong == []
    assert found["refused"] > 0.25 * num
    assert found["accepted"] + found["refused"] == num


FIELDS = (
    "actions",
    "rewards",
    "terminations",
    "truncations",
    "observations/state",
    "apprentice/pre_tanh_action",
    "apprentice/physics_state",
)
DTYPES = ("f2", "f4", "f8", ">f4", "i1", "u1", "u8", "?", "c8", "S3")


@many
@given(
    field=st.sampled_from(FIELDS),
    array=hnp.arrays(
        st.sampled_from(DTYPES),
        st.lists(st.integers(0, 7), max_size=3).map(tuple)
        | st.sampled_from([(5,), (6,), (5, 2), (6, 2), (6, 3), (6, 7)]),
    ),
)
@example(field="rewards", array=np.full(5, 1e300))
@example(field="observations/state", array=np.full((6, 3), 1e300))
@example(field="observations/state", array=np.zeros((5, 3), np.float32))
@example(field="rewards", array=np.zeros((), np.float32))
@example(field="rewards", array=np.zeros((5, 1), np.float32))
def test_an_array_of_any_shape_and_kind_is_refused_by_its_name_or_sound(
    file: Path, field: str, array: np.ndarray
) -> None:
    content = file.read_bytes()
    try:
        with h5py.File(file, "a") as opened:
            del opened[f"episode_1/{field}"]
            opened[f"episode_1/{field}"] = array
        try:
            found = read_demonstrations(file)
        except DemonstrationError as error:
            assert "episode_1" in str(error)
            assert "expected" in str(error)
            assert "found" in str(error)
        else:
            assert complaints(found) == []
            assert all(len(episode.action) == 5 for episode in found.trajectories)
    finally:
        file.write_bytes(content)


ARRAYS = ("action", "lengths", "ending", "discount", "physics_state", "seed", "metadata")


@many
@given(
    name=st.sampled_from([*ARRAYS, "observation.state", "model_fields.geom_pos", "another"]),
    array=hnp.arrays(st.sampled_from(DTYPES), st.lists(st.integers(0, 12), max_size=3).map(tuple)),
)
@example(name="lengths", array=np.array([2**62, 2**62, 2**62]))
@example(name="lengths", array=np.array([4, 5]))
@example(name="ending", array=np.array([2, 9]))
@example(name="discount", array=np.zeros(10, np.float32))
@example(name="observation.state", array=np.zeros((13, 3), np.float32))
def test_an_archive_with_any_other_array_is_refused_or_sound(
    archive: Path, name: str, array: np.ndarray
) -> None:
    with np.load(archive) as opened:
        arrays = {key: opened[key] for key in opened.files}
    path = archive.with_name("changed.npz")
    np.savez(path, **{**arrays, name: array})
    try:
        found = import_npz(path)
    except DemonstrationError as error:
        assert str(error).startswith(f"{path}: ")
        assert name in str(error)
    else:
        assert [line for line in complaints(found) if "rows" in line] == []
        assert found.num_steps == 10


@pytest.mark.parametrize("name", [*ARRAYS, "pre_tanh_action", "environment_reward"])
def test_an_archive_without_an_array_is_refused_by_its_name(archive: Path, name: str) -> None:
    with np.load(archive) as opened:
        arrays = {key: opened[key] for key in opened.files if key != name}
    np.savez(archive, **arrays)
    with pytest.raises(DemonstrationError, match=f"{name}: expected an array, found nothing"):
        import_npz(archive)


def test_the_share_of_cut_actions_goes_there_and_back(tmp_path: Path) -> None:
    path = tmp_path / "foreign.hdf5"
    foreign(path, np.array([[1.0], [0.5]]))
    found = read_demonstrations(path)
    assert found.clipped_share == 0.5
    export_npz(tmp_path / "x.npz", found)
    assert import_npz(tmp_path / "x.npz").clipped_share == 0.5


def test_numbers_that_float32_cannot_hold_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "large.hdf5"
    foreign(path, np.zeros((2, 1)))
    with h5py.File(path, "a") as opened:
        del opened["episode_0/rewards"]
        opened["episode_0/rewards"] = np.array([0.0, 1e300])
    message = r"episode_0/rewards: expected numbers that float32 holds, found 1e\+300 at \[1\]"
    with pytest.raises(DemonstrationError, match=message):
        read_demonstrations(path)


def test_actions_are_single_numbers_whatever_a_file_keeps(tmp_path: Path) -> None:
    path = tmp_path / "double.hdf5"
    foreign(path, np.zeros((2, 1), np.float64))
    found = read_demonstrations(path).trajectories[0]
    assert found.action.dtype == found.pre_tanh_action.dtype == np.float32


@pytest.mark.parametrize("place", ["", "episode_1"])
def test_a_stated_number_of_steps_must_be_that_of_the_arrays(file: Path, place: str) -> None:
    with h5py.File(file, "a") as opened:
        opened[place or "/"].attrs["total_steps"] = 6
    with pytest.raises(DemonstrationError, match=r"total_steps: expected 6, found (5|10)"):
        read_demonstrations(file)


# Bombs, loops and pipes: row 10.


def deflated(num_mebibytes: int, head: bytes = b"") -> bytes:
    """Return a raw deflate stream of a head and so many MiB of zeros, made without unpacking them."""

    def part(content: bytes, flush: int) -> bytes:
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        return packer.compress(content) + packer.flush(flush)

    piece = part(bytes(1 << 20), zlib.Z_FULL_FLUSH)
    return part(head, zlib.Z_FULL_FLUSH) + piece * num_mebibytes + part(b"", zlib.Z_FINISH)


def zip_of(entries: list[tuple[str, bytes, int]]) -> bytes:
    """Return a zip archive of (name, deflated content, declared size), whatever is true."""
    body, index = b"", b""
    for name, packed, declared in entries:
        sizes = struct.pack("<IIIHH", 0, len(packed), declared, len(name), 0)
        head = struct.pack("<HHHHH", 20, 0, 8, 0, 0) + sizes
        index += (
            b"PK\x01\x02"
            + struct.pack("<H", 20)
            + head
            + struct.pack("<HHHII", 0, 0, 0, 0, len(body))
        )
        index += name.encode()
        body += b"PK\x03\x04" + head + name.encode() + packed
    end = struct.pack("<HHHHIIH", 0, 0, len(entries), len(entries), len(index), len(body), 0)
    return body + index + b"PK\x05\x06" + end


def declared_bomb(path: Path) -> None:
    """10 MB that say that they unpack to 10 GB."""
    gibibyte = deflated(1024)
    path.write_bytes(zip_of([(f"a{n}.npy", gibibyte, 1 << 30) for n in range(10)]))


def lying_bomb(path: Path) -> None:
    """1 MB that say that they are a small array and would unpack to 1 GiB."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (10, 2)}
    )
    declared = len(header.getvalue()) + 80
    path.write_bytes(zip_of([("action.npy", deflated(1024, header.getvalue()), declared)]))


def chunk_bomb(path: Path) -> None:
    """An array of ten numbers, whose one chunk would unpack to 1 GiB."""
    write_demonstrations(path, demonstrations(2, 5))
    stream = b"\x78\xda" + deflated(1024) + b"\0\0\0\0"
    with h5py.File(path, "a") as opened:
        del opened["episode_1/actions"]
        array = opened.create_dataset(
            "episode_1/actions", (5, 2), "f4", chunks=(5, 2), compression="gzip"
        )
        array.id.write_direct_chunk((0, 0), stream)


def wide_chunk_bomb(path: Path) -> None:
    """An array of ten numbers, in a chunk that could hold 2^32."""
    write_demonstrations(path, demonstrations(2, 5))
    with h5py.File(path, "a") as opened:
        del opened["episode_1/actions"]
        opened.create_dataset(
            "episode_1/actions",
            (5, 2),
            "f4",
            chunks=(2**28, 4),
            maxshape=(None, None),
            compression="gzip",
        )


@pytest.mark.parametrize(
    ("make", "suffix", "message"),
    [
        (declared_bomb, ".npz", "expected at most 4294967296 bytes unpacked, found 10737418240"),
        (lying_bomb, ".npz", "expected a numpy archive, found: Bad CRC-32"),
        (chunk_bomb, ".hdf5", "episode_1/actions: expected at most 40 bytes in a chunk, found one that holds more"),
        (wide_chunk_bomb, ".hdf5", "episode_1/actions: expected at most 4294967296 bytes in all"),
    ],
)  # fmt: skip
def test_a_bomb_is_refused_before_it_fills_the_memory(
    tmp_path: Path, make: Callable[[Path], None], suffix: str, message: str
) -> None:
    path = tmp_path / f"bomb{suffix}"
    make(path)
    assert path.stat().st_size < 12_000_000
    found = child("read", path)
    assert found["refusal"] is not None
    assert message in found["refusal"]
    assert found["risen_mib"] < MOST_RISEN_MIB


@pytest.mark.timeout(30)
def test_groups_that_are_linked_over_and_over_are_refused_at_once(file: Path) -> None:
    with h5py.File(file, "a") as opened:
        inner = opened.create_group("end")
        for depth in range(6):
            outer = opened.create_group(f"level_{depth}")
            for number in range(40):
                outer[f"again_{number}"] = inner
            inner = outer
    with pytest.raises(DemonstrationError, match="expected one name for each array and group"):
        read_demonstrations(file)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("suffix", [".hdf5", ".npz"])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"pipe{suffix}"
    os.mkfifo(path)
    read = import_npz if suffix == ".npz" else read_demonstrations
    with pytest.raises(DemonstrationError, match="expected a file, found something else"):
        read(path)  # type: ignore[operator]


def test_arrays_packed_in_another_way_than_gzip_are_refused(file: Path) -> None:
    with h5py.File(file, "a") as opened:
        value = opened["episode_1/rewards"][()]
        del opened["episode_1/rewards"]
        opened.create_dataset("episode_1/rewards", data=value, compression="lzf")
    with pytest.raises(DemonstrationError, match="episode_1/rewards: expected no packing but gzip"):
        read_demonstrations(file)


def test_a_packed_foreign_file_is_read(file: Path) -> None:
    expected = read_demonstrations(file).trajectories[1].action.copy()
    with h5py.File(file, "a") as opened:
        value = opened["episode_1/actions"][()]
        del opened["episode_1/actions"]
        opened.create_dataset(
            "episode_1/actions",
            data=value,
            chunks=(2, 1),
            compression="gzip",
            shuffle=True,
            fletcher32=True,
        )
    np.testing.assert_array_equal(read_demonstrations(file).trajectories[1].action, expected)
