"""The expert's rows as the learner draws them."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch

from apprentice.types import Transition


class ExpertRows(Protocol):
    """Transitions of demonstrations, by number."""

    @property
    def num_rows(self) -> int:
        """How many there are."""

    @property
    def num_terminated(self) -> int:
        """Episodes among them that terminated."""

    @property
    def subsampling(self) -> int:
        """Every how many-th step of an episode was kept."""

    def transitions(self, index: torch.Tensor) -> Transition:
        """Return rows `index` [B] as a batch on the learner's device."""


class Demonstrated(NamedTuple):
    """What a run may know of the expert."""

    train: ExpertRows
    held_out: ExpertRows | None  # only ever measured on
    states: torch.Tensor | None  # [N, O], to fit the observation normaliser on


def moved(batch: Transition, device: torch.device) -> Transition:
    """Return the batch on a device."""
    if batch.discount.device == device:
        return batch
    return Transition(
        {k: v.to(device) for k, v in batch.observation.items()},
        batch.action.to(device),
        batch.pre_tanh_action.to(device),
        batch.environment_reward.to(device),
        batch.discount.to(device),
        {k: v.to(device) for k, v in batch.next_observation.items()},
    )
