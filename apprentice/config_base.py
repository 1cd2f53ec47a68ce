"""What all settings share: immutable, no unknown keys, docstrings as descriptions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
ObservationKey = Literal["state", "pixels", "task_parameters", "latent"]
Port = Annotated[int, Field(ge=0, le=65535)]
TELLING: Final[tuple[str, ...]] = ("task_parameters", "latent")
"""Observations that tell a network its task."""


def tells_task(keys: Iterable[str]) -> bool:
    """Return whether any of the observations tells a network its task."""
    return any(key in TELLING for key in keys)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested sections by path, `sac.gamma`."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= flatten(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


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

    def flat(self) -> dict[str, Any]:
        """Return every setting as JSON has it, by path."""
        return flatten(self.model_dump(mode="json"))

    def differences(self, other: Settings) -> dict[str, tuple[Any, Any]]:
        """Return own and the other's value of each setting that they differ in; None where one has no such setting."""
        own, others = self.flat(), other.flat()
        return {
            key: (own.get(key), others.get(key))
            for key in own | others
            if own.get(key) != others.get(key)
        }
