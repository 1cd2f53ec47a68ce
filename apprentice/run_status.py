"""What a run says of itself in `status.json`, for the view, the page and whoever looks in."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, JsonValue

RunState = Literal["starting", "waiting", "training", "paused", "finished", "failed", "stopped"]


def _finite_or_none(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _finite_only(values: object) -> object:
    if not isinstance(values, list | tuple):
        return values
    return [value for value in values if _finite_or_none(value) is not None]


Measured = Annotated[float | None, BeforeValidator(_finite_or_none)]
"""A number, or None where there is none yet or it is not finite."""


class RunStatus(BaseModel):
    """A run at one moment. Unknown keys are ignored, so that older and newer programs read it."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    run: str
    experiment: str
    task: str
    state: RunState
    steps: int = 0
    """Agent steps received."""
    max_steps: int
    """Agent steps after which the run has finished."""
    environment_frames: int = 0
    """Steps times action repeat."""
    updates: int = 0
    policy_version: int = 0
    evaluation_returns: Annotated[tuple[float, ...], BeforeValidator(_finite_only)] = ()
    """Mean return of each evaluation, oldest first."""
    best_return: Measured = None
    """Largest of the evaluations' mean returns."""
    training_return: Measured = None
    """Mean return of the newest training episodes."""
    replay_ratio: Measured = None
    """Updates per agent step received since the warm-up."""
    steps_per_second: Measured = None
    updates_per_second: Measured = None
    policy_lag_steps: Measured = None
    """Agent steps between a policy's publication and the arrival of what it did."""
    actors: tuple[dict[str, JsonValue], ...] = ()
    """One entry for each living actor; the learner's service says what is in it."""
    learner: str = ""
    """HOST:PORT of the run's learner, as it listens."""
    message: str = ""
    """What a person should know now; "" where all is well."""
    created: str | None = None
    """UTC time as ISO text of the run's first status; kept by RunFolder.write_status."""
    updated: str | None = None
    """UTC time as ISO text of this status; set by RunFolder.write_status."""
