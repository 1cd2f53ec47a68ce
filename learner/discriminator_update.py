"""One update of the discriminator as a single function of tensors, ready to be compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch.func import functional_call, grad_and_value
from torch.nn import functional

from apprentice.config_imitation import DiscriminatorSettings, RewardForm
from learner.context_update import ContextBatch, ContextParts, ContextState, Inferred
from learner.discriminator import (
    Discriminator,
    Masks,
    Rows,
    move_singular_vectors,
    spectrally_normalised,
)
from learner.flat import AdamSettings, AdamState, FlatLayout, adam_step, clip_by_norm
from learner.penalties import gradient_penalty, penalised_rows
from learner.rewards import reward_of_logit, slope_of_reward

METRICS = (
    "loss",
    "cross_entropy",
    "gradient_penalty",
    "gradient_norm",
    "rejected_updates",
)
"""What an update returns, in this order: the whole objective; its cross-entropy; the penalty before its
weight; the gradient's norm before clipping, the larger one of two that are clipped apart; and 1 where a
number that is not finite made it change nothing."""

REWARD_LIMIT = 10.0
"""Scores of FAIRL, and rewards before exp, are cut to this in penalties: what lies beyond drowns everything else."""


class DiscriminatorState(NamedTuple):
    """All tensors that an update changes, in place."""

    adam: AdamState  # [P]
    singular_vectors: dict[
        str, torch.Tensor
    ]  # by the weight's name, each [in]; empty without spectral norm


class DiscriminatorNoise(NamedTuple):
    """The random numbers of one update, drawn outside so that compiled and plain agree."""

    uniform: torch.Tensor  # [B, 1 + X] for the rows whose gradient is penalised
    mixture: torch.Tensor | None  # [B], shares of the expert, where rows are mixed
    inputs: torch.Tensor | None  # [2, B, X] Gaussian, scaled, where inputs are blurred
    masks: torch.Tensor | None  # [M, 3 B, H] factors of each hidden layer, where units are dropped


DiscriminatorUpdate = Callable[
    [
        DiscriminatorState,
        Rows,
        Rows,
        DiscriminatorNoise,
        torch.Tensor,
        ContextState | None,
        ContextBatch | None,
    ],
    torch.Tensor,
]
"""(state, expert rows, policy rows, noise, step-size factor [], encoder's state, what it is shown) -> values of
METRICS [5], and of CONTEXT_METRICS [3] where the encoder is trained; rows then come without `latent`, which is put
behind their other inputs."""
STATES = (0, 5)
"""Which of them are states."""


def cross_entropy(expert_logits: torch.Tensor, policy_logits: torch.Tensor) -> torch.Tensor:
    """Return -E_expert log D - E_policy log(1 - D): the sum of two means (1606.03476, equation 17)."""
    return functional.softplus(-expert_logits).mean() + functional.softplus(policy_logits).mean()


def mixed_cross_entropy(logits: torch.Tensor, expert_share: torch.Tensor) -> torch.Tensor:
    """Return the same for rows that are a mixture, with the expert's share as label (1710.09412)."""
    as_expert = expert_share * functional.softplus(-logits)
    return 2.0 * (as_expert + (1.0 - expert_share) * functional.softplus(logits)).mean()


def decision_entropy(logits: torch.Tensor) -> torch.Tensor:
    """Return the mean entropy of D in nats."""
    probability = torch.sigmoid(logits)
    return (functional.softplus(logits) - probability * logits).mean()


def reward_size(scores: torch.Tensor, form: RewardForm) -> torch.Tensor:
    """Return the mean square of the reward [] that scores [B] stand for: of AIRL's f, from which no log pi is taken."""
    return reward_of_logit(_bearable(scores, form), form).square().mean()


def make_discriminator_update(
    discriminator: Discriminator,
    layout: FlatLayout,
    settings: DiscriminatorSettings,
    form: RewardForm,
    sloped: torch.Tensor | None = None,
    context: ContextParts | None = None,
) -> DiscriminatorUpdate:
    """Build the update for one setting; the result reads nothing but its arguments.

    `sloped` [X] is 1 for the inputs by which the slope is penalised; None means all. With `context` the encoder is
    trained too, by the cross-entropy; the penalty takes `latent` for a constant (SMILe).
    """
    adam = AdamSettings(
        settings.learning_rate, settings.adam_betas, weight_decay=settings.weight_decay
    )
    sloping = _WithGradient(discriminator)

    def scored(parameters: dict[str, torch.Tensor], rows: Rows, masks: Masks) -> torch.Tensor:
        scores: torch.Tensor = functional_call(discriminator, parameters, (rows, masks))
        return scores

    def objective(
        vector: torch.Tensor,
        context_vector: torch.Tensor,
        state: DiscriminatorState,
        expert: Rows,
        policy: Rows,
        noise: DiscriminatorNoise,
        shown: ContextBatch | None,
        part: Literal["all", "penalty", "rest"],
    ) -> tuple[torch.Tensor, _Measured]:
        """Return the loss and what is measured of it; `part` leaves out the penalty, or all else."""
        parameters = spectrally_normalised(layout.unflatten(vector), state.singular_vectors)
        num = len(expert.inputs)
        zero = torch.zeros((), device=vector.device)
        loss, entropy_loss, penalty = zero, zero, zero
        inferred: Inferred | None = None
        fixed: torch.Tensor | None = None
        if shown is not None:
            assert context is not None
            inferred = context.infer(context_vector, shown)
            fixed = inferred.latent.detach()
        if part != "penalty":
            own, theirs = expert, policy
            if inferred is not None:
                own, theirs = _told(expert, inferred.latent), _told(policy, inferred.latent)
                loss = loss + inferred.loss
            both = Rows(*(torch.cat(pair) for pair in zip(own, theirs, strict=True)))
            scores = scored(parameters, both, _part(noise.masks, slice(0, 2 * num)))
            logits = scores - both.log_probability
            if noise.mixture is None:
                entropy_loss = cross_entropy(logits[:num], logits[num:])
            else:
                mixed = _mixed(own, theirs, noise.mixture)
                masks = _part(noise.masks, slice(0, num))
                mixed_logits = scored(parameters, mixed, masks) - mixed.log_probability
                entropy_loss = mixed_cross_entropy(mixed_logits, noise.mixture)
            loss = loss + entropy_loss
            if settings.entropy_bonus > 0.0:
                loss = loss - settings.entropy_bonus * decision_entropy(logits)
            if settings.reward_penalty > 0.0:
                loss = loss + settings.reward_penalty * reward_size(scores, form)
        if part != "rest" and settings.penalty != "none":
            rows = penalised_rows(settings.penalty, expert, policy, noise.uniform)
            gradient = _penalised_gradient(
                sloping,
                parameters,
                rows if fixed is None else _told(rows, fixed),
                _part(noise.masks, slice(2 * num, None)),
                settings.penalty_target,
                form,
            )
            if sloped is not None:
                gradient = gradient * sloped
            penalty = gradient_penalty(settings.penalty, gradient)
            loss = loss + settings.penalty_coefficient * penalty
        statistics = zero if inferred is None else inferred.statistics
        divergence = zero if inferred is None else inferred.divergence.detach()
        information = zero if inferred is None else inferred.information.detach()
        measured = _Measured(
            entropy_loss.detach(), penalty.detach(), divergence, information, statistics
        )
        return loss, measured

    def update(
        state: DiscriminatorState,
        expert: Rows,
        policy: Rows,
        noise: DiscriminatorNoise,
        rate_factor: torch.Tensor,
        context_state: ContextState | None = None,
        shown: ContextBatch | None = None,
    ) -> torch.Tensor:
        if noise.inputs is not None:
            expert = expert._replace(inputs=expert.inputs + noise.inputs[0])
            policy = policy._replace(inputs=policy.inputs + noise.inputs[1])

        if state.singular_vectors:
            move_singular_vectors(layout.unflatten(state.adam.parameters), state.singular_vectors)

        nothing = state.adam.parameters[:0]
        context_vector = nothing if context_state is None else context_state.adam.parameters
        arguments = (state.adam.parameters, context_vector, state, expert, policy, noise, shown)
        whole = grad_and_value(objective, argnums=(0, 1), has_aux=True)
        if settings.max_penalty_gradient_norm is None:
            (gradient, context_gradient), (loss, measured) = whole(*arguments, "all")
            gradient, norm = clip_by_norm(gradient, settings.max_gradient_norm)
        else:
            (gradient, context_gradient), (loss, measured) = whole(*arguments, "rest")
            gradient, norm = clip_by_norm(gradient, settings.max_gradient_norm)
            (steepness, _), (penalty_loss, penalised) = whole(*arguments, "penalty")
            steepness, steepest = clip_by_norm(steepness, settings.max_penalty_gradient_norm)
            gradient, loss = gradient + steepness, loss + penalty_loss
            norm = torch.maximum(norm, steepest)
            measured = measured._replace(penalty=penalised.penalty)
        accept = torch.isfinite(loss) & torch.isfinite(norm)
        adam_step(state.adam, gradient, adam, rate_factor, accept)
        values = [loss, measured.cross_entropy, measured.penalty, norm, (~accept).float()]
        if context_state is not None:
            assert context is not None
            assert shown is not None
            context_norm = context.step(
                context_state,
                context_gradient,
                measured.statistics,
                rate_factor * shown.rate_factor,
                accept,
                context.settings.learning_rate,
            )
            values += [measured.divergence, measured.information, context_norm]
        return torch.stack(values).detach()

    return update


class _Measured(NamedTuple):
    cross_entropy: torch.Tensor
    penalty: torch.Tensor
    divergence: torch.Tensor
    information: torch.Tensor
    statistics: torch.Tensor  # of batch norm; [] where no encoder is trained


def _told(rows: Rows, latent: torch.Tensor) -> Rows:
    return rows._replace(inputs=torch.cat([rows.inputs, latent], dim=1))


def _penalised_gradient(
    sloping: _WithGradient,
    parameters: dict[str, torch.Tensor],
    rows: Rows,
    masks: Masks,
    target: str,
    form: RewardForm,
) -> torch.Tensor:
    """Return the gradient by the inputs [B, X] of the logit, the reward, or exp(reward)."""
    gradient: torch.Tensor
    scores, gradient = functional_call(
        sloping,
        {f"inner.{k}": v for k, v in parameters.items()},
        (rows, masks),
    )
    if target == "logit":
        return gradient
    scores = _bearable(scores, form)
    slope = slope_of_reward(scores, form)
    if target == "exp_reward":
        reward = reward_of_logit(scores, form)
        slope = slope * reward.clamp(-REWARD_LIMIT, REWARD_LIMIT).exp()
    return slope[:, None] * gradient


def _bearable(scores: torch.Tensor, form: RewardForm) -> torch.Tensor:
    """Return scores cut where the form is exponential; the others' slopes must not vanish where scores are large."""
    return scores.clamp(-REWARD_LIMIT, REWARD_LIMIT) if form == "fairl" else scores


class _WithGradient(torch.nn.Module):
    """Lets `functional_call` reach `Discriminator.with_gradient`."""

    def __init__(self, inner: Discriminator) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, rows: Rows, masks: Masks) -> tuple[torch.Tensor, torch.Tensor]:
        return self.inner.with_gradient(rows, masks)


def _mixed(expert: Rows, policy: Rows, share: torch.Tensor) -> Rows:
    return Rows(
        torch.lerp(policy.inputs, expert.inputs, share[:, None]),
        torch.lerp(policy.discount, expert.discount, share),
        torch.lerp(policy.log_probability, expert.log_probability, share),
    )


def _part(masks: torch.Tensor | None, rows: slice) -> Masks:
    return None if masks is None else list(masks[:, rows])
