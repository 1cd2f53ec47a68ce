"""The records that cross a boundary between two parts of Apprentice.

Array bundles are NamedTuples. Unless said otherwise their fields are numpy arrays in the actor and
in replay, and torch tensors on the learner's device once a ring has served them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch

Metrics = dict[str, float]
"""Values by `service/name`; every key is documented where it is made."""

Observation = dict[str, np.ndarray]
"""Named arrays of one moment: `state` [O] float32, `pixels` [S, H, W, 3] uint8 (oldest frame first),
`task_parameters` [P] float32. A batch has one leading dimension more. A learner's batches of a family may have
`latent` [Z] too, what the task was inferred to be, and `context` [C], ids of the demonstrations shown (-1: none)."""


class Ending(IntEnum):
    """How a step left its episode."""

    GOES_ON = 0
    TERMINATED = 1
    TIME_LIMIT = 2
    ABORTED = 3


@dataclass(frozen=True)
class ArraySpec:
    """Shape and dtype name of one array, without a batch dimension."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class EnvironmentSpec:
    """Everything a network, a table or a checkpoint must know of an environment.

    `observation` holds what a policy reads: `pixels` has shape (S, H, W, 3) with S = frame stack.
    Actions are always float32 in [-1, 1].
    """

    task: str
    task_id: str
    observation: Mapping[str, ArraySpec]
    action: ArraySpec
    episode_steps: int  # agent steps until the time limit
    action_repeat: int
    step_seconds: float  # simulated time of one agent step, action repeat included
    task_parameters: Mapping[str, float] = field(default_factory=dict)

    @property
    def action_size(self) -> int:
        return self.action.shape[0]

    def num_leading_frames(self, key: str) -> int:
        """Rows of `key` that lead up to a segment's first action: the frame stack, or 1."""
        return self.observation[key].shape[0] if key == "pixels" else 1

    def frame_shape(self, key: str) -> tuple[int, ...]:
        """Shape of one stored row of `key`; stacks are rebuilt from rows when sampling."""
        shape = self.observation[key].shape
        return shape[1:] if key == "pixels" else shape

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> EnvironmentSpec:
        def array_spec(entry: Mapping[str, Any]) -> ArraySpec:
            return ArraySpec(tuple(int(n) for n in entry["shape"]), str(entry["dtype"]))

        return cls(
            task=str(data["task"]),
            task_id=str(data["task_id"]),
            observation={key: array_spec(entry) for key, entry in data["observation"].items()},
            action=array_spec(data["action"]),
            episode_steps=int(data["episode_steps"]),
            action_repeat=int(data["action_repeat"]),
            step_seconds=float(data["step_seconds"]),
            task_parameters={k: float(v) for k, v in data.get("task_parameters", {}).items()},
        )

    def digest(self) -> str:
        """First 16 hex digits of SHA-256 over the canonical JSON form."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


class TimeStep(NamedTuple):
    """What an environment answers to `reset` (reward 0, discount 1, GOES_ON) and to `step`."""

    observation: Observation
    environment_reward: float  # summed over the action repeat
    discount: float  # 0 only where the episode terminated
    ending: Ending


class SegmentId(NamedTuple):
    """Identifies a segment for ever: who made it, in which episode, from which step on."""

    incarnation: int  # 64 random bits of one start of one actor process
    episode: int  # counts the episodes of that incarnation, over all its environments
    first_step: int  # agent step within the episode of the segment's first action


class Segment(NamedTuple):
    """Up to T consecutive steps of one episode, padded to T; the unit that travels.

    Rows 0..S-1 of an observation array lead up to the first action, row S + t follows action t.
    Rows from S + length and steps from length on are padding (zeros).
    """

    observation: dict[str, np.ndarray]  # each [S + T, ...], see EnvironmentSpec.frame_shape
    action: np.ndarray  # [T, A] float32
    pre_tanh_action: np.ndarray  # [T, A] float32
    environment_reward: np.ndarray  # [T] float32
    discount: np.ndarray  # [T] float32
    length: int
    ending: Ending
    task: int  # index of the task in the experiment's list of tasks
    actor: int  # slot given by the learner
    incarnation: int
    episode: int
    first_step: int
    policy_version: int  # newest version that chose one of its actions
    context: np.ndarray  # [C] int64 ids of demonstrations, C may be 0

    @property
    def id(self) -> SegmentId:
        return SegmentId(self.incarnation, self.episode, self.first_step)


class Transition(NamedTuple):
    """A batch of B single steps on the learner's device."""

    observation: dict[str, torch.Tensor]  # each [B, ...]
    action: torch.Tensor  # [B, A]
    pre_tanh_action: torch.Tensor  # [B, A]
    environment_reward: torch.Tensor  # [B]
    discount: torch.Tensor  # [B]
    next_observation: dict[str, torch.Tensor]  # each [B, ...]


class ActionBatch(NamedTuple):
    """A policy's choice for K environments."""

    action: np.ndarray  # [K, A] float32 in [-1, 1]
    pre_tanh_action: np.ndarray  # [K, A] float32


class Trajectory(NamedTuple):
    """One whole episode of L steps, with what is needed to render it again."""

    observation: Observation  # each [L + 1, ...], frames unstacked
    action: np.ndarray  # [L, A] float32
    pre_tanh_action: np.ndarray  # [L, A] float32
    environment_reward: np.ndarray  # [L] float32
    discount: np.ndarray  # [L] float32
    ending: Ending
    physics_state: np.ndarray  # [L + 1, P] float64, mjSTATE_INTEGRATION
    model_fields: dict[str, np.ndarray]  # "geom_pos" and the like, as the episode set them
    seed: int
