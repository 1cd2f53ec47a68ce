"""Measuring a policy on tasks it never learned, with what it is shown drawn from the run's own folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apprentice.checkpoint import load_policy
from apprentice.config_family import SplitName
from apprentice.demonstrations.context import ContextChoice, context_of
from apprentice.demonstrations.family import FamilyDemonstrations
from apprentice.evaluation import Evaluation, EvaluationError, EvaluationTimeout, evaluate
from apprentice.family_evaluation import (
    evaluate_family,
    method_label,
    periodic_latent_metrics,
    read_family_evaluation,
    write_family_evaluation,
)
from apprentice.latents import LatentPoint, latent_metrics, principal_plane
from tests.family_cases import FAMILY, family_demonstrations, family_experiment, family_run

TOLD = {key: ["state", "task_parameters"] for key in ("policy", "critic", "discriminator")}
BLIND = {key: ["state"] for key in ("policy", "critic", "discriminator")}


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> FamilyDemonstrations:
    return family_demonstrations(tmp_path_factory.mktemp("family") / "demos")


def test_each_task_is_measured_with_each_number_of_demonstrations(
    tmp_path: Path, demonstrations: FamilyDemonstrations
) -> None:
    folder, checkpoint = family_run(tmp_path, demonstrations)
    found = evaluate_family(checkpoint, episodes=2)
    assert found.sizes == (1, 2)  # 4 and 8 are more than there are
    test_tasks = [task.task_id for task in demonstrations.tasks("test")]
    for size in found.sizes:
        results = found.of_size(size)
        assert [result.task_id for result in results] == test_tasks
        for result in results:
            assert set(result.metrics) == {
                "steps_within_0.05",
                "steps_within_0.02",
                "final_distance",
            }
            assert result.environment_return == pytest.approx(result.metrics["steps_within_0.05"])
            assert (result.expert_return, result.random_return) == (80.0, 4.0)
            assert result.normalised == pytest.approx((result.environment_return - 4.0) / 76.0)
            assert set(result.parameters) == {"x", "y"}
    assert {point.split for point in found.points} == {"train", "validation", "test"}
    assert {"probe_train", "probe_test", "latent_spread_over_noise", "swapped_return"} <= set(
        found.latent
    )
    assert read_family_evaluation(folder.evaluations) is None
    write_family_evaluation(folder.evaluations, found)
    assert read_family_evaluation(folder.evaluations) == found
    assert found == evaluate_family(checkpoint, episodes=2)


def test_a_policy_that_infers_nothing_is_measured_once(
    tmp_path: Path, demonstrations: FamilyDemonstrations
) -> None:
    _, checkpoint = family_run(tmp_path, demonstrations, reads=BLIND)
    found = evaluate_family(checkpoint, episodes=1)
    assert found.sizes == (0,)
    assert (found.latent, found.points) == ({}, ())
    assert found.results[0].expert_return == 80.0


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_what_is_shown_is_of_the_task_that_is_played(
    tmp_path: Path, demonstrations: FamilyDemonstrations, split: SplitName
) -> None:
    _, checkpoint = family_run(tmp_path, demonstrations)
    policy, _ = load_policy(checkpoint)
    library = context_of(checkpoint)
    tasks = library.tasks(split)
    seeds = range(3)
    found = evaluate(
        policy,
        tasks,
        seeds,
        settings=family_experiment().environment,
        context=ContextChoice(library, 1),
    )
    assert [(e.task, e.seed) for e in found.episodes] == [(t, s) for t in tasks for s in seeds]
    for episode in found.episodes:
        assert episode.context == library.draw(episode.task, 1, episode.seed)
    assert found.report()["episodes"][0]["context"] == list(found.episodes[0].context)


def test_other_demonstrations_make_another_episode_and_the_same_ones_the_same(
    tmp_path: Path, demonstrations: FamilyDemonstrations
) -> None:
    _, checkpoint = family_run(tmp_path, demonstrations)
    policy, _ = load_policy(checkpoint)
    library = context_of(checkpoint)
    task = library.tasks("test")[0]
    first, second = library.of_task(task)

    def episode(numbers: tuple[int, ...], among: int = 1) -> np.ndarray:
        shown = ContextChoice(library, numbers=numbers)
        found = evaluate(
            policy,
            task,
            range(5, 5 + among),
            settings=family_experiment().environment,
            context=shown,
            keep_trajectories=1,
            max_steps=10,
        )
        assert found.episodes[0].trajectory is not None
        return found.episodes[0].trajectory.action

    np.testing.assert_array_equal(episode((first,)), episode((first,)))
    np.testing.assert_allclose(episode((first,)), episode((first,), among=4), atol=1e-6)
    np.testing.assert_allclose(episode((first, second)), episode((second, first)), atol=1e-5)
    assert not np.allclose(episode((first,)), episode((second,)), atol=1e-4)


def test_a_policy_is_shown_something_exactly_where_it_infers_its_task(
    tmp_path: Path, demonstrations: FamilyDemonstrations
) -> None:
    _, checkpoint = family_run(tmp_path, demonstrations)
    library = context_of(checkpoint)
    settings, task = family_experiment().environment, library.tasks("test")[0]
    with pytest.raises(EvaluationError, match="expected demonstrations to be shown"):
        evaluate(load_policy(checkpoint)[0], task, [0], settings=settings)
    _, other = family_run(tmp_path, None, reads=BLIND)
    with pytest.raises(EvaluationError, match="expected no context"):
        evaluate(
            load_policy(other)[0], task, [0], settings=settings, context=ContextChoice(library)
        )


def test_periodic_metrics_do_not_look_at_test_tasks(
    tmp_path: Path, demonstrations: FamilyDemonstrations
) -> None:
    _, checkpoint = family_run(tmp_path, demonstrations)
    policy, _ = load_policy(checkpoint)
    experiment = family_experiment()
    tasks = context_of(checkpoint).tasks("validation")
    found = periodic_latent_metrics(checkpoint, policy, experiment, tasks, 0)
    assert {"probe_train", "probe_validation", "swapped_return"} <= set(found)
    assert not [name for name in found if "test" in name]


def test_a_task_that_is_alone_is_not_shown_another_ones_demonstrations(tmp_path: Path) -> None:
    alone = {"num_train": 2, "num_validation": 1, "num_test": 1}
    family = family_demonstrations(tmp_path / "demos", **alone)
    environment = {"family": {**FAMILY, **alone}}
    _, checkpoint = family_run(tmp_path, family, environment=environment)
    found = evaluate_family(checkpoint, episodes=1)
    assert "probe_train" in found.latent
    assert "swapped_return" not in found.latent
    policy, _ = load_policy(checkpoint)
    tasks = context_of(checkpoint).tasks("validation")
    experiment = family_experiment(environment=environment)
    assert "swapped_return" not in periodic_latent_metrics(checkpoint, policy, experiment, tasks, 0)


@pytest.mark.parametrize("late", [2, 3])  # with two demonstrations shown, with another task's
def test_what_was_not_measured_whole_by_the_deadline_is_no_result(
    tmp_path: Path,
    demonstrations: FamilyDemonstrations,
    late: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, checkpoint = family_run(tmp_path, demonstrations)
    measured: list[float] = []

    def evaluate_in_time(*arguments: Any, deadline_seconds: float, **settings: Any) -> Evaluation:
        measured.append(deadline_seconds)
        if len(measured) == late:
            deadline_seconds = 0.0
        return evaluate(*arguments, deadline_seconds=deadline_seconds, **settings)

    monkeypatch.setattr("apprentice.family_evaluation.evaluate", evaluate_in_time)
    with pytest.raises(EvaluationTimeout, match="2 tasks to be measured whole .*`apprentice fam"):
        evaluate_family(checkpoint, episodes=1)
    assert len(measured) == late


def points(noise: float, heeds: bool = True) -> tuple[list[LatentPoint], dict[str, np.ndarray]]:
    """Latents that are the parameters turned and stretched, or that do not depend on them."""
    random = np.random.default_rng(0)
    turn = np.linalg.qr(random.normal(size=(5, 5)))[0][:, :2] * 3.0
    found, told = [], {}
    for number in range(60):
        split: SplitName = ("train", "validation", "test")[number % 3]  # type: ignore[assignment]
        task = f"task-{number // 3}-{split}"
        told[task] = random.uniform(-1, 1, 2)
        for _ in range(4):
            mean = turn @ told[task] * heeds + noise * random.normal(size=5) + 7.0
            found.append(LatentPoint(len(found), task, split, mean, np.full(5, noise)))
    return found, told


def test_the_probe_finds_parameters_that_are_there_and_none_that_are_not() -> None:
    clear = latent_metrics(*points(0.01))
    assert clear["probe_test"] > 0.99
    assert clear["probe_validation"] > 0.99
    assert clear["latent_spread_over_noise"] > 20.0
    nothing = latent_metrics(*points(1.0, heeds=False))
    assert nothing["probe_test"] < 0.3
    assert nothing["latent_spread_over_noise"] < 1.0


def test_the_plane_shows_what_varies() -> None:
    found, told = points(0.01)
    placed = principal_plane(found)
    assert placed.shape == (len(found), 2)
    near = placed[0] - placed[1:4]
    far = placed[0] - placed[4:]
    assert np.linalg.norm(near, axis=1).max() < 0.2 < np.linalg.norm(far, axis=1).mean()
    assert len(told) == 60


@pytest.mark.parametrize(
    ("changes", "label"),
    [
        ({}, "dac-posterior"),
        ({"context": {"pretrain_updates": 5}}, "dac-posterior-pretrained"),
        ({"context": {"pretrain_updates": 5, "learned": False}}, "dac-posterior-pretrained-frozen"),
        ({"context": {"learned_updates": 9}}, "dac-posterior-settled"),
        ({"context": {"encoder": "context_window"}}, "dac-context_window"),
        ({"reads": BLIND}, "dac-blind"),
        ({"reads": TOLD}, "dac-told"),
        ({"network": {"task_products": True}}, "dac-posterior-products"),
        ({"context": {"linear": True}}, "dac-posterior-linear"),
        ({"context": {"information_coefficient": 0.1}}, "dac-posterior-information0.1"),
        ({"replay": {"tasks_per_batch": 5}}, "dac-posterior-5tasks"),
        ({"imitation": {"method": "dac", "demonstrations": {"experts": 3}}}, "dac-posterior-3experts"),
        ({"imitation": {"method": "dac", "imagined_share": 0.5}}, "dac-posterior-imagined0.5"),
        ({"network": {"task_products": True}, "reads": TOLD, "imitation": {"method": "none"}}, "sac-told-products"),
        ({"sac": {"gamma": 0.98, "batch_size": 32, "policy_weight_decay": 1.0}}, "dac-posterior-decay0+1"),
        ({"imitation": {"method": "dac", "discriminator": {"weight_decay": 0.3}}}, "dac-posterior-decay0.3+0"),
        ({"imitation": {"method": "bc", "discriminator": {"weight_decay": 0.3}}}, "bc-posterior"),
        ({"imitation": {"method": "bc", "demonstrations": {"episodes": 1, "subsampling": 20}}}, "bc-posterior-1x20"),
        ({"reads": {**TOLD, "discriminator": ["state"]}, "imitation": {"method": "none"}}, "sac-told"),
    ],
)  # fmt: skip
def test_methods_are_named_by_what_they_know_and_learn_from(changes: dict, label: str) -> None:  # type: ignore[type-arg]
    assert method_label(family_experiment(**changes)) == label
