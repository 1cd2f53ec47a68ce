"""GET /evaluate of a family: which task, which demonstrations are shown, and what is refused with what would fit."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from apprentice.config_family import FamilySettings, SplitName
from apprentice.demonstrations.family import INDEX
from apprentice.environments.families import task_split
from apprentice.runs import EXPERT_EPISODE, EXPERT_RECORD, RunFolder
from tests.evalserver.family_runs import STEPS, make_family_run, task_of
from tests.evalserver.serving import Reply, Server, keep_expert, make_run, needs_graphics

SMALL = {"max_steps": STEPS, "width": 64, "height": 48, "fps": 10}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def run(runs: Path) -> str:
    return make_family_run(runs)


@pytest.fixture(scope="module")
def blind(runs: Path) -> str:
    return make_family_run(runs, "blind", infers=False)


@pytest.fixture(scope="module")
def server(runs: Path, run: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(runs, tmp_path_factory.mktemp("log") / "server.log")
    server.wait_until_ready()
    yield server
    server.end()


def ask(server: Server, run: str, **query: Any) -> Reply:
    return server.get("/evaluate", **{"checkpoint": run, "format": "json", **SMALL, **query})


def refusal(reply: Reply, status: int = 422) -> str:
    assert reply.status == status, reply.body
    assert reply.headers["content-type"] == "application/problem+json"
    return str(reply.json["detail"])


@pytest.mark.parametrize(
    ("split", "numbers"), [("train", {0, 1}), ("validation", {2, 3}), ("test", {4, 5})]
)
def test_one_demonstration_of_any_task_is_shown_unless_more_are_asked_for(
    server: Server, run: str, split: SplitName, numbers: set[int]
) -> None:
    task = task_of(split, 0)
    answer = ask(server, run, task=task, episodes=16).json
    shown = [tuple(episode["context"]) for episode in answer["episodes"]]
    assert answer["task"] == task
    assert all(len(ids) == 1 for ids in shown)
    assert {ids[0] for ids in shown} == numbers
    assert set(answer["episodes"][0]["metrics"]) >= {"final_distance", "steps_within_0.02"}
    both = ask(server, run, task=task, episodes=2, context=2).json
    assert [set(episode["context"]) for episode in both["episodes"]] == [numbers, numbers]
    again = ask(server, run, task=task, seed=3).json["episodes"][0]
    assert (again["seed"], again["context"]) == (3, list(shown[3]))


def test_without_a_task_it_is_the_first_test_task(server: Server, run: str) -> None:
    assert ask(server, run).json["task"] == task_of("test", 0)


def test_ids_say_which_demonstrations_are_shown_and_it_matters(server: Server, run: str) -> None:
    one, other, same = (
        ask(server, run, context=asked).json["episodes"][0] for asked in ("ids:4", "ids:5", "#4")
    )
    assert (one["context"], other["context"]) == ([4], [5])
    assert one == same
    assert one["metrics"]["final_distance"] != other["metrics"]["final_distance"]
    both = ask(server, run, context="ids:5,4").json["episodes"][0]
    assert both["context"] == [5, 4]


@pytest.mark.parametrize("context", ["", "two", "7,9", "-1", "#4;#5", "ids:", "1e1"])
def test_what_is_neither_a_number_nor_ids_is_refused(
    server: Server, run: str, context: str
) -> None:
    found = refusal(ask(server, run, context=context))
    assert "expected how many demonstrations to show, as in 2, or which, as in ids:7,9" in found


@pytest.mark.parametrize(
    ("context", "message"),
    [
        ("0", "expected from 1 to 2 demonstrations"),
        ("3", "expected from 1 to 2 demonstrations"),
        ("ids:0", "demonstrations (4 to 5), each once; found [0]"),
        ("ids:4,4", "demonstrations (4 to 5), each once; found [4, 4]"),
        ("#999999999", "demonstrations (4 to 5), each once"),
    ],
)
def test_what_the_task_does_not_have_is_refused_with_what_it_has(
    server: Server, run: str, context: str, message: str
) -> None:
    assert message in refusal(ask(server, run, context=context))


def test_a_policy_that_infers_nothing_refuses_to_be_shown(
    server: Server, runs: Path, blind: str
) -> None:
    single = make_run(runs, "reach", "reacher-easy")
    for other in (blind, single):
        found = refusal(ask(server, other, context=1))
        assert "expected none, since this policy does not infer its task" in found
        assert ask(server, other).json["episodes"][0]["context"] == []


def test_an_unknown_task_is_refused_with_the_nearest(server: Server, run: str, blind: str) -> None:
    task = task_of("test", 1)
    found = refusal(ask(server, run, task=task[:-1]))
    assert f"did you mean {task}" in found
    elsewhere = task_split("reacher_goal", FamilySettings(split="arcs")).test[0].task_id
    assert f"with demonstrations to show, found '{elsewhere}'" in refusal(
        ask(server, run, task=elsewhere)
    )
    assert ask(server, blind, task=elsewhere).json["task"] == elsewhere
    assert "name one, like" in refusal(ask(server, run, task="reacher_goal"))
    assert "did you mean 'cheetah-run'" in refusal(ask(server, run, task="cheetah-rn"))


def test_a_task_without_demonstrations_is_refused(server: Server, run: str) -> None:
    bare = task_of("test", 9)
    assert f"with demonstrations to show, found '{bare}'" in refusal(ask(server, run, task=bare))


def test_a_run_folder_without_context_or_with_another_is_refused(
    server: Server, runs: Path, run: str
) -> None:
    bare = make_family_run(runs, "bare", context=False)
    assert "expected the demonstrations to show" in refusal(ask(server, bare))
    torn = RunFolder(runs / make_family_run(runs, "torn"))
    next(torn.context.glob("*.hdf5")).write_bytes(b"torn")
    found = refusal(ask(server, torn.path.name))
    assert "sha256: expected" in found
    assert str(runs) not in found
    other = RunFolder(runs / make_family_run(runs, "other"))
    index = other.context / INDEX
    index.write_text(index.read_text().replace('"reacher_goal"', '"point_mass_goal"', 1))
    assert "expected demonstrations of reacher_goal" in refusal(ask(server, other.path.name))


def test_each_side_is_shown_what_fits_it(server: Server, runs: Path, run: str, blind: str) -> None:
    again = make_family_run(runs, "again", steps=200)
    answer = ask(server, run, beside=again, context=2).json
    assert set(answer["episodes"][0]["context"]) == {4, 5}
    assert answer["beside"]["episodes"][0]["context"] == answer["episodes"][0]["context"]
    for left, right in ((run, blind), (blind, run)):
        answer = ask(server, left, beside=right, context="ids:5").json
        shown = {
            answer["run"]: answer["episodes"][0]["context"],
            answer["beside"]["run"]: answer["beside"]["episodes"][0]["context"],
        }
        assert shown == {run: [5], blind: []}


@needs_graphics
def test_the_demonstration_that_was_shown_stands_beside_the_policy(
    server: Server, run: str
) -> None:
    task = task_of("test", 1)
    asked = {"task": task, "beside": "expert", "context": "ids:7"}
    report = ask(server, run, seed=3, **asked).json
    assert report["beside"]["checkpoint"] == "expert"
    assert report["beside"]["task"] == task
    (shown,) = report["beside"]["episodes"]
    assert (shown["context"], shown["seed"], shown["length"]) == ([7], 1001, STEPS)
    assert report["episodes"][0]["context"] == [7]
    assert report["episodes"][0]["seed"] == 3
    sheet = server.get(report["media"]["png"])
    assert sheet.status == 200, sheet.body
    assert sheet.headers["x-apprentice-context"] == "7"
    other = server.get(report["media"]["png"].replace("ids%3A7", "ids%3A6"))
    left, right = (halves(body) for body in (sheet.body, other.body))
    assert np.abs(left[1] - right[1]).mean() > 0.1  # another demonstration
    assert np.abs(left[0] - right[0])[:48, :64].max() == 0  # the same start of the policy
    two = ask(server, run, episodes=2, **{**asked, "context": 1}).json
    assert [e["context"] for e in two["beside"]["episodes"]] == [
        e["context"] for e in two["episodes"]
    ]


def halves(body: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Return what is drawn left and right of a sheet of pairs of pictures."""
    with Image.open(io.BytesIO(body)) as image:
        sheet = np.asarray(image).astype(int)
    pairs = [sheet[:, start : start + 128] for start in range(0, sheet.shape[1], 128)]
    return (
        np.concatenate([pair[:, :64] for pair in pairs]),
        np.concatenate([pair[:, 64:] for pair in pairs]),
    )


def test_a_policy_that_infers_nothing_has_a_demonstration_of_the_task_beside_it(
    server: Server, blind: str
) -> None:
    answer = ask(server, blind, beside="expert", task=task_of("validation", 0)).json
    assert answer["episodes"][0]["context"] == []
    assert answer["beside"]["episodes"][0]["context"] in ([2], [3])


def test_where_a_run_keeps_only_an_episode_the_policy_acts_in_its_task(
    server: Server, runs: Path
) -> None:
    single = make_run(runs, "imitator", "reacher-easy")
    keep_expert(runs / single)
    bare = RunFolder(runs / make_family_run(runs, "kept", infers=False, context=False))
    for name in (EXPERT_EPISODE, EXPERT_RECORD):
        shutil.copy(runs / single / "evaluations" / name, bare.evaluations / name)
    found = refusal(ask(server, bare.path.name, beside="expert"))
    assert "the policy was trained on reacher_goal" in found  # and the episode is reacher-easy's
    found = refusal(ask(server, single, beside="expert", task="reacher-easy"))
    assert "expected one episode of the run's own task" in found


def test_what_is_kept_of_a_rollout_is_forgotten_with_the_context(
    server: Server, runs: Path
) -> None:
    run = RunFolder(runs / make_family_run(runs, "changing"))
    first = ask(server, run.path.name, seed=11, context=2)
    assert first.status == 200
    (run.context / INDEX).rename(run.context / "gone.json")
    assert "expected the demonstrations to show" in refusal(
        ask(server, run.path.name, seed=11, context=2)
    )


def test_the_run_folder_s_index_is_the_one_that_is_written(runs: Path, run: str) -> None:
    assert RunFolder(runs / run).context_index.name == INDEX
