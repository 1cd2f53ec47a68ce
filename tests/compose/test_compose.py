"""The system in containers, as a user meets it: `make test-compose`."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import av
import pytest

from apprentice.tokens import metrics_token
from replay.locks import free_port
from tests.compose.client import BUILD_SECONDS, Project, docker, missing, wait_until

pytestmark = [
    pytest.mark.compose,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]

ENDLESS = "learner.max_steps=100000000 checkpoint.period_steps=500 evaluation.period_steps=20000"
"""A run of seconds-long experiment `smoke` that somebody has to stop."""
START_SECONDS = 240.0
LARGEST_GIGABYTES = {"replay": 1.4, "actor": 2.4, "learner": 2.7, "evalserver": 1.4}
"""Of an image beyond its base."""
COMPILERS = "gcc g++ cc c++ cpp clang clang++ as ld make nvcc"
KILL = r"""
import glob, os
for folder in glob.glob("/proc/[0-9]*"):
    if b"-m\0{service}\0" in open(folder + "/cmdline", "rb").read():
        os.kill(int(folder[6:]), 9)
"""
"""Kills a service without the engine knowing, as a crash does."""
SURROUNDINGS = r"""
import glob
for path in glob.glob("/proc/[0-9]*/cmdline") + glob.glob("/proc/[0-9]*/environ"):
    try:
        print(open(path).read().replace("\0", " "))
    except OSError:
        pass
"""
"""Shows what `ps` shows of a container's processes."""


@pytest.fixture(scope="module")
def project() -> Iterator[Project]:
    name = f"apprentice-test-{os.getpid()}"
    project = Project(name, free_port(), "smoke", ENDLESS)
    project.compose("build", seconds=BUILD_SECONDS)
    try:
        yield project
    finally:
        project.compose("down", "--volumes", "--remove-orphans")
    assert docker("volume", "ls", "--quiet", "--filter", f"name={name}").split() == []


@pytest.fixture(autouse=True)
def _show_logs_of_a_failure(
    request: pytest.FixtureRequest, project: Project, capsys: pytest.CaptureFixture[str]
) -> Iterator[None]:
    failed_before = request.session.testsfailed
    yield
    if request.session.testsfailed > failed_before:
        with capsys.disabled():
            print(project.logs())


def test_two_actors_train_and_a_checkpoint_is_evaluated(project: Project) -> None:
    project.compose("up", "--detach", "--scale", "actor=2", seconds=600)
    wait_until(lambda: project.steps() > 2000, START_SECONDS, "steps")
    (run,) = project.runs()
    wait_until(lambda: project.num_actors(run["run"]) == 2, 60, "two actors")
    wait_until(lambda: project.runs()[0]["checkpoints"] > 0, 60, "a checkpoint")
    video = project.get("/evaluate?checkpoint=latest&max_steps=40&width=160&height=120")
    with av.open(io.BytesIO(video)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) > 10
    assert all(frame.shape == (120, 160, 3) and frame.std() > 5 for frame in frames)
    assert b"<video" in project.get("/")


def test_images_are_as_small_as_they_are_said_to_be(project: Project) -> None:
    base = os.environ.get("PYTHON_IMAGE", "python:3.11-slim-bookworm")
    beyond = {name: size_of(f"apprentice/{name}") - size_of(base) for name in LARGEST_GIGABYTES}
    print({name: f"{size / 1e9:.2f} GB" for name, size in beyond.items()})
    for name, size in beyond.items():
        assert 0 < size <= LARGEST_GIGABYTES[name] * 1e9, name


def size_of(image: str) -> int:
    return int(docker("image", "inspect", "--format", "{{.Size}}", image))


def test_the_image_that_is_reached_from_outside_has_no_compiler(project: Project) -> None:
    def compilers_in(service: str) -> list[str]:
        search = f"for name in {COMPILERS}; do command -v $name; done; true"
        return docker("exec", project.containers(service)[0], "sh", "-c", search).split()

    assert compilers_in("evalserver") == []
    assert "/usr/bin/g++" in compilers_in("learner")  # so the search finds what is there


def test_services_may_do_no_more_than_they_need(project: Project) -> None:
    for service in ("actor", "replay", "learner", "evalserver"):
        for container in project.inspect(service):
            name, host = container["Id"], container["HostConfig"]
            assert docker("exec", name, "id", "-u").strip() == "10001"
            assert "Read-only" in docker("exec", name, "touch", "/app/x", check=False)
            assert host["CapDrop"] == ["ALL"]
            assert host["Memory"] > 0
            assert host["PidsLimit"] > 0
            published = container["NetworkSettings"]["Ports"] or {}
            bindings = [b for bound in published.values() for b in bound or ()]
            if service == "evalserver":
                assert {binding["HostIp"] for binding in bindings} == {"127.0.0.1"}
            else:
                assert bindings == []
    evalserver = project.containers("evalserver")[0]
    for module in ("tensorflow", "reverb", "grpc"):
        said = docker("exec", evalserver, "python", "-c", f"import {module}", check=False)
        assert "ModuleNotFoundError" in said
    assert "Read-only" in docker("exec", evalserver, "touch", "/runs/x", check=False)


def test_only_the_evaluation_server_has_a_way_out_and_the_learner_asks_for_the_token(
    project: Project,
) -> None:
    for service in ("actor", "replay", "learner", "evalserver"):
        for container in project.inspect(service):
            networks = container["NetworkSettings"]["Networks"]
            internal = [
                json.loads(docker("network", "inspect", n))[0]["Internal"] for n in networks
            ]
            assert sorted(internal) == ([False, True] if service == "evalserver" else [True])
    actor = project.containers("actor")[0]
    said = docker(
        *("exec", actor, "python", "-m", "actor", "--learner=learner:50051"),
        "--replay=replay:8080",
        check=False,
    )
    assert "does not let this actor in" in said


def test_health_is_what_the_services_say(project: Project) -> None:
    for service in ("actor", "replay", "learner", "evalserver"):
        wait_until(
            lambda service=service: all(  # type: ignore[misc]
                container["State"]["Health"]["Status"] == "healthy"
                for container in project.inspect(service)
            ),
            120,
            f"{service} to be healthy",
        )


@pytest.mark.parametrize("service", ["learner", "replay", "actor"])
def test_a_process_that_dies_is_started_again_and_the_run_goes_on(
    project: Project, service: str
) -> None:
    (run,) = project.runs()
    name = project.containers(service)[0]
    restarts = {found["Id"]: found["RestartCount"] for found in project.inspect(service)}
    docker("exec", name, "python", "-c", KILL.format(service=service), check=False)
    wait_until(
        lambda: any(
            c["RestartCount"] > restarts[c["Id"]] and c["State"]["Running"]
            for c in project.inspect(service)
        ),
        60,
        f"{service} to be started again",
    )
    before = project.steps()
    wait_until(lambda: project.steps() > before + 500, START_SECONDS, "steps after the crash")
    wait_until(lambda: project.num_actors(run["run"]) == 2, 90, "two actors")
    assert [found["run"] for found in project.runs()] == [run["run"]]


def test_a_killed_learner_is_taken_up_again(project: Project) -> None:
    (run,) = project.runs()
    project.compose("kill", "learner")
    assert project.states("learner") == [("exited", 137)]
    assert [state for state, _ in project.states("actor")] == ["running", "running"]
    project.compose("up", "--detach", "--scale", "actor=2", seconds=300)
    before = project.steps()
    wait_until(lambda: project.steps() > before + 500, START_SECONDS, "steps after the kill")
    wait_until(lambda: project.num_actors(run["run"]) == 2, 90, "two actors")
    assert [found["run"] for found in project.runs()] == [run["run"]]


def test_a_learner_in_a_new_container_is_found_under_its_name(project: Project) -> None:
    (run,) = project.runs()
    (before,) = project.containers("learner")
    recreate = ("--force-recreate", "--no-deps", "--detach", "learner")
    project.compose("up", *recreate, seconds=300)
    (after,) = project.containers("learner")
    assert after != before
    steps = project.steps()
    wait_until(lambda: project.steps() > steps + 500, START_SECONDS, "steps for the new learner")
    wait_until(lambda: project.num_actors(run["run"]) == 2, 90, "two actors")


def test_actors_come_and_go(project: Project) -> None:
    (run,) = project.runs()
    for number in (3, 1):
        project.compose("up", "--detach", "--scale", f"actor={number}", seconds=300)
        wait_until(lambda n=number: project.num_actors(run["run"]) == n, 120, f"{number} actors")  # type: ignore[misc]
        before = project.steps()
        wait_until(lambda: project.steps() > before + 300, 120, "steps")  # noqa: B023 - called here


def test_nothing_that_can_be_read_holds_the_token(project: Project) -> None:
    services = ("actor", "replay", "learner", "evalserver")
    secrets = (project.token(), metrics_token(project.token()))
    looked_at = project.compose("logs", "--no-color", seconds=60)
    for service in services:
        for container in project.inspect(service):
            looked_at += json.dumps(container)
            looked_at += docker("exec", container["Id"], "python", "-c", SURROUNDINGS)
    assert all(f"-m {service} " in looked_at for service in services)
    assert not any(secret in looked_at for secret in secrets)
    learner = project.containers("learner")[0]
    search = "grep -rlF -f /secrets/token -f /secrets/metrics-token /secrets /runs /tmp /app"
    found = docker("exec", learner, "sh", "-c", f"{search}; true").split()
    assert sorted(found) == ["/secrets/metrics-token", "/secrets/token"]
    assert docker("exec", learner, "stat", "-c", "%a %u", "/secrets/token").split() == [
        "600",
        "10001",
    ]


def test_an_actor_from_elsewhere_joins_by_two_addresses_and_the_token(
    project: Project, tmp_path: Path
) -> None:
    ports = {name: str(free_port()) for name in ("LEARNER_PORT", "REPLAY_PORT")}
    project.environment.update(ports)
    up = ("up", "--detach", "--scale", "actor=0")
    project.compose(*up, beside="deploy/remote-actors.yml", seconds=300)
    (run,) = project.runs()
    wait_until(lambda: project.num_actors(run["run"]) == 0, START_SECONDS, "our actors to leave")
    before = project.steps()
    # The command of docs/containers.md, on the network of this machine: none of the project's.
    flags = ("--init", "--read-only", "--tmpfs", "/tmp:exec", "--cap-drop", "ALL")  # noqa: S108
    command = ("run", "--network", "host", *flags, "--security-opt", "no-new-privileges")
    addresses = (
        f"--learner=127.0.0.1:{ports['LEARNER_PORT']}",
        f"--replay=127.0.0.1:{ports['REPLAY_PORT']}",
    )
    said = docker(*command, "--rm", "apprentice/actor", *addresses, check=False)
    assert "does not let this actor in" in said
    token = tmp_path / "token"
    token.write_text(project.token())
    token.chmod(0o600)
    os.chown(token, 10001, 10001)
    mount = ("--detach", "--volume", f"{token}:/secrets/token:ro")
    remote = docker(
        *command, *mount, "apprentice/actor", *addresses, "--token-file=/secrets/token"
    ).strip()
    try:
        wait_until(lambda: project.num_actors(run["run"]) == 1, START_SECONDS, "the remote actor")
        wait_until(lambda: project.steps() > before + 500, START_SECONDS, "its steps")
    finally:
        print(docker("logs", "--tail", "20", remote, check=False))
        docker("rm", "--force", remote)
    project.compose("up", "--detach", seconds=300)
    assert all(
        not (container["NetworkSettings"]["Ports"] or {}).get("8080/tcp")
        for container in project.inspect("replay")
    )
    before = project.steps()
    wait_until(lambda: project.steps() > before + 500, START_SECONDS, "our own actor's steps")


def test_down_and_up_go_on_with_the_run(project: Project) -> None:
    (run,) = project.runs()
    before = project.steps()
    project.compose("down", seconds=180)
    assert project.containers("learner") == []
    project.compose("up", "--detach", seconds=300)
    wait_until(lambda: project.steps() > before + 500, START_SECONDS, "steps after down and up")
    (after,) = project.runs()
    assert after["run"] == run["run"]
    assert "continuing from a checkpoint" in project.compose("logs", "--no-color", "learner")


def test_other_settings_are_another_run_which_ends_by_itself(project: Project) -> None:
    (first,) = project.runs()
    project.environment["SETTINGS"] = "learner.max_steps=1500"
    project.compose("up", "--detach", seconds=300)
    over = [("exited", 0)]
    wait_until(
        lambda: all(project.states(name) == over for name in ("learner", "actor", "replay")),
        START_SECONDS,
        "the run to finish and everybody to leave",
    )
    newest, oldest = project.runs()
    assert (newest["state"], oldest["run"]) == ("finished", first["run"])
    assert newest["steps"] >= 1500
    assert project.states("evalserver")[0][0] == "running"
    # Asked for again, it is over already.
    project.compose("up", "--detach", seconds=300)
    started = time.monotonic()
    wait_until(
        lambda: all(project.states(name) == over for name in ("learner", "actor", "replay")),
        START_SECONDS,
        "everybody to leave a finished run",
    )
    assert time.monotonic() - started < START_SECONDS
    assert [found["run"] for found in project.runs()] == [newest["run"], first["run"]]
