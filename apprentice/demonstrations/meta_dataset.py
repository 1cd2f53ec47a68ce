"""Batches for meta-learning: K tasks, and of each what is shown and what is imitated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from apprentice.config_family import SplitName
from apprentice.demonstrations.digest import trajectory_digest
from apprentice.demonstrations.family import FamilyDemonstrations, Role
from apprentice.demonstrations.format import DemonstrationError
from apprentice.types import Trajectory, Transition


class TrajectoryBatch(NamedTuple):
    """Up to C trajectories of each of K tasks, of up to T steps."""

    transitions: Transition  # each [K, C, T, ...]; zeros where the mask is false
    mask: torch.Tensor  # [K, C, T] bool: a step of a trajectory that was drawn
    trajectory: torch.Tensor  # [K, C] its number within the task's set; -1 where none was drawn


class TransitionBatch(NamedTuple):
    """M transitions of each of K tasks."""

    transitions: Transition  # each [K, M, ...]; zeros where the mask is false
    mask: torch.Tensor  # [K, M] bool: false where the trajectories had fewer
    trajectory: torch.Tensor  # [K, M] number of the trajectory within the task's set


class MetaBatch(NamedTuple):
    """What one update of a meta-learner reads. Context and query share no trajectory."""

    task: torch.Tensor  # [K] number of the task within its division
    context: TrajectoryBatch
    query: TransitionBatch


@dataclass(frozen=True)
class MetaDraw:
    """What a batch is made of."""

    num_tasks: int
    """K, drawn without replacement."""
    context_sizes: tuple[int, int] = (1, 1)
    """Fewest and most trajectories shown of a task; each draw of a task has a size of its own."""
    context_steps: int | None = None
    """Steps shown of each, drawn at random in order; null shows all."""
    query_trajectories: int | None = None
    """N: the trajectories that transitions are drawn from, anew each time; null means as many as the task with the
    fewest has."""
    query_transitions: int = 16
    """M."""
    contiguous: bool = False
    """Whether the M transitions are M/N steps in a row of each of N trajectories; N must divide M."""

    def __post_init__(self) -> None:
        low, high = self.context_sizes
        if not 1 <= low <= high:
            raise DemonstrationError(
                f"context: expected from 1 trajectory up to as many or more, found {low} to {high}"
            )
        if self.num_tasks < 1 or self.query_transitions < 1:
            raise DemonstrationError(
                f"expected at least one task and one transition, found {self.num_tasks} and {self.query_transitions}"
            )
        if self.contiguous and self.query_trajectories:
            _piece(self.query_transitions, self.query_trajectories)


class TaskTrajectories:
    """One set, such as meta-train's context, as one table of rows: `state | action | ... | next state`."""

    def __init__(
        self,
        trajectories: Sequence[Sequence[Trajectory]],
        device: torch.device | None = None,
        *,
        subsampling: int = 1,
        seed: int = 0,
    ) -> None:
        """Take the trajectories of each task; every `subsampling`-th step is kept from a random offset on."""
        if not trajectories or any(not episodes for episodes in trajectories):
            empty = [n for n, episodes in enumerate(trajectories) if not episodes]
            raise DemonstrationError(
                f"expected trajectories of every task, found none of {empty or 'any'}"
            )
        self.device = device or torch.device("cpu")
        flat = [episode for episodes in trajectories for episode in episodes]
        self._keys = tuple(key for key in flat[0].observation if key != "pixels")
        widths = [flat[0].observation[key].shape[1] for key in self._keys]
        size = flat[0].action.shape[1]
        self._widths = [*widths, size, size, 1, 1, *widths]
        offsets = np.random.default_rng(seed)
        rows, lengths = [], []
        self.digests = frozenset(trajectory_digest(episode, self._keys) for episode in flat)
        """Of whole trajectories, so that another set can be seen to share none."""
        for episode in flat:
            num = len(episode.action)
            kept = np.arange(int(offsets.integers(min(subsampling, num))), num, subsampling)
            rows.append(self._packed(episode, kept))
            lengths.append(len(kept))
        self._rows = torch.from_numpy(np.concatenate(rows)).to(self.device)
        most = max(len(episodes) for episodes in trajectories)
        first, length = np.cumsum([0, *lengths[:-1]]), np.array(lengths)
        self._first = torch.zeros((len(trajectories), most), dtype=torch.int64)
        self._length = torch.zeros((len(trajectories), most), dtype=torch.int64)
        number = 0
        for task, episodes in enumerate(trajectories):
            stop = number + len(episodes)
            self._first[task, : len(episodes)] = torch.from_numpy(first[number:stop])
            self._length[task, : len(episodes)] = torch.from_numpy(length[number:stop])
            number = stop
        self._count = torch.tensor([len(episodes) for episodes in trajectories])

    @property
    def num_tasks(self) -> int:
        """Tasks of the set."""
        return len(self._count)

    @property
    def num_rows(self) -> int:
        """Steps of the set."""
        return len(self._rows)

    @property
    def states(self) -> torch.Tensor:
        """All kept steps' `state` and what followed [2 N, O], to fit a normaliser on."""
        parts = self._rows.split(self._widths, dim=1)
        at = self._keys.index("state")
        return torch.cat([parts[at], parts[len(self._keys) + 4 + at]])

    def fewest(self) -> int:
        """Return the number of trajectories of the task that has the fewest."""
        return int(self._count.min())

    def draw_tasks(self, num_tasks: int, generator: torch.Generator) -> torch.Tensor:
        """Return numbers [K] of different tasks."""
        if num_tasks > self.num_tasks:
            raise DemonstrationError(f"expected at most {self.num_tasks} tasks, found {num_tasks}")
        return torch.randperm(self.num_tasks, generator=generator)[:num_tasks]

    def draw_trajectories(
        self,
        tasks: torch.Tensor,
        sizes: tuple[int, int],
        generator: torch.Generator,
        num_steps: int | None = None,
    ) -> TrajectoryBatch:
        """Draw `sizes[0]` to `sizes[1]` different trajectories of each of `tasks` [K], or `num_steps` steps of each."""
        low, high = sizes
        if high > self.fewest():
            raise DemonstrationError(
                f"context: expected at most {self.fewest()} trajectories of a task, found {high}"
            )
        num_tasks = len(tasks)
        chosen = self._different(tasks, high, generator)  # [K, C]
        counts = torch.randint(low, high + 1, (num_tasks, 1), generator=generator)
        drawn = torch.arange(high) < counts
        return self.trajectories(tasks, torch.where(drawn, chosen, -1), generator, num_steps)

    def trajectories(
        self,
        tasks: torch.Tensor,
        numbers: torch.Tensor,
        generator: torch.Generator | None = None,
        num_steps: int | None = None,
    ) -> TrajectoryBatch:
        """Return trajectories by their numbers [K, C] within each of `tasks` [K]; -1 stands for none."""
        drawn = numbers >= 0
        safe = numbers.clamp_min(0)
        first, length = self._first[tasks[:, None], safe], self._length[tasks[:, None], safe]
        longest = int(length[drawn].max()) if bool(drawn.any()) else 1
        if num_steps is not None and num_steps < longest:
            assert generator is not None
            scores = torch.rand((*numbers.shape, longest), generator=generator)
            scores = scores.masked_fill(torch.arange(longest) >= length[..., None], 2.0)
            steps = scores.argsort(-1)[..., :num_steps].sort(-1).values
        else:
            steps = torch.arange(longest).expand(*numbers.shape, longest)
        mask = (steps < length[..., None]) & drawn[..., None]
        rows = torch.where(mask, first[..., None] + steps, 0)
        return TrajectoryBatch(self._gather(rows, mask), mask.to(self.device), numbers)

    def draw_transitions(
        self,
        tasks: torch.Tensor,
        num_transitions: int,
        generator: torch.Generator,
        *,
        num_trajectories: int | None = None,
        contiguous: bool = False,
    ) -> TransitionBatch:
        """Draw M transitions of each of `tasks` [K], out of N different trajectories; null N is `fewest()`.

        At random every step of the N is as likely; contiguous are M / N steps in a row of each, padded where a
        trajectory is shorter. Raises DemonstrationError where there are fewer than N, or N does not divide M.
        """
        fewest = self.fewest()
        if num_trajectories is not None and num_trajectories > fewest:
            raise DemonstrationError(
                f"query: expected at most {fewest} trajectories of a task, found {num_trajectories}"
            )
        num = num_trajectories or fewest
        num_tasks = len(tasks)
        chosen = self._different(tasks, num, generator)  # [K, N]
        first, length = self._first[tasks[:, None], chosen], self._length[tasks[:, None], chosen]
        if contiguous:
            piece = _piece(num_transitions, num)
            latest = (length - piece).clamp_min(0) + 1
            start = (torch.rand((num_tasks, num), generator=generator) * latest).long()
            start = torch.minimum(start, latest - 1)
            steps = start[..., None] + torch.arange(piece)
            mask = (steps < length[..., None]).flatten(1)
            rows = (first[..., None] + steps).flatten(1)
            trajectory = chosen[..., None].expand(-1, -1, piece).flatten(1)
        else:
            ends = length.cumsum(1)
            place = torch.rand((num_tasks, num_transitions), generator=generator) * ends[:, -1:]
            place = torch.minimum(place.long(), ends[:, -1:] - 1)
            which = torch.searchsorted(ends, place, right=True)
            before = ends.gather(1, which) - length.gather(1, which)
            rows = first.gather(1, which) + place - before
            trajectory = chosen.gather(1, which)
            mask = torch.ones_like(rows, dtype=torch.bool)
        rows = torch.where(mask, rows, 0)
        return TransitionBatch(self._gather(rows, mask), mask.to(self.device), trajectory)

    def _different(self, tasks: torch.Tensor, num: int, generator: torch.Generator) -> torch.Tensor:
        """Return [K, num] different numbers of trajectories of each task."""
        scores = torch.rand((len(tasks), self._first.shape[1]), generator=generator)
        missing = torch.arange(self._first.shape[1]) >= self._count[tasks][:, None]
        return scores.masked_fill(missing, 2.0).argsort(1)[:, :num]

    def _packed(self, episode: Trajectory, kept: np.ndarray) -> np.ndarray:
        before = [episode.observation[key][kept] for key in self._keys]
        after = [episode.observation[key][kept + 1] for key in self._keys]
        rest = [
            episode.action[kept],
            episode.pre_tanh_action[kept],
            episode.environment_reward[kept, None],
            episode.discount[kept, None],
        ]
        packed: np.ndarray = np.concatenate([*before, *rest, *after], axis=1)
        return packed.astype(np.float32, copy=False)

    def _gather(self, rows: torch.Tensor, mask: torch.Tensor) -> Transition:
        taken = self._rows[rows.to(self.device)]
        if not bool(mask.all()):
            taken = taken * mask[..., None].to(self.device)
        parts = taken.split(self._widths, dim=-1)
        num = len(self._keys)
        action, pre_tanh, reward, discount = parts[num : num + 4]
        return Transition(
            dict(zip(self._keys, parts[:num], strict=True)),
            action,
            pre_tanh,
            reward.squeeze(-1),
            discount.squeeze(-1),
            dict(zip(self._keys, parts[num + 4 :], strict=True)),
        )


class MetaDemonstrationDataset(IterableDataset[MetaBatch]):
    """Draws batches for ever: tasks, then context and query of each from sets without a trajectory in common."""

    def __init__(
        self, context: TaskTrajectories, query: TaskTrajectories, draw: MetaDraw, seed: int
    ) -> None:
        if context.num_tasks != query.num_tasks:
            raise DemonstrationError(
                f"expected context and query of the same tasks, found {context.num_tasks} and {query.num_tasks}"
            )
        for name, found, most in (
            ("tasks", draw.num_tasks, context.num_tasks),
            ("context trajectories", draw.context_sizes[1], context.fewest()),
            ("query trajectories", draw.query_trajectories or 1, query.fewest()),
        ):
            if found > most:
                raise DemonstrationError(f"expected at most {most} {name}, found {found}")
        if draw.contiguous:
            _piece(draw.query_transitions, draw.query_trajectories or query.fewest())
        shared = len(context.digests & query.digests)
        if shared:
            raise DemonstrationError(
                f"expected context and query without a trajectory in common, found {shared} in both; "
                "`family_sets` takes them from different roles"
            )
        self._context, self._query, self._draw, self._seed = context, query, draw, seed

    def __iter__(self) -> Iterator[MetaBatch]:
        """Draw without end; each worker of a loader has a random stream of its own."""
        worker = get_worker_info()
        words = [self._seed, 0 if worker is None else worker.id + 1]
        state = int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])
        generator = torch.Generator().manual_seed(state & (2**63 - 1))
        while True:
            yield self.draw(generator)

    def draw(self, generator: torch.Generator) -> MetaBatch:
        """Draw one batch."""
        draw = self._draw
        tasks = self._context.draw_tasks(draw.num_tasks, generator)
        context = self._context.draw_trajectories(
            tasks, draw.context_sizes, generator, draw.context_steps
        )
        query = self._query.draw_transitions(
            tasks,
            draw.query_transitions,
            generator,
            num_trajectories=draw.query_trajectories,
            contiguous=draw.contiguous,
        )
        return MetaBatch(tasks, context, query)


def family_sets(
    demonstrations: FamilyDemonstrations,
    split: SplitName,
    role: Role,
    device: torch.device | None = None,
    *,
    subsampling: int = 1,
    episodes: int | None = None,
    seed: int = 0,
) -> TaskTrajectories:
    """Return one of the six sets, of each task its first `episodes`; null means all."""
    tasks = demonstrations.tasks(split)
    if not tasks:
        raise DemonstrationError(f"expected demonstrations of {split} tasks, found none")
    chosen = [demonstrations.episodes(task.task_id, role)[:episodes] for task in tasks]
    return TaskTrajectories(chosen, device, subsampling=subsampling, seed=seed)


class MetaLoader(DataLoader[MetaBatch]):
    """Loads whole batches. Workers send each as one tensor: every tensor that is sent costs as much as drawing."""

    def __init__(self, dataset: MetaDemonstrationDataset, num_workers: int) -> None:
        collate: Any = _packed if num_workers else _unchanged
        super().__init__(
            dataset,
            batch_size=None,
            num_workers=num_workers,
            collate_fn=collate,
            timeout=60.0 if num_workers else 0.0,
        )

    def __iter__(self) -> Iterator[MetaBatch]:  # type: ignore[override]
        """Yield batches without end."""
        batches: Iterator[Any] = super().__iter__()
        return map(_unpacked, batches) if self.num_workers else batches


def meta_loader(dataset: MetaDemonstrationDataset, *, num_workers: int = 0) -> MetaLoader:
    """Return a loader; with workers its batches come from as many random streams in turn."""
    return MetaLoader(dataset, num_workers)


def _piece(num_transitions: int, num_trajectories: int) -> int:
    """Return the steps in a row that each trajectory gives. Raises DemonstrationError for no whole number."""
    if num_transitions % num_trajectories:
        raise DemonstrationError(
            f"query: expected as many transitions in a row of each of {num_trajectories} trajectories, found "
            f"{num_transitions} in all; set query_trajectories to a divisor of query_transitions"
        )
    return num_transitions // num_trajectories


def _unchanged(batch: MetaBatch) -> MetaBatch:
    return batch


class _Packed(NamedTuple):
    memory: torch.Tensor  # [N] uint8: all tensors of a batch, those of the largest entries first
    tensors: tuple[tuple[torch.dtype, torch.Size], ...]
    keys: tuple[str, ...]


def _packed(batch: MetaBatch) -> _Packed:
    parts = (batch.context, batch.query)
    tensors = [batch.task, *(part.trajectory for part in parts)]
    for part in parts:
        rows = part.transitions
        tensors += [*rows.observation.values(), rows.action, rows.pre_tanh_action]
        tensors += [rows.environment_reward, rows.discount, *rows.next_observation.values()]
    tensors += [part.mask for part in parts]
    memory = torch.cat([tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in tensors])
    kinds = tuple((tensor.dtype, tensor.shape) for tensor in tensors)
    return _Packed(memory, kinds, tuple(batch.query.transitions.observation))


def _unpacked(packed: _Packed) -> MetaBatch:
    tensors, first = [], 0
    for dtype, shape in packed.tensors:
        stop = first + shape.numel() * dtype.itemsize
        tensors.append(packed.memory[first:stop].view(dtype).view(shape))
        first = stop
    task, shown, asked, *rows, shown_mask, asked_mask = tensors
    half = len(rows) // 2
    context, query = (_rows_of(packed.keys, part) for part in (rows[:half], rows[half:]))
    return MetaBatch(
        task,
        TrajectoryBatch(context, shown_mask, shown),
        TransitionBatch(query, asked_mask, asked),
    )


def _rows_of(keys: tuple[str, ...], tensors: Sequence[torch.Tensor]) -> Transition:
    num = len(keys)
    before, (action, pre_tanh, reward, discount), after = (
        tensors[:num],
        tensors[num:-num],
        tensors[-num:],
    )
    return Transition(
        dict(zip(keys, before, strict=True)),
        action,
        pre_tanh,
        reward,
        discount,
        dict(zip(keys, after, strict=True)),
    )
