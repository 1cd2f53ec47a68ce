"""An environment: the suite's own physics and rewards, stepped with little in between."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import mujoco
import numpy as np
from dm_control.rl.control import PhysicsError

from apprentice.config import EnvironmentSettings
from apprentice.environments.families import Task, load_family
from apprentice.environments.renderer import Quality, Renderer, camera_index
from apprentice.environments.simulation import Simulation
from apprentice.environments.tasks import load_task
from apprentice.profiling import Profile
from apprentice.types import ArraySpec, Ending, EnvironmentSpec, Observation, TimeStep

LONGEST_EPISODE = 1000
"""Control steps after which an episode of a task without a time limit of its own is cut."""

MAX_RENDERERS = 2
"""Sizes and qualities that are kept ready to be drawn: each costs some 40 MiB."""

_STATE = mujoco.mjtState.mjSTATE_INTEGRATION


class PhysicsFault(Exception):
    """The simulation left the finite numbers; the step does not count and a reset must follow."""


class Environment:
    """One task with its own simulation, random state and frames.

    Time limits keep discount 1; only a true termination has discount 0.
    """

    def __init__(
        self, task: Task, seed: int, observation: Sequence[str], settings: EnvironmentSettings
    ) -> None:
        self.profile: Profile | None = None
        self.task_index = 0
        self._task_identity = task
        self._settings = settings
        self._keys = tuple(observation)
        self._renderers: dict[tuple[int, int, str], Renderer] = {}
        self._frames: deque[np.ndarray] = deque(maxlen=settings.frame_stack)
        self._num_steps = 0
        self._build(seed)
        self._task_parameters: np.ndarray | None = None
        if "task_parameters" in self._keys and task.parameters:
            self._task_parameters = load_family(task.domain).observed_parameters(task)
        self.spec = self._make_spec()

    def _build(self, seed: int) -> None:
        suite_environment = load_task(self._task_identity, seed, self._settings.family)
        self._seed = seed
        # The model of lqr is drawn from the same stream, before the first episode.
        drawn: Any = suite_environment.task.random.get_state(legacy=False)
        fresh: Any = np.random.RandomState(seed).get_state(legacy=False)
        self._builds_at_random = not (
            drawn["state"]["pos"] == fresh["state"]["pos"]
            and np.array_equal(drawn["state"]["key"], fresh["state"]["key"])
        )
        self._suite = suite_environment
        self._task: Any = suite_environment.task
        self._potential: Any = None
        if self._settings.family.shaping:
            self._potential = getattr(self._task, "potential", None)
        self._last_potential = 0.0
        self._physics: Any = suite_environment.physics
        _forget_contexts(self._physics)
        self._model: Any = self._physics.model.ptr
        self._data: Any = self._physics.data.ptr
        self._simulation = Simulation(self._physics)
        self._num_substeps: int = suite_environment._n_sub_steps
        limit = float(suite_environment._step_limit)
        self._step_limit = limit if math.isfinite(limit) else float(LONGEST_EPISODE)
        low, high = self._action_bounds()
        self._action_middle, self._action_half = 0.5 * (high + low), 0.5 * (high - low)
        self._unit_actions = bool(np.all(low == -1.0) and np.all(high == 1.0))
        self._pristine: dict[str, np.ndarray] | None = None
        example = self._task.get_observation(self._physics)
        self._slices: list[tuple[str, int, int]] = []
        start = 0
        for key, value in example.items():
            size = int(np.size(value))
            self._slices.append((key, start, start + size))
            start += size
        self._state = np.zeros(start, np.float32)
        self._zeros = np.zeros(start, np.float32)

    def _action_bounds(self) -> tuple[np.ndarray, np.ndarray]:
        spec = self._suite.action_spec()
        low = np.broadcast_to(np.asarray(spec.minimum, np.float64), spec.shape)
        high = np.broadcast_to(np.asarray(spec.maximum, np.float64), spec.shape)
        # Actuators without limits (lqr) take actions as they are.
        return np.where(np.isfinite(low), low, -1.0), np.where(np.isfinite(high), high, 1.0)

    def _make_spec(self) -> EnvironmentSpec:
        settings = self._settings
        specs: dict[str, ArraySpec] = {}
        if "state" in self._keys:
            specs["state"] = ArraySpec((len(self._state),), "float32")
        if "pixels" in self._keys:
            shape = (settings.frame_stack, settings.height, settings.width, 3)
            specs["pixels"] = ArraySpec(shape, "uint8")
        if self._task_parameters is not None:
            specs["task_parameters"] = ArraySpec(self._task_parameters.shape, "float32")
        unknown = sorted(set(self._keys) - set(specs))
        if unknown or not specs:
            raise ValueError(
                "expected observation keys out of 'state', 'pixels', and 'task_parameters' for a task of a family; "
                f"found {list(self._keys)} for {self._task_identity.task_id}"
            )
        return EnvironmentSpec(
            task=self._task_identity.task_id,
            task_id=self._task_identity.task_id,
            observation=specs,
            action=ArraySpec((len(self._action_half),), "float32"),
            episode_steps=math.ceil(self._step_limit / settings.action_repeat),
            action_repeat=settings.action_repeat,
            step_seconds=float(self._suite.control_timestep()) * settings.action_repeat,
            task_parameters=dict(self._task_identity.parameters),
        )

    def seed(self, seed: int) -> None:
        """Start the random stream anew; the next episode is the first of a new environment's."""
        if self._builds_at_random:
            self.close()
            self._build(seed)
            return
        self._seed = seed
        self._task.random.seed(seed)

    def rebuild(self) -> None:
        """Compile the physics again, with a random stream that goes on from the old one."""
        self.close()
        self._build(int(self._task.random.randint(2**31 - 1)))

    def reset(self) -> TimeStep:
        """Start an episode."""
        self._num_steps = 0
        with self._physics.reset_context():
            self._task.initialize_episode(self._physics)
        self._simulation.reset()
        self._read_state()
        if (
            self._potential is not None
        ):  # the kinematics are those of the start: the context saw to it
            self._last_potential = self._potential(self._physics)
        if "pixels" in self._keys:
            frame = self._frame()
            self._frames.extend([frame] * self._settings.frame_stack)
        return TimeStep(self._observation(), 0.0, 1.0, Ending.GOES_ON)

    def step(self, action: np.ndarray) -> TimeStep:
        """Apply an action [A] in [-1, 1] for the action repeat and return what follows.

        Rewards are summed over the repeat, which ends early where the episode ends. Where the task has a
        potential Phi, and shaping is on, gamma * Phi(s') - Phi(s) is added, at a time limit too. Raises
        PhysicsFault where the simulation or what it yields is not finite.
        """
        task, physics, simulation = self._task, self._physics, self._simulation
        profile = self.profile
        control = action if self._unit_actions else self._action_middle + self._action_half * action
        total, discount, ending = 0.0, 1.0, Ending.GOES_ON
        try:
            for _ in range(self._settings.action_repeat):
                task.before_step(control, physics)
                simulation.step(self._num_substeps)
                task.after_step(physics)
                total += task.get_reward(physics)
                self._num_steps += 1
                if self._num_steps >= self._step_limit:
                    ending = Ending.TIME_LIMIT
                    break
                termination = task.get_termination(physics)
                if termination is not None:
                    discount = float(termination)
                    ending = Ending.TERMINATED
                    break
        except PhysicsError as error:
            raise self._fault(str(error).strip()) from error
        if self._potential is not None:
            potential = 0.0 if ending is Ending.TERMINATED else self._potential(physics)
            total += self._settings.family.gamma * potential - self._last_potential
            self._last_potential = potential
        if profile is not None:
            profile.lap("physics")
        self._read_state()
        # The product is NaN exactly where an entry is NaN or infinite, and ten times cheaper than
        # numpy.isfinite.
        if not math.isfinite(total) or self._state.dot(self._zeros) != 0.0:
            raise self._fault("an observation or reward is not finite")
        if profile is not None:
            profile.lap("observation")
        if "pixels" in self._keys:
            self._frames.append(self._frame())
            if profile is not None:
                profile.lap("rendering")
        return TimeStep(self._observation(), float(total), discount, ending)

    @property
    def task(self) -> Task:
        """Which task this is."""
        return self._task_identity

    def episode_metrics(self) -> dict[str, float]:
        """Return what the task measures of the episode so far, beside its reward; nothing for the suite's."""
        measure = getattr(self._task, "episode_metrics", None)
        return {} if measure is None else dict(measure(self._physics))

    def physics_state(self) -> np.ndarray:
        """Return the whole integration state, float64 [P]: what `restore` needs to draw it again."""
        state = np.empty(mujoco.mj_stateSize(self._model, _STATE), np.float64)
        mujoco.mj_getState(self._model, self._data, state, _STATE)
        return state

    def model_fields(self) -> dict[str, np.ndarray]:
        """Return copies of the model's arrays that differ from the compiled model: targets, terrain.

        The first call builds the task once more to compare with.
        """
        return {
            name: getattr(self._model, name).copy()
            for name, compiled in self._compiled().items()
            if not np.array_equal(getattr(self._model, name), compiled, equal_nan=True)
        }

    def restore(self, physics_state: np.ndarray, model_fields: Mapping[str, np.ndarray]) -> None:
        """Put the simulation into a stored moment, for rendering or for going on from it."""
        compiled = self._compiled()
        unknown = sorted(set(model_fields) - set(compiled))
        if unknown:
            raise ValueError(f"expected fields of this task's model, found {unknown}")
        for name, value in model_fields.items():
            if value.shape != compiled[name].shape:
                raise ValueError(
                    f"{name}: expected shape {list(compiled[name].shape)}, found {list(value.shape)}"
                )
        for name in self.model_fields().keys() | model_fields.keys():
            getattr(self._model, name)[:] = model_fields.get(name, compiled[name])
        self.set_physics_state(physics_state)

    def set_physics_state(self, physics_state: np.ndarray) -> None:
        """Move to another moment [P] of an episode whose model fields are in place already."""
        expected = mujoco.mj_stateSize(self._model, _STATE)
        if physics_state.shape != (expected,):
            raise ValueError(
                f"expected a physics state of {expected} numbers, found shape {physics_state.shape}; "
                "it was recorded with another task or MuJoCo version"
            )
        mujoco.mj_setState(self._model, self._data, physics_state, _STATE)
        mujoco.mj_step1(self._model, self._data)
        self._simulation.reset()

    def state_at(self, position: Mapping[int, float], velocity: Mapping[int, float]) -> np.ndarray:
        """Return `state` [O] of the present episode with some generalised coordinates put elsewhere.

        Keys are indices of MuJoCo's qpos and qvel; the others stay. Raises ValueError.
        """
        data = self._data
        for name, changes, values in (
            ("position", position, data.qpos),
            ("velocity", velocity, data.qvel),
        ):
            for index, value in changes.items():
                if not 0 <= index < len(values):
                    raise ValueError(f"{name}: expected from 0 to {len(values) - 1}, found {index}")
                values[index] = value
        mujoco.mj_forward(self._model, data)
        self._simulation.reset()
        self._read_state()
        return self._state.copy()

    def render(
        self,
        width: int = 320,
        height: int = 320,
        camera: int | str = 0,
        quality: Quality = "look",
    ) -> np.ndarray:
        """Draw the present moment as uint8 [H, W, 3]; contexts are kept, those used last."""
        index = camera_index(self._model, camera)
        key = (width, height, quality)
        renderer = self._renderers.pop(key, None)
        if renderer is None:
            while len(self._renderers) >= MAX_RENDERERS:
                self._renderers.pop(next(iter(self._renderers))).close()
            renderer = Renderer(self._model, width, height, quality)
        self._renderers[key] = renderer  # used last comes last
        return renderer.render(self._data, index)

    def close(self) -> None:
        """Free the graphics contexts, if any were made."""
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()

    def _frame(self) -> np.ndarray:
        settings = self._settings
        return self.render(
            settings.width, settings.height, settings.camera, settings.render_quality
        )

    def _read_state(self) -> None:
        state, observation = self._state, self._task.get_observation(self._physics)
        for key, start, end in self._slices:
            value = observation[key]
            if end - start == 1:
                state[start] = value if np.ndim(value) == 0 else value.item()
            elif value.ndim == 1:
                state[start:end] = value
            else:
                state[start:end] = value.ravel()

    def _observation(self) -> Observation:
        result: Observation = {}
        if "state" in self._keys:
            result["state"] = self._state.copy()
        if "pixels" in self._keys:
            result["pixels"] = np.stack(self._frames)
        if self._task_parameters is not None:
            result["task_parameters"] = self._task_parameters
        return result

    def _fault(self, reason: str) -> PhysicsFault:
        return PhysicsFault(
            f"{self._task_identity.task_id}, seed {self._seed}, control step {self._num_steps}: {reason}"
        )

    def _compiled(self) -> dict[str, np.ndarray]:
        if self._pristine is None:
            model = load_task(self._task_identity, 0, self._settings.family).physics.model.ptr
            self._pristine = {
                name: value.copy()
                for name in dir(model)
                if not name.startswith("_")
                and isinstance(value := getattr(model, name), np.ndarray)
            }
        return self._pristine


def _forget_contexts(physics: Any) -> None:
    """Let the task believe that nobody renders through dm_control: quadruped-escape asks at reset."""
    cls = type(physics)
    physics.__class__ = type(cls.__name__, (cls,), {"contexts": None})
