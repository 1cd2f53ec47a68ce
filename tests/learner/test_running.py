"""The learner's loop with fakes around it: periods, orders, ends, and what goes wrong."""

from __future__ import annotations

import errno
import itertools
import json
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import learner.evaluations
import learner.running
import learner.saving
from apprentice.checkpoint import newest_checkpoint, read_best
from apprentice.checkpoint_retention import list_checkpoints
from apprentice.config import Experiment
from apprentice.metrics import MetricsWriter
from apprentice.profiling import Profile, Span
from apprentice.rpc import EpisodeReport
from apprentice.runs import RunFolder
from apprentice.types import Segment
from learner.demonstrated import Demonstrated, ExpertRecord
from learner.evaluating import EvaluationResult
from learner.learning import Learning
from learner.resuming import resume
from learner.running import Diverged, Runner
from replay.errors import ReplayUnavailable
from tests.learner.test_learning import CPU, LENGTH, SPEC, make_experiment, make_segment


class FakeReader:
    """Hands out prepared segments, one a poll; calls `then` once they are gone."""

    def __init__(self, segments: Sequence[Segment], then: Callable[[], None] | None = None) -> None:
        self.segments, self.stored = deque(segments), list(segments)
        self._then = then

    def poll(self, max_segments: int, timeout_seconds: float) -> list[Segment]:
        if self.segments:
            return [self.segments.popleft()]
        if self._then is not None:
            self._then()
        return []

    def recover(self, known: set[Any], should_stop: Callable[[], bool]) -> list[Segment]:
        if should_stop():
            raise ReplayUnavailable("asked to stop")
        return self.stored

    def metrics(self) -> dict[str, float]:
        return {}

    def problem(self) -> str | None:
        return None


@dataclass
class FakeService:
    """Records what the loop says, and asks for what the test put into `orders`."""

    orders: list[str] = field(default_factory=list)
    published: list[tuple[int, dict[str, torch.Tensor]]] = field(default_factory=list)
    healthy: list[bool] = field(default_factory=list)
    states: list[str] = field(default_factory=list)
    finished: bool = False

    address = "127.0.0.1:1"

    def commands(self) -> list[str]:
        orders, self.orders = self.orders, []
        return orders

    def publish(self, policy_version: int, tensors: Mapping[str, torch.Tensor]) -> None:
        self.published.append((policy_version, dict(tensors)))

    def set_status(self, status_json: str, state: str, steps: int, updates: int) -> None:
        self.states.append(state)

    def set_healthy(self, healthy: bool) -> None:
        self.healthy.append(healthy)

    def finish(self) -> None:
        self.finished = True

    def actors(self) -> tuple[()]:
        return ()

    def actors_summary(self) -> tuple[()]:
        return ()

    def drain_episodes(self) -> list[EpisodeReport]:
        return []

    def spans(self) -> dict[int, Mapping[str, Span]]:
        return {}


class FakeEvaluator:
    """Answers the next return of `returns` to every evaluation asked for."""

    returns: Sequence[float] = ()

    def __init__(self, folder: Path, timeout_seconds: float) -> None:
        self._left = list(self.returns)
        self._result: EvaluationResult | None = None
        self.seeds: list[int] = []

    @property
    def busy(self) -> bool:
        return self._result is not None

    def submit(self, checkpoint: Path, steps: int, episodes: int, first_seed: int) -> None:
        assert newest_checkpoint(checkpoint.parent) is not None
        self.seeds.append(first_seed)
        value = self._left.pop(0) if self._left else 0.0
        self._result = EvaluationResult(steps, checkpoint.name, (value,) * episodes, 0.1, None, {})

    def poll(self) -> EvaluationResult | None:
        result, self._result = self._result, None
        return result

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learner.running, "TICK_SECONDS", 0.0)
    monkeypatch.setattr(learner.running, "POLL_SECONDS", 0.001)
    monkeypatch.setattr(learner.evaluations, "Evaluator", FakeEvaluator)
    monkeypatch.setattr(learner.evaluations, "POLL_SECONDS", 0.0)


def make(max_steps: int = 80, **settings: Any) -> Experiment:
    data = make_experiment().model_dump()
    data["learner"] |= {
        "max_steps": max_steps,
        "publish_period_seconds": 0.001,
        "metrics_period_seconds": 0.001,
    }
    data["checkpoint"] |= {"period_steps": 16, "keep": 100}
    data["evaluation"] |= {"period_steps": 10**9, "episodes": 2}
    for name, values in settings.items():
        data[name] |= values
    return Experiment.model_validate(data)


class Run:
    """A runner, what it was made of, and the files it left."""

    def __init__(
        self,
        path: Path,
        experiment: Experiment,
        segments: Sequence[Segment],
        then: Callable[[], None] | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        demonstrated: Demonstrated | None = None,
        expert: ExpertRecord | None = None,
    ) -> None:
        self.folder = RunFolder(path)
        self.folder.checkpoints.mkdir(parents=True, exist_ok=True)
        self.folder.evaluations.mkdir(exist_ok=True)
        self.learning = Learning(experiment, [SPEC], CPU, demonstrated=demonstrated)
        self.service = FakeService()
        self.resumed = resume(self.folder.checkpoints, self.learning, experiment, SPEC)
        self.runner = Runner(
            experiment,
            SPEC,
            self.folder,
            self.learning,
            FakeReader(segments, then),  # type: ignore[arg-type]
            self.service,  # type: ignore[arg-type]
            MetricsWriter(self.folder.metrics),
            Profile(),
            should_stop,
            expert,
        )
        self.restored = None if self.resumed is None else self.runner.restore(self.resumed)

    def checkpoints(self) -> list[str]:
        return [path.name for path in list_checkpoints(self.folder.checkpoints)]

    def metrics(self) -> list[dict[str, float]]:
        rows = self.folder.metrics.read_text().splitlines()
        return [json.loads(row)["metrics"] for row in rows]


def segments(first: int, last: int) -> list[Segment]:
    return [make_segment(number) for number in range(first, last)]


def test_a_run_spends_its_budget_and_leaves_a_checkpoint_policies_and_free_actors(
    tmp_path: Path,
) -> None:
    run = Run(tmp_path, make(), segments(0, 10))
    assert run.runner.run() == "finished"
    counters = run.learning.counters
    assert (counters.steps, counters.updates) == (80, 64)
    assert run.checkpoints()[-1] == "step-000000000080"
    assert run.service.finished
    versions = [version for version, _ in run.service.published]
    assert versions == list(range(1, len(versions) + 1))
    status = run.folder.read_status()
    assert status is not None
    assert (status.state, status.steps, status.updates) == ("finished", 80, 64)
    assert run.metrics()[-1]["replay/ratio"] == 1.0


def test_no_policy_is_published_during_the_warm_up(tmp_path: Path) -> None:
    stopped = False

    def stop() -> None:
        nonlocal stopped
        stopped = True

    run = Run(tmp_path, make(), segments(0, 1), then=stop, should_stop=lambda: stopped)
    assert run.runner.run() == "stopped"
    assert run.service.states[0] == "waiting"
    assert run.learning.counters.updates == 0
    assert run.service.published == []
    assert run.checkpoints() == ["step-000000000000", "step-000000000008"]


def test_orders_are_obeyed(tmp_path: Path) -> None:
    run = Run(tmp_path, make(10**6, checkpoint={"period_steps": 10**9}), segments(0, 4))
    orders = iter(["checkpoint", "pause", "", "", "resume", "stop"])
    run.runner._reader._then = lambda: None  # type: ignore[attr-defined]
    seen: list[str] = []

    def commands() -> list[str]:
        if run.runner._reader.segments or run.runner._saver.busy:  # type: ignore[attr-defined]
            return []
        order = next(orders)
        seen.append(order)
        return [order] if order else []

    run.service.commands = commands  # type: ignore[method-assign]
    assert run.runner.run() == "stopped"
    assert seen[-1] == "stop"
    assert "paused" in run.service.states
    assert run.service.states[-1] == "stopped"
    assert run.checkpoints() == ["step-000000000000", "step-000000000032"]


def test_evaluations_choose_the_best_and_two_in_a_row_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeEvaluator, "returns", (950.0, 20.0, 910.0, 930.0, 990.0))
    experiment = make(10**6, learner={"target_return": 900.0}, evaluation={"period_steps": 24})
    run = Run(tmp_path, experiment, segments(0, 100))
    assert run.runner.run() == "finished"
    status = run.folder.read_status()
    assert status is not None
    assert status.evaluation_returns[:4] == (950.0, 20.0, 910.0, 930.0)
    best = read_best(run.folder.checkpoints)
    assert best is not None
    assert best.score == max(status.evaluation_returns)
    seeds = run.runner._evaluations._evaluator.seeds  # type: ignore[attr-defined]
    assert all(later - earlier == 2 for earlier, later in zip(seeds, seeds[1:], strict=False))


def test_non_finite_losses_go_back_three_times_and_then_end_the_run_with_a_report(
    tmp_path: Path,
) -> None:
    experiment = make(10**6, learner={"max_bad_updates": 5, "max_rollbacks": 3})
    good = segments(0, 8)
    poison = make_segment(8)
    poison.environment_reward[:] = np.nan
    run = Run(tmp_path, experiment, [*good, *[poison], *segments(9, 400)])
    with pytest.raises(Diverged, match="after 3 returns to a checkpoint"):
        run.runner.run()
    assert run.learning.sac.rollback_factor.item() == 0.125
    assert run.learning.counters.steps > 64  # counters do not go back
    for _, tensors in run.service.published:
        assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    found = newest_checkpoint(run.folder.checkpoints)
    assert found is not None
    assert max(row.get("learner/rejected_updates", 0.0) for row in run.metrics()) > 0


def test_losses_that_are_never_finite_end_the_run(tmp_path: Path) -> None:
    experiment = make(10**6, checkpoint={"period_steps": 10**9}, learner={"max_bad_updates": 5})
    poison = segments(0, 100)
    for segment in poison:
        segment.environment_reward[:] = np.nan
    run = Run(tmp_path, experiment, poison)
    with pytest.raises(Diverged, match="after 3 returns to a checkpoint"):
        run.runner.run()


def test_on_a_full_disk_training_goes_on_and_says_that_it_is_not_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, calls = learner.running.write_checkpoint, 0

    def full(*arguments: Any, **named: Any) -> Path:
        nonlocal calls
        calls += 1
        if calls in (3, 4, 5):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(*arguments, **named)

    monkeypatch.setattr(learner.running, "write_checkpoint", full)
    run = Run(tmp_path, make(400), segments(0, 50))
    assert run.runner.run() == "finished"
    assert calls > 5
    changes = [healthy for healthy, _ in itertools.groupby(run.service.healthy)]
    assert changes == [True, False, True]
    assert max(row.get("checkpoint/failures_in_a_row", 0.0) for row in run.metrics()) == 3
    assert run.checkpoints()[0] == "step-000000000000"  # the old one stayed
    assert run.checkpoints()[-1] == "step-000000000400"
    status = run.folder.read_status()
    assert status is not None
    assert status.message == ""


def test_a_run_whose_last_checkpoint_is_lost_is_not_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **named: Any) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(learner.running, "write_checkpoint", full)
    run = Run(tmp_path, make(), segments(0, 10))
    with pytest.raises(OSError, match="the last checkpoint could not be saved.*No space left"):
        run.runner.run()
    assert not run.service.finished
    status = run.folder.read_status()
    assert status is not None
    assert status.state == "failed"


def test_a_restarted_learner_counts_on_and_never_uses_a_policy_version_twice(
    tmp_path: Path,
) -> None:
    first = Run(tmp_path, make(), segments(0, 10))
    assert first.runner.run() == "finished"
    used = {version for version, _ in first.service.published}
    second = Run(tmp_path, make(160), segments(0, 20))
    assert second.resumed is not None
    assert second.learning.counters.steps == 160  # ten segments known, ten new
    assert second.runner.run() == "finished"
    assert second.learning.counters.updates == 144
    assert not used & {version for version, _ in second.service.published}


def test_a_learner_killed_before_its_first_period_counts_on_too(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill() -> None:
        if not first.runner._saver.busy:  # type: ignore[attr-defined]
            raise Killed

    experiment = make(160, checkpoint={"period_steps": 10**9})
    first = Run(tmp_path, experiment, segments(0, 10), then=kill)
    with pytest.raises(Killed):
        first.runner.run()
    assert first.checkpoints() == ["step-000000000000"]
    used = {version for version, _ in first.service.published}
    second = Run(tmp_path, experiment, segments(0, 20))
    assert second.learning.counters.steps == 160
    assert second.runner.run() == "finished"
    assert used
    assert not used & {version for version, _ in second.service.published}


def test_a_stop_is_heard_while_replay_is_awaited(tmp_path: Path) -> None:
    assert Run(tmp_path, make(), segments(0, 10)).runner.run() == "finished"
    second = Run(tmp_path, make(160), [], should_stop=lambda: True)
    assert second.restored is False
    status = second.folder.read_status()
    assert status is not None
    assert status.state == "stopped"


def test_a_disk_that_does_not_answer_is_noticed_and_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()

    def hang(*arguments: Any, **named: Any) -> Path:
        answers.wait(60.0)
        return tmp_path

    monkeypatch.setattr(learner.running, "write_checkpoint", hang)
    monkeypatch.setattr(learner.running, "LAST_SAVE_SECONDS", 0.2)
    monkeypatch.setattr(learner.saving, "LONGEST_SECONDS", 0.0)
    run = Run(tmp_path, make(), segments(0, 10))
    with pytest.raises(OSError, match="the one before is still being written"):
        run.runner.run()
    assert "does the disk answer" in str(run.runner.problem())
    assert run.service.healthy[-1] is False
    answers.set()


def test_a_restart_without_the_replay_waits_for_new_steps(tmp_path: Path) -> None:
    first = Run(tmp_path, make(), segments(0, 10))
    assert first.runner.run() == "finished"
    second = Run(tmp_path, make(160), [])
    second.runner._reader.segments.extend(segments(10, 20))  # type: ignore[attr-defined]
    assert second.runner.run() == "finished"
    counters = second.learning.counters
    assert (counters.steps, counters.updates) == (160, 144)
    assert second.metrics()[-1]["replay/transitions"] == 10 * LENGTH
