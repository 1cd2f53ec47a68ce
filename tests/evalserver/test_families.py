"""What the page shows of a family: tasks to pick and to play, returns against context size, and the latents."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from apprentice.config_family import SPLITS, SplitName
from apprentice.demonstrations.family import INDEX
from apprentice.family_record import (
    write_family_evaluation,
)
from apprentice.runs import EVALUATED_FAMILY, RunFolder
from evalserver.app import create_app
from evalserver.families import MOST_PROBLEMS, MOST_TILES, describe_family
from evalserver.scatter import Axis, Mark, colourings, draw_marks, draw_scale
from tests.evalserver.family_runs import family_experiment, made_up_evaluation, task_of
from tests.evalserver.test_page import Outline


def make_run(root: Path, shown: int = 3, **changes: Any) -> RunFolder:
    """Make a run that has a checkpoint by name, and an index of what may be shown."""
    tree = {**family_experiment().model_dump(mode="json"), **changes}
    folder = RunFolder.create(root, type(family_experiment()).model_validate(tree))
    (folder.checkpoints / "step-000000000100").mkdir()
    if shown:
        folder.context.mkdir()
        tasks = [
            {"task_id": task_of("train", 0), "context": list(range(shown))},
            {"task_id": task_of("test", 1), "context": list(range(shown + 2))},
        ]
        (folder.context / INDEX).write_text(json.dumps({"tasks": tasks}))
    return folder


def page_of(folder: RunFolder) -> str:
    client = TestClient(create_app(folder.path.parent), base_url="http://localhost")
    reply = client.get("/", params={"run": folder.path.name})
    assert reply.status_code == 200
    assert Outline(reply.text).open == []
    return reply.text


def test_a_run_on_one_task_has_nothing_of_a_family(tmp_path: Path) -> None:
    folder = make_run(tmp_path, task="reacher-easy", reads={}, imitation={})
    text = page_of(folder)
    assert describe_family(folder, None) is None
    assert "tiles.js" not in text
    assert "never learned" not in text
    assert 'name="context"' not in text


def test_every_test_task_is_a_link_to_its_rollout_and_none_plays_by_itself(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    text = page_of(folder)
    links = re.findall(r'class="tile" href="([^"]*)" aria-label="play ([^"]*)"', text)
    assert len(links) == 16
    href, label = links[1]
    assert label == "x\N{NO-BREAK SPACE}0.166, y\N{NO-BREAK SPACE}0.111"
    assert href.replace("&amp;", "&") == (
        f"/evaluate?checkpoint={folder.path.name}%3A100&task={task_of('test', 1)}"
        "&width=160&height=160"
    )
    assert text.count("<video") == 1  # the player's, which has no source yet
    assert "autoplay" not in text


def test_any_task_of_the_family_can_be_picked_and_how_many_demonstrations_are_shown(
    tmp_path: Path,
) -> None:
    text = page_of(make_run(tmp_path, shown=3))
    groups = re.findall(r'<optgroup label="(\w+)[^"]*">(.*?)</optgroup>', text, re.DOTALL)
    assert [(name, group.count("<option")) for name, group in groups] == [
        ("test", 16),
        ("validation", 8),
        ("train", 16),
    ]
    assert (
        f'<option value="{task_of("train", 0)}" data-shown="0,1,2">x\N{NO-BREAK SPACE}0.2, '
        "y\N{NO-BREAK SPACE}0<" in text
    )
    assert f'<option value="{task_of("test", 1)}" data-shown="3,4,5,6,7">' in text
    (shown,) = re.findall(r'<datalist id="contexts">(.*?)</datalist>', text)
    assert shown == "<option>1</option><option>2</option><option>3</option>"
    assert '<option value="expert">the demonstration</option>' in text


@pytest.mark.parametrize("index", ["", "{", "[]", '{"tasks": [{}]}', '{"tasks": 3}'])
def test_an_index_that_cannot_be_read_shows_nothing_to_pick(tmp_path: Path, index: str) -> None:
    folder = make_run(tmp_path)
    (folder.context / INDEX).write_text(index)
    assert 'name="context"' not in page_of(folder)


def test_a_policy_that_infers_nothing_has_tasks_and_no_demonstrations(tmp_path: Path) -> None:
    experiment = family_experiment(infers=False).model_dump(mode="json")
    folder = make_run(tmp_path, reads=experiment["reads"], replay=experiment["replay"])
    write_family_evaluation(
        folder.evaluations, made_up_evaluation(sizes=(0,), latent={}, points=())
    )
    text = page_of(folder)
    assert 'name="context"' not in text
    assert "shown one demonstration" not in text
    assert text.count('class="tile"') == 16
    assert "over demonstrations shown" not in text
    assert "What demonstrations say" not in text
    assert text.count("return 40, expert") == 16


def test_before_the_end_there_are_tasks_and_no_numbers(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    (folder.checkpoints / "step-000000000100").rmdir()
    text = page_of(folder)
    assert text.count("no checkpoint yet") == 16
    assert "Return in" not in text
    (folder.evaluations / EVALUATED_FAMILY).write_text('{"half')
    assert "Return in" not in page_of(folder)


def test_returns_are_drawn_against_the_number_of_demonstrations(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    write_family_evaluation(folder.evaluations, made_up_evaluation())
    text = page_of(folder)
    assert 'aria-label="return over demonstrations shown"' in text
    assert 'aria-label="final_distance over demonstrations shown"' in text
    for words in ("50 at 1 demonstrations shown", "80 at 4 demonstrations shown"):
        assert f"<title>{words}</title>" in text
    assert "the expert</text>" in text
    assert "random actions</text>" in text
    row = f"<td>{task_of('test', 0)}</td><td>4</td><td>80</td><td>84</td><td>0.95</td><td>0.02</td>"
    assert row in text
    assert text.count("return 50, expert's 84") == 16


def test_latents_are_coloured_by_their_task_and_lead_to_what_was_shown(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    write_family_evaluation(folder.evaluations, made_up_evaluation())
    text = page_of(folder)
    assert "coloured by direction of (x, y)" in text
    latents = text[text.index('<div class="latents">') :]
    assert latents.count('data-beside="expert" data-task=') == 40
    link = re.search(
        rf'href="([^"]*)" data-beside="expert" data-task="{task_of("test", 1)}"', latents
    )
    assert link is not None
    assert link[1].endswith("&amp;context=ids%3A25&amp;beside=expert")
    for words, value in (
        ("task told from latent, test tasks (R²)", "0.91"),
        ("spread of latents over their noise", "4.5"),
        ("return with another task&#39;s demonstration", "3.25"),
    ):
        assert f"<dt>{words}</dt><dd>{value}</dd>" in latents


def test_numbers_that_are_not_finite_and_unknown_tasks_are_left_out(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    found = made_up_evaluation()
    spoilt = [r.model_copy(update={"metrics": {"final_distance": math.nan}}) for r in found.results]
    points = [
        found.points[0].model_copy(update={"x": math.inf}),
        found.points[1].model_copy(update={"task_id": "<b>"}),
    ]
    changed = {"results": tuple(spoilt), "points": tuple(points)}
    (folder.evaluations / EVALUATED_FAMILY).write_text(
        json.dumps(found.model_copy(update=changed).model_dump(mode="json"))
    )
    text = page_of(folder)
    assert "return over demonstrations shown" in text
    assert "final_distance over demonstrations shown" not in text
    assert "<b>" not in text
    assert '<a class="play" href="/evaluate?checkpoint=' in text  # of the checkpoint's row


def test_many_test_tasks_are_cut(tmp_path: Path) -> None:
    environment = family_experiment().environment.model_dump(mode="json")
    environment["family"] |= {"split": "continuous", "num_test": MOST_TILES + 5}
    text = page_of(make_run(tmp_path, environment=environment))
    assert text.count('class="tile"') == MOST_TILES
    assert f"the first {MOST_TILES} of {MOST_TILES + 5}" in text


def test_settings_that_cannot_be_read_are_said_to_be_so(tmp_path: Path) -> None:
    environment = family_experiment().environment.model_dump(mode="json")
    environment["family"] |= {"split": "gone"}
    text = page_of(make_run(tmp_path, environment=environment))
    assert "The settings of this run cannot be read" in text
    assert "found &#39;gone&#39;" in text


@pytest.mark.parametrize(
    "changes", [{}, {"task": "reacher-easy", "reads": {}, "imitation": {}}], ids=["family", "task"]
)
def test_settings_of_another_version_are_said_to_be_so(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder = make_run(tmp_path, **changes)
    settings = folder.path / "experiment.yaml"
    unknown = "".join(f"unknown_{number}: <b>1</b>\n" for number in range(MOST_PROBLEMS + 1))
    settings.write_text(settings.read_text() + unknown)
    text = page_of(folder)
    assert f"unknown_{MOST_PROBLEMS - 1}" in text
    assert f"unknown_{MOST_PROBLEMS}" not in text
    assert "<b>" not in text
    assert str(tmp_path) not in text
    assert "tiles.js" not in text
    settings.unlink()  # as in the moment before a new run's are written
    assert "cannot be read" not in page_of(folder)


AXES = (Axis("x", -1.0, 1.0, "m"), Axis("y", -1.0, 1.0, "m"))


def test_two_parameters_are_told_by_the_direction_and_others_by_their_value() -> None:
    around = {str(n): {"x": math.cos(n), "y": math.sin(n)} for n in range(6)}
    (turning,) = colourings(AXES, around)
    assert turning.axis is None
    assert len(set(turning.of_task.values())) == 6
    near, far = {"x": 0.1, "y": 0.1}, {"x": 0.9, "y": 0.9}
    (same,) = colourings(AXES, {"near": near, "far": far})
    assert same.of_task["near"] == same.of_task["far"]
    axis = Axis("speed", 0.0, 3.0, "m/s")
    (one,) = colourings([axis], {"low": {"speed": 0.0}, "high": {"speed": 3.0}})
    assert one.label == "speed, 0 to 3 m/s"
    assert one.of_task == {"low": "#2d2dd2", "high": "#d22d2d"}
    drawn = draw_scale(axis)
    assert drawn.index("#2d2dd2") < drawn.index("#d22d2d")
    three = [Axis(name, 0.0, 1.0, "") for name in "abc"]
    assert len(colourings(three, {"t": {"a": 0.0, "b": 0.5, "c": 1.0}})) == 3


@pytest.mark.parametrize(
    "places", [[], [(0.0, 0.0)], [(1.0, 5.0), (1.0, 5.0)], [(-1e9, 2.0), (1e9, -3.0), (7.0, 1e8)]]
)
def test_marks_stay_inside_their_frame(places: list[tuple[float, float]]) -> None:
    splits: tuple[SplitName, ...] = SPLITS
    marks = [Mark(x, y, "#000000", splits[n % 3], f"<{n}>") for n, (x, y) in enumerate(places)]
    drawn = draw_marks("latents", marks)
    assert "<0>" not in drawn
    centres = re.findall(r'cx="([^"]*)" cy="([^"]*)"', drawn)
    corners = [
        corner.split(",")
        for found in re.findall(r'points="([^"]*)"', drawn)
        for corner in found.split()
    ]
    assert len(centres) + len(corners) / 4 == len(places)
    assert all(8 <= float(value) <= 312 for place in [*centres, *corners] for value in place)
