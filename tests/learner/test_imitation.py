"""Imitation around SAC: what is learned on, what is not, and going on bit for bit."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from apprentice.config import Experiment
from apprentice.types import Ending, Segment, Transition
from learner.demonstrated import Demonstrated
from learner.diagnostics import CollapseAlarm
from learner.learning import Learning
from tests.learner.test_learning import CPU, SPEC, assert_same_state, make_segment

METHODS = ("gail", "dac", "fairl", "airl", "sqil")
NUM_ROWS = 120


class Rows:
    """Demonstrations from one seed; states are shifted, so that they can be told."""

    num_rows = NUM_ROWS
    num_terminated = 0
    subsampling = 1

    def __init__(self, seed: int = 0, shift: float = 0.0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator)

        pre_tanh = draw(NUM_ROWS, 2)
        self.all = Transition(
            {"state": draw(NUM_ROWS, 5) + shift},
            torch.tanh(pre_tanh),
            pre_tanh,
            draw(NUM_ROWS),
            torch.ones(NUM_ROWS),
            {"state": draw(NUM_ROWS, 5) + shift},
        )

    def transitions(self, index: torch.Tensor) -> Transition:
        every = self.all
        return Transition(
            {"state": every.observation["state"][index]},
            every.action[index],
            every.pre_tanh_action[index],
            every.environment_reward[index],
            every.discount[index],
            {"state": every.next_observation["state"][index]},
        )


def experiment(method: str, **imitation: Any) -> Experiment:
    tree = {
        "name": "test",
        "task": "fake-task",
        "network": {"hidden_size": 16},
        "sac": {"batch_size": 32},
        "learner": {"compile": "off"},
        "replay": {"segment_length": 8, "warmup_steps": 16, "capacity": 1000},
        "imitation": {"method": method, **imitation},
    }
    for section in ("learner", "sac", "reads", "network"):
        if section in imitation:
            tree[section] = {**tree.get(section, {}), **tree["imitation"].pop(section)}  # type: ignore[dict-item, attr-defined]
    return Experiment.model_validate(tree)


def learning(method: str, seed: int = 0, shift: float = 0.0, **imitation: Any) -> Learning:
    demonstrated = Demonstrated(Rows(seed, shift), Rows(seed + 50, shift), None)
    return Learning(experiment(method, **imitation), [SPEC], CPU, demonstrated=demonstrated)


def drive(one: Learning, first: int, last: int, scramble: bool = False) -> None:
    for number in range(first, last):
        segment = make_segment(number)
        if scramble:
            noise = np.random.default_rng(number).normal(size=8).astype(np.float32)
            segment = segment._replace(environment_reward=1000.0 * noise)
        one.receive(segment)
        while one.updates_owed():
            one.update()


@pytest.mark.parametrize("method", METHODS)
def test_scrambled_environment_rewards_leave_an_update_bit_identical(method: str) -> None:
    plain, scrambled = learning(method), learning(method)
    drive(plain, 0, 6)
    drive(scrambled, 0, 6, scramble=True)
    assert plain.counters.updates > 20
    assert_same_state(scrambled, plain)


def test_the_environments_reward_is_learned_on_where_an_override_says_so() -> None:
    override = {"reward": {"override": "environment"}}
    plain, scrambled = learning("dac", **override), learning("dac", **override)
    drive(plain, 0, 6)
    drive(scrambled, 0, 6, scramble=True)
    assert not torch.equal(plain.sac.state.policy.parameters, scrambled.sac.state.policy.parameters)


@pytest.mark.parametrize("method", [*METHODS, "bc"])
def test_a_run_goes_on_bit_for_bit(method: str) -> None:
    limits = {"learner": {"max_steps": 40, "compile": "off"}}
    whole = learning(method, **limits)
    half = learning(method, **limits)
    if method == "bc":
        for _ in range(20):
            half.update()
    else:
        drive(half, 0, 5)
    state, counters, normalised = half.state_tensors(), half.counters, half.normalised
    other = learning(method, **limits)
    other.load_state(state, counters, normalised)
    if method == "bc":
        for _ in range(40):
            whole.update()
        for _ in range(20):
            other.update()
        assert whole.updates_owed() == other.updates_owed() == 0
    else:
        drive(whole, 0, 9)
        other.refill([make_segment(number) for number in range(5)], state["rings"]["identities"])
        drive(other, 5, 9)
    assert_same_state(other, whole)


@pytest.mark.parametrize("method", ["dac", "airl"])
def test_the_state_of_another_method_is_refused(method: str) -> None:
    saved = learning(method)
    state, counters = saved.state_tensors(), saved.counters
    other = learning("sqil")
    with pytest.raises(ValueError, match="another"):
        other.load_state(state, counters, True)


def test_every_batch_is_relabelled_with_the_newest_discriminator() -> None:
    one = learning("dac", shift=2.0)
    drive(one, 0, 4)
    assert one.imitation is not None
    rows = one.rings[0].sample(16, torch.Generator().manual_seed(0))
    before = one.imitation.reward_of(rows).clone()
    one.imitation.learn(one.rings[0], 0)
    assert not torch.equal(before, one.imitation.reward_of(rows))


@pytest.mark.parametrize(
    ("method", "inputs"),
    [("gail", "state_action"), ("dac", "state_next_state"), ("fairl", "state")],
)
def test_a_discriminator_learns_to_tell_the_expert(method: str, inputs: str) -> None:
    settings = {"discriminator": {"inputs": inputs, "learning_rate": 1e-2}}
    one = learning(method, shift=3.0, **settings)
    drive(one, 0, 30)
    found = one.metrics()
    assert found["discriminator/accuracy_expert"] > 0.95
    assert found["discriminator/accuracy_policy"] > 0.95
    assert found["discriminator/accuracy_held_out"] > 0.95
    assert (
        found["discriminator/logit_expert_mean"]
        > 0.5
        > -0.5
        > found["discriminator/logit_policy_mean"]
    )


def test_logits_above_zero_mean_expert_and_reward_the_policy_for_being_like_it() -> None:
    one = learning("dac", shift=3.0, discriminator={"learning_rate": 1e-2})
    drive(one, 0, 30)
    assert one.imitation is not None
    expert = Rows(0, 3.0).all
    policy = one.rings[0].sample(64, torch.Generator().manual_seed(1))
    assert float(one.imitation.reward_of(expert).mean()) > float(
        one.imitation.reward_of(policy).mean()
    )


def test_sqil_rewards_the_experts_rows_alone_and_never_more_than_its_share() -> None:
    one = learning("sqil")
    drive(one, 0, 4)
    assert one.imitation is not None
    drawn = one.rings[0].sample(32, torch.Generator().manual_seed(0))
    batch, reward = one.imitation.relabel(one.rings[0], drawn)
    assert reward.tolist() == [0.0] * 16 + [1.0] * 16
    expert = {tuple(row) for row in Rows().all.observation["state"].tolist()}
    states = [tuple(row) for row in batch.observation["state"].tolist()]
    assert [state in expert for state in states] == [False] * 16 + [True] * 16


def test_a_share_of_demonstrations_is_judged_like_any_other_row() -> None:
    one = learning("dac", demonstration_share=0.25)
    drive(one, 0, 4)
    assert one.imitation is not None
    drawn = one.rings[0].sample(32, torch.Generator().manual_seed(0))
    batch, reward = one.imitation.relabel(one.rings[0], drawn)
    torch.testing.assert_close(reward, one.imitation.reward_of(batch))
    expert = {tuple(row) for row in Rows().all.observation["state"].tolist()}
    flags = [tuple(row) in expert for row in batch.observation["state"].tolist()]
    assert flags == [False] * 24 + [True] * 8


def test_policy_rows_of_a_short_window_are_the_newest() -> None:
    one = learning("dac")
    drive(one, 0, 10)
    newest = one.rings[0].sample(500, torch.Generator().manual_seed(0), newest=8)
    last = {tuple(row) for row in make_segment(9).observation["state"][:8].tolist()}
    assert {tuple(row) for row in newest.observation["state"].tolist()} == last


@pytest.mark.parametrize(
    ("updates", "period", "expected"), [(1, 1, 12.0), (3, 1, 36.0), (1, 4, 3.0)]
)
def test_the_discriminators_schedule_is_kept(updates: int, period: int, expected: float) -> None:
    one = learning("dac", discriminator={"updates": updates, "period": period})
    for number in range(3):
        one.receive(make_segment(number))
    assert one.imitation is not None
    made = []
    judge = one.imitation._judge
    assert judge is not None
    before = judge.update
    judge.update = lambda *arguments: (made.append(1), before(*arguments))[1]  # type: ignore[method-assign, func-returns-value]
    for _ in range(12):
        one.update()
    assert len(made) == expected


def test_rewards_are_scaled_and_brought_to_magnitude_one() -> None:
    plain, scaled = learning("dac"), learning("dac", reward={"scale": 3.0})
    normal = learning("dac", reward={"normalise": True})
    rows = Rows(5).all
    for one in (plain, scaled, normal):
        one.receive(make_segment(0))
        one.receive(make_segment(1))
        assert one.imitation is not None
    ring = plain.rings[0]
    reward = plain.imitation.relabel(ring, rows)[1]  # type: ignore[union-attr]
    torch.testing.assert_close(scaled.imitation.relabel(ring, rows)[1], 3.0 * reward)  # type: ignore[union-attr]
    for _ in range(8000):
        found = normal.imitation.relabel(ring, rows)[1]  # type: ignore[union-attr]
    assert float(found.square().mean()) == pytest.approx(1.0, rel=0.03)


@pytest.mark.parametrize("method", ["dac", "airl", "bc"])
def test_the_compiled_update_is_the_plain_one(method: str) -> None:
    plain = learning(method, learner={"compile": "off", "max_steps": 6})
    fast = learning(method, learner={"compile": "on", "max_steps": 6})
    for one in (plain, fast):
        for number in range(3):
            one.receive(make_segment(number))
        one.prepare()
        for _ in range(6):
            one.update()
    theirs, ours = plain.state_tensors(), fast.state_tensors()
    for name, expected in theirs["networks"].items():
        torch.testing.assert_close(ours["networks"][name], expected, rtol=1e-3, atol=2e-4)


def test_a_policy_is_kept_near_its_slow_copy() -> None:
    divergences = []
    for coefficient in (0.0, 100.0):
        trust = {"sac": {"trust_region": "penalty", "trust_region_coefficient": coefficient}}
        one = learning("dac", **trust)
        drive(one, 0, 12)
        divergences.append(one.metrics()["learner/policy_divergence"])
    assert divergences[1] < 0.5 * divergences[0]


def test_diagnosis_moves_no_random_stream_of_training() -> None:
    asked, unasked = learning("dac"), learning("dac")
    for number in range(6):
        for one in (asked, unasked):
            drive(one, number, number + 1)
        found = asked.metrics()
    assert_same_state(asked, unasked)
    assert math.isfinite(found["discriminator/log_integral_exp_reward"])


def test_terminated_episodes_are_followed_by_absorbing_states() -> None:
    tree = experiment("dac").model_dump(mode="json")
    tree["task"] = "lqr-lqr_2_1"
    spec = SPEC.from_dict({**SPEC.to_dict(), "task": "lqr-lqr_2_1", "task_id": "lqr-lqr_2_1"})
    demonstrated = Demonstrated(Rows(), None, None)
    one = Learning(Experiment.model_validate(tree), [spec], CPU, demonstrated=demonstrated)
    for number in range(12):
        one.receive(ended(make_segment(number)))
        while one.updates_owed():
            one.update()
    assert one.rings[0].num_terminated == 12
    assert one.last_batch is not None
    assert bool((one.last_batch.discount == 1.0).all())
    assert float(one.last_batch.next_observation["absorbing"].sum()) > 0


def ended(segment: Segment) -> Segment:
    discount = segment.discount.copy()
    discount[-1] = 0.0
    return segment._replace(discount=discount, ending=Ending.TERMINATED)


def test_a_discriminator_that_is_never_wrong_is_told_of_and_its_reward_stays_bounded() -> None:
    one = learning("dac", shift=40.0, discriminator={"learning_rate": 0.1, "penalty": "none"})
    drive(one, 0, 12)
    found = one.metrics()
    assert found["discriminator/alarm"] == 1.0
    assert found["discriminator/reward_expert_max"] <= 10.0
    assert found["discriminator/reward_policy_min"] >= -10.0
    assert found["learner/rejected_updates"] == 0.0


def test_an_alarm_rings_at_chance_too_and_ends() -> None:
    alarm = CollapseAlarm()
    chance = {"accuracy_expert": 0.5, "accuracy_policy": 0.5, "entropy": math.log(2.0)}
    healthy = {"accuracy_expert": 0.9, "accuracy_policy": 0.8, "entropy": 0.4}
    assert [alarm.look(values) for values in (healthy, chance, healthy)] == [0.0, 1.0, 0.0]
