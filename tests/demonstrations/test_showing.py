"""How a request says what is to be shown, and that a policy heeds it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from apprentice.checkpoint import experiment_of, load_policy
from apprentice.demonstrations.asking import parse_context
from apprentice.demonstrations.context import (
    ContextChoice,
    ContextLibrary,
    choose_context,
)
from apprentice.demonstrations.family import INDEX, FamilyDemonstrations, read_family
from apprentice.demonstrations.format import DemonstrationError
from apprentice.evaluation import EvaluationError, evaluate
from apprentice.runs import CONTEXT, Catalogue
from tests.evalserver.family_runs import STEPS, make_family_run, task_of


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    return Catalogue(root).resolve(make_family_run(root)).path


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("1", 1),
        ("0", 0),
        ("12", 12),
        ("ids:7", (7,)),
        ("ids:7,9", (7, 9)),
        ("#7", (7,)),
        ("#7,#9", (7, 9)),
    ],
)
def test_a_number_is_how_many_and_ids_are_which(asked: str, meant: int | tuple[int, ...]) -> None:
    assert parse_context(asked) == meant


@pytest.mark.parametrize(
    "asked",
    [
        "",
        " 1",
        "-1",
        "1.0",
        "7,9",
        "ids:",
        "ids:7,",
        "#7,9",
        "#",
        "two",
        "1000",
        "٣",
        "1\n",
        "mine.hdf5",
    ],
)
def test_what_is_neither_is_refused_with_both_forms(asked: str) -> None:
    with pytest.raises(DemonstrationError, match=r"as in 2, or which, as in ids:7,9"):
        parse_context(asked)


def test_a_policy_heeds_which_demonstrations_it_is_shown(checkpoint: Path) -> None:
    policy, manifest = load_policy(checkpoint)
    experiment = experiment_of(manifest)
    task = task_of("test", 0)

    def actions(asked: str) -> bytes:
        evaluation = evaluate(
            policy,
            task,
            [3],
            settings=experiment.environment,
            max_steps=5,
            keep_trajectories=1,
            context=choose_context(asked, checkpoint, True, [task]),
        )
        kept = evaluation.episodes[0].trajectory
        assert kept is not None
        return kept.action.tobytes()

    assert actions("ids:4") == actions("#4") != actions("ids:5")


def test_demonstrations_of_another_shape_are_refused(checkpoint: Path) -> None:
    policy, manifest = load_policy(checkpoint)
    folder = checkpoint.parent.parent / CONTEXT
    assert (folder / INDEX).is_file()
    library = narrow(read_family(folder, ("context",)))
    with pytest.raises(
        EvaluationError, match="context: expected demonstrations of 8 numbers a state"
    ):
        evaluate(
            policy,
            task_of("test", 0),
            [3],
            settings=experiment_of(manifest).environment,
            context=library,
        )


def narrow(family: FamilyDemonstrations) -> ContextChoice:
    """Return a choice out of demonstrations whose states lack a number."""
    sets = {}
    for name, one in family.sets.items():
        cut = [
            t._replace(observation={"state": t.observation["state"][:, 1:]})
            for t in one.trajectories
        ]
        assert len(cut[0].action) == STEPS
        sets[name] = replace(one, trajectories=tuple(cut))
    return ContextChoice(ContextLibrary.of(replace(family, sets=sets)))
