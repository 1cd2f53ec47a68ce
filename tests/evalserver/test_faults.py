"""What drawing and encoding may do to a worker, and what it costs: one request, and nothing on disk."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from fastapi.testclient import TestClient

from evalserver.app import create_app
from tests.evalserver.serving import ROOT, Server, make_run, needs_graphics, workers_of

pytestmark = needs_graphics

FAULTS = """
import os, signal, sys, time
if "evalserver.worker" in sys.orig_argv:
    import apprentice.evaluation as evaluation
    import apprentice.video as video
    fault, draw = os.environ["FAULT"], evaluation.render_trajectory

    def encode_mp4(frames, fps, path=None):
        next(iter(frames))
        if fault == "hang":
            time.sleep(3600)
        raise video.EncodingError("mp4 could not be encoded: there is no such codec")

    def render_trajectory(*arguments, **settings):
        yield from list(draw(*arguments, **settings))[:3]
        os.kill(os.getpid(), signal.SIGSEGV)

    if fault == "driver":
        evaluation.render_trajectory = render_trajectory
    else:
        video.encode_mp4 = encode_mp4
"""
"""Python runs a module `sitecustomize` at its start; this one breaks what workers draw and encode with."""
QUERY = {"checkpoint": "latest", "max_steps": 30, "width": 64, "height": 64}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    make_run(runs, "reach", "reacher-easy")
    return runs


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    return scratch


@pytest.fixture
def broken(tmp_path: Path, scratch: Path) -> Callable[[str], dict[str, str]]:
    (tmp_path / "sitecustomize.py").write_text(FAULTS)
    path = os.pathsep.join((str(tmp_path), str(ROOT)))
    return lambda fault: {"PYTHONPATH": path, "FAULT": fault, "TMPDIR": str(scratch)}


@pytest.fixture
def serve(runs: Path, tmp_path: Path) -> Iterator[Callable[[dict[str, str]], Server]]:
    servers: list[Server] = []

    def start(environment: dict[str, str]) -> Server:
        servers.append(Server(runs, tmp_path / "server.log", environment))
        servers[-1].wait_until_ready()
        return servers[-1]

    yield start
    for server in servers:
        server.end()


def test_an_encoder_that_fails_is_an_answer_that_names_the_other_formats(
    serve: Callable[[dict[str, str]], Server],
    broken: Callable[[str], dict[str, str]],
    scratch: Path,
) -> None:
    server = serve(broken("encoder"))
    before = workers_of(server)
    reply = server.get("/evaluate", **QUERY)
    assert reply.status == 500
    assert reply.headers["content-type"] == "application/problem+json"
    assert "no such codec; try format=gif, webp, png, or json" in reply.json["detail"]
    assert server.get("/evaluate", **QUERY, format="gif").body.startswith(b"GIF89a")
    assert workers_of(server) == before  # the worker itself is sound
    assert list(scratch.iterdir()) == []


def test_a_driver_that_crashes_while_it_draws_costs_one_request(
    serve: Callable[[dict[str, str]], Server],
    broken: Callable[[str], dict[str, str]],
    scratch: Path,
) -> None:
    server = serve(broken("driver"))
    reply = server.get("/evaluate", **QUERY)
    assert reply.status == 500
    assert reply.json["incident"] in server.log.read_text()
    assert f"exit {-signal.SIGSEGV}" in reply.json["detail"]
    assert server.get("/evaluate", **QUERY, format="json").status == 200
    assert list(scratch.iterdir()) == []


@pytest.mark.slow
def test_an_encoder_that_hangs_is_ended_at_the_deadline(
    runs: Path, broken: Callable[[str], dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in broken("hang").items():
        monkeypatch.setenv(name, value)
    app = create_app(runs, num_workers=1, deadline_seconds=20.0)
    with TestClient(app, base_url="http://localhost") as client:
        deadline = time.monotonic() + 60
        while client.get("/readyz").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        children = psutil.Process().children()
        (worker,) = (child for child in children if "evalserver.worker" in child.cmdline())
        started = time.monotonic()
        reply = client.get("/evaluate", params=QUERY)
        assert reply.status_code == 504
        assert 19.0 < time.monotonic() - started < 25.0
        assert psutil.wait_procs([worker], timeout=5)[1] == []
        assert client.get("/evaluate", params={**QUERY, "format": "json"}).status_code == 200
