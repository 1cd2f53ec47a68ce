"""The four forms of reward, number by number."""

from __future__ import annotations

import pytest
import torch

from apprentice.config_imitation import RewardForm, RewardSettings
from learner.rewards import imitation_reward, reward_of_logit, slope_of_reward

LOGITS = torch.tensor([-10.0, -1.0, 0.0, 1.0, 10.0], dtype=torch.float64)
TABLE: dict[RewardForm, list[float]] = {
    "logit": [-10.0, -1.0, 0.0, 1.0, 10.0],
    "log_d": [
        -10.000045398899218,
        -1.3132616875182228,
        -0.6931471805599453,
        -0.31326168751822286,
        -4.539889921686465e-05,
    ],
    "minus_log_one_minus_d": [
        4.539889921686465e-05,
        0.31326168751822286,
        0.6931471805599453,
        1.3132616875182228,
        10.000045398899218,
    ],
    "fairl": [
        0.00045399929762484853,
        0.36787944117144233,
        0.0,
        -2.718281828459045,
        -220264.65794806717,
    ],
}


@pytest.mark.parametrize("form", TABLE)
def test_rewards_at_five_logits(form: RewardForm) -> None:
    expected = torch.tensor(TABLE[form], dtype=torch.float64)
    torch.testing.assert_close(reward_of_logit(LOGITS, form), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("form", TABLE)
def test_slopes_are_the_derivatives(form: RewardForm) -> None:
    logits = LOGITS.clone().requires_grad_()
    (expected,) = torch.autograd.grad(reward_of_logit(logits, form).sum(), logits)
    torch.testing.assert_close(slope_of_reward(LOGITS, form), expected)


def test_ranges_are_those_that_are_stated() -> None:
    logits = torch.linspace(-9.0, 9.0, 1001, dtype=torch.float64)
    assert (reward_of_logit(logits, "minus_log_one_minus_d") > 0).all()
    assert (reward_of_logit(logits, "log_d") < 0).all()
    fairl = reward_of_logit(logits, "fairl")
    assert fairl.max() <= torch.exp(torch.tensor(-1.0, dtype=torch.float64)) + 1e-12
    assert abs(float(logits[fairl.argmax()]) + 1.0) < 0.02


def test_logit_is_the_difference_of_the_other_two() -> None:
    # log D - log(1 - D), the form that DAC and AIRL use.
    both = reward_of_logit(LOGITS, "log_d") + reward_of_logit(LOGITS, "minus_log_one_minus_d")
    torch.testing.assert_close(both, reward_of_logit(LOGITS, "logit"))


def test_bounds_cut_the_logit_first_and_then_the_reward() -> None:
    logits = torch.tensor([-50.0, 3.0, 50.0])
    found = imitation_reward(logits, RewardSettings(form="fairl", logit_bound=2.0, bound=10.0))
    # -(-2) exp(-2); -2 exp(2) = -14.8, cut to -10, twice.
    torch.testing.assert_close(found, torch.tensor([0.27067056, -10.0, -10.0]))
    free = imitation_reward(logits, RewardSettings(form="logit", logit_bound=None))
    torch.testing.assert_close(free, logits)
