"""Periodic evaluation in a child process that stays warm: requests in, results out, one JSON a line.

The child (`python -m learner.evaluating`) loads a checkpoint's policy, runs whole episodes and keeps
the first as a trajectory. It shares nothing with the learner, least of all its random state.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any, NamedTuple

import structlog

from apprentice.stopping import death_with

log = structlog.get_logger()


class EvaluationResult(NamedTuple):
    """The outcome of one evaluation; `error` says why there are no returns."""

    steps: int  # of the checkpoint
    checkpoint: str
    returns: tuple[float, ...]
    seconds: float
    error: str | None
    metrics: dict[str, float]


class Evaluator:
    """The learner's end: one child, one evaluation at a time, each with a deadline."""

    def __init__(self, folder: Path, timeout_seconds: float) -> None:
        self._folder = folder
        self._timeout = timeout_seconds
        self._child: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[str] = queue.Queue()
        self._running: tuple[int, str, float] | None = None

    @property
    def busy(self) -> bool:
        """Whether an evaluation is under way."""
        return self._running is not None

    def submit_family(self, checkpoint: Path, steps: int) -> None:
        """Start measuring a final policy on the meta-test tasks of its family."""
        self._submit(checkpoint, steps, {"family": True})

    def submit(self, checkpoint: Path, steps: int, episodes: int, first_seed: int) -> None:
        """Start an evaluation; the caller has looked at `busy`."""
        self._submit(checkpoint, steps, {"episodes": episodes, "first_seed": first_seed})

    def _submit(self, checkpoint: Path, steps: int, what: dict[str, Any]) -> None:
        assert self._running is None
        request = {
            "checkpoint": str(checkpoint),
            "steps": steps,
            **what,
            "deadline_seconds": self._timeout,
            "out": str(self._folder),
        }
        self._running = (steps, checkpoint.name, time.monotonic())
        try:
            if self._child is None or self._child.poll() is not None:
                self._start()
            assert self._child is not None and self._child.stdin is not None
            self._child.stdin.write(json.dumps(request) + "\n")
            self._child.stdin.flush()
        except OSError as error:
            self._answers.put(json.dumps({"error": f"the evaluation process: {error}"}))

    def poll(self) -> EvaluationResult | None:
        """Return the result if the evaluation has ended, failed or run out of time."""
        if self._running is None:
            return None
        steps, checkpoint, started = self._running
        seconds = time.monotonic() - started
        try:
            answer: dict[str, Any] = json.loads(self._answers.get_nowait())
        except queue.Empty:
            if seconds > self._timeout + 10.0:
                self._kill()
                answer = {"error": f"took longer than evaluation.timeout_seconds ({self._timeout})"}
            elif self._child is not None and self._child.poll() is not None:
                answer = {"error": f"the evaluation process exited with {self._child.returncode}"}
            else:
                return None
        self._running = None
        returns = tuple(float(value) for value in answer.get("returns", ()))
        measured = {str(k): float(v) for k, v in answer.get("metrics", {}).items()}
        error = answer.get("error")
        return EvaluationResult(steps, checkpoint, returns, seconds, error, measured)

    def close(self) -> None:
        """End the child, within five seconds."""
        child = self._child
        if child is None:
            return
        if child.stdin is not None and not child.stdin.closed:
            try:
                child.stdin.close()
            except OSError as error:
                log.debug("the evaluation process was gone already", error=str(error))
        try:
            child.wait(0.5 if self.busy else 5.0)
        except subprocess.TimeoutExpired:
            self._kill()
        self._child = None

    def _start(self) -> None:
        environment = {**os.environ, "MUJOCO_GL": os.environ.get("MUJOCO_GL", "disabled")}
        self._child = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "learner.evaluating", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._answers = queue.Queue()
        assert self._child.stdout is not None
        threading.Thread(
            target=_forward, args=(self._child.stdout, self._answers), daemon=True
        ).start()

    def _kill(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait(5.0)
            self._child = None


def _forward(stream: IO[str], answers: queue.Queue[str]) -> None:
    for line in stream:
        answers.put(line)


def evaluate_unseen_tasks(request: dict[str, Any]) -> dict[str, Any]:
    """Measure a final policy on its family's meta-test tasks, and leave the result under `out`."""
    from apprentice.family_evaluation import evaluate_family, write_family_evaluation

    found = evaluate_family(
        Path(request["checkpoint"]), deadline_seconds=float(request["deadline_seconds"])
    )
    write_family_evaluation(Path(request["out"]), found)
    return {
        "returns": [result.environment_return for result in found.results],
        "metrics": found.latent,
    }


def evaluate_checkpoint(request: dict[str, Any]) -> dict[str, Any]:
    """Run one evaluation and store its result and first trajectory under `out`."""
    from apprentice.checkpoint import experiment_of, load_policy
    from apprentice.demonstrations.context import ContextChoice, context_of
    from apprentice.environments import evaluated_tasks
    from apprentice.evaluation import evaluate
    from apprentice.family_evaluation import periodic_latent_metrics
    from apprentice.trajectories import save_trajectory

    steps, first_seed = int(request["steps"]), int(request["first_seed"])
    policy, manifest = load_policy(Path(request["checkpoint"]), seed=first_seed)
    experiment = experiment_of(manifest)
    context = None
    if experiment.infers_task:
        library = context_of(Path(request["checkpoint"]))
        context = ContextChoice(library, size=experiment.context.fewest)
    tasks = evaluated_tasks(experiment.task, experiment.environment)
    evaluation = evaluate(
        policy,
        tasks,
        range(first_seed, first_seed + int(request["episodes"])),
        observation=experiment.acting_keys,
        settings=experiment.environment,
        deterministic=True,
        max_steps=None,
        keep_trajectories=1,
        deadline_seconds=float(request["deadline_seconds"]),
        context=context,
    )
    out = Path(request["out"])
    first = evaluation.episodes[0]
    if first.trajectory is not None:
        save_trajectory(
            out / f"step-{steps:012d}.trajectory.safetensors",
            first.trajectory,
            task=first.task,
            settings=experiment.environment,
        )
    metrics = evaluation.metrics_mean
    if experiment.infers_task:
        checkpoint = Path(request["checkpoint"])
        left = float(request["deadline_seconds"]) - evaluation.seconds
        metrics |= periodic_latent_metrics(checkpoint, policy, experiment, tasks, first_seed, left)
    result = {
        "steps": steps,
        "returns": [episode.environment_return for episode in evaluation.episodes],
        "lengths": [episode.length for episode in evaluation.episodes],
        "seeds": [episode.seed for episode in evaluation.episodes],
        "tasks": [episode.task for episode in evaluation.episodes],
        "metrics": metrics,
    }
    stage = out / f".step-{steps:012d}.json"
    stage.write_text(json.dumps(result))
    stage.rename(out / f"step-{steps:012d}.json")
    return result


def main() -> None:
    """Answer requests from standard input until it closes, or the process argv[1] is gone."""
    death_with(int(sys.argv[1]))()
    import torch

    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for line in sys.stdin:
        try:
            request = json.loads(line)
            measure = evaluate_unseen_tasks if "family" in request else evaluate_checkpoint
            answer = measure(request)
        except Exception as error:  # noqa: BLE001 - the learner logs it and skips this evaluation
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
