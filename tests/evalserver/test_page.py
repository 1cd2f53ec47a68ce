"""The page: what it shows of runs in every state, and that nothing in it comes from elsewhere."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from apprentice.config import Experiment
from apprentice.run_status import RunStatus
from apprentice.runs import EXPERT_RECORD, RunFolder
from evalserver.app import create_app
from evalserver.curves import Point, draw_curve, nice_ticks, read_curves


class Outline(HTMLParser):
    """Links and sources of a document, and whether its tags close."""

    VOID = frozenset({"meta", "link", "input", "img", "br", "line", "circle", "polyline"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attributes if name in ("href", "src")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def make_run(root: Path, name: str = "reach", **status: Any) -> RunFolder:
    folder = RunFolder.create(root, Experiment(name=name, task="reacher-easy"))
    if status:
        told = {"run": folder.path.name, "experiment": name, "task": "reacher-easy", **status}
        folder.write_status(RunStatus.model_validate(told))
    return folder


def client_of(root: Path) -> TestClient:
    return TestClient(create_app(root), base_url="http://localhost")


def test_an_imitating_run_shows_its_expert_and_every_metric_of_its_discriminator(
    tmp_path: Path,
) -> None:
    folder = make_run(
        tmp_path,
        state="training",
        max_steps=100,
        evaluation_returns=(100.0, 500.0),
        best_return=500.0,
    )
    plain = client_of(tmp_path).get("/").text
    assert "expert" not in plain
    numbers = {"expert_return": 900.0, "random_return": 100.0, "returns": [900.0], "seed": 5}
    (folder.evaluations / EXPERT_RECORD).write_text(json.dumps(numbers))
    metrics = {"discriminator/entropy": 0.5, "discriminator/accuracy_expert": 0.75}
    row = {"time": 1.0, "steps": 20, "updates": 3, "metrics": metrics}
    folder.metrics.write_text(json.dumps(row) + "\n")
    text = client_of(tmp_path).get("/").text
    assert "<dt>normalised return</dt><dd>0.50</dd>" in text
    assert "<dt>expert's return</dt><dd>900" in text.replace("&#39;", "'")
    for name in metrics:
        assert f'aria-label="{name} over agent steps"' in text
    assert Outline(text).open == []
    (folder.evaluations / EXPERT_RECORD).write_text("{")
    assert client_of(tmp_path).get("/").status_code == 200


def test_with_no_run_it_says_how_to_start_one(tmp_path: Path) -> None:
    reply = client_of(tmp_path).get("/")
    assert reply.status_code == 200
    assert "apprentice up reacher-easy" in reply.text
    assert Outline(reply.text).open == []


def test_a_run_that_has_not_begun_is_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path).path.name
    text = client_of(tmp_path).get("/").text
    assert run in text
    assert "starting" in text
    assert "reacher-easy" in text
    assert text.count("nothing yet") == 2


def test_a_training_run_shows_progress_actors_curves_and_evaluations(tmp_path: Path) -> None:
    actor = {
        "slot": 3,
        "host": "worker-7",
        "steps": 12_345,
        "steps_per_second": 56.7,
        "policy_version": 8,
        "heartbeat_age_seconds": 1.2,
        "faults": 0,
    }
    folder = make_run(
        tmp_path,
        state="training",
        steps=50_000,
        max_steps=100_000,
        replay_ratio=0.33,
        actors=(actor,),
        message="two segments were lost",
    )
    rows = [
        {"time": 1.0, "steps": 10_000 * n, "metrics": {"evaluation/return_mean": 100.0 * n}}
        for n in range(1, 6)
    ]
    folder.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = {"steps": 25_000, "returns": [100.0, 300.0]}
    (folder.evaluations / "step-000000025000.json").write_text(json.dumps(result))
    (folder.evaluations / "step-000000025000.trajectory.safetensors").touch()
    (folder.checkpoints / "step-000000025000").mkdir()
    text = client_of(tmp_path).get("/").text
    outline = Outline(text)
    assert outline.open == []
    for expected in ("50,000", "0.330", "worker-7", "12,345", "two segments were lost"):
        assert expected in text
    assert f"/episodes?run={folder.path.name}&amp;steps=25000" in text
    assert f'data-checkpoint="{folder.path.name}:25000"' in text
    assert re.search(r"<td>25,000</td><td>200</td><td>100</td><td>300</td><td>2</td>", text)
    assert text.count('<circle class="dot"') == 5
    assert all(
        address.startswith(("/", "data:")) and not address.startswith("//")
        for address in outline.addresses
    )


def test_the_live_part_and_the_curves_come_alone(tmp_path: Path) -> None:
    folder = make_run(tmp_path, state="paused", steps=7, max_steps=10)
    line = {"time": 1.0, "steps": 5, "metrics": {"learner/entropy": 1.5, "profile/x/seconds": 1.0}}
    folder.metrics.write_text(json.dumps(line) + "\n" + '{"half')
    client = client_of(tmp_path)
    run = folder.path.name
    assert "paused" in client.get("/live", params={"run": run}).text
    asked = {"run": run, "first": "learner/entropy"}
    drawn = client.get("/curves", params=asked).text
    assert "learner/entropy over agent steps" in drawn
    assert "profile/" not in drawn


@pytest.mark.parametrize("path", ["/", "/live", "/curves"])
def test_a_run_that_is_not_there_is_404_and_its_name_is_escaped(tmp_path: Path, path: str) -> None:
    make_run(tmp_path)
    reply = client_of(tmp_path).get(path, params={"run": "<script>alert(1)</script>"})
    assert reply.status_code == 404
    assert "<script>alert" not in reply.text


def test_names_from_files_are_escaped(tmp_path: Path) -> None:
    folder = make_run(tmp_path, state="training", max_steps=5, message="<b>bold</b>")
    line = {"time": 1.0, "steps": 5, "metrics": {"<img src=x>": 1.0}}
    folder.metrics.write_text(json.dumps(line) + "\n")
    text = client_of(tmp_path).get("/", params={"first": "<img src=x>"}).text
    assert "<img" not in text
    assert "<b>bold" not in text


def test_the_browser_is_told_to_load_nothing_from_elsewhere(tmp_path: Path) -> None:
    client = client_of(tmp_path)
    headers = client.get("/").headers
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    for name in ("page.css", "page.js", "tiles.js"):
        reply = client.get(f"/static/{name}")
        assert reply.status_code == 200
        assert "http" not in reply.text


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.0, 1000.0, [0, 200, 400, 600, 800, 1000]),
        (0.0, 0.9, [0.0, 0.2, 0.4, 0.6, 0.8]),
        (-3.0, 4.0, [-2, 0, 2, 4]),
        (5.0, 5.0, [5, 6, 7, 8, 9, 10]),
    ],
)
def test_ticks_are_round(low: float, high: float, ticks: list[float]) -> None:
    assert nice_ticks(low, high) == pytest.approx(ticks)


@pytest.mark.parametrize(
    "points",
    [
        [Point(0, 0.0)],
        [Point(10, -5.0), Point(20, -3.0)],
        [Point(10, 1e9), Point(20, 1e-9)],
        [Point(n, float(n % 7)) for n in range(500)],
    ],
)
def test_curves_stay_inside_their_frame(points: list[Point]) -> None:
    drawn = draw_curve("x", points)
    (line,) = re.findall(r'points="([^"]*)"', drawn)
    places = [tuple(map(float, place.split(","))) for place in line.split()]
    assert len(places) == len(points)
    assert all(0 <= x <= 640 and 0 <= y <= 240 for x, y in places)


def test_the_name_of_a_level_stands_above_it_and_inside_the_frame() -> None:
    levels = [("the expert", 84.0), ("random actions", 3.0)]
    drawn = draw_curve("x", [Point(1, 80.0), Point(8, 81.0)], levels=levels)
    lines = re.findall(r'<line class="level" [^>]*y1="([^"]*)"', drawn)
    names = re.findall(r'<text class="level" [^>]*y="([^"]*)">([^<]*)<', drawn)
    assert [name for _, name in names] == [name for name, _ in levels]
    for line, (place, _) in zip(lines, names, strict=True):
        assert 12.0 < float(place) < float(line)


def test_long_files_are_thinned_but_for_evaluations(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with path.open("w") as file:
        for number in range(10_000):
            metrics = {"learner/entropy": float(number)}
            if number % 1000 == 500:
                metrics = {"evaluation/return_mean": float(number)}
            file.write(json.dumps({"time": 0, "steps": number, "metrics": metrics}) + "\n")
    curves = read_curves(path)
    assert len(curves["evaluation/return_mean"]) == 10
    assert 1000 < len(curves["learner/entropy"]) <= 1501
    assert curves["learner/entropy"][-1].steps == 9999


def test_prometheus_reads_requests_cache_and_runs(tmp_path: Path) -> None:
    folder = make_run(
        tmp_path,
        state="training",
        steps=50,
        max_steps=100,
        replay_ratio=0.5,
        evaluation_returns=(3.0, 2.0),
    )
    client = client_of(tmp_path)
    client.get("/runs")
    client.get("/nowhere/at/all")
    reply = client.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain")
    values = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(reply.text)
        for sample in family.samples
    }
    assert values["apprentice_http_requests_total", "/runs", "200"] == 1
    assert values["apprentice_http_requests_total", "other", "404"] == 1
    assert values["apprentice_http_request_seconds_count", "/runs"] == 1
    labels = (folder.path.name, "training", "reacher-easy")  # by the labels' names
    assert values["apprentice_run_steps", *labels] == 50
    assert values["apprentice_run_replay_ratio", *labels] == 0.5
    assert values["apprentice_run_evaluation_return", *labels] == 2.0
    assert ("apprentice_run_best_return", *labels) not in values
    assert values[("apprentice_media_cache_bytes",)] == 0
    assert values[("apprentice_media_cache_hits_total",)] == 0
    assert values[("apprentice_evaluations_in_progress",)] == 0
