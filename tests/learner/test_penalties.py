"""Gradient penalties against finite differences and against what a linear discriminator must give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.func import functional_call

from apprentice.config_imitation import DiscriminatorSettings, RewardForm
from learner.discriminator import Discriminator, Rows
from learner.discriminator_update import (
    DiscriminatorNoise,
    DiscriminatorState,
    _penalised_gradient,
    _WithGradient,
    make_discriminator_update,
    reward_size,
)
from learner.flat import FlatLayout, adam_state
from learner.penalties import gradient_penalty, penalised_rows
from learner.rewards import reward_of_logit

KINDS = ("two_sided", "one_sided", "zero_centred", "dragan")
NUM, SIZE = 16, 5


def rows(seed: int) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    return Rows(
        torch.randn(NUM, SIZE, generator=generator, dtype=torch.float64),
        torch.ones(NUM, dtype=torch.float64),
        torch.zeros(NUM, dtype=torch.float64),
    )


def uniform() -> torch.Tensor:
    return torch.rand(NUM, 1 + SIZE, generator=torch.Generator().manual_seed(9)).double()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [0.3, 2.0])
def test_a_linear_discriminator_is_penalised_by_its_weights_norm(kind: Any, scale: float) -> None:
    weight = torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0], dtype=torch.float64)
    weight = scale * weight / weight.norm()
    gradient = weight.expand(NUM, SIZE)
    expected = {
        "two_sided": (scale - 1.0) ** 2,
        "one_sided": max(0.0, scale - 1.0) ** 2,
        "zero_centred": scale**2,
        "dragan": (scale - 1.0) ** 2,
    }[kind]
    assert float(gradient_penalty(kind, gradient)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [0.3, 1.0, 2.0])
def test_an_update_of_a_linear_discriminator_reports_exactly_its_weights_penalty(
    kind: Any, scale: float
) -> None:
    """One layer of ReLU units that are all on: h = w·x + c everywhere between the rows."""
    settings = DiscriminatorSettings(
        hidden_size=SIZE,
        num_hidden_layers=1,
        activation="relu",
        penalty=kind,
        penalty_coefficient=7.0,
    )
    discriminator = Discriminator(3, 2, settings, airl=False, gamma=0.9).double()
    weight = torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0], dtype=torch.float64)
    weight = scale * weight / weight.norm()
    with torch.no_grad():
        discriminator.score.weights[0].copy_(torch.eye(SIZE))
        discriminator.score.biases[0].fill_(100.0)
        discriminator.score.weights[1].copy_(weight[:, None])
        discriminator.score.biases[1].fill_(-100.0 * weight.sum())
    layout = FlatLayout(discriminator)
    start = layout.flatten(discriminator, torch.device("cpu")).double()
    update = make_discriminator_update(discriminator, layout, settings, "logit")
    found = update(
        DiscriminatorState(adam_state(start), {}),
        rows(1),
        rows(2),
        DiscriminatorNoise(uniform(), None, None, None),
        torch.ones((), dtype=torch.float64),
    )
    loss, cross_entropy, penalty = (float(value) for value in found[:3])
    expected = {
        "two_sided": (scale - 1.0) ** 2,
        "one_sided": max(0.0, scale - 1.0) ** 2,
        "zero_centred": scale**2,
        "dragan": (scale - 1.0) ** 2,
    }[kind]
    assert penalty == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert loss == pytest.approx(cross_entropy + 7.0 * expected, rel=1e-9)
    logits = [inputs @ weight for inputs in (rows(1).inputs, rows(2).inputs)]
    both = (
        torch.nn.functional.softplus(-logits[0]).mean()
        + torch.nn.functional.softplus(logits[1]).mean()
    )
    assert cross_entropy == pytest.approx(float(both), rel=1e-9)


def test_rows_lie_between_expert_and_policy_with_one_share_each() -> None:
    expert, policy, noise = rows(1), rows(2), uniform()
    between = penalised_rows("two_sided", expert, policy, noise)
    share = (between.inputs - policy.inputs) / (expert.inputs - policy.inputs)
    torch.testing.assert_close(share, noise[:, :1].expand(NUM, SIZE))
    assert float(share.min()) >= 0.0 and float(share.max()) <= 1.0
    assert share[:, 0].unique().numel() == NUM


def test_dragan_stays_around_the_experts_rows() -> None:
    expert, policy = rows(1), rows(2)
    around = penalised_rows("dragan", expert, policy, uniform())
    moved = (around.inputs - expert.inputs) / expert.inputs.std(0)
    assert float(moved.min()) >= 0.0 and float(moved.max()) <= 0.5
    torch.testing.assert_close(around.discount, expert.discount)


@pytest.mark.parametrize("target", ["logit", "reward", "exp_reward"])
@pytest.mark.parametrize("form", ["logit", "log_d", "minus_log_one_minus_d", "fairl"])
def test_penalised_gradients_are_finite_differences(target: Any, form: RewardForm) -> None:
    torch.manual_seed(0)
    settings = DiscriminatorSettings(hidden_size=8)
    discriminator = Discriminator(3, 2, settings, airl=False, gamma=0.9).double()
    parameters = dict(discriminator.named_parameters())
    points = rows(3)
    gradient = _penalised_gradient(
        _WithGradient(discriminator), parameters, points, None, target, form
    )

    def value(inputs: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = functional_call(
            discriminator, parameters, (points._replace(inputs=inputs),)
        )
        if target == "logit":
            return logits
        reward = reward_of_logit(logits, form)
        return reward if target == "reward" else reward.exp()

    step = 1e-6
    for entry in range(SIZE):
        away = torch.zeros(SIZE, dtype=torch.float64)
        away[entry] = step
        slope = (value(points.inputs + away) - value(points.inputs - away)) / (2 * step)
        torch.testing.assert_close(gradient[:, entry], slope, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("target", ["reward", "exp_reward"])
def test_airls_penalised_reward_is_f_without_log_pi(target: Any) -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(
        2, 1, DiscriminatorSettings(hidden_size=8), airl=True, gamma=0.9
    ).double()
    parameters = dict(discriminator.named_parameters())
    points = rows(3)
    gradients = [
        _penalised_gradient(
            _WithGradient(discriminator),
            parameters,
            points._replace(log_probability=torch.full((NUM,), log_pi, dtype=torch.float64)),
            None,
            target,
            "logit",
        )
        for log_pi in (0.0, -4.0)
    ]
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("score", [0.5, 30.0])
def test_the_size_penalty_pulls_however_large_a_reward_is(score: float) -> None:
    scores = torch.tensor([score, -score], requires_grad=True)
    reward_size(scores, "logit").backward()
    torch.testing.assert_close(scores.grad, torch.tensor([score, -score]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", ["logit", "reward", "exp_reward"])
def test_an_update_follows_the_whole_objectives_gradient(kind: Any, target: Any) -> None:
    """The gradient with the penalty in it, second derivatives included, by finite differences."""
    torch.manual_seed(0)
    settings = DiscriminatorSettings(
        hidden_size=4,
        penalty=kind,
        penalty_target=target,
        penalty_coefficient=3.0,
        adam_betas=(0.0, 0.0),
        learning_rate=1e-9,
        entropy_bonus=0.1,
        reward_penalty=0.05,
    )
    discriminator = Discriminator(3, 2, settings, airl=False, gamma=0.9).double()
    layout = FlatLayout(discriminator)
    update = make_discriminator_update(discriminator, layout, settings, "log_d")
    start = layout.flatten(discriminator, torch.device("cpu")).double()
    noise = DiscriminatorNoise(uniform(), None, None, None)
    one = torch.ones((), dtype=torch.float64)

    def loss(parameters: torch.Tensor) -> torch.Tensor:
        state = DiscriminatorState(adam_state(parameters.clone()), {})
        return update(state, rows(1), rows(2), noise, one)

    norm = float(loss(start)[3])
    slopes = []
    for entry in range(len(start)):
        away = torch.zeros_like(start)
        away[entry] = 1e-6
        slopes.append(float(loss(start + away)[0] - loss(start - away)[0]) / 2e-6)
    assert norm == pytest.approx(float(torch.tensor(slopes).norm()), rel=1e-4)
    # Adam without memory moves each parameter against the sign of its gradient.
    state = DiscriminatorState(adam_state(start.clone()), {})
    update(state, rows(1), rows(2), noise, one)
    moved = (state.adam.parameters - start).sign()
    clear = torch.tensor(slopes).abs() > 1e-4
    assert torch.equal(moved[clear], -torch.tensor(slopes).sign()[clear].double())
