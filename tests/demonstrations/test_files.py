"""Files of demonstrations: what is written is read, and anything wrong is refused whole."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from apprentice.demonstrations.choosing import (
    bundled_names,
    find_demonstrations,
    split_demonstrations,
)
from apprentice.demonstrations.digest import digest_of
from apprentice.demonstrations.exchange import export_minari, export_npz, import_npz
from apprentice.demonstrations.format import (
    DemonstrationError,
    DemonstrationSet,
    doubt_of_units,
)
from apprentice.demonstrations.reading import read_demonstrations
from apprentice.demonstrations.writing import write_demonstrations
from apprentice.types import Ending, EnvironmentSpec
from tests.demonstrations.cases import SPEC, demonstrations, trajectory


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "demos.hdf5"
    write_demonstrations(path, demonstrations())
    return path


def assert_same(found: DemonstrationSet, expected: DemonstrationSet) -> None:
    assert found.metadata == expected.metadata
    assert len(found.trajectories) == len(expected.trajectories)
    for ours, theirs in zip(found.trajectories, expected.trajectories, strict=True):
        for name, value in theirs._asdict().items():
            if isinstance(value, dict):
                assert set(value) == set(getattr(ours, name))
                for key in value:
                    np.testing.assert_array_equal(getattr(ours, name)[key], value[key])
            else:
                np.testing.assert_array_equal(getattr(ours, name), value)


def test_what_is_written_is_read(file: Path) -> None:
    assert_same(read_demonstrations(file, SPEC), demonstrations())


def test_terminated_episodes_keep_their_end(tmp_path: Path) -> None:
    path = tmp_path / "demos.hdf5"
    ended = DemonstrationSet(
        demonstrations().metadata, (trajectory(0, 5, Ending.TERMINATED), trajectory(1, 1))
    )
    write_demonstrations(path, ended)
    found = read_demonstrations(path)
    assert [t.ending for t in found.trajectories] == [Ending.TERMINATED, Ending.TIME_LIMIT]
    assert found.trajectories[0].discount.tolist() == [1.0, 1.0, 1.0, 1.0, 0.0]
    assert found.trajectories[1].discount.tolist() == [1.0]  # a time limit is no termination


def test_arrays_are_mapped_and_not_copied(file: Path) -> None:
    found = read_demonstrations(file)
    assert isinstance(found.trajectories[0].action, np.memmap)


def test_the_same_demonstrations_make_the_same_file(tmp_path: Path) -> None:
    for name in ("a.hdf5", "b.hdf5"):
        write_demonstrations(tmp_path / name, demonstrations())
    assert digest_of(tmp_path / "a.hdf5") == digest_of(tmp_path / "b.hdf5")


def test_a_write_that_fails_leaves_the_old_file(file: Path, monkeypatch: Any) -> None:
    before = digest_of(file)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("apprentice.demonstrations.writing.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_demonstrations(file, demonstrations(2))
    assert digest_of(file) == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_truncated_file_is_refused_wherever_it_ends(file: Path) -> None:
    content = file.read_bytes()
    for number in range(64):
        file.write_bytes(content[: number * len(content) // 64])
        with pytest.raises(DemonstrationError, match=r"demos\.hdf5"):
            read_demonstrations(file)


def test_actions_in_degrees_are_refused_by_dimension(tmp_path: Path) -> None:
    path = tmp_path / "degrees.hdf5"
    write_demonstrations(path, demonstrations())
    with h5py.File(path, "a") as file:
        file["episode_0/actions"][:, 0] *= 57.3
    with pytest.raises(
        DemonstrationError, match=r"episode_0/actions: .* found dimension 0 from -\d+"
    ):
        read_demonstrations(path)


def test_archives_that_unpack_to_more_than_they_hold_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("action.npy", "w") as file,
    ):
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f8", "fortran_order": False, "shape": (10**12, 2)}
        )
        file.write(bytes(1000))
    with pytest.raises(
        DemonstrationError, match=r"action.npy: expected as many bytes as its shape"
    ):
        import_npz(path)


def test_what_is_no_hdf5_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.hdf5"
    path.write_bytes(b"hello")
    with pytest.raises(DemonstrationError, match="expected an HDF5 file"):
        read_demonstrations(path)
    with pytest.raises(DemonstrationError, match="cannot be read: No such file"):
        read_demonstrations(tmp_path / "none.hdf5")


def changed(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[h5py.File], None]:
    def apply(file: h5py.File) -> None:
        value = change(file[name][()])
        del file[name]
        file[name] = value

    return apply


def put(position: tuple[int, ...], number: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[position] = number
        return array

    return change


def bomb(file: h5py.File) -> None:
    del file["episode_1/actions"]
    file.create_dataset("episode_1/actions", (2**40, 2), "f4", chunks=(1024, 2), compression="gzip")


def unwritten(file: h5py.File) -> None:
    """A contiguous array that was declared and never written takes no space in the file."""
    del file["episode_1/actions"]
    file.create_dataset("episode_1/actions", (2**29, 2), "f4")


def elsewhere(file: h5py.File) -> None:
    del file["episode_1/actions"]
    file["episode_1/actions"] = h5py.ExternalLink("/etc/passwd", "/x")


def soft(file: h5py.File) -> None:
    del file["episode_1/actions"]
    file["episode_1/actions"] = h5py.SoftLink("/episode_0/actions")


def metadata(text: str) -> Callable[[h5py.File], None]:
    def apply(file: h5py.File) -> None:
        file.attrs["apprentice"] = text

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (changed("episode_2/actions", put((3, 1), np.nan)), r"episode_2/actions: expected finite .* nan at \[3, 1\]"),
        (changed("episode_2/actions", put((3, 1), 1.5)), "entries from -1 to 1.* found dimension 1 from .* to 1.5"),
        (changed("episode_0/rewards", put((0,), np.inf)), "episode_0/rewards: expected finite"),
        (changed("episode_1/observations/state", lambda a: a[:-1]), "episode_1/observations/state: expected 11 rows"),
        (changed("episode_1/observations/state", lambda a: a[:, :2]), r"episode_1: expected .*\[3\].* as in episode_0"),
        (changed("episode_1/rewards", lambda a: a[:-1]), r"episode_1/rewards: expected shape \[10\], found \[9\]"),
        (changed("episode_1/truncations", put((4,), True)), "truncations: expected true at the last step only"),
        (changed("episode_1/truncations", put((9,), False)), "neither end nor cut"),
        (changed("episode_3/apprentice/pre_tanh_action", put((2, 0), 9.0)), "expected atanh of the actions"),
        (changed("episode_3/apprentice/physics_state", lambda a: a[:-1]), r"physics_state: expected shape \[11, P\]"),
        (changed("episode_3/actions", lambda a: a.astype("S4")), "episode_3/actions: expected numbers"),
        (lambda f: f.__delitem__("episode_3/rewards"), "episode_3/rewards: expected an array, found nothing"),
        (lambda f: f.__delitem__("episode_3"), "total_episodes: expected 4, found 3"),
        (lambda f: f.create_group("episode_x"), "expected episode_ and a number"),
        (bomb, "expected at most .* bytes in all"),
        (unwritten, "expected at most .* bytes in all"),
        (lambda f: f.attrs.__setitem__("total_episodes", "many"), "expected a whole HDF5 file"),
        (metadata('{"subsampling": 4}'), "subsampling: expected 1, found 4"),
        (elsewhere, "episode_1/actions: expected an array or a group in this file, found a link"),
        (soft, "found a link elsewhere"),
        (metadata("{"), "apprentice: "),
        (metadata('{"format_version": 99}'), "format_version: expected 1, found 99"),
        (metadata('{"environment": {"task": 1}}'), "expected an environment spec"),
        (metadata('{"suprise": 1}'), "suprise"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused_with_field_expected_and_found(
    file: Path, damage: Callable[[h5py.File], None], message: str
) -> None:
    with h5py.File(file, "a") as opened:
        damage(opened)
    with pytest.raises(DemonstrationError, match=message):
        read_demonstrations(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task_id": "other"}, "task: expected 'other', found 'fake-task'"),
        ({"action_repeat": 4}, "action_repeat: expected 4, found 2"),
        ({"task_parameters": {"mass": 2.0}}, "task_parameters"),
        ({"observation": {"state": {"shape": [4], "dtype": "float32"}}}, r"state: expected arrays of \[4\]"),
        (
            {"observation": {"state": {"shape": [3], "dtype": "uint8"}}},
            r"observations/state: expected arrays of \[3\] uint8, found \[3\] float32",
        ),
        ({"observation": {"pixels": {"shape": [3, 8, 8, 3], "dtype": "uint8"}}}, "demos render"),
        ({"action": {"shape": [3], "dtype": "float32"}}, "actions: expected 3 entries, found 2"),
    ],
)  # fmt: skip
def test_another_environments_demonstrations_are_refused(
    file: Path, change: dict[str, Any], message: str
) -> None:
    expected = EnvironmentSpec.from_dict({**SPEC.to_dict(), **change})
    with pytest.raises(DemonstrationError, match=message):
        read_demonstrations(file, expected)


def test_a_foreign_file_is_read_and_its_saturated_actions_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "minari.hdf5"
    action = np.array([[0.5, 1.0], [-1.0, 0.25]], np.float64)
    with h5py.File(path, "w") as file:
        group = file.create_group("episode_0")
        group["observations"] = np.arange(9, dtype=np.float64).reshape(3, 3)
        group["actions"] = action
        group["rewards"] = np.ones(2)
        group["terminations"] = np.array([False, False])
        group["truncations"] = np.array([False, True])
    found = read_demonstrations(path, SPEC)
    assert found.clipped_share == 0.5
    episode = found.trajectories[0]
    assert episode.observation["state"].dtype == np.float32
    assert float(np.abs(episode.pre_tanh_action).max()) == pytest.approx(7.2543, abs=1e-3)
    assert episode.physics_state.shape == (3, 0)


def test_frames_keep_their_bytes_and_other_small_numbers_do_not(tmp_path: Path) -> None:
    path = tmp_path / "minari.hdf5"
    with h5py.File(path, "w") as file:
        group = file.create_group("episode_0")
        group["observations/state"] = np.arange(9, dtype=np.uint8).reshape(3, 3)
        group["observations/pixels"] = np.full((3, 4, 4, 3), 7, np.uint8)
        group["observations/scaled"] = np.full((3, 4, 4, 3), 7 / 255, np.float32)
        group["actions"] = np.zeros((2, 2), np.float32)
        group["rewards"] = np.ones(2, np.float32)
        group["terminations"] = np.array([False, False])
        group["truncations"] = np.array([False, True])
    found = read_demonstrations(path, SPEC)
    kinds = {key: array.dtype for key, array in found.trajectories[0].observation.items()}
    assert kinds == {"state": np.float32, "pixels": np.uint8, "scaled": np.float32}

    def read_as_frames(key: str) -> None:
        frames = {"shape": [3, 4, 4, 3], "dtype": "uint8"}
        observation = {"pixels": frames, **SPEC.to_dict()["observation"]}
        expected = EnvironmentSpec.from_dict({**SPEC.to_dict(), "observation": observation})
        with h5py.File(path, "a") as file:
            if key != "pixels":
                del file["episode_0/observations/pixels"]
                file.move(f"episode_0/observations/{key}", "episode_0/observations/pixels")
        read_demonstrations(path, expected)

    read_as_frames("pixels")
    with pytest.raises(DemonstrationError, match=r"\[4, 4, 3\] uint8, found \[4, 4, 3\] float32"):
        read_as_frames("scaled")


def test_units_are_doubted_where_nobody_is_known_to_have_acted_so_little() -> None:
    known = demonstrations()
    foreign = replace(known, metadata=known.metadata.model_copy(update={"expert": None}))
    assert doubt_of_units(foreign) is None
    little = replace(
        foreign,
        trajectories=tuple(t._replace(action=0.5 * t.action) for t in foreign.trajectories),
    )
    assert "--rescale-actions" in (doubt_of_units(little) or "")
    assert doubt_of_units(replace(little, metadata=known.metadata)) is None


@pytest.mark.parametrize(("low", "high"), [(-180.0, 180.0), (-0.5, 0.5), (0.0, 10.0)])
def test_foreign_actions_are_scaled_where_asked_and_never_otherwise(
    tmp_path: Path, low: float, high: float
) -> None:
    path = tmp_path / "minari.hdf5"
    scaled = np.array([[0.5, 1.0], [-1.0, 0.25]])
    with h5py.File(path, "w") as file:
        group = file.create_group("episode_0")
        group["observations"] = np.arange(9, dtype=np.float64).reshape(3, 3)
        group["actions"] = 0.5 * (high + low) + 0.5 * (high - low) * scaled
        group["rewards"] = np.ones(2)
        group["terminations"] = np.array([False, False])
        group["truncations"] = np.array([False, True])
    found = read_demonstrations(path, SPEC, action_bounds=(low, high)).trajectories[0]
    np.testing.assert_allclose(found.action, scaled, atol=1e-6)
    if max(abs(low), abs(high)) > 1.0:
        with pytest.raises(DemonstrationError, match=r"--rescale-actions LOW HIGH"):
            read_demonstrations(path, SPEC)
    ours = tmp_path / "ours.hdf5"
    write_demonstrations(ours, demonstrations())
    with pytest.raises(DemonstrationError, match="expected a foreign file's to scale"):
        read_demonstrations(ours, action_bounds=(low, high))


def test_the_share_of_cut_actions_is_not_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "imported.hdf5"
    write_demonstrations(path, replace(demonstrations(), clipped_share=0.25))
    assert read_demonstrations(path).clipped_share == 0.25


def test_train_and_held_out_episodes_are_disjoint_and_seeded() -> None:
    whole = demonstrations(9)
    train, held_out = split_demonstrations(whole, 5, 3, seed=1)
    assert held_out is not None
    ours = {t.seed for t in train.trajectories}
    theirs = {t.seed for t in held_out.trajectories}
    assert (len(ours), len(theirs), ours & theirs) == (5, 3, set())
    again = split_demonstrations(whole, 5, 3, seed=1)[0]
    assert {t.seed for t in again.trajectories} == ours
    others = {
        frozenset(t.seed for t in split_demonstrations(whole, 5, 3, s)[0].trajectories)
        for s in range(9)
    }
    assert len(others) > 3
    everything, nothing = split_demonstrations(whole, None, 0, seed=0)
    assert nothing is None
    assert len(everything.trajectories) == 9
    with pytest.raises(
        DemonstrationError, match=r"at least 10 episodes \(3 of them held out\), found 9"
    ):
        split_demonstrations(whole, 7, 3, seed=0)


def test_numpy_archives_go_there_and_back(tmp_path: Path) -> None:
    path = tmp_path / "demos.npz"
    export_npz(path, demonstrations())
    assert_same(import_npz(path), demonstrations())
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DemonstrationError, match="expected a numpy archive"):
        import_npz(path)


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({}, "found {}; "),
        ({"geom_pos": np.zeros((5, 3))}, r"found {'geom_pos': \[5, 3\]}; "),
        (
            {"geom_pos": np.zeros((4, 3)), "site_pos": np.zeros((1, 3))},
            r"found {'geom_pos': \[4, 3\], 'site_pos': \[1, 3\]}; ",
        ),
    ],
)
def test_episodes_with_different_model_fields_make_no_archive(
    tmp_path: Path, fields: dict[str, np.ndarray], found: str
) -> None:
    whole = demonstrations(3)
    other = whole.trajectories[1]._replace(model_fields=fields)
    mixed = replace(whole, trajectories=(whole.trajectories[0], other, whole.trajectories[2]))
    expected = r"model_fields, episode 1: expected {'geom_pos': \[4, 3\]} as in episode 0, "
    with pytest.raises(DemonstrationError, match=f"{expected}{found}`--format minari`"):
        export_npz(tmp_path / "demos.npz", mixed)
    assert list(tmp_path.iterdir()) == []
    write_demonstrations(tmp_path / "demos.hdf5", mixed)
    assert_same(read_demonstrations(tmp_path / "demos.hdf5"), mixed)


def test_a_folder_for_minari_holds_what_minari_asks_for(tmp_path: Path) -> None:
    import json

    folder = tmp_path / "minari"
    export_minari(folder, demonstrations())
    told = json.loads((folder / "metadata.json").read_text())
    assert (told["total_episodes"], told["total_steps"]) == (4, 40)
    space = json.loads(told["observation_space"])
    assert space["subspaces"]["state"]["shape"] == [3]
    with h5py.File(folder / "main_data.hdf5") as file:
        assert set(file["episode_0"]) >= {
            "observations",
            "actions",
            "rewards",
            "terminations",
            "truncations",
        }
        assert dict(file["episode_0"].attrs)["total_steps"] == 10


def test_a_folder_for_minari_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: Any) -> None:
    folder = tmp_path / "minari"
    with monkeypatch.context() as failing:

        def torn(path: Path, _: Any) -> None:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")

        failing.setattr("apprentice.demonstrations.exchange.write_demonstrations", torn)
        with pytest.raises(OSError, match="No space"):
            export_minari(folder, demonstrations())
    assert list(tmp_path.iterdir()) == []
    export_minari(folder, demonstrations())
    with pytest.raises(DemonstrationError, match="expected a path that is free"):
        export_minari(folder, demonstrations())


def test_every_bundled_file_can_be_used_and_is_small() -> None:
    names = bundled_names()
    assert "reacher-easy" in names
    total = 0
    for name in names:
        path = find_demonstrations(name, "")
        found = read_demonstrations(path)
        assert found.metadata.spec is not None
        assert found.metadata.spec.task_id == name
        assert len(found.trajectories) >= (16 if name == "reacher-easy" else 4)
        assert found.metadata.expert is not None
        assert found.metadata.random_return is not None
        size = path.stat().st_size
        total += size
        assert size <= 2_000_000
    assert len(names) >= 4
    assert total <= 6_000_000
    assert find_demonstrations(None, "reacher-easy") == find_demonstrations("reacher-easy", "")


def test_an_unknown_file_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(DemonstrationError, match="reacher-easy"):
        find_demonstrations("no-such", "reacher-easy")
    with pytest.raises(DemonstrationError, match="found nothing at"):
        find_demonstrations(str(tmp_path / "x.hdf5"), "reacher-easy")
