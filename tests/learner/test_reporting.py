"""What the learner tells: lag, rates, alarms, and when a run has reached its target."""

from __future__ import annotations

import math

import pytest

from apprentice.config import Experiment
from learner.learning import Counters
from learner.reporting import PolicyLag, Rates, TrainingReturns, ValueAlarm, reached_twice


def test_the_lag_is_what_arrived_since_the_policy_went_out() -> None:
    lag = PolicyLag()
    assert lag.metrics() == {"learner/unknown_policy_segments": 0.0}
    lag.published(1, 100)
    lag.published(2, 300)
    lag.arrived(1, 400)
    lag.arrived(2, 400)
    lag.arrived(7, 400)  # of an earlier process: unknown
    assert lag.metrics() == {
        "learner/policy_lag_steps": 200.0,
        "learner/policy_lag_steps_max": 300.0,
        "learner/unknown_policy_segments": 1.0,
    }
    assert lag.metrics() == {"learner/unknown_policy_segments": 1.0}


def test_the_lag_forgets_policies_long_gone() -> None:
    lag = PolicyLag()
    for version in range(5000):
        lag.published(version, version)
    lag.arrived(0, 5000)
    assert lag.metrics() == {"learner/unknown_policy_segments": 1.0}


def test_rates_are_between_two_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 10.0
    monkeypatch.setattr("learner.reporting.time.monotonic", lambda: now)
    rates = Rates(Counters(steps=100, updates=10))
    now = 12.0
    assert rates.metrics(Counters(steps=300, updates=20)) == {
        "actor/steps_per_second": 100.0,
        "learner/updates_per_second": 5.0,
    }
    now = 13.0
    assert rates.metrics(Counters(steps=300, updates=20))["actor/steps_per_second"] == 0.0


def test_training_returns_are_a_moving_mean() -> None:
    returns = TrainingReturns(window=2)
    assert returns.metrics() == {}
    for value in (5.0, 1.0, 3.0):
        returns.add(value)
    assert returns.metrics() == {"actor/episode_return": 2.0}


@pytest.mark.parametrize(
    ("action_repeat", "scale", "bound"), [(1, 1.0, 1000.0), (4, 1.0, 4000.0), (2, 10.0, 20000.0)]
)
def test_the_alarm_goes_off_over_ten_times_the_largest_return(
    action_repeat: int, scale: float, bound: float
) -> None:
    experiment = Experiment.model_validate(
        {
            "name": "test",
            "task": "reacher-easy",
            "environment": {"action_repeat": action_repeat},
            "sac": {"reward_scale": scale, "gamma": 0.99},
        }
    )
    alarm = ValueAlarm(experiment)
    assert alarm.bound == pytest.approx(bound)
    # A critic that diverges, as in a run with rewards 10,000 times too large.
    trace = [0.1 * bound, 0.99 * bound, 1.01 * bound, 30.0 * bound, math.inf, 0.5 * bound]
    found = [alarm.metrics({"learner/value_largest": value}) for value in trace]
    assert [row["learner/value_alarm"] for row in found] == [0.0, 0.0, 1.0, 1.0, 1.0, 0.0]
    assert alarm.metrics({"learner/value_largest": math.nan}) == {"learner/value_alarm": 1.0}
    assert alarm.metrics({}) == {}


@pytest.mark.parametrize(
    ("returns", "target", "reached"),
    [
        ([], 900.0, False),
        ([950.0], 900.0, False),
        ([950.0, 899.9], 900.0, False),
        ([1.0, 900.0, 900.0], 900.0, True),
        ([950.0, 950.0, 1.0], 900.0, False),
        ([950.0, 950.0], None, False),
    ],
)
def test_the_target_must_be_reached_twice_in_a_row(
    returns: list[float], target: float | None, reached: bool
) -> None:
    assert reached_twice(returns, target) is reached
