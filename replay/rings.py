"""A task's newest transitions on the learner's device, drawn at memory speed.

One row of float32 holds all of a transition but its pixels:
`observation keys | action | pre_tanh_action | environment_reward | discount | next observation keys | context`,
so that a batch is one `index_select`. Pixels are stored once a frame; a transition points at the first
frame of its stack, and its next stack begins one frame later.

What a ring draws depends on the order and the contents of its segments and on the generator only, not
on where in memory they happen to lie: a ring that is filled again in the same order draws the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import torch

from apprentice.types import Ending, EnvironmentSpec, Segment, SegmentId, Transition
from replay.circular import CircularRows
from replay.episodes import EpisodeIndex, StoredSegment
from replay.errors import ReplayError
from replay.tables import signed, unsigned

_MAX_ROUNDS = 64
_ENDS = frozenset({Ending.TERMINATED, Ending.TIME_LIMIT})


class NothingToSample(ReplayError):
    """The ring holds nothing of what was asked for."""


class Ring:
    """The newest transitions of one task: first in, first out, by whole segments."""

    def __init__(
        self,
        spec: EnvironmentSpec,
        capacity: int,
        segment_length: int,
        device: torch.device | str = "cpu",
        context_size: int = 0,
    ) -> None:
        """Hold up to `capacity` transitions, or one segment where that is more.

        Memory is taken as it fills, on a CPU. With `context_size` C, batches have `context` [B, C] among their
        observations: the numbers of the demonstrations that the actor was shown, as float32.
        """
        self.spec = spec
        self.capacity = max(capacity, segment_length)
        self.device = torch.device(device)
        self._keys = [key for key in spec.observation if key != "pixels"]
        self._shapes = [spec.observation[key].shape for key in self._keys]
        widths = [int(np.prod(shape)) for shape in self._shapes]
        size = spec.action_size
        self._context_size = context_size
        self._widths = [*widths, size, size, 1, 1, *widths, context_size]
        self._rows = CircularRows(self.capacity, (sum(self._widths),), torch.float32, self.device)
        self._successors = torch.empty(self.capacity, dtype=torch.int64, device=self.device)
        self._stack = spec.num_leading_frames("pixels") if "pixels" in spec.observation else 0
        if self._stack:
            num_segments = self.capacity // segment_length + 1
            num_frames = self.capacity + 2 * self._stack * num_segments
            shape = spec.frame_shape("pixels")
            self._frames = CircularRows(num_frames, shape, torch.uint8, self.device)
            self._frame_of = torch.empty(self.capacity, dtype=torch.int64, device=self.device)
            self._stack_offsets = torch.arange(self._stack + 1, device=self.device)
        self._segments: dict[SegmentId, StoredSegment] = {}  # oldest first
        self._evicted: dict[SegmentId, None] = {}
        self._max_evicted = 1024 + 2 * (self.capacity // segment_length)
        self._episodes = EpisodeIndex()
        self._num_ended = 0

    @property
    def num_transitions(self) -> int:
        """Valid transitions that can be drawn."""
        return self._rows.count

    @property
    def num_episodes(self) -> int:
        """Episodes whose last step is here."""
        return self._num_ended

    def append(self, segment: Segment) -> bool:
        """Take in a segment; return False where it is here already, or was and has made room since."""
        identity = segment.id._replace(incarnation=unsigned(segment.incarnation))
        if identity in self._segments or identity in self._evicted:
            return False
        length = segment.length
        while not self._fits(length):
            self._evict()
        row = self._rows.append(torch.from_numpy(self._pack(segment)))
        frame = 0
        if self._stack:
            pixels = np.ascontiguousarray(segment.observation["pixels"][: self._stack + length])
            frame = self._frames.append(torch.from_numpy(pixels))
        stored = StoredSegment(
            identity,
            row,
            frame,
            length,
            Ending(segment.ending),
            segment.task,
            segment.actor,
            segment.policy_version,
            np.array(segment.context, np.int64),
        )
        self._segments[identity] = stored
        self._num_ended += stored.ending in _ENDS
        self._episodes.add(stored)
        self._link(stored)
        return True

    def sample(
        self, batch_size: int, generator: torch.Generator, newest: int | None = None
    ) -> Transition:
        """Draw transitions, each valid one (of the `newest` so many) as likely as any other, with replacement."""
        return self._gather(self._draw(batch_size, generator, newest))

    def draw_rows(
        self, batch_size: int, generator: torch.Generator, newest: int | None = None
    ) -> torch.Tensor:
        """Draw transitions as packed rows [batch_size, W], which `unpack` turns into a batch; without pixels."""
        return self._rows.take(self._draw(batch_size, generator, newest))

    def unpack(self, rows: torch.Tensor) -> Transition:
        """Return packed rows [B, W], of this ring or of others of the same layout, as a batch."""
        if self._stack:
            raise ReplayError("expected a ring without pixels: frames are not in its rows")
        return self._unpack(rows, {}, {})

    def sample_segments(
        self, batch_size: int, length: int, generator: torch.Generator
    ) -> Transition:
        """Draw pieces of `length` steps of one episode, flattened to [batch_size * length], piece by piece.

        Pieces may reach over the borders of stored segments; every possible start is as likely.
        Raises NothingToSample where there is hardly a piece that long.
        """
        pieces: list[torch.Tensor] = []
        missing = batch_size
        for _ in range(_MAX_ROUNDS):
            rows, whole = self._follow(self._draw(missing + missing // 8 + 8, generator), length)
            pieces.append(rows[whole][:missing])
            missing -= len(pieces[-1])
            if missing == 0:
                return self._gather(torch.cat(pieces).flatten())
        raise NothingToSample(
            f"expected pieces of {length} steps of one episode, found hardly any in "
            f"{self.num_transitions} transitions; sample shorter ones"
        )

    def complete_episodes(self) -> list[tuple[int, int]]:
        """Return (incarnation, episode) of the episodes that are here from first step to ending."""
        return list(self._episodes.complete())

    def trajectory(self, incarnation: int, episode: int) -> Transition:
        """Return the steps [L] of a complete episode in order."""
        segments = self._episodes.segments(unsigned(incarnation), episode)
        if not segments:
            raise NothingToSample(f"episode {episode} of {incarnation:#x} is not here completely")
        return self._gather(torch.cat([self._rows_of(segment) for segment in segments]))

    def sample_trajectories(
        self, num_trajectories: int, generator: torch.Generator
    ) -> list[Transition]:
        """Draw complete episodes, each as likely as any other, with replacement."""
        complete = self._episodes.complete()
        if not complete:
            raise NothingToSample("no episode is here completely yet")
        chosen = torch.randint(
            len(complete), (num_trajectories,), generator=generator, device=self.device
        )
        return [self.trajectory(*complete[number]) for number in chosen.tolist()]

    def identities(self) -> list[SegmentId]:
        """Return which segments are here, oldest first."""
        return list(self._segments)

    def index(self) -> torch.Tensor:
        """Return `identities` as an int64 tensor [n, 3] on the CPU; incarnations by their bits, signed."""
        rows = [(signed(i.incarnation), i.episode, i.first_step) for i in self._segments]
        return torch.tensor(rows, dtype=torch.int64).reshape(-1, 3)

    def restore(self, segments: Iterable[Segment], index: torch.Tensor) -> int:
        """Fill an empty ring with those of `segments` that `index` names, in its order.

        Return how many were missing.
        """
        if self._segments:
            raise ReplayError(f"expected an empty ring, found {len(self._segments)} segments")
        known = {(signed(s.incarnation), s.episode, s.first_step): s for s in segments}
        found = [known.get(tuple(row)) for row in index.tolist()]
        for segment in found:
            if segment is not None:
                self.append(segment)
        return sum(segment is None for segment in found)

    def digest(self) -> str:
        """Return SHA-256 over all contents in order, as hex digits; memory addresses do not enter."""
        result = hashlib.sha256()
        for stored in self._segments.values():
            scalars = [signed(stored.id.incarnation), *stored.id[1:], stored.length]
            scalars += [int(stored.ending), stored.task, stored.actor, stored.policy_version]
            result.update(np.array(scalars, np.int64).tobytes())
            result.update(stored.context.tobytes())
            result.update(self._rows.read(stored.row, stored.length).cpu().numpy().tobytes())
            if self._stack:
                frames = self._frames.read(stored.frame, self._stack + stored.length)
                result.update(frames.cpu().numpy().tobytes())
        return result.hexdigest()

    def _fits(self, length: int) -> bool:
        if self._rows.count + length > self.capacity:
            return False
        if not self._stack:
            return True
        return self._frames.count + self._stack + length <= self._frames.capacity

    def _evict(self) -> None:
        identity, stored = next(iter(self._segments.items()))
        del self._segments[identity]
        self._num_ended -= stored.ending in _ENDS
        self._rows.drop(stored.length)
        if self._stack:
            self._frames.drop(self._stack + stored.length)
        self._episodes.remove(stored)
        before = self._episodes.before(stored)
        if before is not None:
            self._successors[self._last_row(before)] = -1
        self._evicted[identity] = None
        if len(self._evicted) > self._max_evicted:
            del self._evicted[next(iter(self._evicted))]

    def _pack(self, segment: Segment) -> np.ndarray:
        length = segment.length
        rows = np.empty((length, sum(self._widths)), np.float32)
        observations = [
            segment.observation[key][: length + 1].reshape(length + 1, -1) for key in self._keys
        ]
        parts = [observation[:-1] for observation in observations]
        parts += [segment.action[:length], segment.pre_tanh_action[:length]]
        parts += [segment.environment_reward[:length, None], segment.discount[:length, None]]
        parts += [observation[1:] for observation in observations]
        parts.append(
            np.broadcast_to(segment.context[: self._context_size], (length, self._context_size))
        )
        return np.concatenate(parts, axis=1, out=rows)

    def _link(self, stored: StoredSegment) -> None:
        """Note which row follows each of the segment's, over the borders of segments too."""
        rows = self._rows_of(stored)
        self._successors[rows[:-1]] = rows[1:]
        after = self._episodes.after(stored)
        self._successors[self._last_row(stored)] = -1 if after is None else after.row
        before = self._episodes.before(stored)
        if before is not None:
            self._successors[self._last_row(before)] = stored.row
        if self._stack:
            offsets = torch.arange(stored.length, device=self.device)
            self._frame_of[rows] = (stored.frame + offsets) % self._frames.capacity

    def _rows_of(self, stored: StoredSegment) -> torch.Tensor:
        rows = torch.arange(stored.row, stored.row + stored.length, device=self.device)
        return rows if stored.row + stored.length <= self.capacity else rows % self.capacity

    def _last_row(self, stored: StoredSegment) -> int:
        return (stored.row + stored.length - 1) % self.capacity

    def _draw(
        self, batch_size: int, generator: torch.Generator, newest: int | None = None
    ) -> torch.Tensor:
        if self._rows.count == 0:
            raise NothingToSample("the ring is empty")
        num = self._rows.count if newest is None else min(newest, self._rows.count)
        index = torch.randint(num, (batch_size,), generator=generator, device=self.device)
        first = self._rows.start + self._rows.count - num
        if first:
            index.add_(first).remainder_(self.capacity)
        return index

    def _follow(self, rows: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return rows [N, length] from each start on, and which of the N stay inside an episode."""
        whole = torch.ones_like(rows, dtype=torch.bool)
        pieces = [rows]
        for _ in range(length - 1):
            rows = self._successors.index_select(0, rows)
            whole &= rows >= 0
            rows = rows.clamp_min(0)
            pieces.append(rows)
        return torch.stack(pieces, dim=1), whole

    def _gather(self, index: torch.Tensor) -> Transition:
        observation: dict[str, torch.Tensor] = {}
        next_observation: dict[str, torch.Tensor] = {}
        if self._stack:
            first = self._frame_of.index_select(0, index)
            rows = (first[:, None] + self._stack_offsets).remainder_(self._frames.capacity)
            frames = self._frames.take(rows.flatten()).unflatten(0, (-1, self._stack + 1))
            observation["pixels"], next_observation["pixels"] = frames[:, :-1], frames[:, 1:]
        return self._unpack(self._rows.take(index), observation, next_observation)

    def _unpack(
        self,
        packed: torch.Tensor,
        observation: dict[str, torch.Tensor],
        next_observation: dict[str, torch.Tensor],
    ) -> Transition:
        parts = packed.split(self._widths, dim=1)
        num_keys = len(self._keys)
        for number, key in enumerate(self._keys):
            shape = self._shapes[number]
            value, after = parts[number], parts[num_keys + 4 + number]
            observation[key] = value if len(shape) == 1 else value.reshape(-1, *shape)
            next_observation[key] = after if len(shape) == 1 else after.reshape(-1, *shape)
        action, pre_tanh_action, environment_reward, discount = parts[num_keys : num_keys + 4]
        if self._context_size:
            observation["context"] = parts[-1]
        return Transition(
            observation,
            action,
            pre_tanh_action,
            environment_reward.squeeze(1),
            discount.squeeze(1),
            next_observation,
        )
