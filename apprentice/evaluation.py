"""Policy and task and seeds in, episodes and returns out, and pictures of what was kept.

The learner's periodic evaluation, the evaluation server and `apprentice evaluate` all come here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from apprentice.config import EnvironmentSettings
from apprentice.demonstrations.context import ContextChoice
from apprentice.environments import Environment, find_task, make_environment
from apprentice.environments.renderer import Quality, camera_index
from apprentice.environments.tasks import load_task
from apprentice.rollout import rollout
from apprentice.types import ActionBatch, Ending, Observation, Trajectory

MAX_BATCH = 16
"""Episodes run side by side, with one forward of the policy for all of them."""
STREAM = 0x0E7A1
"""Mixed into every evaluation seed, so that no start state is one of training's."""


class EvaluationError(Exception):
    """The policy cannot be evaluated; the message says why."""


class EvaluationTimeout(EvaluationError):
    """The episodes took longer than they may."""


class Acts(Protocol):
    """What is evaluated: a policy, or anything else that chooses actions."""

    def act(self, observation: Observation, deterministic: bool) -> ActionBatch:
        """Choose for K environments."""


@runtime_checkable
class InfersTask(Protocol):
    """A policy that may have to be shown demonstrations before it acts."""

    @property
    def infers_task(self) -> bool:
        """Whether it has to."""

    def show(self, place: int, demonstrations: Sequence[np.ndarray], deterministic: bool) -> None:
        """Show demonstrations of the task that environment `place` plays."""


class Episode(NamedTuple):
    """One evaluated episode."""

    task: str  # its id
    seed: int
    environment_return: float
    length: int  # agent steps
    ending: Ending
    trajectory: Trajectory | None
    metrics: dict[str, float]  # what a family's task measures beside the return
    context: tuple[int, ...] = ()  # numbers of the demonstrations that were shown


class Evaluation(NamedTuple):
    """All episodes, in the order of their seeds."""

    episodes: tuple[Episode, ...]
    seconds: float

    @property
    def return_mean(self) -> float:
        """Mean of the episodes' returns."""
        return float(np.mean([episode.environment_return for episode in self.episodes]))

    @property
    def metrics_mean(self) -> dict[str, float]:
        """Mean over episodes of what a family's tasks measure; empty for the suite's."""
        names = self.episodes[0].metrics
        return {n: float(np.mean([e.metrics[n] for e in self.episodes])) for n in names}

    def report(self) -> dict[str, Any]:
        """Return the returns as JSON tells them: of all episodes, and of each."""
        returns = [episode.environment_return for episode in self.episodes]
        return {
            "return_mean": self.return_mean,
            "return_min": min(returns),
            "return_max": max(returns),
            **({"metrics": metrics} if (metrics := self.metrics_mean) else {}),
            "episodes": [
                {
                    "task": episode.task,
                    "seed": episode.seed,
                    "environment_return": episode.environment_return,
                    "length": episode.length,
                    "ending": episode.ending.name.lower(),
                    **({"metrics": episode.metrics} if episode.metrics else {}),
                    **({"context": list(episode.context)} if episode.context else {}),
                }
                for episode in self.episodes
            ],
        }


def environment_seed(seed: int) -> int:
    """Return the environment's seed of the evaluation episode `seed`."""
    return int(np.random.SeedSequence([STREAM, seed]).generate_state(1)[0])


def evaluate(
    policy: Acts,
    task: str | Sequence[str],
    seeds: Sequence[int] | Mapping[str, Sequence[int]],
    *,
    observation: Sequence[str] = ("state",),
    settings: EnvironmentSettings | None = None,
    deterministic: bool = True,
    max_steps: int | None = None,
    keep_trajectories: int = 0,
    deadline_seconds: float = 600.0,
    context: ContextChoice | None = None,
) -> Evaluation:
    """Run one whole episode for each seed, or its first `max_steps` agent steps.

    Of several tasks each is given every seed, or its own where `seeds` maps each to as many as the others;
    episodes come task by task. The first `keep_trajectories` episodes are kept whole. Returns never contain shaping.
    A policy that infers its task is shown what `context` chooses. Raises EvaluationTimeout; EvaluationError where the
    policy or the physics give numbers that are not finite, what is shown does not fit the policy, seeds are missing,
    or a task lacks the camera that it reads; and DemonstrationError where there is nothing to show.
    """
    tasks = [task] if isinstance(task, str) else list(task)
    own = seeds if isinstance(seeds, Mapping) else dict.fromkeys(tasks, seeds)
    lengths = {name: len(own.get(name, ())) for name in tasks}
    num_seeds = max(lengths.values(), default=0)
    fewer = [f"{number} of {name}" for name, number in lengths.items() if number < num_seeds]
    if fewer:
        raise EvaluationError(
            f"seeds: expected as many of each task, found {num_seeds} of one and {', '.join(fewer)}; give each its own"
        )
    if not num_seeds:
        raise EvaluationError("expected one task and one seed or more, found none")
    shows = isinstance(policy, InfersTask) and policy.infers_task
    if shows != (context is not None):
        raise EvaluationError(
            "expected demonstrations to be shown to a policy that infers its task, found none"
            if shows
            else "expected no context: this policy does not infer its task from demonstrations"
        )
    started = time.monotonic()
    deadline = started + deadline_seconds
    settings = unshaped(settings or EnvironmentSettings())
    if "pixels" in observation:
        for name in dict.fromkeys(tasks):
            _require_policys_camera(name, settings)
    episodes: dict[tuple[int, int], Episode] = {}
    environments: dict[tuple[int, str], Environment] = {}
    try:
        for batch in _batches(len(tasks), num_seeds):
            chosen, asked = [], [(tasks[task], own[tasks[task]][number]) for task, number in batch]
            for place, (name, seed) in enumerate(asked):
                if (place, name) not in environments:
                    environments[place, name] = make_environment(name, 0, observation, settings)
                chosen.append(environments[place, name])
                chosen[-1].seed(environment_seed(seed))
            shown = _show(policy, context, asked, deterministic)
            kept = [task * num_seeds + number < keep_trajectories for task, number in batch]
            runner = _Batch(chosen, policy, deterministic, kept)
            ran = runner.run([seed for _, seed in asked], max_steps, deadline)
            for where, episode, numbers in zip(batch, ran, shown, strict=True):
                episodes[where] = episode._replace(context=numbers)
    finally:
        for environment in environments.values():
            environment.close()
    in_order = tuple(episodes[where] for where in sorted(episodes))
    return Evaluation(in_order, time.monotonic() - started)


def _require_policys_camera(task: str, settings: EnvironmentSettings) -> None:
    try:
        require_camera(task, settings, settings.camera)
    except ValueError as error:
        raise EvaluationError(
            f"environment.camera, through which the policy sees: {task}: {error}"
        ) from None


def _batches(num_tasks: int, num_seeds: int) -> Iterator[list[tuple[int, int]]]:
    """Yield what runs side by side, as numbers of task and seed: of several tasks, an environment of each.

    A physics takes as long to build as an episode to play, so that no task is built more often than it must be.
    """
    for first in range(0, num_tasks, MAX_BATCH):
        together = range(first, min(first + MAX_BATCH, num_tasks))
        at_once = MAX_BATCH // len(together)  # seeds of each task
        for start in range(0, num_seeds, at_once):
            numbers = range(start, min(start + at_once, num_seeds))
            yield [(task, number) for number in numbers for task in together]


def _show(
    policy: Acts,
    context: ContextChoice | None,
    batch: Sequence[tuple[str, int]],
    deterministic: bool,
) -> list[tuple[int, ...]]:
    """Show each environment's policy what is chosen for its task and seed; return the numbers."""
    if context is None or not isinstance(policy, InfersTask):
        return [()] * len(batch)
    shown = []
    for place, (task, seed) in enumerate(batch):
        numbers = context.of(task, seed)
        try:
            policy.show(place, context.library.steps(numbers), deterministic)
        except ValueError as error:
            raise EvaluationError(f"context: {error}") from error
        shown.append(numbers)
    return shown


def unshaped(settings: EnvironmentSettings) -> EnvironmentSettings:
    """Return settings whose rewards are the task's own, as returns are reported."""
    family = settings.family.model_copy(update={"shaping": False})
    return settings.model_copy(update={"family": family})


class _Batch:
    """Episodes side by side; what an environment does after its episode's end is not looked at."""

    def __init__(
        self,
        environments: Sequence[Environment],
        policy: Acts,
        deterministic: bool,
        kept: Sequence[bool],
    ) -> None:
        self._environments = environments
        self._policy, self._deterministic = policy, deterministic
        self._recorders = [
            _Recorder(environment) if keep else None
            for environment, keep in zip(environments, kept, strict=True)
        ]
        self._begun = False

    def run(self, seeds: Sequence[int], max_steps: int | None, deadline: float) -> list[Episode]:
        num = len(seeds)
        returns, lengths = np.zeros(num), np.zeros(num, np.int64)
        endings = [Ending.GOES_ON] * num
        running = np.ones(num, bool)
        metrics: list[dict[str, float]] = [{} for _ in seeds]
        for step in rollout(self._environments, self._act):
            returns[running] += step.environment_reward[running]
            lengths[running] += 1
            for index in np.flatnonzero(running):
                recorder = self._recorders[index]
                if step.ending[index] == Ending.ABORTED:
                    raise EvaluationError(f"seed {seeds[index]}: the physics failed")
                if recorder is not None:
                    recorder.add(
                        {key: value[index] for key, value in step.next_observation.items()},
                        step.action[index],
                        step.pre_tanh_action[index],
                        float(step.environment_reward[index]),
                        float(step.discount[index]),
                    )
                if step.ending[index] != Ending.GOES_ON:
                    metrics[index] = self._environments[index].episode_metrics()
                    endings[index] = Ending(int(step.ending[index]))
                    running[index] = False
            if max_steps is not None and lengths.max() >= max_steps:
                for index in np.flatnonzero(running):
                    metrics[index] = self._environments[index].episode_metrics()
                break
            if not running.any():
                break
            if time.monotonic() > deadline:
                raise EvaluationTimeout(
                    f"{num} episodes were not over at their deadline, after {lengths.max()} steps"
                )
        return [
            Episode(
                self._environments[index].task.task_id,
                seed,
                float(returns[index]),
                int(lengths[index]),
                endings[index],
                recorder.trajectory(endings[index], seed) if recorder is not None else None,
                metrics[index],
            )
            for index, (seed, recorder) in enumerate(zip(seeds, self._recorders, strict=True))
        ]

    def _act(self, observation: Observation) -> ActionBatch:
        if not self._begun:
            self._begun = True
            for index, recorder in enumerate(self._recorders):
                if recorder is not None:
                    recorder.begin({key: value[index] for key, value in observation.items()})
        chosen = self._policy.act(observation, self._deterministic)
        if not np.isfinite(chosen.pre_tanh_action).all():
            raise EvaluationError("the policy's actions are not finite")
        return chosen


class _Recorder:
    """Collects one episode with the states to draw it from."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._observations: list[Observation] = []
        self._states: list[np.ndarray] = []
        self._rows: list[tuple[np.ndarray, np.ndarray, float, float]] = []
        self._fields: dict[str, np.ndarray] = {}

    def begin(self, observation: Observation) -> None:
        self._fields = self._environment.model_fields()
        self._observe(observation)

    def add(
        self,
        observation: Observation,
        action: np.ndarray,
        pre_tanh_action: np.ndarray,
        reward: float,
        discount: float,
    ) -> None:
        self._rows.append((action.copy(), pre_tanh_action.copy(), reward, discount))
        self._observe(observation)

    def _observe(self, observation: Observation) -> None:
        self._observations.append(
            {k: (v[-1] if k == "pixels" else v).copy() for k, v in observation.items()}
        )
        self._states.append(self._environment.physics_state())

    def trajectory(self, ending: Ending, seed: int) -> Trajectory:
        actions, pre_tanh, rewards, discounts = zip(*self._rows, strict=True)
        return Trajectory(
            {k: np.stack([o[k] for o in self._observations]) for k in self._observations[0]},
            np.stack(actions),
            np.stack(pre_tanh),
            np.array(rewards, np.float32),
            np.array(discounts, np.float32),
            ending,
            np.stack(self._states),
            self._fields,
            seed,
        )


def shown_states(num_steps: int, step_seconds: float, fps: float) -> list[int]:
    """Return which of states 0..num_steps are shown when an episode plays in real time at `fps`.

    With more frames a second than steps every state is shown once; `playback_fps` then says at what
    rate that is real time.
    """
    stride = max(1.0, 1.0 / (fps * step_seconds))
    count = int(num_steps / stride + 1e-9) + 1
    return [min(num_steps, round(number * stride)) for number in range(count)]


def playback_fps(step_seconds: float, fps: float) -> float:
    """Return the frame rate at which the states that `shown_states` picks play in real time."""
    return min(fps, 1.0 / step_seconds)


def require_camera(task: str, settings: EnvironmentSettings, camera: int | str) -> None:
    """Raise ValueError, with the cameras there are, where a task has no such one."""
    physics = load_task(find_task(task, settings.family), 0, settings.family).physics
    camera_index(physics.model.ptr, camera)


def render_trajectory(
    task: str,
    settings: EnvironmentSettings,
    trajectory: Trajectory,
    *,
    width: int,
    height: int,
    camera: int | str = 0,
    fps: float = 25.0,
    quality: Quality = "look",
    environment: Environment | None = None,
) -> Iterator[np.ndarray]:
    """Draw an episode again from its states, only the frames that are shown: uint8 [H, W, 3] each.

    `environment` may be one of the same task that is kept for its graphics context.
    """
    owned = environment is None
    if environment is None:
        environment = make_environment(task, 0, ("state",), settings)
    try:
        environment.restore(trajectory.physics_state[0], trajectory.model_fields)
        seconds = environment.spec.step_seconds
        for index in shown_states(len(trajectory.action), seconds, fps):
            environment.set_physics_state(trajectory.physics_state[index])
            yield environment.render(width, height, camera, quality)
    finally:
        if owned:
            environment.close()
