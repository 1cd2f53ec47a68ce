"""A checkpoint that the learner removes while a request for it waits for a worker."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from evalserver.app import create_app
from evalserver.jobs import Answer
from tests.evalserver.serving import make_run

EPISODE = {
    "task": "reacher-easy",
    "seed": 0,
    "environment_return": 1.0,
    "length": 1,
    "ending": "time_limit",
}
REPORT = {
    "task": "reacher-easy",
    "return_mean": 1.0,
    "return_min": 1.0,
    "return_max": 1.0,
    "episodes": [EPISODE],
    "seconds": {"loading": 0.0, "evaluation": 0.0, "rendering_and_encoding": 0.0},
    "beside": None,
}


class LateWorkers:
    """Stand for Jobs: while the first request waits, its checkpoint moves on to another number of steps."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self.asked: list[str] = []

    async def run(self, request: dict[str, Any]) -> Answer:
        path = Path(request["paths"][0])
        self.asked.append(path.name)
        if len(self.asked) == 1:
            shutil.move(path, path.with_name(f"step-{self._steps:012d}"))
        if not path.is_dir():
            return Answer(422, {"detail": "there is no such checkpoint"}, b"")
        return Answer(200, {**REPORT, "steps": self._steps}, b"")


def client_of(runs: Path, workers: LateWorkers) -> TestClient:
    app = create_app(runs)
    app.state.jobs = workers
    return TestClient(app, base_url="http://localhost")


@pytest.mark.parametrize("which", ["latest", "{run}", "{run}:latest"])
def test_latest_is_what_is_latest_once_a_worker_is_free(tmp_path: Path, which: str) -> None:
    run, workers = make_run(tmp_path, "reach", "reacher-easy", steps=100), LateWorkers(200)
    asked = {"checkpoint": which.format(run=run), "format": "json"}
    reply = client_of(tmp_path, workers).get("/evaluate", params=asked)
    assert reply.status_code == 200, reply.text
    assert reply.json()["checkpoint"] == f"{run}:200"
    assert workers.asked == ["step-000000000100", "step-000000000200"]


def test_steps_that_are_gone_are_refused_with_those_there_are(tmp_path: Path) -> None:
    run, workers = make_run(tmp_path, "reach", "reacher-easy", steps=100), LateWorkers(200)
    asked = {"checkpoint": f"{run}:100", "format": "json"}
    reply = client_of(tmp_path, workers).get("/evaluate", params=asked)
    assert reply.status_code == 404
    assert "no checkpoint '100'" in reply.json()["detail"]
    assert "one of the steps 200" in reply.json()["detail"]
    assert len(workers.asked) == 1
