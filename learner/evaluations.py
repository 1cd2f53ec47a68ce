"""A run's evaluations: when one is due, what came of each, and which checkpoint was the best."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from apprentice.checkpoint import prune_checkpoints, read_best, record_best
from apprentice.config import Experiment
from apprentice.metrics import MetricsWriter
from apprentice.runs import RunFolder
from learner.demonstrated import ExpertRecord
from learner.evaluating import EvaluationResult, Evaluator

log = structlog.get_logger()

POLL_SECONDS = 0.05
FIRST_SEED = 4_000_000
"""Of a run's own evaluations: no demonstration starts there, and no episode that results are measured on."""
FAMILY_GRACE_SECONDS = 30.0


class Evaluations:
    """One at a time, in another process; no method but `finish` waits for one."""

    def __init__(
        self,
        experiment: Experiment,
        folder: RunFolder,
        metrics: MetricsWriter,
        expert: ExpertRecord | None,
    ) -> None:
        self._settings = experiment.evaluation
        self._keep, self._is_family = experiment.checkpoint.keep, experiment.is_family
        self._folder, self._metrics, self._expert = folder, metrics, expert
        self._evaluator = Evaluator(folder.evaluations, experiment.evaluation.timeout_seconds)
        self._newest_steps = 0
        self._under_way: str | None = None
        self._best: tuple[float, str] | None = None
        self.returns: list[float] = []
        """Mean return of each evaluation so far."""

    @property
    def busy(self) -> bool:
        """Whether one is under way."""
        return self._evaluator.busy

    @property
    def best_return(self) -> float | None:
        """The largest of `returns`."""
        return self._best[0] if self._best else None

    @property
    def protected(self) -> set[str]:
        """Checkpoints that must stay: the best, and the one that is being evaluated."""
        best = self._best[1] if self._best else None
        return {name for name in (best, self._under_way) if name is not None}

    def restore(self, returns: Sequence[float], steps: int) -> None:
        """Go on after those of an earlier life, the last one at or before `steps`."""
        self.returns, self._newest_steps = list(returns), steps
        best = read_best(self._folder.checkpoints)
        self._best = (best.score, best.name) if best else None

    def due(self, steps: int) -> bool:
        """Return whether a period ended since the newest one was started."""
        period = self._settings.period_steps
        return steps // period > self._newest_steps // period

    def start(self, checkpoint: Path, steps: int) -> None:
        """Start one; the caller has looked at `busy`."""
        self._newest_steps, self._under_way = steps, checkpoint.name
        first_seed = FIRST_SEED + len(self.returns) * self._settings.episodes
        self._evaluator.submit(checkpoint, steps, self._settings.episodes, first_seed)

    def poll(self, updates: int) -> str | None:
        """Take in the result of one that has ended; return why it was skipped, where it was.

        May remove checkpoints, so that no other thread may write one meanwhile.
        """
        result = self._evaluator.poll()
        if result is None:
            return None
        self._under_way = None
        if result.error is not None:
            log.warning("an evaluation was skipped", steps=result.steps, reason=result.error)
            return f"evaluation at {result.steps} skipped: {result.error}"
        self._note(result, updates)
        prune_checkpoints(self._folder.checkpoints, self._keep)
        return None

    def finish(
        self, checkpoint: Path, steps: int, updates: int, goes_on: Callable[[], bool]
    ) -> str | None:
        """Evaluate the last checkpoint, after one that may still be under way, and a family's on unseen tasks.

        `goes_on` is called all the time; all of it ends soon after that returns False. Returns what `poll` does.
        """
        deadline = time.monotonic() + 2 * self._settings.timeout_seconds
        skipped = self._await(updates, deadline, goes_on)
        if not self.busy and steps > self._newest_steps:
            self.start(checkpoint, steps)
            skipped = self._await(updates, deadline, goes_on) or skipped
        if self._is_family and not self.busy:
            self._measure_unseen_tasks(checkpoint, steps, goes_on)
        return skipped

    def close(self) -> None:
        """End the process that evaluates."""
        self._evaluator.close()

    def _note(self, result: EvaluationResult, updates: int) -> None:
        mean = sum(result.returns) / len(result.returns)
        self.returns.append(mean)
        if self._best is None or mean > self._best[0]:
            self._best = (mean, result.checkpoint)
            record_best(self._folder.checkpoints, result.checkpoint, mean)
        log.info("evaluated", steps=result.steps, mean=round(mean, 1), episodes=len(result.returns))
        values = {
            "evaluation/return_mean": mean,
            "evaluation/return_min": min(result.returns),
            "evaluation/return_max": max(result.returns),
            "evaluation/seconds": result.seconds,
            **{f"evaluation/{name}": value for name, value in result.metrics.items()},
        }
        normalised = None if self._expert is None else self._expert.normalised(mean)
        if normalised is not None:
            values["evaluation/normalised_return"] = normalised
        self._metrics.write(result.steps, updates, values)

    def _await(self, updates: int, deadline: float, goes_on: Callable[[], bool]) -> str | None:
        skipped = None
        while self.busy and time.monotonic() < deadline and goes_on():
            time.sleep(POLL_SECONDS)
            skipped = self.poll(updates)
        return skipped

    def _measure_unseen_tasks(
        self, checkpoint: Path, steps: int, goes_on: Callable[[], bool]
    ) -> None:
        """Have the final policy measured on the meta-test tasks: nothing is chosen by that."""
        deadline = time.monotonic() + self._settings.timeout_seconds + FAMILY_GRACE_SECONDS
        self._evaluator.submit_family(checkpoint, steps)
        while time.monotonic() < deadline and goes_on():
            result = self._evaluator.poll()
            if result is not None:
                if result.error is not None:
                    log.warning("unseen tasks were not measured", reason=result.error)
                else:
                    log.info("measured on unseen tasks", tasks=len(result.returns))
                return
            time.sleep(POLL_SECONDS)
