"""Absorbing states: what follows the end of an episode that terminated (DAC, arXiv 1809.02925, section 4.2).

Without them a terminated episode is worth 0 from its end on, whatever the reward's sign, and the reward
alone teaches to survive or to give up. With them an episode goes on for ever in one state that critics
and discriminator can tell, by an entry of their own, and learn the worth of. They are made when a batch is
drawn, from discount 0, for demonstrations and replay alike, and never stored.
"""

from __future__ import annotations

import torch

from apprentice.config import Experiment
from apprentice.networks.encoder import ABSORBING
from apprentice.suite_tasks import terminates
from apprentice.types import EnvironmentSpec, Transition


def uses_absorbing_states(experiment: Experiment, spec: EnvironmentSpec) -> bool:
    """Return whether critics and discriminator see absorbing states in this run."""
    imitation = experiment.imitation
    learns = imitation.method not in ("none", "bc")
    return learns and imitation.absorbing_states and terminates(spec.task)


def share_beside(batch: Transition) -> torch.Tensor:
    """Return the share [] of absorbing rows that belongs beside a batch: one for each of its rows that terminated.

    In the mean this is `absorbing_share` of whatever part of replay the batch was drawn from.
    """
    num_ended = (batch.discount == 0.0).sum()
    return num_ended / (len(batch.discount) + num_ended)


def absorbing_share(num_rows: int, num_terminated: int, subsampling: int = 1) -> float:
    """Return which share of all transitions stays in the absorbing state.

    Every terminated episode has one such transition. Where only every n-th row of the episodes was
    kept, it counts for 1/n, as in DAC's code; otherwise thinning would make it n times as frequent.
    """
    absorbing = num_terminated / subsampling
    total = num_rows + absorbing
    return absorbing / total if total > 0 else 0.0


def with_absorbing_states(
    batch: Transition, share: float | torch.Tensor, generator: torch.Generator
) -> Transition:
    """Return the batch with ends that lead into the absorbing state, and `share` of its rows staying there.

    Discount becomes 1 everywhere, the absorbing state's observation and action are 0.
    """
    ends = batch.discount == 0.0
    stays = torch.rand(len(ends), generator=generator, device=ends.device) < share
    leads = ends | stays
    observation = {key: _cleared(value, stays) for key, value in batch.observation.items()}
    next_observation = {
        key: _cleared(value, leads) for key, value in batch.next_observation.items()
    }
    observation[ABSORBING] = stays.to(batch.discount.dtype)[:, None]
    next_observation[ABSORBING] = leads.to(batch.discount.dtype)[:, None]
    return Transition(
        observation,
        _cleared(batch.action, stays),
        _cleared(batch.pre_tanh_action, stays),
        _cleared(batch.environment_reward, stays),
        torch.ones_like(batch.discount),
        next_observation,
    )


def _cleared(values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    shape = (-1, *[1] * (values.dim() - 1))
    return torch.where(
        rows.view(shape), torch.zeros((), dtype=values.dtype, device=values.device), values
    )
