"""Families: parameters, divisions, shaping, and what is hidden from whom."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest
from pydantic import ValidationError

from actor.walking import TaskEnvironments, TaskWalk, WalkingEnvironment
from apprentice.config import EnvironmentSettings, Experiment
from apprentice.config_family import SPLITS, FamilySettings
from apprentice.environments import (
    Environment,
    UnknownTask,
    evaluated_tasks,
    experiment_specs,
    make_environment,
    rebuild_environment,
    shown_task,
)
from apprentice.environments.families import FamilyError, Task, TaskSplit, load_family, task_split
from apprentice.environments.reacher_goal import RADIUS
from apprentice.suite_tasks import FAMILIES
from apprentice.types import Ending

STANDARD = FamilySettings()


def settings_of(**family: object) -> EnvironmentSettings:
    return EnvironmentSettings(family=FamilySettings.model_validate(family))


def play(environment: Environment, num_steps: int, seed: int = 0) -> list[float]:
    """Return the rewards of uniformly random actions."""
    actions = np.random.default_rng(seed).uniform(-1, 1, (num_steps, environment.spec.action_size))
    environment.reset()
    return [environment.step(a.astype(np.float32)).environment_reward for a in actions]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_division_is_disjoint_seeded_and_hashed(family: str) -> None:
    for name in load_family(family).splits:
        settings = FamilySettings(split=name)
        split = task_split(family, settings)
        ids = [task.task_id for task in split.tasks]
        assert len(set(ids)) == len(ids)
        assert all(split.of(division) for division in SPLITS)
        again = load_family(family).divide(settings)
        assert (again, again.digest()) == (split, split.digest())
    drawn = [name for name, line in load_family(family).splits.items() if "drawn" in line]
    for name in load_family(family).splits:
        if name not in drawn:
            idle = FamilySettings(split=name, split_seed=1, num_test=2)
            assert list(load_family(family).idle_settings(FamilySettings(split=name))) == []
            assert [line.split(":")[0] for line in load_family(family).idle_settings(idle)] == [
                "environment.family.split_seed",
                "environment.family.num_test",
            ]
            assert task_split(family, idle) == task_split(family, FamilySettings(split=name))
    for name in drawn:
        one, other = (task_split(family, FamilySettings(split=name, split_seed=s)) for s in (0, 1))
        assert one.digest() != other.digest()
        counted = task_split(
            family, FamilySettings(split=name, num_train=3, num_validation=2, num_test=4)
        )
        assert [len(counted.of(division)) for division in SPLITS] == [3, 2, 4]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_division_is_the_standard_one(family: str) -> None:
    assert next(iter(load_family(family).splits)) == STANDARD.split


@pytest.mark.parametrize(
    ("family", "sizes", "digest"),
    [
        ("cheetah_velocity", [17, 8, 16], "7c20db86586b5454"),
        ("point_mass_goal", [16, 8, 16], "c624c868c05fef9b"),
        ("reacher_goal", [16, 8, 16], "a6db9ff2d758c9ea"),
        ("walker_dynamics", [16, 8, 16], "0635277dbec8c696"),
    ],
)
def test_the_standard_divisions_of_our_families_do_not_change(
    family: str, sizes: list[int], digest: str
) -> None:
    split = task_split(family, STANDARD)
    assert [len(split.of(name)) for name in SPLITS] == sizes
    assert split.digest() == digest


def test_tasks_in_two_divisions_are_refused() -> None:
    one, two = (Task("reacher_goal", name, {"x": 0.0, "y": 0.0}) for name in "ab")
    with pytest.raises(FamilyError, match="without a task in common, found .*reacher_goal-a"):
        TaskSplit((one,), (two,), (one,))
    with pytest.raises(FamilyError, match="found one twice"):
        TaskSplit((one, one), (), (two,))


def angles_of(tasks: tuple[Task, ...]) -> np.ndarray:
    return np.array([math.atan2(t.parameters["y"], t.parameters["x"]) for t in tasks])


def test_reacher_goals_lie_where_they_should() -> None:
    split = task_split("reacher_goal", STANDARD)
    for task in split.tasks:
        assert math.hypot(*task.parameters.values()) == pytest.approx(RADIUS, abs=1e-5)
    turn = 2 * math.pi / 32
    train = np.sort(np.round(angles_of(split.train) / turn) % 32)
    test = np.sort(np.round(angles_of(split.test) / turn) % 32)
    assert train.tolist() == list(range(0, 32, 2))
    assert test.tolist() == list(range(1, 32, 2))


@pytest.mark.parametrize("division", ["arcs", "arcs_turned"])
def test_arcs_hold_test_goals_far_from_train_goals(division: str) -> None:
    split = task_split("reacher_goal", FamilySettings(split=division))
    assert [len(split.of(name)) for name in SPLITS] == [16, 8, 16]

    def nearest(tasks: tuple[Task, ...]) -> float:
        points = [np.array(list(t.parameters.values())) for t in tasks]
        trained = [np.array(list(t.parameters.values())) for t in split.train]
        return min(float(np.linalg.norm(p - q)) for p in points for q in trained)

    assert nearest(split.test) >= 0.07
    assert (
        nearest(split.validation) < 0.07
    )  # settings may be chosen by those without touching the held-out arcs


def test_turned_arcs_test_where_the_others_train() -> None:
    arcs = task_split("reacher_goal", FamilySettings(split="arcs"))
    turned = task_split("reacher_goal", FamilySettings(split="arcs_turned"))
    for trained, tested in ((arcs.train, turned.test), (turned.train, arcs.test)):
        apart = angles_of(trained)[:, None] - angles_of(tested)[None, :]
        nearest = np.abs((apart + math.pi) % (2 * math.pi) - math.pi).min(axis=1)
        assert nearest.max() < 0.1  # radians; an arc's goals lie 0.48 or less from end to end


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_hidden_from_the_state_and_offered_to_the_privileged(family: str) -> None:
    split = task_split(family, STANDARD)
    tasks = (split.train[0], split.test[-1])
    keys = ("state", "task_parameters")
    environments = [make_environment(task.task_id, 0, keys) for task in tasks]
    first, second = (environment.reset().observation for environment in environments)
    if family in ("cheetah_velocity", "point_mass_goal", "reacher_goal"):  # whose bodies are alike
        np.testing.assert_array_equal(first["state"], second["state"])
    assert not np.array_equal(first["task_parameters"], second["task_parameters"])
    for environment, task in zip(environments, tasks, strict=True):
        spec = environment.spec
        assert (spec.task_id, spec.task_parameters) == (task.task_id, dict(task.parameters))
        assert spec.observation["task_parameters"].shape == (len(task.parameters),)
        assert (np.abs(load_family(family).observed_parameters(task)) <= 1.0).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_an_episode_ends_at_its_time_limit_with_discount_one(family: str) -> None:
    environment = make_environment(shown_task(family, EnvironmentSettings()), 3)
    environment.reset()
    action = np.zeros(environment.spec.action_size, np.float32)
    for number in range(environment.spec.episode_steps):
        step = environment.step(action)
        assert step.ending == (
            Ending.TIME_LIMIT if number == environment.spec.episode_steps - 1 else Ending.GOES_ON
        )
        assert step.discount == 1.0
    assert all(math.isfinite(value) for value in environment.episode_metrics().values())


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("cheetah_velocity", {"speed_error", "settled_speed_error"}),
        ("point_mass_goal", {"steps_within_0.03", "steps_within_0.01", "final_distance"}),
        ("reacher_goal", {"steps_within_0.05", "steps_within_0.02", "final_distance"}),
        ("walker_dynamics", {"mean_speed"}),
    ],
)
def test_our_families_measure_more_than_the_return(family: str, names: set[str]) -> None:
    environment = make_environment(shown_task(family, EnvironmentSettings()), 3)
    environment.reset()
    assert set(environment.episode_metrics()) == names


@pytest.mark.parametrize("family", ["reacher_goal", "point_mass_goal"])
@pytest.mark.parametrize("action_repeat", [1, 3])
def test_shaping_telescopes(family: str, action_repeat: int) -> None:
    """The discounted sum is gamma^T Phi(s_T) - Phi(s_0), whatever was played before: Ng et al. 1999."""
    shaped = settings_of(gamma=0.97).model_copy(update={"action_repeat": action_repeat})
    plain = settings_of(shaping=False).model_copy(update={"action_repeat": action_repeat})
    first, other = (task.task_id for task in task_split(family, shaped.family).train[:2])

    def shaping_of(environment: Environment, bare: Environment) -> tuple[float, float]:
        environment.reset()
        bare.reset()
        start = environment._task.potential(environment._physics)
        total, discount = 0.0, 1.0
        actions = np.random.default_rng(1).uniform(-1, 1, (30, 2)).astype(np.float32)
        for action in actions:
            with_shaping = environment.step(action)
            without = bare.step(action)
            if with_shaping.ending != Ending.GOES_ON:
                break
            total += discount * (with_shaping.environment_reward - without.environment_reward)
            discount *= 0.97
        else:
            end = environment._task.potential(environment._physics)
            return total, discount * end - start
        raise AssertionError("expected longer episodes")

    for task in (first, other, first):
        pair = [make_environment(task, 5, ("state",), s) for s in (shaped, plain)]
        for _ in range(3):
            assert pair[0].spec.episode_steps > 30
            found, expected = shaping_of(pair[0], pair[1])
            assert found == pytest.approx(expected, abs=1e-9)


def test_the_potential_is_not_zeroed_at_a_time_limit() -> None:
    shaped, plain = (
        make_environment("reacher_goal-x0.200_y0.000-22ab3f31", 2, ("state",), settings)
        for settings in (settings_of(gamma=0.9), settings_of(shaping=False))
    )
    shaped.reset()
    plain.reset()
    action = np.zeros(2, np.float32)
    for _ in range(99):
        shaped.step(action)
        plain.step(action)
    before = shaped._task.potential(shaped._physics)
    difference = shaped.step(action).environment_reward - plain.step(action).environment_reward
    after = shaped._task.potential(shaped._physics)
    assert after < -0.01
    assert difference == pytest.approx(0.9 * after - before, abs=1e-9)


def test_shaping_does_not_depend_on_the_task_before() -> None:
    """Each task's episodes on a walk over tasks are those of an environment that plays it alone."""
    settings = settings_of(gamma=0.98)
    ids = [task.task_id for task in task_split("reacher_goal", settings.family).train[:3]]

    def build(task: int, number: int) -> Environment:
        return make_environment(ids[task], number, ("state",), settings)

    def rewards_of(environment: Environment | WalkingEnvironment) -> list[float]:
        environment.reset()
        actions = np.random.default_rng(3).uniform(-1, 1, (20, 2)).astype(np.float32)
        return [environment.step(action).environment_reward for action in actions]

    walking = WalkingEnvironment(TaskWalk(len(ids), (0,)), TaskEnvironments(build))
    alone = [build(task, 0) for task in range(len(ids))]
    visited = []
    for _ in range(9):
        found = rewards_of(walking)
        visited.append(walking.task_index)
        assert found == rewards_of(alone[walking.task_index])
    assert any(one != other for one, other in itertools.pairwise(visited))
    assert set(visited) == {0, 1, 2}


def test_the_first_potential_is_that_of_the_start_and_not_of_the_last_episode() -> None:
    environment = make_environment(
        "reacher_goal-x0.200_y0.000-22ab3f31", 2, ("state",), settings_of(gamma=0.98)
    )
    play(environment, 100)
    state = environment.reset().observation["state"]
    finger = state[4:6].astype(np.float64)
    assert environment._last_potential == pytest.approx(
        -float(np.linalg.norm(finger - [0.2, 0.0])), abs=1e-6
    )


def test_the_reward_counts_steps_near_the_goal() -> None:
    environment = make_environment(
        "reacher_goal-x0.200_y0.000-22ab3f31", 4, ("state",), settings_of(shaping=False)
    )
    rewards = play(environment, 60)
    metrics = environment.episode_metrics()
    assert set(rewards) <= {0.0, 1.0}
    assert metrics["steps_within_0.05"] == sum(rewards)
    assert metrics["steps_within_0.02"] <= metrics["steps_within_0.05"]
    finger = environment._physics.named.data.geom_xpos["finger", :2]
    assert metrics["final_distance"] == pytest.approx(float(np.linalg.norm(finger - [0.2, 0.0])))


def test_the_cheetah_is_rewarded_for_its_own_speed() -> None:
    split = task_split("cheetah_velocity", STANDARD)
    rewards = {}
    for task in (split.train[0], split.train[-1]):
        environment = make_environment(task.task_id, 1)
        rewards[task.parameters["speed"]] = np.mean(play(environment, 20))
        speed = abs(float(environment._physics.speed()) - task.parameters["speed"])
        step = environment.step(np.zeros(6, np.float32))
        now = abs(float(environment._physics.speed()) - task.parameters["speed"])
        assert step.environment_reward == pytest.approx(max(0.0, 1 - now / 3.0))
        assert speed != now
    assert rewards[0.0] > rewards[3.0]  # at random it hardly moves


def test_the_walker_s_body_is_the_task_s() -> None:
    task = load_family("walker_dynamics").task(mass=2.0, friction=0.5, damping=1.5)
    plain = load_family("walker_dynamics").task(mass=1.0, friction=1.0, damping=1.0)
    models = [
        load_family("walker_dynamics").load(t, 0, STANDARD).physics.model for t in (task, plain)
    ]
    np.testing.assert_allclose(models[0].body_mass[1:], 2.0 * models[1].body_mass[1:])
    np.testing.assert_allclose(models[0].body_inertia[1:], 2.0 * models[1].body_inertia[1:])
    np.testing.assert_allclose(models[0].geom_friction, 0.5 * models[1].geom_friction)
    np.testing.assert_allclose(models[0].dof_damping[3:], 1.5 * models[1].dof_damping[3:])
    original = make_environment("walker-walk", 0)._model
    np.testing.assert_allclose(models[1].body_mass, original.body_mass)


def test_a_hidden_target_is_not_drawn() -> None:
    task = task_split("reacher_goal", STANDARD).test[0].task_id
    pictures = []
    for shown in (True, False):
        environment = make_environment(task, 0, ("state",), settings_of(show_target=shown))
        environment.reset()
        pictures.append(environment.render(64, 64).astype(int))
        environment.close()
    assert np.abs(pictures[0] - pictures[1]).max() > 60


def test_an_environment_is_rebuilt_from_its_parameters_alone() -> None:
    settings = settings_of(split="continuous", num_train=3)
    task = task_split("reacher_goal", settings.family).train[0]
    spec = make_environment(task.task_id, 0, ("state",), settings).spec
    found = rebuild_environment(spec, ("state",), EnvironmentSettings())  # another division
    assert found.spec == spec


def test_tasks_of_an_experiment() -> None:
    settings = EnvironmentSettings()
    specs = experiment_specs("reacher_goal", ("state", "task_parameters"), settings)
    split = task_split("reacher_goal", settings.family)
    assert [spec.task_id for spec in specs] == [task.task_id for task in split.train]
    assert specs[3] == make_environment(specs[3].task_id, 0, ("state", "task_parameters")).spec
    assert evaluated_tasks("reacher_goal", settings) == tuple(t.task_id for t in split.validation)
    assert shown_task("reacher_goal", settings) == split.test[0].task_id
    assert evaluated_tasks("reacher-easy", settings) == ("reacher-easy",)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("reacher_goal", "expected one task, found the family 'reacher_goal'; name one"),
        ("reacher_goal-x0.2", "expected one of the 40 tasks .* did you mean reacher_goal-x0.200"),
        ("reacher_gaol-x0.2", "expected a task of the DeepMind Control Suite"),
    ],
)
def test_unknown_tasks_are_named(task: str, message: str) -> None:
    with pytest.raises(UnknownTask, match=message):
        make_environment(task, 0)


def test_a_policy_can_be_looked_at_in_a_task_of_another_fixed_division() -> None:
    arcs = task_split("reacher_goal", FamilySettings(split="arcs"))
    task = arcs.test[0].task_id
    for name in ("standard", "continuous"):
        settings = EnvironmentSettings(family=FamilySettings(split=name))
        assert task not in {t.task_id for t in task_split("reacher_goal", settings.family).tasks}
        assert make_environment(task, 0, settings=settings).spec.task_id == task
    drawn = task_split("reacher_goal", FamilySettings(split="continuous")).test[0].task_id
    with pytest.raises(UnknownTask, match="of reacher_goal's division 'arcs', found"):
        make_environment(drawn, 0, settings=settings_of(split="arcs"))


def test_bad_settings_are_named() -> None:
    with pytest.raises(UnknownTask, match="expected one of .*'arcs'.* found 'arc'"):
        experiment_specs("reacher_goal", ("state",), settings_of(split="arc"))
    with pytest.raises(FamilyError, match="expected x from -0.2 to 0.2 m, found 0.3"):
        load_family("reacher_goal").task(x=0.3, y=0.0)
    with pytest.raises(FamilyError, match=r"expected \['x', 'y'\], found \['x'\]"):
        load_family("reacher_goal").task(x=0.1)
    with pytest.raises(FamilyError, match="did you mean 'reacher_goal'"):
        load_family("reacher_goals")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sac": {"gamma": 0.99}}, "environment.family.gamma: expected sac.gamma"),
        ({"task": "reacher-easy", "sac": {"gamma": 0.9}}, "exist only for families"),
        ({"replay": {"sampling": "mixed"}}, "replay.sampling: expected 'transitions'"),
        (
            {"reads": {"policy": ["pixels"]}},
            "reads: expected no 'pixels' with the family reacher_goal",
        ),
        ({"reads": {"critic": ["state", "pixels"]}}, "reads: expected no 'pixels'"),
    ],
)
def test_an_experiment_must_fit_its_family(changes: dict[str, object], message: str) -> None:
    keys = ["state", "task_parameters"]
    given = {
        "name": "n",
        "task": "reacher_goal",
        "sac": {"gamma": 0.98},
        "reads": {"policy": keys, "critic": keys},
        **changes,
    }
    with pytest.raises(ValidationError, match=message):
        Experiment.model_validate(given)


def test_one_task_of_a_family_may_be_learned_from_pixels() -> None:
    task = task_split("reacher_goal", STANDARD).train[0].task_id
    given = {"name": "n", "task": task, "sac": {"gamma": 0.98}, "reads": {"policy": ["pixels"]}}
    assert "pixels" in Experiment.model_validate(given).observation_keys


def test_changing_the_task_is_quick() -> None:
    """One millisecond at most, once a task's physics is compiled."""
    ids = [task.task_id for task in task_split("walker_dynamics", STANDARD).train[:4]]
    built: list[str] = []

    def build(task: int, number: int) -> Environment:
        built.append(ids[task])
        return make_environment(ids[task], number)

    def seconds(environment: Environment | WalkingEnvironment) -> float:
        begun = time.perf_counter()
        environment.reset()
        return time.perf_counter() - begun

    walking = WalkingEnvironment(TaskWalk(len(ids), (0,)), TaskEnvironments(build))
    for _ in ids:
        walking.reset()
    visited, switching = [], []
    for _ in range(200):
        before = walking.task_index
        switching.append(seconds(walking))
        visited.append((before, walking.task_index))
    assert sum(one != other for one, other in visited) > 150
    assert sorted(built) == sorted(ids)
    alone = make_environment(ids[0], 0)
    assert np.median(switching) - np.median([seconds(alone) for _ in range(200)]) < 1e-3
