"""Demonstrations as torch serves them: transitions, contiguous segments or whole trajectories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from apprentice.demonstrations.format import DemonstrationError
from apprentice.types import Trajectory, Transition

Draws = Literal["transitions", "segments", "trajectories"]


class DemonstrationBatch(NamedTuple):
    """B items of T consecutive steps each; T is 1 for transitions."""

    transitions: Transition  # each [B, T, ...]; zeros where the mask is false
    mask: torch.Tensor  # [B, T] bool: false past the end of an episode
    episode: torch.Tensor  # [B] number of the episode it comes from


class DemonstrationDataset(Dataset[DemonstrationBatch]):
    """Steps of demonstrations, thinned: every `subsampling`-th of an episode from a random offset on.

    A kept step is whole: its next observation is the one that followed it. Frames are stacked,
    `frame_stack` of them, as an environment does. Segments are `length` kept steps in a row; an episode with
    fewer is one, padded. Items are the same for the same seed.
    """

    def __init__(
        self,
        trajectories: Sequence[Trajectory],
        *,
        subsampling: int = 1,
        seed: int = 0,
        draws: Draws = "transitions",
        length: int = 1,
        frame_stack: int = 1,
        keys: Sequence[str] | None = None,
        device: torch.device | None = None,
    ) -> None:
        if not trajectories:
            raise DemonstrationError("episodes: expected one or more, found none")
        self.subsampling = subsampling
        self._draws, self._length, self._frame_stack = draws, length, frame_stack
        self._device = device or torch.device("cpu")
        keys = tuple(keys or trajectories[0].observation)
        offsets = np.random.default_rng(seed)
        lengths = np.array([len(t.action) for t in trajectories])
        # An episode of L steps has L + 1 observations.
        first_row = np.concatenate([[0], np.cumsum(lengths + 1)[:-1]])
        kept = [
            np.arange(int(offsets.integers(min(subsampling, n))), n, subsampling) for n in lengths
        ]
        self._num_kept = np.array([len(rows) for rows in kept])
        self._first_kept = np.concatenate([[0], np.cumsum(self._num_kept)[:-1]])
        episode = np.repeat(np.arange(len(trajectories)), self._num_kept)
        within = np.concatenate(kept)
        self._episode = self._tensor(episode)
        example = trajectories[0].observation
        self._keys = tuple(key for key in keys if _is_packed(example[key]))
        self._rows, self._sizes = self._packed(trajectories, kept)
        self._unpacked = {
            key: self._tensor(np.concatenate([t.observation[key] for t in trajectories]))
            for key in keys
            if key not in self._keys
        }
        if self._unpacked:
            self._row = self._tensor(first_row[episode] + within)
            self._first_row = self._tensor(first_row[episode])
        self._num_terminated = sum(int((t.discount == 0.0).sum()) for t in trajectories)
        self._starts = self._item_starts()

    @property
    def num_rows(self) -> int:
        """How many steps were kept."""
        return len(self._rows)

    @property
    def kept_of_episodes(self) -> np.ndarray:
        """How many steps were kept of each episode [N]."""
        return self._num_kept

    @property
    def num_terminated(self) -> int:
        """How many episodes terminated, rather than being cut by a time limit."""
        return self._num_terminated

    @property
    def states(self) -> torch.Tensor:
        """Return all kept steps' `state` and what followed [2 N, O], to fit a normaliser on."""
        parts, place = self._rows.split(self._sizes, dim=1), self._keys.index("state")
        return torch.cat([parts[place], parts[len(self._keys) + 4 + place]])

    def transitions(self, index: torch.Tensor) -> Transition:
        """Return kept steps `index` [...] int64, each from 0 up to `num_rows`, as arrays [..., ...]."""
        taken = self._rows.index_select(0, index.reshape(-1))
        parts = taken.view(*index.shape, self._rows.shape[1]).split(self._sizes, dim=-1)
        num_keys = len(self._keys)
        action, pre_tanh_action, environment_reward, discount = parts[num_keys : num_keys + 4]
        observation = dict(zip(self._keys, parts[:num_keys], strict=True))
        next_observation = dict(zip(self._keys, parts[num_keys + 4 :], strict=True))
        for key in self._unpacked:
            row, first = self._row[index], self._first_row[index]
            observation[key] = self._observed(key, row, first)
            next_observation[key] = self._observed(key, row + 1, first)
        return Transition(
            observation,
            action,
            pre_tanh_action,
            environment_reward.squeeze(-1),
            discount.squeeze(-1),
            next_observation,
        )

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, item: int) -> DemonstrationBatch:
        return self.__getitems__([item])

    def __getitems__(self, items: Sequence[int]) -> DemonstrationBatch:
        """Return a whole batch by one indexing; torch's loader asks for this where it exists."""
        start = torch.from_numpy(self._starts)[torch.as_tensor(items)].to(self._device)
        episode = self._episode[start]
        end = self._tensor(self._first_kept + self._num_kept)[episode]
        length = {"transitions": 1, "segments": self._length}.get(self._draws)
        if length is None:
            length = int((end - start).max())
        rows = start[:, None] + torch.arange(length, device=self._device)
        mask = rows < end[:, None]
        drawn = self.transitions(torch.where(mask, rows, start[:, None]))
        return DemonstrationBatch(_masked(drawn, mask), mask, episode)

    def _item_starts(self) -> np.ndarray:
        """Return the kept step that each item begins with."""
        if self._draws == "transitions":
            return np.arange(self.num_rows)
        if self._draws == "trajectories":
            return np.array(self._first_kept)
        per_episode: np.ndarray = np.maximum(1, self._num_kept - self._length + 1)
        starts: list[np.ndarray] = [
            np.arange(first, first + num)
            for first, num in zip(self._first_kept, per_episode, strict=True)
        ]
        return np.concatenate(starts)

    def _observed(self, key: str, row: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        values = self._unpacked[key]
        if key != "pixels":
            return values[row]
        back = torch.arange(1 - self._frame_stack, 1, device=self._device)
        return values[torch.maximum(row[..., None] + back, first[..., None])]

    def _packed(
        self, trajectories: Sequence[Trajectory], kept: Sequence[np.ndarray]
    ) -> tuple[torch.Tensor, list[int]]:
        """Return kept steps as rows [N, W], so that one gather draws all of a batch, and the sizes of their parts."""
        first = trajectories[0]
        observed = [first.observation[key].shape[1] for key in self._keys]
        sizes = [*observed, first.action.shape[1], first.action.shape[1], 1, 1, *observed]
        rows = np.empty((sum(len(steps) for steps in kept), sum(sizes)), np.float32)
        start = 0
        for trajectory, steps in zip(trajectories, kept, strict=True):
            values = [trajectory.observation[key] for key in self._keys]
            parts = [
                *[value[steps] for value in values],
                trajectory.action[steps],
                trajectory.pre_tanh_action[steps],
                trajectory.environment_reward[steps, None],
                trajectory.discount[steps, None],
                *[value[steps + 1] for value in values],
            ]
            np.concatenate(parts, axis=1, out=rows[start : start + len(steps)])
            start += len(steps)
        return self._tensor(rows), sizes

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)


def demonstration_loader(
    dataset: DemonstrationDataset,
    batch_size: int,
    seed: int,
    *,
    num_workers: int = 0,
    drop_last: bool = False,
) -> DataLoader[DemonstrationBatch]:
    """Return a loader that goes through all items in an order that the seed fixes, anew each time."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=True,
        generator=torch.Generator().manual_seed(seed),
        collate_fn=_unchanged,
        num_workers=num_workers,
        drop_last=drop_last,
        timeout=60.0 if num_workers else 0.0,
    )


def _is_packed(observed: np.ndarray) -> bool:
    """Say whether an observation lies in the packed rows: not images, whose stacks overlap, nor foreign types."""
    return observed.ndim == 2 and observed.dtype == np.float32


def _unchanged(batch: Any) -> Any:
    """Collate nothing: `__getitems__` made the batch already."""
    return batch


def _masked(drawn: Transition, mask: torch.Tensor) -> Transition:
    if bool(mask.all()):
        return drawn

    def cut(value: torch.Tensor) -> torch.Tensor:
        return value * mask.reshape(*mask.shape, *[1] * (value.ndim - 2)).to(value.dtype)

    return Transition(
        {key: cut(value) for key, value in drawn.observation.items()},
        cut(drawn.action),
        cut(drawn.pre_tanh_action),
        cut(drawn.environment_reward),
        cut(drawn.discount),
        {key: cut(value) for key, value in drawn.next_observation.items()},
    )
