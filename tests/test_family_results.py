"""Results on unseen tasks: rows that come back the same, means over tasks and seeds, a table and a picture."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from apprentice.family_results import (
    FamilyRow,
    family_plot,
    family_table,
    metric_text,
    read_family_results,
    summarise_families,
    write_family_results,
)
from apprentice.results import ResultsError


def row(
    method: str, context: int, task: int, seed: int, value: float, expert: float | None = 80.0
) -> FamilyRow:
    metric = metric_text({"final_distance": value / 1000, "steps_within_0.02": value / 2})
    return FamilyRow(
        "reacher_goal",
        "standard",
        method,
        context,
        f"reacher_goal-{task}",
        seed,
        value,
        metric,
        expert,
        None if expert is None else (value - 4.0) / (expert - 4.0),
        "apprentice up x",
        "0123",
    )


ROWS = [
    row("dac-posterior", context, task, seed, 40.0 + 10 * context + task + 4 * seed)
    for context in (1, 2)
    for task in (0, 1)
    for seed in (0, 1)
] + [
    row("dac-blind", 0, 0, 0, 10.0),
    row("dac-told", 0, 0, 0, 70.0),
]


def test_rows_come_back_the_same_in_the_order_of_their_keys(tmp_path: Path) -> None:
    path = tmp_path / "families.csv"
    assert read_family_results(path) == ()
    write_family_results(path, ROWS[::-1])
    found = read_family_results(path)
    assert [entry.key for entry in found] == sorted(entry.key for entry in ROWS)
    for before, after in zip(sorted(ROWS, key=lambda entry: entry.key), found, strict=True):
        assert after._replace(normalised=None) == before._replace(normalised=None)
    header = path.read_text().splitlines()[0]
    assert header == (
        "family,split,method,context,task_id,seed,return,metric,expert_return,normalised,command,commit"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("family,split\nx,y\n", "expected the columns family, split, method"),
        (
            "family,split,method,context,task_id,seed,return,metric,expert_return,normalised,command,commit\n"
            "f,s,m,1,t,0,,x=1,,,c,c\n",
            "line 2: return: expected a number",
        ),
        (
            "family,split,method,context,task_id,seed,return,metric,expert_return,normalised,command,commit\n"
            "f,s,m,1,t,0,1.0,x=much,,,c,c\n",
            "line 2",
        ),
    ],
)
def test_another_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "families.csv"
    path.write_text(text)
    with pytest.raises(ResultsError, match=message):
        read_family_results(path)


def test_means_are_over_tasks_and_seeds() -> None:
    found = summarise_families(ROWS)["reacher_goal", "standard", "dac-posterior", 1]
    assert found.mean_return == pytest.approx(52.5)
    assert found.seeds == (50.5, 54.5)
    assert found.share_of_expert == pytest.approx(52.5 / 80.0)
    assert found.between == pytest.approx((52.5 - 10.0) / 60.0)
    assert found.metrics["steps_within_0.02"] == pytest.approx(26.25)
    assert found.low <= 52.5 <= found.high


def test_what_was_not_measured_is_left_out() -> None:
    found = summarise_families([row("bc-posterior", 1, 0, 0, 30.0, expert=None)])
    (summary,) = found.values()
    assert (summary.share_of_expert, summary.between) == (None, None)
    assert "| bc-posterior | 1 | 30.0 | 30.0 |  |  |" in family_table(
        [row("bc-posterior", 1, 0, 0, 30.0, expert=None)]
    )


def test_cloning_is_set_against_the_imitating_policies_unless_it_has_bounds_of_its_own() -> None:
    cloned = row("bc-posterior", 1, 0, 0, 40.0)
    setting = ("reacher_goal", "standard", "bc-posterior", 1)
    assert summarise_families([*ROWS, cloned])[setting].between == pytest.approx(0.5)
    own = [row("bc-blind", 0, 0, 0, 0.0), row("bc-told", 0, 0, 0, 50.0)]
    assert summarise_families([*ROWS, cloned, *own])[setting].between == pytest.approx(0.8)


def test_a_division_with_settings_of_its_own_has_a_bound_with_them() -> None:
    arcs = [
        row(name, context, 0, 0, value)._replace(split="arcs")
        for name, context, value in (
            ("dac-blind", 0, 10.0),
            ("dac-told", 0, 30.0),
            ("dac-told-products-decay1+1", 0, 90.0),
            ("dac-posterior", 1, 50.0),
        )
    ]
    found = summarise_families([*ROWS, *arcs])
    assert found["reacher_goal", "arcs", "dac-posterior", 1].between == pytest.approx(0.5)
    assert found["reacher_goal", "arcs", "dac-told", 0].between == pytest.approx(0.25)


def test_each_row_lies_between_the_bounds_of_its_own_task(tmp_path: Path) -> None:
    path = tmp_path / "families.csv"
    of_tasks = [
        row("dac-blind", 0, 1, 0, 41.0),
        row("dac-told", 0, 1, 0, 59.0),
        row("dac-told", 0, 1, 1, 63.0),
        row("dac-posterior", 1, 2, 0, 50.0),
        row("dac-blind", 0, 3, 0, 60.0),
        row("dac-told", 0, 3, 0, 50.0),
    ]
    write_family_results(path, [*ROWS, *of_tasks])
    found = {entry.key[2:]: entry.normalised for entry in read_family_results(path)}
    tasks = [row("", 0, task, 0, 0.0).task_id for task in range(4)]
    assert found["dac-posterior", 1, tasks[0], 0] == pytest.approx((50.0 - 10.0) / 60.0, abs=1e-4)
    assert found["dac-posterior", 1, tasks[1], 1] == pytest.approx((55.0 - 41.0) / 20.0, abs=1e-4)
    assert found["dac-told", 0, tasks[1], 1] == pytest.approx(1.1)
    assert found["dac-posterior", 1, tasks[2], 0] is None
    assert found["dac-told", 0, tasks[3], 0] is None


def test_a_division_has_a_table_and_a_method_a_line_in_it_the_best_first() -> None:
    other = row("dac-told", 0, 0, 0, 5.0)._replace(
        family="point_mass_goal", metric="final_distance=0.5"
    )
    text = family_table([*ROWS, other])
    point_mass, reacher = text.split("### ")[1:]
    assert point_mass.startswith("point_mass_goal, standard\n\n| method |")
    assert point_mass.rstrip().splitlines()[-1].startswith("| dac-told |  | 5.0 | 5.0 |")
    head, _, *lines = reacher.splitlines()[2:]
    assert [line.split(" | ")[0] for line in lines] == [
        "| dac-told",
        "| dac-posterior",
        "| dac-blind",
    ]
    assert head.endswith("| final_distance | steps_within_0.02 | return, 2 shown |"), head
    assert lines[0].startswith("| dac-told |  | 70.0 | 70.0 | 0.88 | 1.00 |")
    assert lines[0].endswith("|  |")
    assert lines[1].startswith(
        "| dac-posterior | 1 | 52.5 [50.5, 54.5] | 50.5, 54.5 | 0.66 | 0.71 |"
    )
    assert lines[1].endswith("| 62.5 |")


def test_the_picture_has_a_line_for_each_method_and_a_dashed_one_for_what_infers_nothing() -> None:
    picture = family_plot(ROWS, "reacher_goal", "standard")
    root = ElementTree.fromstring(picture)  # noqa: S314 - our own
    name = "{http://www.w3.org/2000/svg}"
    assert len(root.findall(f"{name}polyline")) == 1
    dashed = [line for line in root.findall(f"{name}line") if "stroke-dasharray" in line.attrib]
    assert len(dashed) == 2
    words = {text.text for text in root.findall(f"{name}text")}
    assert {"dac-blind", "dac-told", "dac-posterior", "1", "2"} <= words


def test_twenty_two_methods_have_a_colour_each_and_their_names_fit() -> None:
    methods = [f"dac-posterior-pretrained-frozen-products-imagined0.{n}" for n in range(22)]
    picture = family_plot(
        [row(name, 1, 0, 0, 50.0) for name in methods], "reacher_goal", "standard"
    )
    root = ElementTree.fromstring(picture)  # noqa: S314 - our own
    name = "{http://www.w3.org/2000/svg}"
    colours = {line.attrib["stroke"] for line in root.findall(f"{name}polyline")}
    assert len(colours) == 22
    beside = [text for text in root.findall(f"{name}text") if text.text in methods]
    width = float(root.attrib["viewBox"].split()[2])
    assert all(width - float(text.attrib["x"]) > 6.5 * len(methods[0]) for text in beside)
    assert len(beside) == 22
    height = float(root.attrib["viewBox"].split()[3])
    assert all(float(text.attrib["y"]) < height - 4.0 for text in beside)
