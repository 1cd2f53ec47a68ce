"""What an update that trains the context encoder has in it: shown demonstrations, what they say, the encoder's step."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.func import functional_call
from torch.nn import functional

from apprentice.config import ContextSettings
from apprentice.networks import Belief, ContextEncoder, Shown, divergence_from_prior
from apprentice.networks.context import MOMENTUM
from learner.flat import AdamSettings, AdamState, FlatLayout, adam_step, clip_by_norm

CONTEXT_METRICS = ("context_divergence", "context_information", "context_gradient_norm")
"""What an update returns in addition where it trains the encoder: KL(q(z | context), N(0, I)) in nats; the bound
on the mutual information of latent and task in nats (0 where it has no weight); and the encoder's gradient norm
before clipping."""


class ContextState(NamedTuple):
    """The encoder's tensors that an update changes, in place."""

    adam: AdamState  # [P]
    running_mean: torch.Tensor  # [N, H] of batch norm; N = 0 without
    running_variance: torch.Tensor  # [N, H]


class ContextBatch(NamedTuple):
    """What is shown in one update, of each of K tasks."""

    shown: Shown  # [K, C, S, ...]
    other: Shown | None  # others of the same tasks, for the information
    noise: torch.Tensor  # [K, Z] standard normal
    task: torch.Tensor  # [B] int64: which of the K each row of the batch is of
    divergence_weight: torch.Tensor  # []
    rate_factor: torch.Tensor  # [] of the encoder's step size alone


class Inferred(NamedTuple):
    """What the encoder makes of it."""

    latent: torch.Tensor  # [B, Z], each row its task's
    loss: torch.Tensor  # [] weighted divergence less weighted information
    divergence: torch.Tensor  # []
    information: torch.Tensor  # []
    statistics: torch.Tensor  # [2, N, H]


class ContextParts(NamedTuple):
    """The encoder and its layout; the module's own parameters are never read."""

    encoder: ContextEncoder
    layout: FlatLayout
    settings: ContextSettings

    def infer(self, vector: torch.Tensor, batch: ContextBatch) -> Inferred:
        """Encode a batch with the parameters in `vector` [P]."""
        parameters = self.layout.unflatten(vector)
        belief: Belief
        belief, statistics, _ = functional_call(self.encoder, parameters, (batch.shown, True))
        latent = rows_of(belief.sample(batch.noise), batch.task)
        loss = torch.zeros((), device=vector.device)
        divergence, information = loss, loss
        if self.settings.encoder == "posterior":
            divergence = divergence_from_prior(belief)
            loss = loss + batch.divergence_weight * divergence
        if batch.other is not None:
            again, _, _ = functional_call(self.encoder, parameters, (batch.other, True))
            information = information_bound(belief.mean, again.mean)
            loss = loss - self.settings.information_coefficient * information
        return Inferred(latent, loss, divergence, information, statistics.detach())

    def step(
        self,
        state: ContextState,
        gradient: torch.Tensor,
        statistics: torch.Tensor,
        rate_factor: torch.Tensor,
        accept: torch.Tensor,
        learning_rate: float,
    ) -> torch.Tensor:
        """Move the encoder by its gradient [P]; return the gradient's norm before clipping."""
        gradient, norm = clip_by_norm(gradient, self.settings.max_gradient_norm)
        adam = AdamSettings(learning_rate, self.settings.adam_betas)
        accept = accept & torch.isfinite(norm)
        adam_step(state.adam, gradient, adam, rate_factor, accept)
        if self.settings.batch_norm:
            for running, found in zip(state[1:], statistics, strict=True):
                moves = accept & (rate_factor > 0)
                running.lerp_(torch.where(moves, found, running), MOMENTUM)
        return norm


def rows_of(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Return `values[index]` [B, Z] for values [K, Z], whose gradient adds up in one order.

    That of indexing, compiled for a GPU, adds in the order in which its threads come by.
    """
    return values[index] if index.device.type == "cpu" else rows_summed(values, index)


def rows_summed(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Return the same as sums over all K, of which all terms but one are 0."""
    is_chosen = index[:, None] == torch.arange(len(values), device=index.device)  # [B, K]
    return torch.where(is_chosen[..., None], values, 0.0).sum(1)


def information_bound(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return a lower bound [] in nats on the mutual information of latent and task, at most log K.

    InfoNCE (van den Oord, Li & Vinyals 2018, arXiv 1807.03748, equation 4): `one` and `other` [K, Z] were
    inferred from different demonstrations of the same K tasks; the score of a pair is its negative squared
    distance.
    """
    scores = -(one[:, None] - other[None]).square().sum(-1)
    own = torch.arange(len(one), device=one.device)
    return torch.log(torch.tensor(float(len(one)), device=one.device)) - functional.cross_entropy(
        scores, own
    )
