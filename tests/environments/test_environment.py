"""Environments against the suite's own, over many tasks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from dm_control import suite

from apprentice.config import EnvironmentSettings
from apprentice.environments import (
    PhysicsFault,
    UnknownTask,
    environment_spec,
    make_environment,
    suite_tasks,
)
from apprentice.types import Ending

SOME_TASKS = (
    "reacher-easy",
    "cheetah-run",
    "finger-turn_hard",
    "ball_in_cup-catch",
    "fish-swim",
    "swimmer-swimmer6",
    "manipulator-bring_ball",
    "quadruped-escape",
    "humanoid_CMU-run",
    "lqr-lqr_2_1",
    "point_mass-hard",
)


def flatten(observation: dict[str, np.ndarray]) -> np.ndarray:
    parts = [np.ravel(value) for value in observation.values()]
    return np.concatenate(parts).astype(np.float32)


@pytest.mark.parametrize("task", SOME_TASKS)
def test_steps_equal_those_of_the_suite(task: str) -> None:
    ours = make_environment(task, seed=3)
    domain, name = task.split("-", 1)
    if task == "quadruped-escape":
        theirs = make_environment(task, seed=3)._suite  # the suite's own asks for a GL context
    else:
        theirs = suite.load(domain, name, task_kwargs={"random": 3})
    generator = np.random.default_rng(0)
    spec = theirs.action_spec()
    step, expected = ours.reset(), theirs.reset()
    for _ in range(25):
        np.testing.assert_array_equal(step.observation["state"], flatten(expected.observation))
        action = generator.uniform(-1, 1, ours.spec.action_size)
        low = np.where(np.isfinite(spec.minimum), spec.minimum, -1.0)
        high = np.where(np.isfinite(spec.maximum), spec.maximum, 1.0)
        step, expected = ours.step(action), theirs.step(low + (action + 1) / 2 * (high - low))
        assert step.environment_reward == pytest.approx(float(expected.reward), rel=1e-12)
        assert step.discount == expected.discount
        assert (step.ending != Ending.GOES_ON) == expected.last()
        if expected.last():
            break


@pytest.mark.parametrize("task", suite_tasks())
def test_every_task_keeps_to_its_spec_its_seed_and_its_time_limit(task: str) -> None:
    environment = make_environment(task, seed=1)
    spec = environment.spec
    generator = np.random.default_rng(0)
    actions = generator.uniform(-1, 1, (3, spec.action_size)).astype(np.float32)

    def episode_start() -> list[np.ndarray]:
        steps = [environment.reset(), *(environment.step(action) for action in actions)]
        for step in steps:
            assert step.observation["state"].shape == spec.observation["state"].shape
            assert step.observation["state"].dtype == np.float32
        return [step.observation["state"] for step in steps]

    first, second = episode_start(), episode_start()
    environment.seed(1)
    again = episode_start()
    environment.seed(2)
    other = episode_start()
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, other)
    environment.reset()
    environment._step_limit = 1.0
    step = environment.step(actions[0])
    assert (step.ending, step.discount) == (Ending.TIME_LIMIT, 1.0)  # never a termination


def test_observations_do_not_share_memory() -> None:
    environment = make_environment("reacher-easy", seed=0)
    first = environment.reset().observation["state"]
    kept = first.copy()
    environment.step(np.ones(2, np.float32))
    np.testing.assert_array_equal(first, kept)


def test_a_time_limit_keeps_discount_one() -> None:
    environment = make_environment("pendulum-swingup", seed=0)
    environment.reset()
    number = 0
    while number < 1001:
        number += 1
        step = environment.step(np.zeros(1))
        if step.ending != Ending.GOES_ON:
            break
    assert (number, step.ending, step.discount) == (1000, Ending.TIME_LIMIT, 1.0)
    assert environment.spec.episode_steps == 1000


def test_a_terminating_task_keeps_its_discount_of_zero() -> None:
    environment = make_environment("lqr-lqr_2_1", seed=0)
    environment.reset()
    environment._task.get_termination = lambda physics: 0.0
    step = environment.step(np.zeros(1))
    assert (step.ending, step.discount) == (Ending.TERMINATED, 0.0)


def test_a_hopper_that_falls_ends_its_episode_with_discount_zero() -> None:
    environment = make_environment("hopper-hop_until_fall", seed=0)
    start = environment.reset()
    assert abs(start.observation["state"][1]) < 1e-6  # upright
    lengths = []
    for _ in range(5):
        environment.reset()
        length, ending = 0, Ending.GOES_ON
        while ending == Ending.GOES_ON:
            _, _, discount, ending = environment.step(np.zeros(4))
            length += 1
        assert (ending, discount) == (Ending.TERMINATED, 0.0)
        lengths.append(length)
    assert min(lengths) > 10 and max(lengths) < 60  # without a torque it falls within 1.2 s


def test_action_repeat_sums_rewards_and_divides_the_episode() -> None:
    once = make_environment("cartpole-balance", seed=5)
    settings = EnvironmentSettings(action_repeat=8)
    repeated = make_environment("cartpole-balance", seed=5, settings=settings)
    once.reset(), repeated.reset()
    action = np.array([0.3])
    steps = [once.step(action) for _ in range(8)]
    step = repeated.step(action)
    assert step.environment_reward == pytest.approx(sum(s.environment_reward for s in steps))
    np.testing.assert_array_equal(step.observation["state"], steps[-1].observation["state"])
    assert repeated.spec.episode_steps == 125
    assert repeated.spec.step_seconds == pytest.approx(0.08)
    num = 1
    while step.ending == Ending.GOES_ON:
        step = repeated.step(action)
        num += 1
    assert (num, step.ending) == (125, Ending.TIME_LIMIT)


def test_an_action_repeat_that_does_not_divide_the_limit_ends_early() -> None:
    settings = EnvironmentSettings(action_repeat=3)
    environment = make_environment("cartpole-balance", seed=5, settings=settings)
    environment.reset()
    num, step = 0, None
    while step is None or step.ending == Ending.GOES_ON:
        step = environment.step(np.zeros(1))
        num += 1
    assert num == environment.spec.episode_steps == 334


def test_a_physics_error_becomes_a_fault_and_a_reset_mends_it() -> None:
    environment = make_environment("cheetah-run", seed=0)
    environment.reset()

    environment._physics.data.qvel[0] = np.nan
    with pytest.raises(
        PhysicsFault, match=r"cheetah-run, seed 0, control step 0: MuJoCo warned of .*BADQ"
    ):
        environment.step(np.zeros(6))
    environment.reset()
    assert environment.step(np.zeros(6)).ending == Ending.GOES_ON


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_state_that_is_not_finite_is_a_fault(bad: float) -> None:
    environment = make_environment("cheetah-run", seed=0)
    environment.reset()
    real = environment._task.get_observation

    def spoiled(physics: object) -> dict[str, np.ndarray]:
        observation = real(physics)
        observation["velocity"][2] = bad
        return dict(observation)

    environment._task.get_observation = spoiled
    with pytest.raises(PhysicsFault, match="not finite"):
        environment.step(np.zeros(6))


def test_rebuilding_goes_on_with_other_episodes() -> None:
    environment = make_environment("reacher-easy", seed=0)
    before = environment.reset().observation["state"]
    environment.rebuild()
    assert not np.array_equal(before, environment.reset().observation["state"])


def test_an_unknown_task_names_its_neighbours() -> None:
    with pytest.raises(UnknownTask, match="did you mean 'cheetah-run'"):
        make_environment("cheeta-run", seed=0)


def test_unknown_observation_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="expected observation keys"):
        make_environment("cheetah-run", seed=0, observation=("state", "sound"))


def test_a_spec_needs_no_graphics_and_is_the_environments_own() -> None:
    settings = EnvironmentSettings(width=32, height=24, frame_stack=2)
    spec = environment_spec("reacher-easy", ("state", "pixels"), settings)
    assert spec.observation["pixels"].shape == (2, 24, 32, 3)
    assert spec == make_environment("reacher-easy", 7, ("state", "pixels"), settings).spec
    other = environment_spec("reacher-easy", ("state",), settings)
    assert other.digest() != spec.digest()
