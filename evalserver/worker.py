"""The process that evaluates and renders: one request at a time, warm between them.

Requests come as JSON lines on standard input. An answer is a JSON line with `num_bytes`, followed by
that many bytes of media. A driver that crashes takes this process along and nothing else.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from apprentice.stopping import death_with
from evalserver.rollouts import Answerable, Rollout, kept_rollout
from evalserver.schemas import SHOWN
from evalserver.showing import choose_shown, demonstrations_beside

if TYPE_CHECKING:
    import numpy as np

    from apprentice.config import Experiment
    from apprentice.demonstrations.context import ContextChoice
    from apprentice.environments import Environment
    from apprentice.networks import Policy

MAX_POLICIES = 8
MAX_ENVIRONMENTS = 4
MAX_HELD_BYTES = 256 * 2**20
"""Frames that a format may hold in memory at once; mp4 holds one."""
SHEET_PICTURES = 16


class Side(NamedTuple):
    """A checkpoint that is evaluated."""

    path: Path
    policy: Policy
    experiment: Experiment
    steps: int


class Worker:
    """Keeps policies, environments and graphics contexts between requests."""

    def __init__(self) -> None:
        self._policies: dict[tuple[str, str], Side] = {}
        self._environments: dict[str, Environment] = {}

    def answer(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """Serve one request; raise Answerable where it is at fault."""
        started = ready = time.monotonic()
        if "trajectory" in request:
            rollouts = [kept_rollout(Path(request["trajectory"]), request["steps"])]
        else:
            sides = [self._load(Path(path), int(request["seed"])) for path in request["paths"]]
            ready = time.monotonic()
            rollouts = self._roll_out_all(request, sides)
        evaluated = time.monotonic()
        media = self._draw(request, rollouts) if request["format"] != "json" else b""
        first, *others = [
            {"task": rollout.task, "steps": rollout.steps, **rollout.evaluation.report()}
            for rollout in rollouts
        ]
        seconds = {
            "loading": ready - started,
            "evaluation": evaluated - ready,
            "rendering_and_encoding": time.monotonic() - evaluated,
        }
        return {**first, "beside": others[0] if others else None, "seconds": seconds}, media

    def _roll_out_all(self, request: dict[str, Any], sides: list[Side]) -> list[Rollout]:
        """Return each checkpoint's rollout, and that of the expert where it is asked for."""
        from apprentice.environments import shown_task

        first = sides[0]
        expert = None
        if request.get("expert", SHOWN) != SHOWN:
            expert = kept_rollout(Path(request["expert"]), 0)
        task = request["task"] or (
            shown_task(first.experiment.task, first.experiment.environment)
            if expert is None
            else expert.task
        )
        for side in sides:
            self._check_fit(task, side.experiment)
        nobody_infers = not any(side.experiment.infers_task for side in sides)
        choices = [
            choose_shown(
                request["context"] if side.experiment.infers_task or nobody_infers else None,
                side.path,
                side.experiment,
                task,
            )
            for side in sides
        ]
        rollouts = [
            self._roll_out(request, task, side, choice)
            for side, choice in zip(sides, choices, strict=True)
        ]
        if request.get("expert") == SHOWN:
            expert = demonstrations_beside(first.path, first.experiment, rollouts[0])
        return rollouts if expert is None else [*rollouts, expert]

    @staticmethod
    def _roll_out(
        request: dict[str, Any], task: str, side: Side, context: ContextChoice | None
    ) -> Rollout:
        from apprentice.environments import RenderingUnavailable
        from apprentice.evaluation import EvaluationError, EvaluationTimeout, evaluate

        experiment = side.experiment
        try:
            evaluation = evaluate(
                side.policy,
                task,
                range(request["seed"], request["seed"] + request["episodes"]),
                observation=experiment.acting_keys,
                settings=experiment.environment,
                deterministic=request["deterministic"],
                max_steps=request["max_steps"],
                keep_trajectories=0 if request["format"] == "json" else request["episodes"],
                deadline_seconds=request["deadline_seconds"],
                context=context,
            )
        except EvaluationTimeout as error:
            raise Answerable(504, str(error)) from error
        except EvaluationError as error:
            raise Answerable(422, str(error)) from error
        except RenderingUnavailable as error:
            raise Answerable(503, f"the policy reads pixels: {error}") from error
        quality = experiment.evaluation.quality
        return Rollout(task, experiment.environment, quality, side.steps, evaluation)

    def _load(self, path: Path, seed: int) -> Side:
        from apprentice.checkpoint import CheckpointError, experiment_of, load_policy
        from apprentice.checkpoint_files import read_text
        from apprentice.checkpoint_format import MANIFEST, MAX_MANIFEST_BYTES
        from apprentice.networks import Policy  # noqa: F401 - imported before the first request

        key = (str(path), read_text(path / MANIFEST, MAX_MANIFEST_BYTES))
        if key not in self._policies:
            try:
                policy, manifest = load_policy(path, seed)
            except CheckpointError as error:
                raise Answerable(422, f"the checkpoint cannot be used: {error}") from error
            while len(self._policies) >= MAX_POLICIES:
                del self._policies[next(iter(self._policies))]
            self._policies[key] = Side(path, policy, experiment_of(manifest), manifest.steps)
        self._policies[key].policy.reseed(seed)
        return self._policies[key]

    def _check_fit(self, task: str, experiment: Experiment) -> None:
        from apprentice.environments import UnknownTask, environment_spec, experiment_specs

        if task == experiment.task and not experiment.is_family:
            return
        keys, settings = experiment.acting_keys, experiment.environment
        try:
            found = environment_spec(task, keys, settings)
        except (UnknownTask, ValueError) as error:  # a suite task has no task_parameters
            raise Answerable(422, str(error)) from error
        expected = experiment_specs(experiment.task, keys, settings)[0]
        if (found.observation, found.action) != (expected.observation, expected.action):
            raise Answerable(
                422,
                f"the policy was trained on {experiment.task}, with observations "
                f"{ {k: list(s.shape) for k, s in expected.observation.items()} } and "
                f"{expected.action_size} actions; {task} has "
                f"{ {k: list(s.shape) for k, s in found.observation.items()} } and "
                f"{found.action_size}",
            )

    def _draw(self, request: dict[str, Any], rollouts: list[Rollout]) -> bytes:
        from apprentice.environments import RenderingUnavailable
        from apprentice.evaluation import playback_fps
        from apprentice.video import (
            EncodingError,
            contact_sheet,
            encode_gif,
            encode_mp4,
            encode_png,
            encode_webp,
            side_by_side,
        )

        kind = request["format"]
        environments = [self._environment(side, one) for side, one in enumerate(rollouts)]
        fps = min(playback_fps(e.spec.step_seconds, request["fps"]) for e in environments)
        if kind == "png":
            fps = min(fps, self._sheet_fps(rollouts[0], environments[0]))
        sides = list(zip(rollouts, environments, strict=True))
        frames = itertools.chain.from_iterable(
            side_by_side([self._frames(request, *side, number, fps) for side in sides])
            for number in range(len(rollouts[0].evaluation.episodes))
        )
        try:
            if kind == "mp4":
                return encode_mp4(frames, fps)
            # The others hold all frames at once.
            held = list(_bounded(frames, request))
            if kind == "png":
                return encode_png(contact_sheet(held))
            return (encode_gif if kind == "gif" else encode_webp)(held, fps)
        except RenderingUnavailable as error:
            raise Answerable(503, f"{error}; format=json needs no rendering") from error
        except ValueError as error:  # the camera
            raise Answerable(422, str(error)) from error
        except EncodingError as error:
            others = ", ".join(other for other in ("mp4", "gif", "webp", "png") if other != kind)
            raise Answerable(
                500, f"{error}; try format={others}, or json, which needs no pictures"
            ) from error

    @staticmethod
    def _sheet_fps(rollout: Rollout, environment: Environment) -> float:
        """Return the rate at which a rollout shows about as many states as a sheet has pictures."""
        steps = sum(episode.length for episode in rollout.evaluation.episodes)
        return max(1e-3, (SHEET_PICTURES - 1) / (steps * environment.spec.step_seconds))

    def _environment(self, side: int, rollout: Rollout) -> Environment:
        """Return an environment to draw with; two sides that are drawn in turns have one each."""
        from apprentice.environments import make_environment

        settings = rollout.settings
        key = f"{side} {rollout.task} {settings.model_dump_json()}"
        environment = self._environments.pop(key, None)
        if environment is None:
            while len(self._environments) >= MAX_ENVIRONMENTS:
                self._environments.pop(next(iter(self._environments))).close()
            environment = make_environment(rollout.task, 0, ("state",), settings)
        self._environments[key] = environment  # used last comes last
        return environment

    @staticmethod
    def _frames(
        request: dict[str, Any],
        rollout: Rollout,
        environment: Environment,
        number: int,
        fps: float,
    ) -> Iterator[np.ndarray]:
        from apprentice.evaluation import render_trajectory

        trajectory = rollout.evaluation.episodes[number].trajectory
        assert trajectory is not None
        return render_trajectory(
            rollout.task,
            rollout.settings,
            trajectory,
            width=request["width"],
            height=request["height"],
            camera=request["camera"],
            fps=fps,
            quality=rollout.quality,
            environment=environment,
        )


def _bounded(frames: Iterator[np.ndarray], request: dict[str, Any]) -> Iterator[np.ndarray]:
    """Pass frames on as long as they fit into memory together."""
    num_bytes = 0
    for frame in frames:
        num_bytes += frame.nbytes
        if num_bytes > MAX_HELD_BYTES:
            raise Answerable(
                422,
                f"{request['format']}: expected frames of at most {MAX_HELD_BYTES >> 20} MiB together, "
                "found more; ask for smaller ones, fewer of them (fps, max_steps), or format=mp4",
            )
        yield frame


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
