"""The fast update against the plain one, and what an update must and must not do."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from apprentice.config import Experiment
from apprentice.types import ArraySpec, EnvironmentSpec, Transition
from learner.sac import SAC
from learner.sac_update import Noise
from tests.learner.plain_sac import PlainSAC

CPU = torch.device("cpu")


def make_spec(pixels: bool = False) -> EnvironmentSpec:
    observation = {"state": ArraySpec((5,), "float32")}
    if pixels:
        observation["pixels"] = ArraySpec((2, 24, 24, 3), "uint8")
    action = ArraySpec((3,), "float32")
    return EnvironmentSpec("fake-task", "fake-task", observation, action, 1000, 1, 0.02)


def make_experiment(**changes: Any) -> Experiment:
    settings: dict[str, Any] = {
        "name": "test",
        "task": "fake-task",
        "network": {"hidden_size": 32, "encoder_channels": 4, "encoder_features": 8},
        "learner": {"compile": "off"},
    }
    for key, value in changes.items():
        settings[key] = {**settings.get(key, {}), **value}
    return Experiment.model_validate(settings)


def make_batch(seed: int, size: int = 64, pixels: bool = False) -> Transition:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    observations = []
    for _ in range(2):
        observation = {"state": normal(size, 5)}
        if pixels:
            frames = torch.randint(0, 256, (size, 2, 24, 24, 3), generator=generator)
            observation["pixels"] = frames.to(torch.uint8)
        observations.append(observation)
    pre_tanh = normal(size, 3)
    discount = (torch.rand(size, generator=generator) > 0.1).float()
    return Transition(
        observations[0],
        torch.tanh(pre_tanh),
        pre_tanh,
        normal(size),
        discount,
        observations[1],
    )


def noise_for(seed: int, size: int = 64) -> torch.Tensor:
    return torch.randn(2, size, 3, generator=torch.Generator().manual_seed(1000 + seed))


def run_fast(sac: SAC, num_updates: int) -> None:
    update = sac._build(True, True)
    for number in range(num_updates):
        batch = make_batch(number)
        update(
            sac.state,
            batch,
            batch.environment_reward,
            Noise(noise_for(number), None),
            sac.rate_factor,
        )


def run_plain(sac: SAC, num_updates: int) -> PlainSAC:
    plain = PlainSAC(
        sac.policy,
        sac.critic,
        learning_rate=1e-3,
        gamma=0.99,
        tau=0.005,
        initial_temperature=0.1,
    )
    for number in range(num_updates):
        batch = make_batch(number)
        plain.update(batch, batch.environment_reward, noise_for(number))
    return plain


def assert_equal_parameters(sac: SAC, plain: PlainSAC, tolerance: float) -> None:
    expected = {
        "critic": sac._parts.critic_layout.flatten(plain.critic, CPU),
        "target": sac._parts.target_layout.flatten(plain.target, CPU),
        "policy": sac._parts.policy_layout.flatten(plain.policy, CPU),
        "alpha": plain.log_alpha.detach(),
    }
    found = {
        "critic": sac.state.critic.parameters,
        "target": sac.state.target_critic,
        "policy": sac.state.policy.parameters,
        "alpha": sac.state.log_temperature.parameters,
    }
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, atol=tolerance, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_twenty_fast_updates_equal_the_plain_ones_to_one_part_in_ten_thousand() -> None:
    sac = SAC(make_experiment(), make_spec(), CPU, seed=3)
    plain = run_plain(sac, 20)
    run_fast(sac, 20)
    assert_equal_parameters(sac, plain, tolerance=1e-4)
    moved = sac._parts.critic_layout.flatten(sac.critic, CPU)
    assert (sac.state.critic.parameters - moved).abs().max() > 1e-2


@pytest.mark.timeout(300)
def test_compiled_updates_equal_the_plain_ones_whatever_was_compiled_before() -> None:
    changed: dict[str, Any] = {"sac": {"tau": 0.5, "gamma": 0.5}}
    other, sac = (
        SAC(make_experiment(learner={"compile": "on"}, **more), make_spec(), CPU, seed=3)
        for more in (changed, {})
    )
    run_fast(other, 3)
    plain = run_plain(sac, 20)
    run_fast(sac, 20)
    assert_equal_parameters(sac, plain, tolerance=1e-4)
    expected = SAC(make_experiment(**changed), make_spec(), CPU, seed=3)
    run_fast(expected, 3)
    torch.testing.assert_close(
        other.state.target_critic, expected.state.target_critic, atol=1e-5, rtol=0
    )
    torch.testing.assert_close(
        other.state.critic.parameters, expected.state.critic.parameters, atol=1e-5, rtol=0
    )


def test_bfloat16_stays_near_float32() -> None:
    exact = SAC(make_experiment(), make_spec(), CPU, seed=3)
    rounded = SAC(make_experiment(learner={"precision": "bfloat16"}), make_spec(), CPU, seed=3)
    run_fast(exact, 5)
    run_fast(rounded, 5)
    torch.testing.assert_close(
        rounded.state.critic.parameters, exact.state.critic.parameters, atol=5e-3, rtol=0
    )
    assert rounded.state.critic.parameters.dtype == torch.float32


def test_the_same_seed_gives_the_same_parameters_bit_for_bit() -> None:
    states = []
    for _ in range(2):
        sac = SAC(make_experiment(), make_spec(), CPU, seed=7)
        for number in range(5):
            batch = make_batch(number)
            sac.update(batch, batch.environment_reward)
        states.append(sac.state_tensors())
    for group, tensors in states[0].items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, states[1][group][name]), f"{group}/{name}"


def test_stop_restore_continue_equals_an_uninterrupted_run_bit_for_bit() -> None:
    whole = SAC(make_experiment(), make_spec(), CPU, seed=7)
    for number in range(10):
        whole.update(make_batch(number), make_batch(number).environment_reward)
        if number == 4:
            saved = whole.state_tensors()
    resumed = SAC(make_experiment(), make_spec(), CPU, seed=99)
    resumed.load_state_tensors(saved, num_updates=5)
    for number in range(5, 10):
        resumed.update(make_batch(number), make_batch(number).environment_reward)
    found, expected = resumed.state_tensors(), whole.state_tensors()
    for group, tensors in expected.items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, found[group][name]), f"{group}/{name}"


def test_the_stored_environment_reward_is_not_read_when_another_is_given() -> None:
    results = []
    for scramble in (0.0, 1000.0):
        sac = SAC(make_experiment(), make_spec(), CPU, seed=7)
        batch = make_batch(0)
        scrambled = batch._replace(environment_reward=batch.environment_reward + scramble)
        sac.update(scrambled, torch.ones(64))
        results.append(sac.state.critic.parameters.clone())
    assert torch.equal(results[0], results[1])


def test_a_non_finite_reward_changes_nothing_and_is_counted() -> None:
    sac = SAC(make_experiment(), make_spec(), CPU, seed=7)
    batch = make_batch(0)
    sac.update(batch, batch.environment_reward)
    before = {k: v for k, v in sac.state_tensors().items() if k != "random"}
    target = before["networks"].pop("target_critic")
    sac.update(batch, torch.full((64,), math.nan))
    after = sac.state_tensors()
    for group, tensors in before.items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, after[group][name]), f"{group}/{name}"
    assert torch.isfinite(target).all() and torch.isfinite(after["networks"]["target_critic"]).all()
    assert sac.rejected_in_a_row() == 1
    sac.update(batch, batch.environment_reward)
    assert sac.rejected_in_a_row() == 0


def test_a_loaded_state_has_rejected_nothing() -> None:
    sac = SAC(make_experiment(), make_spec(), CPU, seed=3)
    saved = sac.state_tensors()
    batch = make_batch(0)
    for _ in range(3):
        sac.update(batch, torch.full_like(batch.environment_reward, torch.nan))
    assert sac.rejected_in_a_row() == 3
    sac.load_state_tensors(saved, 0)
    assert sac.rejected_in_a_row() == 0
    assert sac.metrics() == {}


def test_the_policys_metrics_are_means_over_the_updates_that_moved_it() -> None:
    settings = {"policy_update_period": 2}
    sac = SAC(make_experiment(sac=settings), make_spec(), CPU, seed=3)
    batch = make_batch(0)
    sac.update(batch, batch.environment_reward)
    assert not {"learner/policy_loss", "learner/entropy"} & sac.metrics().keys()
    found = []
    for _ in range(2):
        sac.update(batch, batch.environment_reward)
        found.append(sac.metrics())
    assert found[0]["learner/policy_gradient_norm"] > 0.0
    both = SAC(make_experiment(sac=settings), make_spec(), CPU, seed=3)
    for _ in range(2):
        both.update(batch, batch.environment_reward)
    expected = found[0]["learner/policy_loss"]
    assert both.metrics()["learner/policy_loss"] == pytest.approx(expected)


def test_metrics_are_means_since_the_last_call() -> None:
    sac = SAC(make_experiment(), make_spec(), CPU, seed=7)
    for reward in (1.0, 3.0):
        sac.update(make_batch(0), torch.full((64,), reward))
    assert math.isclose(sac.metrics()["learner/reward_mean"], 2.0)
    assert sac.metrics() == {}


def test_periods_leave_policy_and_target_alone_in_between() -> None:
    sac = SAC(
        make_experiment(sac={"policy_update_period": 2, "target_update_period": 3}),
        make_spec(),
        CPU,
        seed=7,
    )
    policies, targets = [], []
    for number in range(6):
        sac.update(make_batch(number), torch.ones(64))
        policies.append(sac.state.policy.parameters.clone())
        targets.append(sac.state.target_critic.clone())
    changes = [not torch.equal(a, b) for a, b in zip(policies, policies[1:], strict=False)]
    assert changes == [True, False, True, False, True]
    changes = [not torch.equal(a, b) for a, b in zip(targets, targets[1:], strict=False)]
    assert changes == [False, True, False, False, True]


def test_the_policys_weights_decay_and_no_others() -> None:
    plain, decayed = (
        SAC(make_experiment(sac={"policy_weight_decay": decay}), make_spec(), CPU, seed=7)
        for decay in (0.0, 100.0)
    )
    for sac in (plain, decayed):
        sac.update(make_batch(0), torch.ones(64))
    found, expected = decayed.state, plain.state
    torch.testing.assert_close(found.policy.parameters, 0.9 * expected.policy.parameters)
    assert torch.equal(found.critic.parameters, expected.critic.parameters)
    assert torch.equal(found.log_temperature.parameters, expected.log_temperature.parameters)


def test_preparing_changes_nothing() -> None:
    sac = SAC(make_experiment(), make_spec(), CPU, seed=7)
    before = sac.state_tensors()
    sac.prepare(make_batch(0), make_batch(0).environment_reward)
    after = sac.state_tensors()
    for group, tensors in before.items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, after[group][name]), f"{group}/{name}"


def test_pixels_train_the_torso_through_the_critics_only() -> None:
    reads = {"policy": ("pixels",), "critic": ("pixels", "state")}
    experiment = make_experiment(reads=reads, sac={"policy_learning_rate": 1e-9})
    sac = SAC(experiment, make_spec(pixels=True), CPU, seed=7)
    name = "encoder.torso.convolutions.0.weight"
    before = sac.policy_tensors()
    assert name not in sac._parts.policy_layout.names
    batch = make_batch(0, pixels=True)
    for _ in range(3):
        sac.update(batch, batch.environment_reward)
    after = sac.policy_tensors()
    assert not torch.equal(before[name], after[name])  # the critics moved it, at their step size
    trunk = "trunk.0.weight"
    torch.testing.assert_close(before[trunk], after[trunk], atol=1e-6, rtol=0)


def test_a_policy_alone_on_pixels_trains_its_own_torso() -> None:
    experiment = make_experiment(reads={"policy": ("pixels",), "critic": ("state",)})
    sac = SAC(experiment, make_spec(pixels=True), CPU, seed=7)
    name = "encoder.torso.convolutions.0.weight"
    assert name in sac._parts.policy_layout.names
    before = sac.policy_tensors()[name]
    batch = make_batch(0, pixels=True)
    sac.update(batch, batch.environment_reward)
    assert not torch.equal(before, sac.policy_tensors()[name])


def test_state_of_other_networks_is_refused_by_name() -> None:
    small = SAC(make_experiment(), make_spec(), CPU, seed=7)
    large = SAC(make_experiment(network={"hidden_size": 64}), make_spec(), CPU, seed=7)
    with pytest.raises(ValueError, match=r"networks/critic: expected \(\d+,\), found \(\d+,\)"):
        small.load_state_tensors(large.state_tensors(), num_updates=0)


def test_checkpoints_hold_the_average_of_the_policy_and_actors_get_the_policy_itself() -> None:
    batch = make_batch(0)
    sac = SAC(make_experiment(sac={"policy_average_tau": 0.5}), make_spec(), CPU, seed=0)
    start = sac.policy_tensors(averaged=True)
    sac.update(batch, batch.environment_reward)
    now, mean = sac.policy_tensors(), sac.policy_tensors(averaged=True)
    name = next(name for name in start if name.endswith("weight"))
    assert not torch.equal(now[name], start[name])
    torch.testing.assert_close(mean[name], 0.5 * (start[name] + now[name]))
    plain = SAC(make_experiment(), make_spec(), CPU, seed=0)
    plain.update(batch, batch.environment_reward)
    assert all(torch.equal(tensor, now[key]) for key, tensor in plain.policy_tensors().items())
