"""How discriminator, rewards and absorbing states are put together; each by itself is tested elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from apprentice.config import Experiment
from apprentice.types import Ending, Segment, Transition
from learner.absorbing import with_absorbing_states
from learner.demonstrated import Demonstrated
from learner.discriminator_update import METRICS, cross_entropy
from learner.judging import Judge
from learner.learning import Learning
from tests.learner.test_imitation import Rows, experiment, learning
from tests.learner.test_learning import CPU, LENGTH, SPEC, make_segment

TERMINATING = "lqr-lqr_2_1"


def judge_of(one: Learning) -> Judge:
    assert one.imitation is not None
    assert one.imitation._judge is not None
    return one.imitation._judge


def still(method: str, **discriminator: Any) -> Judge:
    """Return a discriminator whose updates leave it where it is."""
    settings = {"learning_rate": 1e-12, "penalty": "none", **discriminator}
    return judge_of(learning(method, discriminator=settings, reward={"logit_bound": None}))


def cross_entropy_of_update(judge: Judge, expert: Transition, policy: Transition) -> float:
    values = judge.update(expert, policy, torch.Generator().manual_seed(0))
    return float(values[METRICS.index("cross_entropy")])


def test_airls_logit_is_f_less_log_pi_in_what_is_shown_and_in_what_is_trained() -> None:
    one = learning("airl", reward={"logit_bound": None}, discriminator={"penalty": "none"})
    judge = judge_of(one)
    logits = []
    for rows in (Rows().all, Rows(1, shift=2.0).all):
        log_pi = one.sac.log_probability(rows.observation, rows.pre_tanh_action).detach()
        assert float(log_pi.abs().mean()) > 0.5
        logits.append(judge.reward(rows) - log_pi)
        torch.testing.assert_close(judge.logits(rows), logits[-1])
    expected = float(cross_entropy(*logits))
    found = cross_entropy_of_update(judge, Rows().all, Rows(1, shift=2.0).all)
    assert found == pytest.approx(expected, rel=1e-4)


def test_units_are_left_out_in_training_and_not_in_what_is_shown() -> None:
    expert, policy = Rows(shift=2.0).all, Rows(1).all
    for dropout in (0.0, 0.5):
        judge = still("dac", dropout=dropout)
        expected = float(cross_entropy(judge.logits(expert), judge.logits(policy)))
        found = cross_entropy_of_update(judge, expert, policy)
        assert (found == pytest.approx(expected, rel=1e-5)) is (dropout == 0.0)
        torch.testing.assert_close(judge.logits(expert), judge.logits(expert))


def test_spectral_norm_holds_the_slope_in_what_is_shown_and_in_what_is_trained() -> None:
    judge = still("dac", spectral_norm=True)
    judge._state.adam.parameters.mul_(30.0)
    expert, policy = Rows(shift=2.0).all, Rows(1).all
    for _ in range(100):  # the singular vectors come to rest
        found = cross_entropy_of_update(judge, expert, policy)
    there = torch.cat([expert.observation["state"], expert.action], 1)
    here = torch.cat([policy.observation["state"], policy.action], 1)
    steepness = (judge.logits(expert) - judge.logits(policy)).abs() / (there - here).norm(dim=1)
    assert float(steepness.max()) < 1.01
    expected = float(cross_entropy(judge.logits(expert), judge.logits(policy)))
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("split", [None, 1e3])
def test_a_penalty_whose_gradient_is_not_finite_changes_nothing(split: float | None) -> None:
    """Also where its gradient is clipped apart from the rest."""
    settings = {"max_penalty_gradient_norm": split, "activation": "relu"}
    judge = judge_of(learning("dac", discriminator=settings))
    # The loss is finite, the square of its gradient's norm is not.
    judge._state.adam.parameters.mul_(1e4)
    before = judge._state.adam.parameters.clone()
    values = judge.update(Rows(shift=2.0).all, Rows(1).all, torch.Generator().manual_seed(0))
    assert bool(torch.isfinite(values[METRICS.index("loss")]))
    assert float(values[METRICS.index("rejected_updates")]) == 1.0
    assert torch.equal(judge._state.adam.parameters, before)


class Thinned(Rows):
    """Every fifth step of 30 episodes that terminated."""

    num_terminated = 30
    subsampling = 5


def absorbing_learning(method: str = "dac", **imitation: Any) -> Learning:
    tree = experiment(method, **imitation).model_dump(mode="json")
    tree["task"] = TERMINATING
    spec = SPEC.from_dict({**SPEC.to_dict(), "task": TERMINATING, "task_id": TERMINATING})
    demonstrated = Demonstrated(Thinned(), None, None)
    return Learning(Experiment.model_validate(tree), [spec], CPU, demonstrated=demonstrated)


def ended(number: int, length: int) -> Segment:
    segment = make_segment(number, length)
    segment.discount[length - 1] = 0.0
    return segment._replace(ending=Ending.TERMINATED)


def share_of_absorbing(batch: Transition) -> float:
    return float(batch.observation["absorbing"].mean())


def test_as_many_rows_stay_in_the_absorbing_state_as_episodes_ended() -> None:
    one = absorbing_learning()
    for number in range(20):
        one.receive(ended(number, LENGTH))
    assert one.imitation is not None
    expert, policy, _ = one.imitation._drawn_for_update(one.experience, 8000)
    # 30 ends in 5 * NUM_ROWS steps; one in LENGTH.
    assert share_of_absorbing(expert) == pytest.approx(6 / (Rows.num_rows + 6), abs=0.01)
    assert share_of_absorbing(policy) == pytest.approx(1 / (LENGTH + 1), abs=0.01)
    batch, _ = one.imitation.relabel(one.experience.sample(8000, torch.Generator().manual_seed(1)))
    assert share_of_absorbing(batch) == pytest.approx(1 / (LENGTH + 1), abs=0.01)


def test_a_window_has_the_absorbing_rows_of_its_own_episodes() -> None:
    one = absorbing_learning("gail", discriminator={"replay_window": 10 * LENGTH})
    for number in range(20):
        one.receive(ended(number, 1))
    for number in range(20, 30):
        one.receive(make_segment(number))  # cut by the time limit
    assert one.imitation is not None
    _, policy, _ = one.imitation._drawn_for_update(one.experience, 2000)
    assert share_of_absorbing(policy) == 0.0
    batch, _ = one.imitation.relabel(one.experience.sample(8000, torch.Generator().manual_seed(1)))
    assert share_of_absorbing(batch) == pytest.approx(20 / (20 + 10 * LENGTH + 20), abs=0.02)


def test_the_policy_learns_nothing_from_absorbing_rows_and_the_critics_do() -> None:
    one = absorbing_learning()
    rows = with_absorbing_states(Rows().transitions(torch.arange(32)), 1.0, torch.Generator())
    before = one.sac.state_tensors()["networks"]
    one.sac.update(rows, torch.ones(32))
    after = one.sac.state_tensors()["networks"]
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("critic" in name for name in moved)
    assert not any("policy" in name or "temperature" in name for name in moved)


def test_there_is_no_entropy_in_the_absorbing_state() -> None:
    """What the critics learn of it does not depend on the temperature; of a state where one acts it does."""
    for absorbing in (True, False):
        critics = []
        for temperature in (0.1, 3.0):
            one = absorbing_learning(sac={"initial_temperature": temperature})
            plain = Rows().transitions(torch.arange(32))
            rows = with_absorbing_states(plain, float(absorbing), torch.Generator())
            one.sac.update(rows, torch.ones(32))
            critics.append(one.sac.values(rows.observation, rows.action))
        assert torch.equal(*critics) is absorbing
