"""Batches put together from others."""

from __future__ import annotations

import torch

from apprentice.types import Transition


def _joined(first: Transition, second: Transition) -> Transition:
    """Return the rows of both, with what the first one's observations have."""

    def both(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return torch.cat([one, other])

    return Transition(
        {k: both(v, second.observation[k]) for k, v in first.observation.items()},
        both(first.action, second.action),
        both(first.pre_tanh_action, second.pre_tanh_action),
        both(first.environment_reward, second.environment_reward),
        both(first.discount, second.discount),
        {k: both(v, second.next_observation[k]) for k, v in first.next_observation.items()},
    )


def with_rows_at(batch: Transition, other: Transition, places: torch.Tensor) -> Transition:
    """Return a copy of the batch with rows `places` [M] replaced by another's [M]; `context` is left out."""

    def put(one: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        return one.index_copy(0, places, new)

    return Transition(
        {k: put(v, other.observation[k]) for k, v in batch.observation.items() if k != "context"},
        put(batch.action, other.action),
        put(batch.pre_tanh_action, other.pre_tanh_action),
        put(batch.environment_reward, other.environment_reward),
        put(batch.discount, other.discount),
        {k: put(v, other.next_observation[k]) for k, v in batch.next_observation.items()},
    )


def with_expert_last(batch: Transition, expert: Transition) -> Transition:
    """Return the batch with some of its rows, from all over it, replaced by the expert's, which come last.

    Rows of a family come task by task: the last ones would be those of the last tasks.
    """
    size, num_kept = len(batch.discount), len(batch.discount) - len(expert.discount)
    kept = torch.arange(num_kept, device=batch.discount.device) * size // max(1, num_kept)
    return _joined(chosen_rows(batch, kept), expert)


def chosen_rows(batch: Transition, chosen: torch.Tensor | slice) -> Transition:
    """Return some of a batch's rows: those of numbers [M], of a mask [B], or of a slice."""
    return Transition(
        {k: v[chosen] for k, v in batch.observation.items()},
        batch.action[chosen],
        batch.pre_tanh_action[chosen],
        batch.environment_reward[chosen],
        batch.discount[chosen],
        {k: v[chosen] for k, v in batch.next_observation.items()},
    )
