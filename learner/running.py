"""The learner's loop: segments in, updates, policies out; checkpoints and evaluations beside it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import structlog

from apprentice.checkpoint import prune_checkpoints, write_checkpoint
from apprentice.config import Experiment
from apprentice.metrics import MetricsWriter
from apprentice.profiling import Profile
from apprentice.runs import RunFolder, RunState, RunStatus
from apprentice.types import EnvironmentSpec, Metrics, Segment
from apprentice.watchdog import Watchdog
from learner.demonstrated import ExpertRecord
from learner.evaluations import Evaluations
from learner.learning import Learning
from learner.reporting import (
    PolicyLag,
    Rates,
    TrainingReturns,
    ValueAlarm,
    reached_twice,
    span_metrics,
)
from learner.resuming import Resumed, checkpoint_state, resume
from learner.saving import CheckpointSaver, SaveResult
from learner.service import LearnerService
from replay.errors import ReplayUnavailable
from replay.reader import FeedReader

log = structlog.get_logger()

TICK_SECONDS = 0.05
POLL_SECONDS = 0.1
UNHEALTHY_FAILURES = 3
LAST_SAVE_SECONDS = 30.0
"""How long the end of a run waits for the last checkpoint, and for one that is still being written."""


class Diverged(Exception):
    """Losses stayed non-finite after every allowed return to a checkpoint."""


class Runner:
    """One run of the learner; owns its loop, its periods and its end."""

    def __init__(
        self,
        experiment: Experiment,
        spec: EnvironmentSpec,
        folder: RunFolder,
        learning: Learning,
        reader: FeedReader,
        service: LearnerService,
        metrics: MetricsWriter,
        profile: Profile,
        should_stop: Callable[[], bool],
        expert: ExpertRecord | None = None,
    ) -> None:
        self._experiment = experiment
        self._spec = spec
        self._folder = folder
        self._learning = learning
        self._reader = reader
        self._service = service
        self._metrics = metrics
        self._profile = profile
        self._should_stop = should_stop
        self._evaluations = Evaluations(experiment, folder, metrics, expert)
        self._saver = CheckpointSaver()
        self._watchdog = Watchdog("learner", experiment.learner.stall_seconds)
        self._lag, self._returns = PolicyLag(), TrainingReturns()
        self._rates = Rates(learning.counters)
        self._alarm = ValueAlarm(experiment)
        self._policy_version = 0
        self._published_updates = -1
        self._rollbacks = 0
        self._state: RunState = "starting"
        self._paused = False
        self._stop_asked = False
        # A learner that is killed finds what to go on from, however early that is.
        self._checkpoint_asked = True
        self._message = ""
        self._next_tick = self._next_metrics = self._next_publish = 0.0
        self._last_metrics: dict[str, float] = {}
        self._saved_steps = learning.counters.steps
        self._saved_time = time.monotonic()
        self._prepared = False

    def restore(self, resumed: Resumed) -> bool:
        """Take over what a checkpoint says of the loop, and fill the rings from replay.

        Return False where a stop was asked for before that was done. Raises ReplayUnavailable.
        """
        self._checkpoint_asked = False
        self._policy_version = resumed.policy_version
        self._evaluations.restore(resumed.evaluation_returns, resumed.manifest.steps)
        self._rollbacks = resumed.rollbacks
        self._message = "recovering replay"
        self._report("waiting")
        try:
            segments = list(self._reader.recover(set(), should_stop=self._should_stop))
        except ReplayUnavailable:
            if not self._should_stop():
                raise
            segments = []
        if self._should_stop():
            self._report("stopped")
            return False
        self._profile.lap("replay loading", sum(segment.length for segment in segments))
        missing, new = self._learning.refill(segments, resumed.identities)
        newest = max((segment.policy_version for segment in segments), default=0)
        self._policy_version = max(self._policy_version, newest)
        self._saved_steps = self._learning.counters.steps
        self._rates = Rates(self._learning.counters)
        self._message = f"{missing} segments missing after the restart" if missing else ""
        if self._learning.warm and self._learning.num_missing:
            self._message += f"; no update before {self._learning.num_missing:,} steps have arrived"
        log.info("replay recovered", segments=len(segments), missing=missing, new=new)
        self._metrics.write(
            self._learning.counters.steps,
            self._learning.counters.updates,
            {"replay/missing_segments": float(missing), "replay/new_segments": float(new)},
        )
        return True

    def metrics(self) -> Metrics:
        """Return the newest values of everything that is measured; from any thread."""
        return dict(self._last_metrics)

    def failed(self, reason: str) -> None:
        """Say in the run's status that it failed, and why."""
        self._message = reason
        self._report("failed")

    def problem(self) -> str | None:
        """Say why the learner is not well; from any thread."""
        stalled = self._watchdog.problem() or self._saver.problem()
        if stalled is None and self._saver.failures_in_a_row >= UNHEALTHY_FAILURES:
            return self._message or "checkpoints cannot be saved"
        return stalled or self._reader.problem()

    def run(self) -> RunState:
        """Run until the budget, the target return or a stop; return the final state."""
        self._watchdog.start()
        try:
            return self._run()
        finally:
            self._watchdog.stop()
            self._evaluations.close()

    def _run(self) -> RunState:
        learning, settings = self._learning, self._experiment.learner
        free_running = self._experiment.replay.updates_per_step is None
        while True:
            self._watchdog.beat()
            now = time.monotonic()
            if now >= self._next_tick:
                self._next_tick = now + TICK_SECONDS
                self._tick(now)
                if self._stop_asked or self._should_stop():
                    return self._end("stopped")
            if self._paused:
                time.sleep(POLL_SECONDS)
                self._profile.lap("paused")
                continue
            owed = learning.updates_owed()
            spent = learning.counters.steps >= settings.max_steps
            if spent and (owed == 0 or free_running):
                return self._end("finished")
            if reached_twice(self._evaluations.returns, settings.target_return):
                return self._end("finished")
            if owed > 0:
                self._prepare()
                learning.update()
            if owed == 0 or (free_running and not spent):
                self._receive(0.0 if owed else POLL_SECONDS)

    def _receive(self, timeout_seconds: float) -> None:
        learning = self._learning
        most = 64 if timeout_seconds == 0.0 else 1
        segments = self._reader.poll(max_segments=most, timeout_seconds=timeout_seconds)
        steps = sum(segment.length for segment in segments)
        self._profile.lap("feed read" if segments else "waiting for steps", max(1, steps))
        for segment in segments:
            if learning.receive(segment):
                self._note(segment)
        if segments:
            self._profile.lap("ring append", steps)

    def _note(self, segment: Segment) -> None:
        if segment.policy_version:
            self._lag.arrived(segment.policy_version, self._learning.counters.steps)

    def _prepare(self) -> None:
        """Compile before the first update, so that its seconds are charged to nothing else."""
        if self._prepared:
            return
        self._prepared = True
        self._message = "compiling the update"
        self._report("training")
        self._learning.prepare()
        self._profile.lap("compile")
        self._watchdog.beat()
        self._message = ""
        self._rates = Rates(self._learning.counters)

    def _tick(self, now: float) -> None:
        for command in self._service.commands():
            self._obey(command)
        if now >= self._next_publish:
            self._next_publish = now + self._experiment.learner.publish_period_seconds
            self._publish()
        self._profile.lap("service")
        self._check_saver()
        self._check_evaluations()
        self._start_saving(now)
        if now >= self._next_metrics:
            self._next_metrics = now + self._experiment.learner.metrics_period_seconds
            self._write_metrics()
            self._service.set_healthy(self.problem() is None)
            self._profile.lap("metrics")
            self._check_finite()

    def _obey(self, command: str) -> None:
        log.info("asked to", command=command)
        if command == "pause":
            self._paused = True
        elif command == "resume":
            self._paused = False
        elif command == "stop":
            self._stop_asked = True
        elif command == "checkpoint":
            self._checkpoint_asked = True

    def _publish(self) -> None:
        updates = self._learning.counters.updates
        if not self._learning.warm or updates == self._published_updates:
            return
        self._published_updates = updates
        self._policy_version += 1
        self._service.publish(self._policy_version, self._learning.sac.policy_tensors())
        self._lag.published(self._policy_version, self._learning.counters.steps)
        self._profile.lap("publishing")

    def _check_saver(self) -> None:
        result = self._saver.poll()
        if result is None:
            return
        self._note_saved(result)
        if result.path is not None and self._evaluation_due():
            self._evaluations.start(result.path, result.steps)

    def _note_saved(self, result: SaveResult) -> None:
        """Training goes on without checkpoints, as on a full disk, but not unnoticed."""
        failures = self._saver.failures_in_a_row
        if failures:
            self._message = f"{failures} checkpoints in a row could not be saved: {result.error}"
        elif self._last_metrics.get("checkpoint/failures_in_a_row"):
            self._message = ""
        self._last_metrics["checkpoint/failures_in_a_row"] = float(failures)

    def _evaluation_due(self) -> bool:
        learning, evaluations = self._learning, self._evaluations
        return learning.warm and not evaluations.busy and evaluations.due(learning.counters.steps)

    def _check_evaluations(self) -> None:
        if not self._saver.busy:  # Its thread is the one that may write and remove checkpoints now.
            updates = self._learning.counters.updates
            self._message = self._evaluations.poll(updates) or self._message

    def _start_saving(self, now: float) -> None:
        if self._saver.busy:
            return
        settings, steps = self._experiment.checkpoint, self._learning.counters.steps
        due = (
            self._checkpoint_asked
            or steps // settings.period_steps > self._saved_steps // settings.period_steps
            or (now - self._saved_time > settings.period_seconds and steps > self._saved_steps)
            or (self._evaluation_due() and steps > self._saved_steps)
        )
        if due:
            self._save(final=False)

    def _save(self, final: bool) -> None:
        learning = self._learning
        tensors = learning.state_tensors()
        counters, version = learning.counters, self._policy_version
        state = checkpoint_state(
            learning,
            evaluation_returns=list(self._evaluations.returns),
            rollbacks=self._rollbacks,
        )
        protected = self._evaluations.protected
        folder, experiment, spec = self._folder, self._experiment, self._spec

        def save() -> Path:
            path = write_checkpoint(
                folder.checkpoints,
                run=folder.path.name,
                steps=counters.steps,
                updates=counters.updates,
                policy_version=version,
                experiment=experiment,
                environment=spec,
                tensors=tensors,
                state=state,
            )
            prune_checkpoints(folder.checkpoints, experiment.checkpoint.keep, protected)
            return path

        self._checkpoint_asked = False
        self._saved_steps, self._saved_time = counters.steps, time.monotonic()
        self._saver.submit(counters.steps, save, final)
        self._profile.lap("checkpoint snapshot")

    def _check_finite(self) -> None:
        learning, settings = self._learning, self._experiment.learner
        if self._saver.busy:
            return  # The checkpoint to go back to may be the one being written.
        if learning.sac.rejected_in_a_row() < settings.max_bad_updates:
            return
        self._rollbacks += 1
        if self._rollbacks > settings.max_rollbacks:
            raise Diverged(
                f"{settings.max_bad_updates} updates in a row had a non-finite loss, after "
                f"{settings.max_rollbacks} returns to a checkpoint with a smaller step size"
            )
        kept = learning.counters
        if resume(self._folder.checkpoints, learning, self._experiment, self._spec) is None:
            raise Diverged("non-finite losses before the first checkpoint was written")
        learning.rolled_back(kept, self._rollbacks)
        log.error("returned to the last checkpoint: non-finite losses", rollback=self._rollbacks)
        self._message = f"returned to a checkpoint {self._rollbacks} times: non-finite losses"

    def _write_metrics(self) -> None:
        learning = self._learning
        for episode in self._service.drain_episodes():
            self._returns.add(episode.environment_return)
        values = {
            **learning.metrics(),
            **self._rates.metrics(learning.counters),
            **self._lag.metrics(),
            **self._returns.metrics(),
            **self._reader.metrics(),
            "learner/policy_version": float(self._policy_version),
            "actor/count": float(len(self._service.actors())),
            "checkpoint/failures_in_a_row": float(self._saver.failures_in_a_row),
        }
        values.update(self._alarm.metrics(values))
        values.update(span_metrics("learner", self._profile.snapshot()))
        values.update(span_metrics("learner-saver", self._saver.profile.snapshot()))
        for slot, spans in self._service.spans().items():
            values.update(span_metrics(f"actor-{slot}", spans))
        self._last_metrics = {**self._last_metrics, **values}  # whole, for other threads
        self._metrics.write(learning.counters.steps, learning.counters.updates, values)
        if self._paused:
            self._report("paused")
        else:
            self._report("training" if learning.warm else "waiting")

    def _report(self, state: RunState) -> None:
        counters, values = self._learning.counters, self._last_metrics
        self._state = state
        status = RunStatus(
            run=self._folder.path.name,
            experiment=self._experiment.name,
            task=self._experiment.task,
            state=state,
            steps=counters.steps,
            max_steps=self._experiment.learner.max_steps,
            environment_frames=counters.steps * self._experiment.environment.action_repeat,
            updates=counters.updates,
            policy_version=self._policy_version,
            evaluation_returns=tuple(self._evaluations.returns),
            best_return=self._evaluations.best_return,
            training_return=values.get("actor/episode_return"),
            replay_ratio=values.get("replay/ratio"),
            steps_per_second=values.get("actor/steps_per_second"),
            updates_per_second=values.get("learner/updates_per_second"),
            policy_lag_steps=values.get("learner/policy_lag_steps"),
            actors=self._service.actors_summary(),
            learner=self._service.address,
            message=self._message,
        )
        self._folder.write_status(status)
        self._service.set_status(status.model_dump_json(), state, counters.steps, counters.updates)

    def _end(self, state: RunState) -> RunState:
        """Write the last checkpoint, evaluate it where the run is complete, and let the actors go.

        Raises OSError where that checkpoint cannot be written: the run is not over then.
        """
        log.info("the run ends", state=state, **self._learning.counters._asdict())
        deadline = time.monotonic() + LAST_SAVE_SECONDS
        while self._saver.busy and time.monotonic() < deadline:
            self._watchdog.beat()
            self._saver.poll(0.1)
        if self._saver.busy:
            raise OSError(
                f"the last checkpoint could not be begun within {LAST_SAVE_SECONDS:.0f} s: the one before is "
                "still being written"
            )
        self._publish()
        self._save(final=True)
        result = None
        while result is None:
            self._watchdog.beat()
            result = self._saver.poll(0.1)
            if result is None and time.monotonic() > deadline:
                raise OSError(
                    f"the last checkpoint was not written within {LAST_SAVE_SECONDS:.0f} s"
                )
        if result.path is None:
            self._note_saved(result)
            self._report("failed")
            raise OSError(f"the last checkpoint could not be saved: {result.error}")
        if state == "finished":
            counters = self._learning.counters
            skipped = self._evaluations.finish(
                result.path, counters.steps, counters.updates, self._goes_on
            )
            self._message = skipped or self._message
        self._write_metrics()
        self._report(state)
        # A learner that only its host stops comes back, and finds its actors waiting.
        if state == "finished" or self._stop_asked:
            self._service.finish()
        return state

    def _goes_on(self) -> bool:
        """Say that the learner is not stuck, and return whether nobody asked it to stop."""
        self._watchdog.beat()
        return not self._should_stop()
