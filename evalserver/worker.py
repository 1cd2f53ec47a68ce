"""The process that evaluates and renders: one request at a time, warm between them.

Requests come as JSON lines on standard input. An answer is a JSON line with `num_bytes`, followed by
that many bytes of media. A driver that crashes takes this process along and nothing else.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apprentice.stopping import death_with

if TYPE_CHECKING:
    import numpy as np

    from apprentice.config import Experiment
    from apprentice.evaluation import Evaluation
    from apprentice.networks import Policy

MAX_POLICIES = 8
MAX_ENVIRONMENTS = 4


class Answerable(Exception):
    """A request that is at fault itself; `status` is the HTTP status it gets."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class Worker:
    """Keeps policies, environments and graphics contexts between requests."""

    def __init__(self) -> None:
        self._policies: dict[tuple[str, str], tuple[Policy, Experiment, int]] = {}
        self._environments: dict[str, Any] = {}

    def answer(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """Serve one request; raise Answerable where it is at fault."""
        from apprentice.evaluation import EvaluationError, EvaluationTimeout, evaluate

        started = time.monotonic()
        policy, experiment, steps = self._load(Path(request["path"]), int(request["seed"]))
        task = request["task"] or experiment.task
        self._check_fit(task, experiment)
        loaded = time.monotonic()
        seeds = range(request["seed"], request["seed"] + request["episodes"])
        try:
            evaluation = evaluate(
                policy,
                task,
                seeds,
                observation=experiment.reads.policy,
                settings=experiment.environment,
                deterministic=request["deterministic"],
                max_steps=request["max_steps"],
                keep_trajectories=request["episodes"] if request["format"] == "mp4" else 0,
                deadline_seconds=request["deadline_seconds"],
            )
        except EvaluationTimeout as error:
            raise Answerable(504, str(error)) from error
        except EvaluationError as error:
            raise Answerable(422, str(error)) from error
        evaluated = time.monotonic()
        media = b""
        if request["format"] == "mp4":
            media = self._film(request, task, experiment, evaluation)
        report = describe(evaluation)
        report["seconds"] = {
            "loading": loaded - started,
            "evaluation": evaluated - loaded,
            "rendering_and_encoding": time.monotonic() - evaluated,
        }
        return {**report, "task": task, "steps": steps}, media

    def _load(self, path: Path, seed: int) -> tuple[Policy, Experiment, int]:
        from apprentice.checkpoint import CheckpointError, experiment_of, load_policy
        from apprentice.networks import Policy  # noqa: F401 - imported before the first request

        key = (str(path), (path / "manifest.json").read_text() if path.is_dir() else "")
        if key not in self._policies:
            try:
                policy, manifest = load_policy(path, seed)
            except CheckpointError as error:
                raise Answerable(422, f"the checkpoint cannot be used: {error}") from error
            while len(self._policies) >= MAX_POLICIES:
                del self._policies[next(iter(self._policies))]
            self._policies[key] = (policy, experiment_of(manifest), manifest.steps)
        self._policies[key][0].reseed(seed)
        return self._policies[key]

    def _check_fit(self, task: str, experiment: Experiment) -> None:
        from apprentice.environments import UnknownTask, environment_spec

        if task == experiment.task:
            return
        keys, settings = experiment.reads.policy, experiment.environment
        try:
            found = environment_spec(task, keys, settings)
        except UnknownTask as error:
            raise Answerable(422, str(error)) from error
        expected = environment_spec(experiment.task, keys, settings)
        if (found.observation, found.action) != (expected.observation, expected.action):
            raise Answerable(
                422,
                f"the policy was trained on {experiment.task}, with observations "
                f"{ {k: list(s.shape) for k, s in expected.observation.items()} } and "
                f"{expected.action_size} actions; {task} has "
                f"{ {k: list(s.shape) for k, s in found.observation.items()} } and "
                f"{found.action_size}",
            )

    def _film(
        self, request: dict[str, Any], task: str, experiment: Experiment, evaluation: Evaluation
    ) -> bytes:
        from apprentice.environments import RenderingUnavailable, make_environment
        from apprentice.evaluation import playback_fps, render_trajectory
        from apprentice.video import EncodingError, encode_mp4

        key = f"{task} {experiment.environment.model_dump_json()}"
        if key not in self._environments:
            while len(self._environments) >= MAX_ENVIRONMENTS:
                self._environments.pop(next(iter(self._environments))).close()
            self._environments[key] = make_environment(task, 0, ("state",), experiment.environment)
        environment = self._environments[key]

        def frames() -> Iterator[np.ndarray]:
            for episode in evaluation.episodes:
                assert episode.trajectory is not None
                yield from render_trajectory(
                    task,
                    experiment.environment,
                    episode.trajectory,
                    width=request["width"],
                    height=request["height"],
                    camera=request["camera"],
                    fps=request["fps"],
                    quality=experiment.evaluation.quality,
                    environment=environment,
                )

        try:
            return encode_mp4(frames(), playback_fps(environment.spec.step_seconds, request["fps"]))
        except RenderingUnavailable as error:
            raise Answerable(503, f"{error}; format=json needs no rendering") from error
        except ValueError as error:  # the camera
            raise Answerable(422, str(error)) from error
        except EncodingError as error:
            raise Answerable(500, f"{error}; format=json needs no video") from error


def describe(evaluation: Evaluation) -> dict[str, Any]:
    """Return the returns of an evaluation as JSON."""
    returns = [episode.environment_return for episode in evaluation.episodes]
    return {
        "return_mean": sum(returns) / len(returns),
        "return_min": min(returns),
        "return_max": max(returns),
        "episodes": [
            {
                "seed": episode.seed,
                "environment_return": episode.environment_return,
                "length": episode.length,
                "ending": episode.ending.name.lower(),
            }
            for episode in evaluation.episodes
        ],
    }


def warm_up() -> dict[str, Any]:
    """Import what requests need and find out what can draw here."""
    import torch

    from apprentice.checkpoint import load_policy  # noqa: F401
    from apprentice.environments import probe_rendering
    from apprentice.evaluation import evaluate  # noqa: F401
    from apprentice.video import encode_mp4  # noqa: F401

    torch.set_num_threads(1)
    backend = probe_rendering()
    return {"rendering": backend.name, "detail": backend.detail}


def main() -> None:
    """Answer requests until standard input closes or the server is gone."""
    death_with(int(sys.argv[1]))()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever libraries print

    def send(header: dict[str, Any], media: bytes = b"") -> None:
        answers.write(json.dumps({**header, "num_bytes": len(media)}).encode() + b"\n" + media)
        answers.flush()

    send({"status": 200, **warm_up()})
    worker = Worker()
    for line in sys.stdin:
        try:
            report, media = worker.answer(json.loads(line))
            send({"status": 200, **report}, media)
        except Answerable as error:
            send({"status": error.status, "detail": str(error)})


if __name__ == "__main__":
    main()
