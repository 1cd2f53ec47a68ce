"""What all settings share: immutable, no unknown keys, docstrings as descriptions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
ObservationKey = Literal["state", "pixels", "task_parameters", "latent"]
Port = Annotated[int, Field(ge=0, le=65535)]
TELLING: Final[tuple[str, ...]] = ("task_parameters", "latent")
"""Observations that tell a network its task."""


def tells_task(keys: Iterable[str]) -> bool:
    """Return whether any of the observations tells a network its task."""
    return any(key in TELLING for key in keys)


def require_moderate_decay(section: str, prefix: str, rate: float, decay: float) -> None:
    """Raise ValueError where a step of size `rate` would take all of the weights, or turn their signs."""
    if rate * decay >= 1.0:
        raise ValueError(
            f"{section}.{prefix}weight_decay: expected less than 1 / {section}.{prefix}learning_rate ({1.0 / rate:g}), "
            f"or a step leaves nothing of the weights; found {decay:g}"
        )


class Settings(BaseModel):
    """Base of all settings: immutable, no unknown keys, docstrings as descriptions."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
