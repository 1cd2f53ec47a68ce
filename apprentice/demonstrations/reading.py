"""Reads demonstrations, ours and Minari's; a file with anything wrong in it is refused whole."""

from __future__ import annotations

import re
from pathlib import Path

import h5py
import numpy as np
from pydantic import ValidationError

from apprentice.demonstrations.format import (
    FORMAT_VERSION,
    LARGEST_ACTION,
    LARGEST_FILE_BYTES,
    MAX_EPISODES,
    MAX_METADATA_CHARACTERS,
    METADATA,
    DemonstrationError,
    DemonstrationMetadata,
    DemonstrationSet,
    refused,
    require_spec,
    shape_and_dtype,
)
from apprentice.demonstrations.modest import require_file, require_modest
from apprentice.setting_problems import describe_problems
from apprentice.types import Ending, EnvironmentSpec, Trajectory

_EPISODE = re.compile(r"episode_(0|[1-9][0-9]{0,5})")
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_TANH_TOLERANCE = 1e-4


def read_demonstrations(
    path: Path,
    expected: EnvironmentSpec | None = None,
    action_bounds: tuple[float, float] | None = None,
) -> DemonstrationSet:
    """Return a file's episodes, in the order of their numbers.

    `action_bounds` are the lowest and highest action of a foreign file, which then are scaled to [-1, 1].

    Arrays that lie in the file as in memory are mapped, others are read. With `expected` the task, its
    action repeat and all shapes must agree. Raises DemonstrationError.
    """
    require_file(path)
    try:
        with path.open("rb") as stream:
            found = stream.read(len(_SIGNATURE))
            size = stream.seek(0, 2)
    except OSError as error:
        raise DemonstrationError(f"{path}: cannot be read: {error.strerror}") from None
    if found != _SIGNATURE:
        raise DemonstrationError(f"{path}: expected an HDF5 file, found another or a torn one")
    if size > LARGEST_FILE_BYTES:
        raise DemonstrationError(
            f"{path}: expected at most {LARGEST_FILE_BYTES} bytes, found {size}"
        )
    try:
        with h5py.File(path, "r") as file:
            demonstrations = _Reader(path, file, action_bounds).read()
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:  # of torn files
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DemonstrationError(f"{path}: expected a whole HDF5 file, found: {reason}") from None
    if expected is not None:
        for episode in demonstrations.trajectories:
            require_spec(str(path), demonstrations.metadata, episode, expected)
    return demonstrations


class _Reader:
    def __init__(
        self, path: Path, file: h5py.File, action_bounds: tuple[float, float] | None
    ) -> None:
        self._path, self._file, self._action_bounds = path, file, action_bounds
        self._num_clipped = 0
        self._num_actions = 0

    def read(self) -> DemonstrationSet:
        require_modest(self._path, self._file)
        metadata = self._metadata()
        names = [name for name in self._file if name.startswith("episode_")]
        odd = [name for name in names if not _EPISODE.fullmatch(name)]
        if odd:
            raise self._refuse(odd[0], "episode_ and a number", repr(odd[0]))
        names.sort(key=lambda name: int(name.removeprefix("episode_")))
        if not 1 <= len(names) <= MAX_EPISODES:
            raise self._refuse("episodes", f"from 1 to {MAX_EPISODES}", len(names))
        episodes = tuple(self._episode(name) for name in names)
        self._require_stated("", "total_episodes", len(names))
        self._require_stated("", "total_steps", sum(len(episode.action) for episode in episodes))
        self._require_alike(names, episodes, metadata)
        share = max(metadata.clipped_share, self._num_clipped / max(1, self._num_actions))
        return DemonstrationSet(metadata, episodes, share)

    def _require_stated(self, name: str, field: str, found: int) -> None:
        """Refuse a file or group whose attribute, where it has one, states another number."""
        stated = self._file[name or "/"].attrs.get(field)
        if stated is not None and int(stated) != found:
            raise self._refuse(f"{name}/{field}".lstrip("/"), int(stated), found)

    def _metadata(self) -> DemonstrationMetadata:
        text = self._file.attrs.get(METADATA)
        if text is None:
            return DemonstrationMetadata()
        if not isinstance(text, str) or len(text) > MAX_METADATA_CHARACTERS:
            raise self._refuse(METADATA, "the metadata as JSON", "something else")
        try:
            metadata = DemonstrationMetadata.model_validate_json(text)
        except ValidationError as error:
            problems = "; ".join(describe_problems(DemonstrationMetadata, error))
            raise DemonstrationError(f"{self._path}: {METADATA}: {problems}") from None
        if metadata.subsampling != 1:
            found = f"{metadata.subsampling}: thinned, so that what followed a step is not in it"
            raise self._refuse("subsampling", 1, found)
        if metadata.format_version != FORMAT_VERSION:
            found = f"{metadata.format_version}: written by another version of Apprentice"
            raise self._refuse("format_version", FORMAT_VERSION, found)
        return metadata

    def _episode(self, name: str) -> Trajectory:
        group = self._file[name]
        if not isinstance(group, h5py.Group):
            raise self._refuse(name, "a group", "an array")
        action = self._array(name, "actions", None, "f")
        if action.ndim != 2 or len(action) == 0:
            raise self._refuse(f"{name}/actions", "shape [L, A], L > 0", f"{list(action.shape)}")
        length = len(action)
        self._require_stated(name, "total_steps", length)
        if self._action_bounds is not None:
            action = self._rescaled(name, action, *self._action_bounds)
        low, high = action.min(0), action.max(0)
        beyond = np.flatnonzero(np.maximum(-low, high) > 1.0 + 1e-6)
        if len(beyond):
            worst = int(beyond[0])
            raise self._refuse(
                f"{name}/actions",
                "entries from -1 to 1, the environment's bounds scaled",
                f"dimension {worst} from {low[worst]:g} to {high[worst]:g}; "
                "`apprentice demos import --rescale-actions LOW HIGH` scales them",
            )
        reward = self._array(name, "rewards", (length,), "f")
        ending = self._ending(name, length)
        discount = np.ones(length, np.float32)
        discount[-1] = float(ending != Ending.TERMINATED)
        return Trajectory(
            self._observation(name, length),
            action.astype(np.float32, copy=False),
            self._pre_tanh(name, action),
            self._single(f"{name}/rewards", reward),
            discount,
            ending,
            self._physics_state(name, length),
            self._model_fields(name),
            self._seed(name),
        )

    def _rescaled(self, name: str, action: np.ndarray, low: float, high: float) -> np.ndarray:
        if f"{name}/{METADATA}/pre_tanh_action" in self._file:
            raise self._refuse(f"{name}/actions", "a foreign file's to scale", "a file of ours")
        middle, half = 0.5 * (high + low), 0.5 * (high - low)
        scaled: np.ndarray = ((action.astype(np.float64) - middle) / half).astype(np.float32)
        return scaled

    def _observation(self, name: str, length: int) -> dict[str, np.ndarray]:
        where = f"{name}/observations"
        item = self._file.get(where)
        if item is None:
            raise self._refuse(where, "arrays", "nothing")
        keys = {"state": where}  # Minari's Box
        if isinstance(item, h5py.Group):
            keys = {key: f"{where}/{key}" for key in item}
        result = {}
        for key, path in keys.items():
            array = self._array("", path, None, "fui")
            if array.ndim < 2 or len(array) != length + 1:
                raise self._refuse(path, f"{length + 1} rows or more dimensions", list(array.shape))
            frames = array.dtype == np.uint8 and array.ndim > 2
            result[key] = array if frames else self._single(path, array)
        return result

    def _ending(self, name: str, length: int) -> Ending:
        ended = self._array(name, "terminations", (length,), "bui").astype(bool)
        cut = self._array(name, "truncations", (length,), "bui").astype(bool)
        for field, flags in (("terminations", ended), ("truncations", cut)):
            if flags[:-1].any():
                first = int(np.flatnonzero(flags)[0])
                raise self._refuse(
                    f"{name}/{field}", "true at the last step only", f"true at step {first}"
                )
        if not (ended[-1] or cut[-1]):
            raise self._refuse(
                f"{name}/truncations",
                "an episode that ends",
                "neither end nor cut at its last step",
            )
        return Ending.TERMINATED if ended[-1] else Ending.TIME_LIMIT

    def _pre_tanh(self, name: str, action: np.ndarray) -> np.ndarray:
        where = f"{name}/{METADATA}/pre_tanh_action"
        if where not in self._file:
            self._num_actions += action.size
            self._num_clipped += int((np.abs(action) > LARGEST_ACTION).sum())
            kept = np.clip(action.astype(np.float64), -LARGEST_ACTION, LARGEST_ACTION)
            return np.arctanh(kept).astype(np.float32)
        pre_tanh = self._array("", where, action.shape, "f")
        off = float(np.abs(np.tanh(pre_tanh) - action).max())
        if off > _TANH_TOLERANCE:
            raise self._refuse(where, "atanh of the actions", f"tanh of it {off:g} away from them")
        return self._single(where, pre_tanh)

    def _physics_state(self, name: str, length: int) -> np.ndarray:
        where = f"{name}/{METADATA}/physics_state"
        if where not in self._file:
            return np.zeros((length + 1, 0))
        array = self._array("", where, None, "f")
        if array.ndim != 2 or len(array) != length + 1:
            raise self._refuse(where, f"shape [{length + 1}, P]", list(array.shape))
        return array

    def _model_fields(self, name: str) -> dict[str, np.ndarray]:
        group = self._file.get(f"{name}/{METADATA}/model_fields")
        if group is None:
            return {}
        return {
            key: self._array("", f"{name}/{METADATA}/model_fields/{key}", None, "fuib")
            for key in group
        }

    def _seed(self, name: str) -> int:
        seed = self._file[name].attrs.get("seed", -1)
        return int(seed) if isinstance(seed, (int, np.integer)) else -1

    def _array(
        self, parent: str, field: str, shape: tuple[int, ...] | None, kinds: str
    ) -> np.ndarray:
        """Return an array of the file, mapped where it can be, after it was seen to be finite."""
        where = f"{parent}/{field}".lstrip("/")
        dataset = self._file.get(where)
        if not isinstance(dataset, h5py.Dataset):
            raise self._refuse(where, "an array", "nothing" if dataset is None else "a group")
        if dataset.dtype.kind not in kinds:
            raise self._refuse(where, "numbers", f"dtype {dataset.dtype}")
        if shape is not None and dataset.shape != shape:
            raise self._refuse(where, f"shape {list(shape)}", list(dataset.shape))
        offset = dataset.id.get_offset()
        if offset is None or dataset.size == 0:
            array: np.ndarray = dataset[()]
        else:
            array = np.memmap(self._path, dataset.dtype, "r", offset, dataset.shape)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            at = tuple(int(n) for n in np.argwhere(~np.isfinite(array))[0])
            raise self._refuse(where, "finite numbers", f"{array[at]} at {list(at)}")
        return array

    def _single(self, where: str, array: np.ndarray) -> np.ndarray:
        """Return an array as float32, refused where that cannot hold a number."""
        if array.dtype == np.float32:
            return array
        with np.errstate(over="ignore"):
            single: np.ndarray = array.astype(np.float32)
        if not np.isfinite(single).all():
            at = tuple(int(n) for n in np.argwhere(~np.isfinite(single))[0])
            raise self._refuse(where, "numbers that float32 holds", f"{array[at]} at {list(at)}")
        return single

    def _require_alike(
        self, names: list[str], episodes: tuple[Trajectory, ...], metadata: DemonstrationMetadata
    ) -> None:
        """Refuse episodes of different shapes or kinds, and arrays that metadata describe otherwise."""

        def shapes(episode: Trajectory) -> dict[str, object]:
            found: dict[str, object] = {
                f"observations/{key}": shape_and_dtype(array.shape[1:], array.dtype)
                for key, array in episode.observation.items()
            }
            found["actions"] = list(episode.action.shape[1:])
            found["physics_state"] = list(episode.physics_state.shape[1:])
            return found

        first = shapes(episodes[0])
        for name, episode in zip(names, episodes, strict=True):
            if shapes(episode) != first:
                raise self._refuse(name, f"{first} as in {names[0]}", shapes(episode))
        spec = metadata.spec
        if spec is None:
            return
        if first["actions"] != list(spec.action.shape):
            raise self._refuse("actions", list(spec.action.shape), first["actions"])
        for key in spec.observation:
            wanted = shape_and_dtype(spec.frame_shape(key), spec.observation[key].dtype)
            if first.get(f"observations/{key}") != wanted:
                raise self._refuse(
                    f"observations/{key}", wanted, first.get(f"observations/{key}", "nothing")
                )

    def _refuse(self, field: str, expected: object, found: object) -> DemonstrationError:
        return refused(self._path, field, expected, found)
