"""Imitation around SAC: what is learned on, what is not, and going on bit for bit."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from apprentice.config import Experiment
from apprentice.types import ArraySpec, Ending, Segment, Transition
from learner.demonstrated import Demonstrated
from learner.diagnostics import (
    CollapseAlarm,
    correlation_of,
    diagnose,
    largest_reward,
    log_integral_of_exp_reward,
)
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


class ScrambledRows(Rows):
    """The same demonstrations with other rewards of the environment."""

    def __init__(self, seed: int = 0, shift: float = 0.0) -> None:
        super().__init__(seed, shift)
        self.all = self.all._replace(environment_reward=1000.0 * self.all.environment_reward - 7.0)


@pytest.mark.parametrize(
    ("method", "share"), [*((method, 0.0) for method in METHODS), ("dac", 0.25)]
)
def test_scrambled_environment_rewards_leave_an_update_bit_identical(
    method: str, share: float
) -> None:
    """Those of the replay and those of the demonstrations, also where the policy learns on both."""
    settings: dict[str, Any] = {"demonstration_share": share} if share else {}
    plain = learning(method, **settings)
    demonstrated = Demonstrated(ScrambledRows(), ScrambledRows(50), None)
    scrambled = Learning(experiment(method, **settings), [SPEC], CPU, demonstrated=demonstrated)
    drive(plain, 0, 6)
    drive(scrambled, 0, 6, scramble=True)
    assert plain.counters.updates > 20
    assert_same_state(scrambled, plain)


def test_scrambled_environment_rewards_leave_cloning_bit_identical() -> None:
    limits = {"learner": {"max_steps": 20, "compile": "off"}}
    plain = learning("bc", **limits)
    demonstrated = Demonstrated(ScrambledRows(), ScrambledRows(50), None)
    scrambled = Learning(experiment("bc", **limits), [SPEC], CPU, demonstrated=demonstrated)
    for one in (plain, scrambled):
        while one.updates_owed():
            one.update()
    assert plain.counters.updates == 20
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
    batch, reward = one.imitation.relabel(drawn)
    assert reward.tolist() == [0.0] * 16 + [1.0] * 16
    expert = {tuple(row) for row in Rows().all.observation["state"].tolist()}
    states = [tuple(row) for row in batch.observation["state"].tolist()]
    assert [state in expert for state in states] == [False] * 16 + [True] * 16


def test_a_share_of_demonstrations_is_judged_like_any_other_row() -> None:
    one = learning("dac", demonstration_share=0.25)
    drive(one, 0, 4)
    assert one.imitation is not None
    drawn = one.rings[0].sample(32, torch.Generator().manual_seed(0))
    batch, reward = one.imitation.relabel(drawn)
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


def test_rewards_are_scaled_and_brought_to_magnitude_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("learner.imitation.NORMALISER_RATE", 0.05)
    plain, scaled = learning("dac"), learning("dac", reward={"scale": 3.0})
    normal = learning("dac", reward={"normalise": True})
    rows = Rows(5).all
    for one in (plain, scaled, normal):
        one.receive(make_segment(0))
        one.receive(make_segment(1))
        assert one.imitation is not None
    reward = plain.imitation.relabel(rows)[1]  # type: ignore[union-attr]
    torch.testing.assert_close(scaled.imitation.relabel(rows)[1], 3.0 * reward)  # type: ignore[union-attr]
    for _ in range(160):
        found = normal.imitation.relabel(rows)[1]  # type: ignore[union-attr]
    assert float(found.square().mean()) == pytest.approx(1.0, rel=0.03)


@pytest.mark.timeout(300)  # for compiling beside other tests
@pytest.mark.parametrize(
    ("method", "imitation"),
    [
        ("dac", {"demonstration_share": 0.25, "discriminator": {"dropout": 0.5}}),
        ("airl", {}),
        ("bc", {}),
    ],
)
def test_the_compiled_update_is_the_plain_one(method: str, imitation: dict[str, Any]) -> None:
    plain = learning(method, **imitation, learner={"compile": "off", "max_steps": 6})
    fast = learning(method, **imitation, learner={"compile": "on", "max_steps": 6})
    for one in (plain, fast):
        for number in range(3):
            one.receive(make_segment(number))
        one.prepare()
        for _ in range(6):
            one.update()
    theirs, ours = plain.state_tensors(), fast.state_tensors()
    for name, expected in theirs["networks"].items():
        torch.testing.assert_close(ours["networks"][name], expected, rtol=1e-3, atol=2e-4)
    if fast.imitation is not None:
        batch = fast.rings[0].sample(32, torch.Generator().manual_seed(0))
        batch, reward = fast.imitation.example(batch)
        torch.testing.assert_close(reward, fast.imitation.reward_of(batch), rtol=1e-4, atol=1e-5)


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
    assert one.last_batch is not None
    assert bool((one.last_batch.discount == 1.0).all())
    assert float(one.last_batch.next_observation["absorbing"].sum()) > 0


def ended(segment: Segment) -> Segment:
    discount = segment.discount.copy()
    discount[-1] = 0.0
    return segment._replace(discount=discount, ending=Ending.TERMINATED)


@pytest.mark.parametrize("method", ["gail", "dac", "fairl", "airl"])
def test_a_discriminator_that_is_never_wrong_is_told_of_and_its_reward_stays_bounded(
    method: str,
) -> None:
    one = learning(method, shift=40.0, discriminator={"learning_rate": 0.1, "penalty": "none"})
    drive(one, 0, 12)
    found = one.metrics()
    assert found["discriminator/alarm"] == 1.0
    for rows in ("expert", "policy"):
        assert found[f"discriminator/reward_{rows}_max"] <= 10.0001  # softplus(10) is 10.00005
        assert found[f"discriminator/reward_{rows}_min"] >= -10.0
    assert found["learner/rejected_updates"] == 0.0
    updates = one.counters.updates
    drive(one, 12, 14)
    assert one.counters.updates > updates  # the run goes on


def test_an_alarm_rings_at_chance_too_and_ends() -> None:
    alarm = CollapseAlarm(10.0)
    healthy = {
        "accuracy_expert": 0.9,
        "accuracy_policy": 0.8,
        "entropy": 0.4,
        "reward_policy_mean": -3.0,
    }
    chance = {**healthy, "accuracy_expert": 0.5, "entropy": math.log(2.0)}
    huge = {**healthy, "reward_policy_mean": -9.95}
    found = [alarm.look(values) for values in (healthy, chance, healthy, huge, healthy)]
    assert found == [0.0, 1.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("reward", "largest"),
    [
        ({}, 10.0),
        ({"bound": 2.0}, 2.0),
        ({"form": "fairl"}, 10.0),
        ({"form": "fairl", "bound": None}, 1000.0),
        ({"logit_bound": None}, 1000.0),
    ],
)
def test_what_a_reward_is_cut_at(reward: dict[str, Any], largest: float) -> None:
    assert largest_reward(experiment("dac", reward=reward).imitation.reward) == largest


@pytest.mark.parametrize(
    "settings",
    [
        {"dropout": 0.5},
        {"spectral_norm": True, "penalty": "none"},
        {"weight_decay": 10.0},
        {"input_noise": 0.5, "input_noise_updates": 20},
        {"mixup": True},
        {"preset": "tanh_2x100"},
        {"inputs": "state", "activation": "relu"},
        {"inputs": "state_next_state", "num_hidden_layers": 1},
    ],
)
def test_each_regulariser_and_shape_learns_to_tell_the_expert(settings: dict[str, Any]) -> None:
    one = learning("dac", shift=3.0, discriminator={"learning_rate": 1e-2, **settings})
    drive(one, 0, 8)
    found = one.metrics()
    assert found["discriminator/logit_expert_mean"] > found["discriminator/logit_policy_mean"] + 0.2
    assert found["discriminator/rejected_updates"] == 0.0


@pytest.mark.parametrize("method", ["none", "bc"])
@pytest.mark.parametrize("override", ["environment", "zero"])
def test_no_reward_is_overridden_where_none_is_learned(method: str, override: str) -> None:
    with pytest.raises(ValidationError, match=f"override: expected null with '{method}'"):
        experiment(method, reward={"override": override})


def test_a_preset_leaves_what_was_set() -> None:
    settings = {"preset": "tanh_2x100", "num_hidden_layers": 3}
    found = experiment("dac", discriminator=settings).imitation.discriminator
    assert (found.hidden_size, found.num_hidden_layers, found.activation) == (100, 3, "tanh")


def test_weights_decay_by_rate_and_coefficient() -> None:
    """With next to no gradient, parameters shrink by 1 - rate * decay an update."""
    settings = {"learning_rate": 1e-6, "weight_decay": 1e4, "penalty": "none"}
    one = learning("dac", discriminator=settings)
    before = one.state_tensors()["networks"]["imitation.discriminator"].norm()
    drive(one, 0, 5)
    after = one.state_tensors()["networks"]["imitation.discriminator"].norm()
    assert float(after / before) == pytest.approx(0.99**one.counters.updates, rel=0.02)


def test_input_noise_fades_as_scheduled() -> None:
    one = learning("dac", discriminator={"input_noise": 2.0, "input_noise_updates": 10})
    drive(one, 0, 3)
    judge = one.imitation._judge  # type: ignore[union-attr]
    assert judge is not None
    rows = judge.rows(Rows().all)
    sizes = []
    for num in (0.0, 5.0, 10.0, 50.0):
        judge._state.adam.num_steps.fill_(num)
        noise = judge._draw_noise(rows, torch.Generator().manual_seed(0)).inputs
        assert noise is not None
        sizes.append(float(noise.std()))
    assert sizes == pytest.approx([2.0, 1.0, 0.0, 0.0], rel=0.1)


def test_the_normaliser_is_fitted_on_demonstrations_and_stays() -> None:
    rows = Rows(shift=7.0)
    demonstrated = Demonstrated(rows, None, rows.all.observation["state"])
    settings = experiment("dac", network={"normalise_observations": True})
    one = Learning(settings, [SPEC], CPU, demonstrated=demonstrated)
    expected = rows.all.observation["state"].mean(0)
    torch.testing.assert_close(one.sac.normaliser[0], expected)
    drive(one, 0, 6)
    torch.testing.assert_close(one.sac.normaliser[0], expected)
    assert float(expected.mean()) > 6.0  # and not the warm-up's


def test_pixels_are_judged_by_the_critics_features() -> None:
    frames = {"pixels": ArraySpec((2, 24, 24, 3), "uint8"), "state": ArraySpec((5,), "float32")}
    spec = replace(SPEC, observation=frames)
    keys = ["pixels", "state"]
    settings = experiment(
        "dac",
        reads={"policy": keys, "critic": keys, "discriminator": keys},
        network={"encoder_channels": 4, "encoder_features": 8},
        sac={"batch_size": 8},
    )

    class Pictures(Rows):
        def transitions(self, index: torch.Tensor) -> Transition:
            batch = super().transitions(index)
            pixels = torch.randint(0, 255, (len(index), 2, 24, 24, 3), dtype=torch.uint8)
            return batch._replace(
                observation={**batch.observation, "pixels": pixels},
                next_observation={**batch.next_observation, "pixels": pixels},
            )

    one = Learning(settings, [spec], CPU, demonstrated=Demonstrated(Pictures(), None, None))
    torch.manual_seed(0)
    for number in range(3):
        segment = make_segment(number)
        pixels = np.random.default_rng(number).integers(0, 255, (10, 24, 24, 3), np.uint8)
        one.receive(segment._replace(observation={**segment.observation, "pixels": pixels}))
    before = one.state_tensors()
    one.update()
    after = one.state_tensors()
    name = "imitation.discriminator"
    assert not torch.equal(before["networks"][name], after["networks"][name])
    found = one.metrics()
    assert found["discriminator/rejected_updates"] == found["learner/rejected_updates"] == 0.0
    assert math.isfinite(found["discriminator/reward_policy_mean"])


def test_a_discriminator_of_states_needs_their_normalisation() -> None:
    reads = {"policy": ["pixels"], "critic": ["pixels"], "discriminator": ["state"]}
    with pytest.raises(ValidationError, match="reads.discriminator: expected 'state' only where"):
        experiment("dac", reads=reads)


def test_absorbing_states_may_be_off_only_where_the_bias_is_wanted() -> None:
    tree = {"name": "t", "task": "hopper-hop_until_fall"}
    off = {"method": "dac", "absorbing_states": False}
    with pytest.raises(ValidationError, match="absorbing_states: expected true"):
        Experiment.model_validate({**tree, "imitation": off})
    allowed = {**off, "allow_termination_bias": True}
    assert not Experiment.model_validate({**tree, "imitation": allowed}).imitation.absorbing_states


def test_diagnostics_are_what_their_names_say() -> None:
    line = torch.arange(8.0)
    assert correlation_of(line, 3.0 * line + 1.0) == pytest.approx(1.0)
    assert correlation_of(line, -line) == pytest.approx(-1.0)
    assert math.isnan(correlation_of(line, torch.ones(8)))
    logits = [torch.tensor([2.0, -1.0]), torch.tensor([0.0, 4.0])]
    found = diagnose(logits, torch.tensor([1.0]), logits, logits)
    assert (found["accuracy_expert"], found["accuracy_policy"]) == (0.5, 0.5)
    assert found["accuracy_held_out"] == 1.0
    assert found["logit_expert_mean"] == 0.5
    assert found["logit_policy_max"] == 4.0
    expected = [
        -sum(p * math.log(p) for p in (1 / (1 + math.exp(-h)), 1 / (1 + math.exp(h))))
        for h in (2.0, -1.0, 0.0, 4.0)
    ]
    assert found["entropy"] == pytest.approx(sum(expected) / 4, rel=1e-5)


@pytest.mark.parametrize("slope", [0.0, 1.5])
def test_the_integral_of_exp_reward_is_over_all_actions(slope: float) -> None:
    """Over [-1, 1]^2 that of exp(slope * a) is 4 sinh(slope) / slope, whatever policy the actions are drawn from."""
    one = learning("dac")
    batch = Rows().transitions(torch.arange(120))
    values = [
        log_integral_of_exp_reward(
            lambda rows: 2.0 + slope * rows.action[:, 0],
            one.sac,
            batch,
            torch.Generator().manual_seed(seed),
        )
        for seed in range(10)
    ]
    along = math.log(2.0 * math.sinh(slope) / slope) if slope else math.log(2.0)
    assert float(np.mean(values)) == pytest.approx(2.0 + along + math.log(2.0), abs=0.3)


def test_a_share_of_the_policys_rows_is_recent() -> None:
    settings = {"replay_window": 8, "replay_window_share": 0.25}
    one = learning("dac", discriminator=settings)
    for number in range(40):
        one.receive(make_segment(number))
    newest = {tuple(row) for row in make_segment(39).action.tolist()}
    assert one.imitation is not None
    counts = []
    for _ in range(20):
        batch = one.imitation._policy_batch(one.experience, 64, None)
        counts.append(sum(tuple(row) in newest for row in batch.action.tolist()))
    assert min(counts) >= 16
    assert sum(counts) / 20 < 20  # and of the others one in forty
