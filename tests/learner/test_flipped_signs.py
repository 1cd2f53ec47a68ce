"""With the sign of any one loss flipped, a check fails: what is learned is what is meant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import learner.cloning
import learner.discriminator_update
import learner.sac_update
from apprentice.types import Transition
from learner.learning import Learning
from tests.learner.test_imitation import Rows, drive, learning

FAST = {"learning_rate": 1e-2}


def tells_the_expert(**settings: Any) -> None:
    one = learning("dac", shift=3.0, discriminator={**FAST, **settings})
    drive(one, 0, 10)
    found = one.metrics()
    assert found["discriminator/logit_expert_mean"] > found["discriminator/logit_policy_mean"] + 0.5


def mixes(**settings: Any) -> None:
    tells_the_expert(mixup=True, **settings)


def slope_is_held() -> None:
    one = learning("dac", shift=3.0, discriminator={**FAST, "penalty_coefficient": 10.0})
    drive(one, 0, 10)
    one.metrics()
    drive(one, 10, 12)
    assert abs(one.metrics()["discriminator/gradient_penalty"]) < 0.3


def entropy_is_kept() -> None:
    entropies = []
    for bonus in (0.0, 3.0):
        settings = {**FAST, "entropy_bonus": bonus, "penalty": "none"}
        one = learning("dac", shift=3.0, discriminator=settings)
        drive(one, 0, 6)
        entropies.append(one.metrics()["discriminator/entropy"])
    assert entropies[1] > entropies[0] + 0.05


def actions_are_cloned() -> None:
    one = learning("bc", learner={"max_steps": 150, "compile": "off"}, cloning=FAST)
    first = error_of(one)
    while one.updates_owed():
        one.update()
    assert error_of(one) < 0.7 * first


def actions_are_cloned_by_error() -> None:
    settings = {**FAST, "loss": "mean_squared_error"}
    one = learning("bc", learner={"max_steps": 150, "compile": "off"}, cloning=settings)
    first = error_of(one)
    while one.updates_owed():
        one.update()
    assert error_of(one) < 0.7 * first


def error_of(one: Learning) -> float:
    every = Rows().all
    return float((executed(one, every) - every.action).square().mean())


def executed(one: Learning, batch: Transition) -> torch.Tensor:
    one.sac.policy.load_state_dict(one.sac.policy_tensors())
    with torch.no_grad():
        mean, _ = one.sac.policy(batch.observation)
    return torch.tanh(mean)


def critics_follow_their_target() -> None:
    sac = {"initial_temperature": 1e-6, "gamma": 0.1}
    one = learning("dac", reward={"override": "zero"}, sac=sac)
    drive(one, 0, 20)
    assert abs(one.metrics()["learner/critic_loss"]) < 0.01


def policy_climbs() -> None:
    values = []
    for rate in (1e-9, 1e-2):
        settings = {"policy_learning_rate": rate, "initial_temperature": 1e-6}
        one = learning("dac", reward={"override": "environment"}, sac=settings)
        drive(one, 0, 12)
        batch = one.rings[0].sample(256, torch.Generator().manual_seed(0))
        with torch.no_grad():
            values.append(float(one.sac.values(batch.observation, executed(one, batch)).mean()))
    assert values[1] > values[0]


def temperature_keeps_entropy() -> None:
    temperatures = []
    for target in (-20.0, 5.0):  # no policy is so narrow, none of two dimensions so wide
        one = learning("dac", sac={"target_entropy": target, "initial_temperature": 0.1})
        drive(one, 0, 8)
        temperatures.append(float(one.sac.temperature))
    assert temperatures[0] < 0.1 < temperatures[1]


def rewards_stay_small() -> None:
    sizes = []
    for penalty in (0.0, 3.0):
        settings = {**FAST, "reward_penalty": penalty, "penalty": "none"}
        one = learning("dac", shift=3.0, discriminator=settings)
        drive(one, 0, 8)
        sizes.append(abs(one.metrics()["discriminator/reward_expert_mean"]))
    assert sizes[1] < 0.8 * sizes[0]


def policy_is_held() -> None:
    distances = []
    for coefficient in (0.0, 100.0):
        sac = {
            "trust_region": "penalty",
            "trust_region_coefficient": coefficient,
            "policy_learning_rate": 1e-2,
        }
        one = learning("dac", sac=sac)
        drive(one, 0, 8)
        state = one.sac.state
        assert state.slow_policy is not None
        distances.append(float((state.policy.parameters - state.slow_policy).norm()))
    assert distances[1] < 0.8 * distances[0]


def multiplier_follows_the_bound() -> None:
    multipliers = []
    for bound in (1e-9, 100.0):
        settings = {
            "trust_region": "constraint",
            "trust_region_bound": bound,
            "policy_learning_rate": 1e-2,
            "temperature_learning_rate": 1e-1,
        }
        one = learning("dac", sac=settings)
        drive(one, 0, 8)
        state = one.sac.state.trust_multiplier
        assert state is not None
        multipliers.append(float(state.parameters))
    assert multipliers[1] < -0.1  # there is room: the weight falls
    assert multipliers[0] > multipliers[1] + 0.1


CASES: dict[str, tuple[Any, str, Callable[[], None]]] = {
    "cross-entropy": (learner.discriminator_update, "cross_entropy", tells_the_expert),
    "mixed cross-entropy": (learner.discriminator_update, "mixed_cross_entropy", mixes),
    "gradient penalty": (learner.discriminator_update, "gradient_penalty", slope_is_held),
    "entropy bonus": (learner.discriminator_update, "decision_entropy", entropy_is_kept),
    "reward size": (learner.discriminator_update, "reward_size", rewards_stay_small),
    "divergence": (learner.sac_update, "gaussian_divergence", policy_is_held),
    "trust region": (learner.sac_update, "trust_gradient", multiplier_follows_the_bound),
    "likelihood": (learner.cloning, "log_probability", actions_are_cloned),
    "action error": (learner.cloning, "action_error", actions_are_cloned_by_error),
    "critic loss": (learner.sac_update, "critic_loss", critics_follow_their_target),
    "policy loss": (learner.sac_update, "policy_loss", policy_climbs),
    "temperature": (learner.sac_update, "temperature_gradient", temperature_keeps_entropy),
}


@pytest.mark.parametrize("case", CASES)
def test_a_loss_with_its_sign_flipped_is_seen(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, name, check = CASES[case]
    check()
    loss = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *arguments, **more: -loss(*arguments, **more))
    with pytest.raises(AssertionError):
        check()
