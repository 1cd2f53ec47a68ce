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
        first_step = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        # An episode of L steps has L + 1 observations.
        first_row = first_step + np.arange(len(trajectories))
        kept = [
            np.arange(int(offsets.integers(min(subsampling, n))), n, subsampling) for n in lengths
        ]
        self._num_kept = np.array([len(rows) for rows in kept])
        self._first_kept = np.concatenate([[0], np.cumsum(self._num_kept)[:-1]])
        episode = np.repeat(np.arange(len(trajectories)), self._num_kept)
        within = np.concatenate(kept)
        self._episode = self._tensor(episode)
        self._step = self._tensor(first_step[episode] + within)
        self._row = self._tensor(first_row[episode] + within)
        self._first_row = self._tensor(first_row[episode])
        self._observation = {
            key: self._tensor(np.concatenate([t.observation[key] for t in trajectories]))
            for key in keys
        }
        self._action = self._tensor(np.concatenate([t.action for t in trajectories]))
        self._pre_tanh = self._tensor(np.concatenate([t.pre_tanh_action for t in trajectories]))
        self._reward = self._tensor(np.concatenate([t.environment_reward for t in trajectories]))
        self._discount = self._tensor(np.concatenate([t.discount for t in trajectories]))
        self._starts = self._item_starts()

    @property
    def num_rows(self) -> int:
        """How many steps were kept."""
        return len(self._step)

    @property
    def kept_of_episodes(self) -> np.ndarray:
        """How many steps were kept of each episode [N]."""
        return self._num_kept

    @property
    def num_terminated(self) -> int:
        """How many episodes terminated, rather than being cut by a time limit."""
        return int((self._discount == 0.0).sum())

    @property
    def states(self) -> torch.Tensor:
        """Return all kept steps' `state` and what followed [2 N, O], to fit a normaliser on."""
        state = self._observation["state"]
        return torch.cat([state[self._row], state[self._row + 1]])

    def transitions(self, index: torch.Tensor) -> Transition:
        """Return kept steps `index`, of any shape [...], as arrays [..., ...]."""
        row, step = self._row[index], self._step[index]
        first = self._first_row[index]
        return Transition(
            {key: self._observed(key, row, first) for key in self._observation},
            self._action[step],
            self._pre_tanh[step],
            self._reward[step],
            self._discount[step],
            {key: self._observed(key, row + 1, first) for key in self._observation},
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
        values = self._observation[key]
        if key != "pixels":
            return values[row]
        back = torch.arange(1 - self._frame_stack, 1, device=self._device)
        frames = torch.maximum(row[..., None] + back, first[..., None])
        return values[frames]

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
