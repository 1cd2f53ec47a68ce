"""What the learner tells the world: rates, lag, returns, alarms; each with its formula."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence

import structlog

from apprentice.config import Experiment
from apprentice.profiling import Span
from apprentice.types import Metrics
from learner.learning import Counters

log = structlog.get_logger()

REMEMBERED_VERSIONS = 1024


class PolicyLag:
    """How old the policies are that chose the actions now arriving, in agent steps.

    The lag of a segment is the number of steps received between the publication of the policy that
    chose its last action and the segment's arrival.
    """

    def __init__(self) -> None:
        self._steps_at: OrderedDict[int, int] = OrderedDict()
        self._lags: list[int] = []
        self._num_unknown = 0

    def published(self, policy_version: int, steps: int) -> None:
        """Note how many steps had been received when a version went out."""
        self._steps_at[policy_version] = steps
        while len(self._steps_at) > REMEMBERED_VERSIONS:
            self._steps_at.popitem(last=False)

    def arrived(self, policy_version: int, steps: int) -> None:
        """Note the arrival of a segment, when `steps` had been received."""
        published = self._steps_at.get(policy_version)
        if published is None:
            self._num_unknown += 1
        else:
            self._lags.append(steps - published)

    def metrics(self) -> Metrics:
        """Return mean and largest lag since the last call, and how many segments in all had one too old to say."""
        unknown = {"learner/unknown_policy_segments": float(self._num_unknown)}
        if not self._lags:
            return unknown
        lags, self._lags = self._lags, []
        return {
            **unknown,
            "learner/policy_lag_steps": sum(lags) / len(lags),
            "learner/policy_lag_steps_max": float(max(lags)),
        }


class Rates:
    """Steps and updates per second of wall time between two calls."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._time = time.monotonic()

    def metrics(self, counters: Counters) -> Metrics:
        """Return the rates since the last call, and start anew."""
        now = time.monotonic()
        seconds = max(1e-6, now - self._time)
        before, self._counters, self._time = self._counters, counters, now
        return {
            "actor/steps_per_second": (counters.steps - before.steps) / seconds,
            "learner/updates_per_second": (counters.updates - before.updates) / seconds,
        }


class TrainingReturns:
    """Mean return of the newest training episodes (stochastic policy, environment's reward)."""

    def __init__(self, window: int = 20) -> None:
        self._returns: deque[float] = deque(maxlen=window)

    def add(self, environment_return: float) -> None:
        """Take one finished episode."""
        self._returns.append(environment_return)

    def metrics(self) -> Metrics:
        """Return the mean over the window, once there is an episode."""
        if not self._returns:
            return {}
        return {"actor/episode_return": sum(self._returns) / len(self._returns)}


class ValueAlarm:
    """Warn when |Q| passes ten times what the suite's rewards in [0, 1] can add up to."""

    def __init__(self, experiment: Experiment) -> None:
        largest_reward = experiment.environment.action_repeat * experiment.sac.reward_scale
        self.bound = 10.0 * largest_reward / (1.0 - experiment.sac.gamma)
        self._warned = False

    def metrics(self, metrics: Metrics) -> Metrics:
        """Return 1 where the newest `learner/value_largest` is over the bound, else 0."""
        value = metrics.get("learner/value_largest")
        if value is None:
            return {}
        over = not value <= self.bound
        if over and not self._warned:
            log.warning(
                "the critics' values are larger than any return: training is diverging",
                value=value,
                bound=self.bound,
            )
        self._warned = over
        return {"learner/value_alarm": float(over)}


def span_metrics(process: str, spans: Mapping[str, Span]) -> Metrics:
    """Name a process's spans: `profile/<process>/<span>/seconds` and `.../units`, since its start."""
    result: Metrics = {}
    for name, span in spans.items():
        result[f"profile/{process}/{name}/seconds"] = span.seconds
        result[f"profile/{process}/{name}/units"] = float(span.units)
    return result


def reached_twice(returns: Sequence[float], target: float | None) -> bool:
    """Whether the two newest evaluations both reached the target return."""
    return target is not None and len(returns) >= 2 and min(returns[-2:]) >= target
