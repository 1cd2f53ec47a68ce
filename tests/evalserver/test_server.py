"""The evaluation server as a process, over real HTTP."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from tests.evalserver.serving import (
    ROOT,
    Reply,
    Server,
    busy_worker,
    keep_episode,
    keep_expert,
    make_run,
    needs_graphics,
    workers_of,
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def run(runs: Path) -> str:
    return make_run(runs, "reach", "reacher-easy")


@pytest.fixture(scope="module")
def server(runs: Path, run: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(runs, tmp_path_factory.mktemp("log") / "server.log")
    server.wait_until_ready()
    yield server
    server.end()


@needs_graphics
def test_a_rollout_comes_as_a_video_that_plays(server: Server, run: str) -> None:
    reply = server.get(
        "/evaluate", checkpoint=run, max_steps=40, width=64, height=48, seed=3, fps=25
    )
    assert reply.status == 200, reply.body
    assert reply.headers["content-type"] == "video/mp4"
    assert reply.headers["x-apprentice-checkpoint"].startswith(run)
    with av.open(io.BytesIO(reply.body)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(frames) == 21  # every second of states 0..40
    assert frames[0].shape == (48, 64, 3)
    assert frames[0].std() > 5
    assert abs(frames[0].astype(int) - frames[-1]).mean() > 0.5  # the arm moves


@pytest.mark.parametrize("deterministic", [True, False])
def test_returns_come_as_json_and_repeat_with_the_seed(
    server: Server, run: str, deterministic: bool
) -> None:
    query = {
        "format": "json",
        "episodes": 3,
        "seed": 5,
        "max_steps": 60,
        "deterministic": deterministic,
    }
    first = server.get("/evaluate", checkpoint=run, **query)
    assert first.status == 200, first.body
    answer = first.json
    assert (answer["run"], answer["task"], answer["steps"]) == (run, "reacher-easy", 100)
    assert [episode["seed"] for episode in answer["episodes"]] == [5, 6, 7]
    assert [episode["length"] for episode in answer["episodes"]] == [60, 60, 60]
    again = server.get("/evaluate", checkpoint=f"{run}:100", **query)
    assert again.json["episodes"] == answer["episodes"]


def test_latest_is_the_newest_run(server: Server, runs: Path) -> None:
    # Runs of the same second are in the order of their names, and this one's is the last.
    newest = make_run(runs, "youngest", "reacher-easy", steps=3)
    answer = server.get("/evaluate", checkpoint="latest", format="json", max_steps=5).json
    assert (answer["run"], answer["steps"]) == (newest, 3)


def test_sampled_actions_are_not_the_likeliest(server: Server, run: str) -> None:
    query = {"format": "json", "seed": 5, "max_steps": 60, "checkpoint": run}
    returns = {
        deterministic: server.get("/evaluate", deterministic=deterministic, **query).json
        for deterministic in (True, False)
    }
    assert returns[True]["deterministic"] is True
    assert returns[False]["deterministic"] is False
    seconds = returns[True]["seconds"]
    assert set(seconds) == {"loading", "evaluation", "rendering_and_encoding"}
    assert 0.0 < seconds["evaluation"] < 60.0
    one, other = (
        server.get(
            "/evaluate",
            deterministic=deterministic,
            **{**query, "format": "png"},
            width=64,
            height=64,
        )
        for deterministic in (True, False)
    )
    if one.status == 200:  # where anything draws
        assert one.body != other.body


@needs_graphics
def test_every_camera_shows_another_picture(server: Server, run: str) -> None:
    """reacher has two cameras of its own, `fixed` and `hand`; -1 is the free one."""
    pictures = [
        server.get(
            "/evaluate",
            checkpoint=run,
            format="png",
            camera=camera,
            max_steps=10,
            width=64,
            height=64,
        ).body
        for camera in ("0", "fixed", "-1")
    ]
    frames = [
        np.asarray(Image.open(io.BytesIO(body)).convert("RGB")).astype(int) for body in pictures
    ]
    np.testing.assert_array_equal(frames[0], frames[1])
    assert np.abs(frames[0] - frames[2]).mean() > 3.0


@needs_graphics
@pytest.mark.parametrize("kind", ["gif", "webp", "png"])
def test_a_rollout_comes_in_every_format(server: Server, run: str, kind: str) -> None:
    reply = server.get(
        "/evaluate", checkpoint=run, format=kind, width=64, height=48, max_steps=60, fps=10
    )
    assert reply.status == 200, reply.body
    assert reply.headers["content-type"] == f"image/{kind}"
    with Image.open(io.BytesIO(reply.body)) as image:
        if kind == "png":
            assert image.size == (4 * 64, 4 * 48)
            assert np.asarray(image).std() > 5.0
        else:
            assert image.size == (64, 48)
            assert image.n_frames == 13  # 60 steps of 0.02 s at 10 frames a second, and the first


@needs_graphics
def test_two_checkpoints_are_shown_side_by_side(server: Server, runs: Path, run: str) -> None:
    other = make_run(runs, "other", "reacher-easy", steps=200)
    query = {"max_steps": 40, "width": 64, "height": 48, "fps": 10, "beside": other}
    report = server.get("/evaluate", checkpoint=run, format="json", **query).json
    assert (report["run"], report["beside"]["run"]) == (run, other)
    assert [e["seed"] for e in report["episodes"]] == [
        e["seed"] for e in report["beside"]["episodes"]
    ]
    reply = server.get("/evaluate", checkpoint=run, format="png", **query)
    with Image.open(io.BytesIO(reply.body)) as image:
        assert image.size[0] % 128 == 0
        first = np.asarray(image)[:48, :128].astype(int)
    # The same weights and seeds: both halves show the same start.
    assert np.abs(first[:, :64] - first[:, 64:]).max() == 0
    missing = server.get("/evaluate", checkpoint=run, beside="nobody")
    assert missing.status == 404


@needs_graphics
def test_a_policy_is_shown_beside_the_expert_from_the_same_start(
    server: Server, runs: Path, run: str
) -> None:
    imitator = make_run(runs, "imitator", "reacher-easy")
    expert = keep_expert(runs / imitator)
    query = {"max_steps": 30, "width": 64, "height": 48, "fps": 10, "beside": "expert"}
    report = server.get("/evaluate", checkpoint=imitator, format="json", **query).json
    assert report["beside"]["checkpoint"] == "expert"
    assert report["beside"]["return_mean"] == pytest.approx(expert.environment_return)
    assert [episode["seed"] for episode in report["episodes"]] == [expert.seed]
    reply = server.get(report["media"]["png"])
    with Image.open(io.BytesIO(reply.body)) as image:
        first = np.asarray(image)[:48, :128].astype(int)
    assert np.abs(first[:, :64] - first[:, 64:]).max() == 0
    nobody = server.get("/evaluate", checkpoint=run, beside="expert")
    assert nobody.status == 404
    assert "keeps no episode of an expert" in nobody.json["detail"]
    several = server.get("/evaluate", checkpoint=imitator, beside="expert", episodes=2)
    assert several.status == 422


@needs_graphics
def test_a_report_links_to_its_pictures_and_a_video_is_kept_for_the_next(
    server: Server, run: str
) -> None:
    query = {"max_steps": 50, "width": 64, "height": 64, "seed": 77}
    report = server.get("/evaluate", checkpoint="latest", format="json", **query).json
    link = report["media"]["mp4"]
    assert "latest" not in link
    whole = server.get(link)
    assert whole.status == 200
    assert float(whole.headers["x-apprentice-return-mean"]) == pytest.approx(
        report["return_mean"], abs=1e-3
    )
    started = time.monotonic()
    again = server.get("/evaluate", checkpoint=report["checkpoint"], format="mp4", **query)
    assert time.monotonic() - started < 0.5
    assert again.body == whole.body
    etag = whole.headers["etag"]
    assert server.get(link, headers={"If-None-Match": etag}).status == 304
    part = server.get(link, headers={"Range": "bytes=10-19"})
    assert (part.status, part.body) == (206, whole.body[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{len(whole.body)}"


def test_too_many_frames_for_memory_are_refused_with_what_to_do(server: Server, run: str) -> None:
    reply = server.get(
        "/evaluate", checkpoint=run, format="gif", width=640, height=640, max_steps=400, fps=50
    )
    assert reply.status == 422
    assert "format=mp4" in reply.json["detail"]


@needs_graphics
def test_the_kept_episode_of_an_evaluation_is_drawn(server: Server, runs: Path, run: str) -> None:
    episode = keep_episode(runs / run, 100)
    query = {"run": run, "steps": 100, "width": 64, "height": 64, "fps": 50}
    reply = server.get("/episodes", **query)
    assert reply.status == 200, reply.body
    assert float(reply.headers["x-apprentice-return-mean"]) == pytest.approx(
        episode.environment_return, abs=1e-3
    )
    with av.open(io.BytesIO(reply.body)) as video:
        assert len(list(video.decode(video=0))) == 31
    assert server.get("/episodes", **{**query, "steps": 200}).status == 404
    assert server.get("/episodes", **{**query, "run": "../" + run}).status == 404


def test_runs_are_listed(server: Server, run: str) -> None:
    answer = {entry["run"]: entry for entry in server.get("/runs").json}
    assert answer[run]["checkpoints"] >= 1
    assert answer[run]["state"] == "starting"  # nobody has trained it


def test_another_task_that_does_not_fit_is_explained(server: Server, run: str) -> None:
    reply = server.get("/evaluate", checkpoint=run, task="cheetah-run", format="json")
    assert reply.status == 422
    assert "'state': [6]" in reply.json["detail"]
    assert "'state': [17]" in reply.json["detail"]
    fits = server.get("/evaluate", checkpoint=run, task="reacher-hard", format="json", max_steps=5)
    assert fits.status == 200
    unknown = server.get("/evaluate", checkpoint=run, task="reacher-esy", format="json")
    assert "did you mean 'reacher-easy'" in unknown.json["detail"]


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("episodes", 0),
        ("episodes", 17),
        ("episodes", "nan"),
        ("width", 100_000),
        ("height", -1),
        ("fps", "1e309"),
        ("fps", "nan"),
        ("fps", 0),
        ("max_steps", 10_001),
        ("seed", -1),
        ("format", "exe"),
        ("camera", "../x"),
        ("colour", "red"),
    ],
)
def test_parameters_out_of_bounds_are_named(
    server: Server, run: str, parameter: str, value: object
) -> None:
    reply = server.get("/evaluate", checkpoint=run, **{parameter: value})
    assert reply.status == 422
    assert reply.headers["content-type"] == "application/problem+json"
    assert parameter in reply.json["detail"]


def test_a_request_for_too_many_pixels_is_refused_before_any_work(server: Server, run: str) -> None:
    query = {"checkpoint": run, "width": 640, "height": 640, "episodes": 16, "max_steps": 10_000}
    started = time.monotonic()
    reply = server.get("/evaluate", **query)
    assert reply.status == 422
    assert "width x height x frames" in reply.json["detail"]
    assert time.monotonic() - started < 1.0


@pytest.mark.parametrize(
    ("checkpoint", "status"),
    [
        ("no-such-run", 404),
        ("../../etc/passwd", 422),
        ("%2e%2e%2fetc", 422),
        ("..", 404),
        ("a:b:c", 422),
        ("/etc/passwd", 422),
        ("x\0y", 422),
    ],
)
def test_ids_are_looked_up_and_never_joined_to_a_path(
    server: Server, runs: Path, checkpoint: str, status: int
) -> None:
    reply = server.get("/evaluate", checkpoint=checkpoint, format="json")
    assert reply.status in (404, 422)
    assert reply.status == status
    assert str(runs) not in reply.body.decode()


@needs_graphics
def test_an_unknown_camera_lists_those_there_are(server: Server, run: str) -> None:
    reply = server.get("/evaluate", checkpoint=run, camera="9", max_steps=2)
    assert reply.status == 422
    assert "0 'fixed'" in reply.json["detail"]


def test_checkpoints_are_listed(server: Server, run: str) -> None:
    listed = server.get("/checkpoints").json
    assert {"id": f"{run}:100", "run": run, "steps": 100, "best": False} in listed


def test_a_corrupt_checkpoint_is_refused_with_the_reason(server: Server, runs: Path) -> None:
    name = make_run(runs, "broken", "reacher-easy", steps=5)
    victim = next((runs / name / "checkpoints").glob("step-*/policy.safetensors"))
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data)
    reply = server.get("/evaluate", checkpoint=name, format="json")
    assert reply.status == 422
    assert "cannot be used" in reply.json["detail"]
    assert str(runs) not in reply.body.decode()


def test_a_crash_of_the_worker_costs_one_request(server: Server, run: str) -> None:
    with ThreadPoolExecutor(1) as pool:
        doomed = pool.submit(server.get, "/evaluate", checkpoint=run, format="json", episodes=16)
        os.kill(busy_worker(server).pid, signal.SIGSEGV)
        reply = doomed.result(60)
    assert reply.status == 500
    assert reply.json["incident"]
    assert server.get("/evaluate", checkpoint=run, format="json", max_steps=2).status == 200


def test_more_requests_than_can_wait_are_sent_away(server: Server, run: str) -> None:
    def ask(number: int) -> Reply:
        return server.get(
            "/evaluate", checkpoint=run, format="json", episodes=4, seed=number, max_steps=300
        )

    with ThreadPoolExecutor(24) as pool:
        replies = list(pool.map(ask, range(24)))
    statuses = [reply.status for reply in replies]
    assert set(statuses) == {200, 503}
    assert statuses.count(200) >= 10  # two are served, eight wait
    assert len(workers_of(server)) == 2
    refused = next(reply for reply in replies if reply.status == 503)
    assert int(refused.headers["retry-after"]) > 0


def test_work_for_a_client_that_has_gone_is_given_up(server: Server, run: str) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        path = f"/evaluate?checkpoint={run}&format=json&episodes=16"
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        busy = busy_worker(server)
    _, alive = psutil.wait_procs([busy], timeout=2.0)
    assert alive == []  # nobody wants what it was making
    assert server.get("/evaluate", checkpoint=run, format="json", max_steps=2).status == 200


def test_prometheus_reads_where_the_workers_time_went(server: Server, run: str) -> None:
    def charged() -> dict[str, float]:
        text = server.get("/metrics").body.decode()
        return {
            sample.labels["span"]: sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "apprentice_span_seconds_total"
        }

    asked = {"checkpoint": run, "format": "json", "max_steps": 7, "seed": 77}
    before = charged()
    assert server.get("/evaluate", **asked).status == 200
    after = charged()
    assert after.keys() == {"loading", "evaluation", "rendering and encoding"}
    assert after["evaluation"] > before.get("evaluation", 0.0)
    assert server.get("/evaluate", **asked).status == 200  # from the cache
    assert charged() == after


@pytest.mark.parametrize(
    "header",
    [
        "X-Long: " + "x" * 30_000,
        "X-Long: " + "x" * 1_000_000,
        "Range: bytes=" + ",".join(f"{n}-{n}" for n in range(10_000)),
        "\r\n".join(f"X-{n}: y" for n in range(10_000)),
    ],
)
def test_a_head_that_is_too_large_is_refused(server: Server, header: str) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        try:
            connection.sendall(
                f"GET /livez HTTP/1.1\r\nHost: localhost\r\n{header}\r\n\r\n".encode()
            )
            assert connection.recv(65_536).startswith(b"HTTP/1.1 400")
        except (ConnectionResetError, BrokenPipeError):
            pass  # The server does not wait for the rest.
    assert server.get("/livez", headers={"Range": "bytes=" + "0-0," * 2_000}).status == 200


def test_health_and_documentation(server: Server) -> None:
    assert server.get("/livez").json == {"status": "alive"}
    assert server.get("/readyz").json["ready"] is True
    assert server.get("/docs").status == 200
    paths = server.get("/openapi.json").json["paths"]
    assert {"/evaluate", "/runs", "/checkpoints", "/livez", "/readyz"} <= paths.keys()


def test_the_server_needs_neither_tensorflow_nor_reverb() -> None:
    code = (
        "import sys, evalserver.app, evalserver.worker; evalserver.worker.warm_up();"
        "print([n for n in sys.modules if n.split('.')[0] in ('tensorflow', 'reverb', 'replay')])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert result.stdout.strip() == "[]", result.stderr


def test_a_port_in_use_is_named_and_not_retried(server: Server, runs: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "evalserver", "--runs", str(runs), "--port", str(server.port)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 78
    assert f"port {server.port}" in result.stderr
    assert f"pid {server.process.pid}" in result.stderr


def test_sigterm_ends_server_and_worker_with_zero(runs: Path, run: str, tmp_path: Path) -> None:
    server = Server(runs, tmp_path / "server.log")  # its own: the shared one outlives every test
    try:
        server.wait_until_ready()
        assert server.get("/evaluate", checkpoint=run, format="json", max_steps=2).status == 200
        workers = workers_of(server)
        assert workers
        server.process.terminate()
        assert server.process.wait(10) == 0, server.log.read_text()
        assert psutil.wait_procs(workers, timeout=5)[1] == []
    finally:
        server.end()
