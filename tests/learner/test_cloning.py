"""Behaviour cloning: the action that is executed becomes the expert's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from apprentice.networks import Policy, build_policy
from tests.learner.test_imitation import Rows, experiment, learning
from tests.learner.test_learning import SPEC

SETTINGS = {"learner": {"max_steps": 2000, "compile": "off"}}


@pytest.mark.parametrize("loss", ["likelihood", "mean_squared_error"])
def test_the_executed_action_equals_the_experts_on_a_tiny_set(loss: str) -> None:
    one = learning(
        "bc",
        cloning={"loss": loss, "learning_rate": 1e-3},
        network={"hidden_size": 256},
        **SETTINGS,
    )
    assert one.cloning is not None
    one.cloning._rows.num_rows = 16  # type: ignore[misc]
    while one.updates_owed():
        one.update()
    every = Rows().transitions(torch.arange(16))
    # What actors and evaluations execute: the published tensors in a policy of their own.
    policy = Policy(build_policy(experiment("bc", network={"hidden_size": 256}), SPEC), seed=0)
    policy.load(one.sac.policy_tensors())
    observation = {key: value.numpy() for key, value in every.observation.items()}
    executed = policy.act(observation, deterministic=True)
    error = np.abs(executed.action - every.action.numpy())
    assert error.mean() < 0.02
    assert error.max() < 0.1
    target = every.pre_tanh_action.numpy()
    assert np.abs(executed.pre_tanh_action - target)[np.abs(target) < 1.5].mean() < 0.1


def test_cloning_counts_updates_as_steps_and_needs_no_actor() -> None:
    one = learning("bc", learner={"max_steps": 7, "compile": "off"})
    assert one.warm
    assert one.updates_owed() == 7
    for _ in range(7):
        one.update()
    assert (one.counters.steps, one.counters.updates, one.updates_owed()) == (7, 7, 0)
    assert one.rings[0].num_transitions == 0


def test_critics_and_temperature_stay_as_they_are() -> None:
    one = learning("bc", **SETTINGS)
    critic, temperature = one.sac.state.critic.parameters.clone(), one.sac.temperature.clone()
    policy = one.sac.state.policy.parameters.clone()
    for _ in range(5):
        one.update()
    assert torch.equal(one.sac.state.critic.parameters, critic)
    assert torch.equal(one.sac.temperature, temperature)
    assert not torch.equal(one.sac.state.policy.parameters, policy)


@pytest.mark.parametrize("settings", [{"noise": 0.5}, {"weight_decay": 1.0}])
def test_regularised_cloning_learns_otherwise(settings: dict[str, Any]) -> None:
    plain, other = learning("bc", **SETTINGS), learning("bc", cloning=settings, **SETTINGS)
    for _ in range(5):
        plain.update()
        other.update()
    assert not torch.equal(plain.sac.state.policy.parameters, other.sac.state.policy.parameters)


def test_the_average_follows_the_cloned_policy() -> None:
    one = learning("bc", sac={"policy_average_tau": 0.5}, **SETTINGS)
    start = one.sac.policy_tensors(averaged=True)
    one.update()
    now, mean = one.sac.policy_tensors(), one.sac.policy_tensors(averaged=True)
    for name in start:
        torch.testing.assert_close(mean[name], 0.5 * (start[name] + now[name]))
