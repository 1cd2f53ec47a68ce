"""What a file of demonstrations holds, and what refuses one that cannot be used.

The layout is Minari's: HDF5 with one group `episode_N` an episode, holding `observations` (a group with
one array for each key), `actions`, `rewards`, `terminations`, `truncations`. Ours adds the attribute
`apprentice` (DemonstrationMetadata as JSON) to the file and, to each episode, the group `apprentice` with
what Minari has no place for: `pre_tanh_action`, `physics_state` and `model_fields`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from apprentice.config import EnvironmentSettings
from apprentice.demonstrations.bundled import bundled_names
from apprentice.types import EnvironmentSpec, Trajectory

FORMAT_VERSION: Final = 1
METADATA: Final = "apprentice"
"""Name of the file's attribute with our metadata, and of each episode's group with our arrays."""
LARGEST_FILE_BYTES: Final = 16 << 30
LARGEST_DECLARED_BYTES: Final = 16 << 30
"""Of all arrays together: a small file may declare a large one."""
LARGEST_UNPACKED_BYTES: Final = 4 << 30
"""Of all arrays that are read into memory because they are compressed."""
MAX_EPISODES: Final = 100_000
MAX_METADATA_CHARACTERS: Final = 60_000
LARGEST_ACTION: Final = 1.0 - 1e-6
"""Where no pre-tanh action was recorded, actions are cut to this before atanh."""
SMALL_ACTIONS: Final = 0.6
"""Largest action, of bounds scaled to 1, below which a foreign file's units are doubted."""


class DemonstrationError(Exception):
    """Demonstrations cannot be used; the message names file and field, what was expected and found."""


def refused(source: object, field: str, expected: object, found: object) -> DemonstrationError:
    """Return what refuses a file, with what was expected in one of its fields and what was found."""
    return DemonstrationError(f"{source}: {field}: expected {expected}, found {found}")


class Expert(BaseModel):
    """The checkpoint that acted."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    run: str
    """Name of the run that trained it."""
    steps: int
    """Agent steps it was trained for."""
    digest: str
    """SHA-256 of the checkpoint's manifest."""
    return_mean: float | None = None
    """Its mean return over episodes that nobody picked: what imitation is measured against."""
    return_episodes: int = Field(0, ge=0)
    """How many those were."""


class DemonstrationMetadata(BaseModel):
    """Where demonstrations come from; returns and seeds stand with each episode."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    format_version: int = FORMAT_VERSION
    """Version of this layout."""
    environment: dict[str, Any] | None = None
    """EnvironmentSpec of what was acted in, task and its parameters included; null in a foreign file."""
    settings: EnvironmentSettings = EnvironmentSettings()
    """How the environment was set up."""
    expert: Expert | None = None
    """Who acted, where that is known."""
    other_experts: tuple[Expert, ...] = ()
    """Who acted in turn with it, where several did."""
    random_return: float | None = None
    """Mean return of uniformly random actions in the same environment: where imitation starts from."""
    deterministic: bool | None = None
    """Whether the likeliest action was taken, or one was drawn."""
    subsampling: int = Field(1, ge=1)
    """Every how many-th step of the episodes is in the file: 1 is all of them."""
    clipped_share: float = Field(0.0, ge=0, le=1)
    """Share of action entries that were cut before atanh when the file was imported."""
    dm_control: str | None = None
    """Version of dm_control."""
    mujoco: str | None = None
    """Version of MuJoCo, which physics states can be drawn with."""

    @field_validator("environment")
    @classmethod
    def _is_a_spec(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is not None:
            try:
                EnvironmentSpec.from_dict(value)
            except (KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"expected an environment spec, {error} is wrong") from None
            value = json.loads(json.dumps(value))  # lists for tuples, as it is read again
        return value

    @property
    def expert_return(self) -> float | None:
        """The mean return over the episodes of all who acted; None where that of one of them is not known."""
        returns = [one.return_mean for one in self.experts if one.return_mean is not None]
        if not returns or len(returns) < len(self.experts):
            return None
        weights = [one.return_episodes for one in self.experts]
        if not all(weights):
            weights = [1] * len(weights)
        return float(np.average(returns, weights=weights))

    @property
    def experts(self) -> tuple[Expert, ...]:
        """Who acted; empty where that is not known."""
        return () if self.expert is None else (self.expert, *self.other_experts)

    def to_json(self) -> str:
        """Return it as files hold it: of one expert as before there could be several."""
        return self.model_dump_json(exclude=None if self.other_experts else {"other_experts"})

    @property
    def spec(self) -> EnvironmentSpec | None:
        """What was acted in."""
        return None if self.environment is None else EnvironmentSpec.from_dict(self.environment)


@dataclass(frozen=True)
class DemonstrationSet:
    """Episodes of one task; observations are [L + 1, ...], frames unstacked."""

    metadata: DemonstrationMetadata
    trajectories: tuple[Trajectory, ...]
    clipped_share: float = 0.0
    """Share of action entries that were cut before atanh, because no pre-tanh action was recorded."""

    @property
    def returns(self) -> tuple[float, ...]:
        """The episodes' returns by the environment's reward."""
        return tuple(float(t.environment_reward.sum()) for t in self.trajectories)

    @property
    def num_steps(self) -> int:
        """Steps of all episodes."""
        return sum(len(t.action) for t in self.trajectories)

    def chosen(self, numbers: list[int]) -> DemonstrationSet:
        """Return only these episodes."""
        episodes = tuple(self.trajectories[number] for number in numbers)
        return DemonstrationSet(self.metadata, episodes, self.clipped_share)


def shape_and_dtype(shape: Sequence[int], dtype: Any) -> str:
    """Return what one row of an observation is, as messages say it."""
    return f"{list(shape)} {np.dtype(dtype)}"


def doubt_of_units(demonstrations: DemonstrationSet) -> str | None:
    """Return a warning where nobody knows the expert and its actions reach suspiciously short of their bounds."""
    reach = max(float(abs(t.action).max()) for t in demonstrations.trajectories)
    if demonstrations.metadata.expert is not None or reach >= SMALL_ACTIONS:
        return None
    return (
        f"actions reach {reach:.2g} of the environment's bounds; if they are in other units, "
        "`apprentice demos import --rescale-actions LOW HIGH` scales them"
    )


def require_spec(
    source: str, metadata: DemonstrationMetadata, episode: Trajectory, expected: EnvironmentSpec
) -> None:
    """Raise DemonstrationError where demonstrations are of another task or another view of it."""

    def refuse(field: str, wanted: object, found: object, advice: str = "") -> DemonstrationError:
        return refused(source, field, wanted, f"{found}{advice}")

    spec = metadata.spec
    if spec is not None:
        if spec.task_id != expected.task_id:
            advice = f"; {expected.task_id}'s own are recorded with `apprentice demos record`"
            if expected.task_id in bundled_names():
                advice = f"; the bundled file {expected.task_id!r} would fit"
            raise refuse("task", repr(expected.task_id), repr(spec.task_id), advice)
        if dict(spec.task_parameters) != dict(expected.task_parameters):
            found = dict(spec.task_parameters)
            raise refuse("task_parameters", dict(expected.task_parameters), found)
        if spec.action_repeat != expected.action_repeat:
            advice = "; set environment.action_repeat to the demonstrations'"
            raise refuse("action_repeat", expected.action_repeat, spec.action_repeat, advice)
    shapes = {
        key: shape_and_dtype(value.shape[1:], value.dtype)
        for key, value in episode.observation.items()
    }
    for key in expected.observation:
        wanted = shape_and_dtype(expected.frame_shape(key), expected.observation[key].dtype)
        if key not in shapes:
            advice = "; `apprentice demos render` adds them" if key == "pixels" else ""
            raise refuse(f"observations/{key}", f"arrays of {wanted}", sorted(shapes), advice)
        if shapes[key] != wanted:
            raise refuse(f"observations/{key}", f"arrays of {wanted}", shapes[key])
    if episode.action.shape[1:] != expected.action.shape:
        raise refuse("actions", f"{expected.action_size} entries", episode.action.shape[1])
