"""Evaluation: seeds, returns, and pictures of exactly what happened."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from apprentice.config import EnvironmentSettings, Experiment
from apprentice.environments import environment_spec, make_environment, probe_rendering
from apprentice.evaluation import (
    EvaluationError,
    EvaluationTimeout,
    environment_seed,
    evaluate,
    playback_fps,
    render_trajectory,
    shown_states,
)
from apprentice.networks import Policy, build_policy
from apprentice.trajectories import TrajectoryError, load_trajectory, save_trajectory
from apprentice.types import Ending

TASK = "cartpole-swingup"
SETTINGS = EnvironmentSettings(action_repeat=8)


def make_policy(seed: int = 0) -> Policy:
    experiment = Experiment(name="test", task=TASK, environment=SETTINGS)
    spec = environment_spec(TASK, ("state",), SETTINGS)
    return Policy(build_policy(experiment, spec), seed)


def test_the_same_seeds_give_the_same_episodes_whatever_runs_beside_them() -> None:
    policy = make_policy()
    together = evaluate(policy, TASK, range(20), settings=SETTINGS)
    assert [episode.seed for episode in together.episodes] == list(range(20))
    assert {episode.length for episode in together.episodes} == {125}
    assert {episode.ending for episode in together.episodes} == {Ending.TIME_LIMIT}
    alone = evaluate(policy, TASK, [18], settings=SETTINGS)
    assert alone.episodes[0].environment_return == pytest.approx(
        together.episodes[18].environment_return, rel=1e-4
    )
    assert len({episode.environment_return for episode in together.episodes}) > 10


def test_each_of_several_tasks_may_have_seeds_of_its_own() -> None:
    policy, tasks = make_policy(), [TASK, "cartpole-balance"]
    seeds = {TASK: range(2), "cartpole-balance": range(7, 9)}
    found = evaluate(policy, tasks, seeds, settings=SETTINGS, max_steps=3).episodes
    assert [(episode.task, episode.seed) for episode in found] == [
        (TASK, 0),
        (TASK, 1),
        ("cartpole-balance", 7),
        ("cartpole-balance", 8),
    ]
    alone = evaluate(policy, tasks[1], [7, 8], settings=SETTINGS, max_steps=3).episodes
    returns = [episode.environment_return for episode in alone]
    assert [episode.environment_return for episode in found[2:]] == pytest.approx(returns, rel=1e-4)
    problem = f"as many of each task, found 2 of one and {{}} of {TASK}; give each its own"
    for changed, number in (({**seeds, TASK: [0]}, 1), ({tasks[1]: range(7, 9)}, 0)):
        with pytest.raises(EvaluationError, match=problem.format(number)):
            evaluate(policy, tasks, changed, settings=SETTINGS)


def test_the_return_is_what_the_environment_gave() -> None:
    policy = make_policy()
    evaluation = evaluate(policy, TASK, [3], settings=SETTINGS)
    environment = make_environment(TASK, environment_seed(3), settings=SETTINGS)
    step, total = environment.reset(), 0.0
    while step.ending == Ending.GOES_ON:
        observation = {"state": step.observation["state"][None]}
        step = environment.step(policy.act(observation, deterministic=True).action[0])
        total += step.environment_reward
    assert evaluation.episodes[0].environment_return == pytest.approx(total, rel=1e-5)


def test_start_states_are_not_those_of_training_seeds() -> None:
    assert len({environment_seed(seed) for seed in range(1000)} | set(range(1000))) == 2000


def test_steps_can_be_limited() -> None:
    episode = evaluate(make_policy(), TASK, [0], settings=SETTINGS, max_steps=7).episodes[0]
    assert (episode.length, episode.ending) == (7, Ending.GOES_ON)


def test_a_deadline_ends_it() -> None:
    with pytest.raises(EvaluationTimeout, match="not over at their deadline"):
        evaluate(make_policy(), TASK, range(3), settings=SETTINGS, deadline_seconds=0.0)


def test_a_policy_that_is_not_finite_is_refused() -> None:
    policy = make_policy()
    for tensor in policy._tensors.values():
        tensor.fill_(float("nan"))
    with pytest.raises(EvaluationError, match="not finite"):
        evaluate(policy, TASK, [0], settings=SETTINGS)


def test_a_task_without_the_camera_that_the_policy_sees_through_is_refused() -> None:
    seeing = EnvironmentSettings(action_repeat=8, camera=3)
    with pytest.raises(EvaluationError, match=r"environment.camera.*ball_in_cup-catch.*found 3"):
        evaluate(make_policy(), "ball_in_cup-catch", [0], observation=("pixels",), settings=seeing)


def test_kept_trajectories_are_the_episode() -> None:
    evaluation = evaluate(make_policy(), TASK, [0, 1], settings=SETTINGS, keep_trajectories=1)
    first, second = evaluation.episodes
    assert second.trajectory is None
    trajectory = first.trajectory
    assert trajectory is not None
    assert trajectory.environment_reward.sum() == pytest.approx(first.environment_return, rel=1e-5)
    assert trajectory.observation["state"].shape == (126, 5)
    assert len(trajectory.physics_state) == 126
    np.testing.assert_allclose(np.tanh(trajectory.pre_tanh_action), trajectory.action, atol=1e-6)
    environment = make_environment(TASK, environment_seed(0), settings=SETTINGS)
    environment.reset()
    for action, observation, state in zip(
        trajectory.action,
        trajectory.observation["state"][1:],
        trajectory.physics_state[1:],
        strict=True,
    ):
        np.testing.assert_array_equal(environment.step(action).observation["state"], observation)
        np.testing.assert_array_equal(environment.physics_state(), state)


@pytest.mark.skipif(probe_rendering().name == "none", reason="nothing draws here")
def test_a_stored_episode_is_drawn_as_it_was_live(tmp_path: Path) -> None:
    settings = EnvironmentSettings()
    experiment = Experiment(name="test", task="reacher-easy")
    spec = environment_spec("reacher-easy", ("state",), settings)
    policy = Policy(build_policy(experiment, spec), 0)
    evaluation = evaluate(
        policy, "reacher-easy", [5], settings=settings, max_steps=12, keep_trajectories=1
    )
    trajectory = evaluation.episodes[0].trajectory
    assert trajectory is not None
    path = tmp_path / "episode.safetensors"
    save_trajectory(path, trajectory, task="reacher-easy", settings=settings)
    stored = load_trajectory(path)
    assert (stored.task, stored.settings) == ("reacher-easy", settings)
    assert stored.trajectory.seed == 5
    drawn = list(
        render_trajectory(
            stored.task, stored.settings, stored.trajectory, width=64, height=48, fps=25
        )
    )
    live = make_environment("reacher-easy", environment_seed(5))
    live.reset()
    expected = [live.render(64, 48)]
    for action in trajectory.action:
        live.step(action)
        expected.append(live.render(64, 48))
    np.testing.assert_array_equal(drawn, expected[::2])  # 25 of 50 states a second
    live.close()


def test_frames_play_in_real_time() -> None:
    assert shown_states(1000, 0.02, 25) == list(range(0, 1001, 2))
    assert shown_states(1000, 0.02, 50) == list(range(1001))
    assert shown_states(1000, 0.02, 100) == list(range(1001))
    assert playback_fps(0.02, 100) == 50
    assert len(shown_states(1000, 0.02, 30)) == 601
    assert shown_states(125, 0.08, 25) == list(range(126))
    assert playback_fps(0.08, 25) == 12.5


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    evaluation = evaluate(
        make_policy(), TASK, [0], settings=SETTINGS, max_steps=3, keep_trajectories=1
    )
    trajectory = evaluation.episodes[0].trajectory
    assert trajectory is not None
    path = tmp_path / "episode.safetensors"
    save_trajectory(path, trajectory, task=TASK, settings=SETTINGS)
    return path


def test_a_truncated_trajectory_is_refused(stored: Path) -> None:
    data = stored.read_bytes()
    for length in range(0, len(data), max(1, len(data) // 40)):
        stored.write_bytes(data[:length])
        with pytest.raises(TrajectoryError):
            load_trajectory(stored)


def test_a_future_trajectory_is_refused(stored: Path) -> None:
    data = stored.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"]["format_version"] = "2"
    text = json.dumps(header).encode()
    stored.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])
    with pytest.raises(TrajectoryError, match="expected format version 1, found 2"):
        load_trajectory(stored)
