"""A family's demonstrations: six sets without an episode in common, refused whole where anything is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from apprentice.config import Experiment
from apprentice.config_family import SPLITS, FamilySettings, SplitName
from apprentice.demonstrations.choosing import require_demonstrations, require_family
from apprentice.demonstrations.family import (
    INDEX,
    ROLES,
    FamilyDemonstrations,
    read_family,
    write_family,
)
from apprentice.demonstrations.format import (
    DemonstrationError,
    DemonstrationMetadata,
    DemonstrationSet,
    Expert,
)
from apprentice.demonstrations.meta_dataset import family_sets
from apprentice.demonstrations.recording import record_family
from apprentice.environments.families import Task, load_family, task_split
from apprentice.types import ArraySpec
from tests.demonstrations.cases import SPEC, demonstrations, trajectory
from tests.family_cases import family_run

SETTINGS = FamilySettings()


def of_task(number: int, num: int = 4, length: int = 6) -> DemonstrationSet:
    spec = replace(
        SPEC, task=f"fake-{number}", task_id=f"fake-{number}", task_parameters={"x": float(number)}
    )
    metadata = demonstrations().metadata.model_copy(update={"environment": spec.to_dict()})
    episodes = tuple(trajectory(100 * number + n, length) for n in range(num))
    return DemonstrationSet(metadata, episodes)


def written(folder: Path, num_episodes: int = 4) -> FamilyDemonstrations:
    recorded: dict[SplitName, dict[str, tuple[DemonstrationSet, int]]] = {
        name: {
            f"fake-{10 * number + task}": (
                of_task(10 * number + task, num_episodes),
                num_episodes // 2,
            )
            for task in range(2)
        }
        for number, name in enumerate(SPLITS, 1)
    }
    write_family(folder, "fake", SETTINGS, "0123", recorded)
    return read_family(folder)


def test_each_trajectory_is_in_exactly_one_of_six_sets(tmp_path: Path) -> None:
    family = written(tmp_path / "demos")
    seen: list[tuple[int, ...]] = []
    for split in SPLITS:
        for task in family.tasks(split):
            for role in ROLES:
                episodes = family.episodes(task.task_id, role)
                assert len(episodes) == 2
                seen += [tuple(e.action.ravel().tobytes()) for e in episodes]
    assert len(seen) == len(set(seen)) == 3 * 2 * 4


def test_the_loaders_six_sets_hold_each_trajectory_once(tmp_path: Path) -> None:
    family = written(tmp_path / "demos")
    sets = [family_sets(family, split, role) for split in SPLITS for role in ROLES]
    digests = [digest for one in sets for digest in one.digests]
    assert len(digests) == len(set(digests)) == 3 * 2 * 4
    assert [one.num_tasks for one in sets] == [2] * 6
    assert len(family_sets(family, "train", "query", episodes=1).digests) == 2
    none = replace(family, index=family.index.model_copy(update={"tasks": ()}))
    with pytest.raises(DemonstrationError, match="expected demonstrations of test tasks"):
        family_sets(none, "test", "context")


def test_a_folder_appears_whole_and_is_never_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "demos"
    first = written(folder)
    assert sorted(file.name for file in folder.iterdir()) == sorted(
        [INDEX, *(f"fake-{n}.hdf5" for n in (10, 11, 20, 21, 30, 31))]
    )
    with pytest.raises(DemonstrationError, match="expected a path that is free"):
        written(folder)
    assert read_family(folder).digest == first.digest
    assert [path.name for path in tmp_path.iterdir()] == ["demos"]
    with pytest.raises(DemonstrationError, match="expected one or more to write"):
        write_family(
            tmp_path / "none", "fake", SETTINGS, "0", {"train": {"fake-1": (of_task(1, 0), 0)}}
        )
    assert [path.name for path in tmp_path.iterdir()] == ["demos"]


def change(folder: Path, **changes: object) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["tasks"][0].update(changes)
    (folder / INDEX).write_text(json.dumps(index))


def test_what_is_wrong_is_refused_with_what_was_expected(tmp_path: Path) -> None:
    folder = tmp_path / "demos"
    with pytest.raises(DemonstrationError, match="expected the index of a family"):
        read_family(folder)
    written(folder)
    whole = (folder / INDEX).read_text()
    for changes, message in (
        ({"context": [0, 1], "query": [1, 2]}, r"found \[1\] in both"),
        ({"context": [0, 0]}, "found one twice"),
        ({"context": []}, "found 0 and 2"),
        ({"query": [7]}, r"expected numbers below 4, found \[7\]"),
        ({"parameters": {"x": 3.0}}, "task: expected fake-10 with .*3.0"),
        ({"sha256": "0" * 64}, "sha256: expected 0000"),
        ({"task_id": "fake-11"}, "found one twice"),
        ({"task_id": "../up"}, "task_id"),
        ({"split": "practice"}, "split"),
    ):
        (folder / INDEX).write_text(whole)
        change(folder, **changes)
        with pytest.raises(DemonstrationError, match=message):
            read_family(folder)
    (folder / INDEX).write_text(whole)
    (folder / "fake-21.hdf5").rename(folder / "fake-9.hdf5")
    with pytest.raises(DemonstrationError, match=r"fake-21.hdf5: expected the demonstrations"):
        read_family(folder)


def test_a_task_without_demonstrations_is_named(tmp_path: Path) -> None:
    family = written(tmp_path / "demos")
    with pytest.raises(DemonstrationError, match="found 'fake-77'"):
        family.episodes("fake-77", "context")


Recorded = dict[SplitName, dict[str, tuple[DemonstrationSet, int]]]


def of_goal(task: Task, told: np.ndarray | None = None) -> tuple[DemonstrationSet, int]:
    """Make up demonstrations of a task of reacher_goal, where `told` says its parameters in every step."""
    made = of_task(0, 3)
    spec = replace(
        SPEC,
        task=task.task_id,
        task_id=task.task_id,
        task_parameters=dict(task.parameters),
        action_repeat=1,
    )
    episodes = made.trajectories
    if told is not None:
        spec = replace(
            spec, observation={**spec.observation, "task_parameters": ArraySpec((2,), "float32")}
        )
        episodes = tuple(
            e._replace(
                observation={
                    **e.observation,
                    "task_parameters": np.tile(told, (len(e.action) + 1, 1)),
                }
            )
            for e in episodes
        )
    metadata = made.metadata.model_copy(update={"environment": spec.to_dict()})
    return DemonstrationSet(metadata, episodes), 1


def reacher(
    folder: Path,
    settings: FamilySettings,
    changed: Callable[[Recorded], None] = lambda recorded: None,
) -> None:
    """Write made-up demonstrations of a division of reacher_goal, changed beforehand."""
    split = task_split("reacher_goal", settings)
    recorded: Recorded = {
        name: {task.task_id: of_goal(task) for task in split.of(name)} for name in SPLITS
    }
    changed(recorded)
    write_family(folder, "reacher_goal", settings, split.digest(), recorded)


def imitates(
    folder: Path, tree: Mapping[str, object] | None = None, **changes: object
) -> Experiment:
    demonstrations = {"file": str(folder), **changes}
    return Experiment.model_validate(
        {
            "name": "test",
            "task": "reacher_goal",
            "sac": {"gamma": 0.98},
            "imitation": {"method": "dac", "demonstrations": demonstrations},
            **(tree or {}),
        }
    )


def test_a_family_s_demonstrations_must_be_of_its_division(tmp_path: Path) -> None:
    reacher(tmp_path / "whole", SETTINGS)
    assert require_family(imitates(tmp_path / "whole")).index.family == "reacher_goal"
    reacher(tmp_path / "arcs", FamilySettings(split="arcs"))
    missing = task_split("reacher_goal", SETTINGS).train[3].task_id
    reacher(tmp_path / "less", SETTINGS, lambda recorded: recorded["train"].pop(missing))
    written(tmp_path / "other")
    for name, message in (
        ("nowhere", "expected the folder of reacher_goal's demonstrations"),
        ("arcs", r"expected the division 'standard' .* found 'arcs' .* set environment.family"),
        ("less", f"found none of .*{missing}"),
        ("other", "expected demonstrations of reacher_goal, found fake's"),
    ):
        with pytest.raises(DemonstrationError, match=message):
            require_demonstrations(imitates(tmp_path / name))
    with pytest.raises(DemonstrationError, match="expected at most 2 to imitate of each task"):
        require_demonstrations(imitates(tmp_path / "whole", episodes=3))


SHOWN = {key: ["state", "latent"] for key in ("policy", "critic", "discriminator")}


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"environment": {"action_repeat": 4}}, "environment.action_repeat: expected 4 as in the .* found 1"),
        ({"sac": {"gamma": 0.98, "batch_size": 15}}, "sac.batch_size: expected a row .* of the 16 .* found 15"),
        ({"reads": SHOWN, "context": {"most": 2}}, "context.most: expected at most 1, .*reacher_goal-x0.200.* found 2"),
        ({"reads": SHOWN, "context": {"episodes": 2}}, "context.episodes: expected at most 1, .*found 2"),
        ({"reads": SHOWN, "context": {"information_coefficient": 1.0}}, "twice context.most, .* at most 1, .*found 2"),
    ],
)  # fmt: skip
def test_what_does_not_fit_a_family_s_demonstrations_is_refused_with_what_would(
    tmp_path: Path, tree: dict[str, object], message: str
) -> None:
    reacher(tmp_path / "demos", SETTINGS)
    require_demonstrations(imitates(tmp_path / "demos", {"reads": SHOWN}))
    with pytest.raises(DemonstrationError, match=message):
        require_demonstrations(imitates(tmp_path / "demos", tree))


def test_a_validation_task_with_too_little_to_show_is_refused(tmp_path: Path) -> None:
    def two_but_for_one(recorded: Recorded) -> None:
        for tasks in recorded.values():
            for number, (task_id, (found, _)) in enumerate(tasks.items()):
                more = tuple(trajectory(1000 + 3 * number + n, 5) for n in range(3))
                tasks[task_id] = (replace(found, trajectories=more), 2)
        task_id, (found, _) = next(iter(recorded["validation"].items()))
        recorded["validation"][task_id] = (found, 1)

    reacher(tmp_path / "demos", SETTINGS, two_but_for_one)
    lacking = task_split("reacher_goal", SETTINGS).validation[0].task_id
    shown: dict[str, object] = {"reads": SHOWN, "context": {"fewest": 2, "most": 2}}
    with pytest.raises(
        DemonstrationError,
        match=f"context.fewest: expected at most 1, as many as {lacking} has to be shown, found 2",
    ):
        require_demonstrations(imitates(tmp_path / "demos", shown))


def test_an_episode_that_is_shown_and_imitated_is_refused(tmp_path: Path) -> None:
    """Whatever it is numbered: files that were put together may hold it twice."""

    def twice(recorded: Recorded) -> None:
        task_id, (found, num) = next(iter(recorded["train"].items()))
        same = (found.trajectories[0], found.trajectories[0]._replace(seed=7))
        recorded["train"][task_id] = (replace(found, trajectories=same), num)

    reacher(tmp_path / "demos", SETTINGS, twice)
    with pytest.raises(DemonstrationError, match="to imitate once, found 0 and 1 the same"):
        read_family(tmp_path / "demos")


def acted(*experts: tuple[float | None, int]) -> DemonstrationMetadata:
    found = [
        Expert(run=f"r{n}", steps=1, digest=f"{n}" * 64, return_mean=mean, return_episodes=episodes)
        for n, (mean, episodes) in enumerate(experts)
    ]
    return demonstrations().metadata.model_copy(
        update={"expert": found[0] if found else None, "other_experts": tuple(found[1:])}
    )


def test_the_return_of_several_experts_is_over_all_their_episodes() -> None:
    assert acted((10.0, 3), (20.0, 1)).expert_return == 12.5
    assert acted((10.0, 0), (20.0, 1)).expert_return == 15.0
    assert acted((0.0, 3)).expert_return == 0.0
    assert acted((10.0, 3), (None, 0)).expert_return is None
    assert acted().expert_return is None
    assert "other_experts" not in acted((10.0, 3)).to_json()
    two = acted((10.0, 3), (20.0, 1))
    assert DemonstrationMetadata.model_validate_json(two.to_json()) == two


def test_as_many_experts_must_have_acted_as_the_experiment_says(tmp_path: Path) -> None:
    def by_two(recorded: Recorded) -> None:
        for tasks in recorded.values():
            for task_id, (found, num) in tasks.items():
                metadata = found.metadata.model_copy(
                    update={
                        key: getattr(acted((10.0, 2), (20.0, 2)), key)
                        for key in ("expert", "other_experts")
                    }
                )
                tasks[task_id] = (replace(found, metadata=metadata), num)

    reacher(tmp_path / "two", SETTINGS, by_two)
    require_demonstrations(imitates(tmp_path / "two", experts=2))
    with pytest.raises(DemonstrationError, match=r"experts: expected 2, .*found 1; .*set it to 2"):
        require_demonstrations(imitates(tmp_path / "two"))


SMALL = FamilySettings(split="continuous", num_train=2, num_validation=1, num_test=1)


def swap(recorded: Recorded) -> None:
    recorded["train"] = dict(reversed(recorded["train"].items()))


def add(recorded: Recorded) -> None:
    task = load_family("reacher_goal").task(x=0.1, y=0.1)
    recorded["train"][task.task_id] = of_goal(task)


def rename(recorded: Recorded) -> None:
    """Give the first train task another task's parameters."""
    task = task_split("reacher_goal", SMALL).train[0]
    other = Task(task.domain, task.name, {"x": 0.1, "y": 0.1})
    recorded["train"][task.task_id] = of_goal(other)


def rescale(recorded: Recorded) -> None:
    """Tell the test task's parameters as if the family's ranges were twice as wide."""
    task = task_split("reacher_goal", SMALL).test[0]
    told = load_family("reacher_goal").observed_parameters(task)
    recorded["test"][task.task_id] = of_goal(task, told / 2)


def tell(recorded: Recorded) -> None:
    task = task_split("reacher_goal", SMALL).test[0]
    told = load_family("reacher_goal").observed_parameters(task)
    recorded["test"][task.task_id] = of_goal(task, told)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (swap, "all train tasks of reacher_goal's division 'continuous' in its order, found another order"),
        (add, "all train tasks .* found .*reacher_goal-x0.100_y0.100-.* beside them"),
        (rename, r"parameters: expected .*, found \{'x': 0.1, 'y': 0.1\}"),
        (rescale, "task_parameters: expected .* in every step, scaled from the family's ranges, found"),
    ],
)  # fmt: skip
def test_tasks_must_be_those_of_their_division_in_its_order_with_the_familys_parameters(
    tmp_path: Path, changed: Callable[[Recorded], None], message: str
) -> None:
    reacher(tmp_path / "whole", SMALL, tell)
    read_family(tmp_path / "whole")
    reacher(tmp_path / "other", SMALL, changed)
    with pytest.raises(DemonstrationError, match=message):
        read_family(tmp_path / "other")


def test_a_digest_that_is_not_of_the_tasks_is_refused(tmp_path: Path) -> None:
    reacher(tmp_path / "demos", SMALL)
    index = json.loads((tmp_path / "demos" / INDEX).read_text())
    for changes, message in (
        ({"split_digest": "0" * 16}, "split_digest: expected .* of these tasks, found 0000"),
        ({"settings": {"split": "gone"}}, "environment.family.split: expected one of"),
    ):
        (tmp_path / "demos" / INDEX).write_text(json.dumps({**index, **changes}))
        with pytest.raises(DemonstrationError, match=message):
            read_family(tmp_path / "demos")


def test_one_call_records_every_task_of_every_division_and_each_trajectory_once(
    tmp_path: Path,
) -> None:
    told = {key: ["state", "task_parameters"] for key in ("policy", "critic", "discriminator")}
    family = {"family": SMALL.model_dump()}
    _, checkpoint = family_run(tmp_path, None, reads=told, environment=family)
    found = record_family([checkpoint], 1, 1, tmp_path / "demos")
    split = task_split("reacher_goal", SMALL)
    seen: list[bytes] = []
    seeds: list[int] = []
    for name in SPLITS:
        assert [t.task_id for t in found.tasks(name)] == [t.task_id for t in split.of(name)]
        for task in found.tasks(name):
            for role in ROLES:
                (episode,) = found.episodes(task.task_id, role)
                assert episode.action.shape == (100, 2)
                seen.append(episode.observation["state"].tobytes() + episode.action.tobytes())
                seeds.append(episode.seed)
    assert len(seen) == len(set(seen)) == 4 * 2
    assert seeds == list(range(1_000_000, 1_000_000 + 4 * 2))
    assert found.num_starting_alike() == 0
    assert found.index.split_digest == split.digest()
    with pytest.raises(DemonstrationError, match="expected a path that is free"):
        record_family([checkpoint], 1, 1, tmp_path / "demos")


def test_several_experts_act_in_turn_and_their_mean_return_is_the_measure(tmp_path: Path) -> None:
    told = {key: ["state", "task_parameters"] for key in ("policy", "critic", "discriminator")}
    family = {"family": SMALL.model_dump()}
    checkpoints = [
        family_run(
            tmp_path / str(size),
            None,
            reads=told,
            environment=family,
            network={"hidden_size": size},
        )[1]
        for size in (8, 16)
    ]
    both = record_family(checkpoints, 3, 2, tmp_path / "both")
    alone = [
        record_family([checkpoint], 3, 2, tmp_path / f"alone-{number}")
        for number, checkpoint in enumerate(checkpoints)
    ]
    for task_id, found in both.sets.items():
        actors = []
        for place, episode in enumerate(found.trajectories):
            first = [own.sets[task_id].trajectories[place].action[0] for own in alone]
            actors.append(int(np.argmin([np.abs(one - episode.action[0]).max() for one in first])))
        assert actors == [0, 1, 0, 0, 1]
        metadata = found.metadata
        assert metadata.expert is not None
        experts = (metadata.expert, *metadata.other_experts)
        assert len({expert.digest for expert in experts}) == len(experts) == 2
        assert [expert.return_episodes for expert in experts] == [3, 2]
        assert metadata.random_return == alone[0].sets[task_id].metadata.random_return
    with pytest.raises(DemonstrationError, match="checkpoints: expected 1 to 1, .*found 2"):
        record_family(checkpoints, 2, 1, tmp_path / "other")
    alien = family_run(
        tmp_path / "alien", None, reads=told, environment={**family, "action_repeat": 2}
    )[1]
    with pytest.raises(
        DemonstrationError,
        match=r"environment.action_repeat: expected 1 as of \S+, found 2; record experts of one",
    ):
        record_family([checkpoints[0], alien], 2, 2, tmp_path / "other")
    with pytest.raises(DemonstrationError, match="found the same one twice"):
        record_family([checkpoints[0]] * 2, 2, 2, tmp_path / "other")
    assert not (tmp_path / "other").exists()
