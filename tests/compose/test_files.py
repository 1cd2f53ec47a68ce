"""What Dockerfile, compose file and locks promise, checked without an engine."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.compose.client import ROOT, compose_command

OURS = ("run", "actor", "replay", "learner", "evalserver")
SERVICES = ("actor", "replay", "learner", "evalserver")


def load(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / name).read_text()))


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return load("docker-compose.yml")


@pytest.mark.parametrize("service", OURS)
def test_every_service_is_locked_down(compose: dict[str, Any], service: str) -> None:
    settings = compose["services"][service]
    assert settings["user"] == "10001:10001"
    assert settings["read_only"] is True
    assert settings["cap_drop"] == ["ALL"]
    assert settings["security_opt"] == ["no-new-privileges:true"]
    assert settings["init"] is True
    assert settings["pids_limit"] >= 512
    assert settings["mem_limit"]
    assert settings["logging"]["options"]["max-size"] == "10m"
    assert not any("docker.sock" in volume for volume in settings.get("volumes", ()))


@pytest.mark.parametrize("service", ["prometheus", "grafana"])
def test_the_monitoring_services_are_held_too(compose: dict[str, Any], service: str) -> None:
    settings = compose["services"][service]
    assert settings["profiles"] == ["monitoring"]
    assert settings["read_only"] is True
    assert settings["cap_drop"] == ["ALL"]
    assert settings["security_opt"] == ["no-new-privileges:true"]
    assert settings["init"] is True
    assert settings["healthcheck"]["test"]
    assert settings["pids_limit"] and settings["mem_limit"]
    assert settings["logging"]["options"]["max-size"] == "10m"


def test_whoever_asks_or_must_ask_for_the_token_can_read_it(compose: dict[str, Any]) -> None:
    for name in ("actor", "replay", "evalserver", "prometheus"):
        assert "secrets:/secrets:ro" in compose["services"][name]["volumes"]
    for name in ("actor", "replay", "learner"):
        command = compose["services"][name]["command"]
        assert "--token-file=/secrets/token" in command
        assert "--metrics=0.0.0.0:9100" in command
    jobs = load("deploy/monitoring/prometheus.yml")["scrape_configs"]
    asked = {job["job_name"]: job.get("authorization", {}).get("credentials_file") for job in jobs}
    metrics = "/secrets/metrics-token"
    assert asked == {"learner": metrics, "replay": metrics, "actor": metrics, "evalserver": None}


def test_only_loopback_is_published_and_only_what_people_look_at(compose: dict[str, Any]) -> None:
    published = {
        name: settings["ports"]
        for name, settings in compose["services"].items()
        if "ports" in settings
    }
    assert sorted(published) == ["evalserver", "grafana"]
    remote = load("deploy/remote-actors.yml")["services"]
    published |= {name: settings["ports"] for name, settings in remote.items()}
    for ports in published.values():
        assert all(port.startswith("127.0.0.1:") for port in ports)


def test_all_but_what_is_published_have_no_way_out(compose: dict[str, Any]) -> None:
    assert compose["networks"]["backend"] == {"internal": True}
    for name, settings in compose["services"].items():
        networks = ["backend", "edge"] if "ports" in settings else ["backend"]
        assert settings["networks"] == networks, name


def test_volumes_are_writable_for_their_owner_only(compose: dict[str, Any]) -> None:
    writers: dict[str, list[str]] = {}
    for name in OURS:
        for volume in compose["services"][name].get("volumes", ()):
            if not volume.endswith(":ro"):
                writers.setdefault(volume.partition(":")[0], []).append(name)
    assert writers == {
        "runs": ["run", "learner"],
        "replay-checkpoints": ["replay"],
        "secrets": ["learner"],
        "compiled": ["learner"],
    }


def test_the_file_is_valid_for_the_compose_that_is_installed() -> None:
    command = compose_command()
    if command is None:
        pytest.skip("no compose is installed")
    files = ["-f", "docker-compose.yml", "-f", "deploy/remote-actors.yml"]
    subprocess.run([*command, *files, "config", "--quiet"], cwd=ROOT, check=True, timeout=60)


def test_each_service_is_built_as_a_target_and_says_how_it_is(compose: dict[str, Any]) -> None:
    stages = re.split(r"^FROM ", dockerfile(), flags=re.MULTILINE)[1:]
    by_name = {re.match(r"\S+ AS (\S+)", stage)[1]: stage for stage in stages}  # type: ignore[index]
    builders = {
        settings["build"]["target"]: settings["image"]
        for settings in compose["services"].values()
        if "build" in settings
    }
    assert builders == {name: f"apprentice/{name}" for name in SERVICES}
    for name in SERVICES:
        assert compose["services"][name]["image"] == f"apprentice/{name}"
        stage = by_name[name]
        assert "HEALTHCHECK" in stage
        assert "USER 10001:10001" in stage
        assert f'ENTRYPOINT ["python", "-m", "{name}"]' in stage


def test_no_image_is_made_twice_and_none_for_another(compose: dict[str, Any]) -> None:
    services = compose["services"].items()
    made = [settings["build"]["target"] for _, settings in services if "build" in settings]
    assert sorted(made) == sorted(SERVICES)
    # Docker's older builder makes all stages that come before a target: the evaluation server's come last.
    stages = re.findall(r"^FROM \S+ AS (\S+)\n((?:.*\n)*?)(?=\n\n|\Z)", dockerfile(), re.MULTILINE)
    assert [name for name, _ in stages][-2:] == ["evaluation", "evalserver"]
    for name, text in stages[:-2]:
        if "requirements/image" in text:
            assert re.search(r"^ARG ONLY$", text, re.MULTILINE), name
            assert 'RUN [ -n "${ONLY}" ] || ' in text, name
    only = {
        name: settings["build"]["args"].get("ONLY")
        for name, settings in services
        if "build" in settings
    }
    assert only == {"run": None, "actor": None, "learner": None, "evalserver": "evaluation"}


def dockerfile() -> str:
    return (ROOT / "Dockerfile").read_text()


def test_what_is_copied_into_images_is_in_the_build_context() -> None:
    kept = {
        line[1:]
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    for line in dockerfile().replace("\\\n", " ").splitlines():
        if line.startswith("COPY "):
            for source in line.split()[1:-1]:
                assert source in kept or f"{Path(source).parent}/*{Path(source).suffix}" in kept, (
                    source
                )
                assert (ROOT / source).exists()


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / "requirements" / f"{name}.lock").read_text().splitlines()
    found = [re.match(r"([A-Za-z0-9._-]+)==([^ ]+)", line) for line in lines]
    return {match[1].lower(): match[2] for match in found if match}


@pytest.mark.parametrize("name", SERVICES)
def test_images_hold_the_versions_that_are_tested(name: str) -> None:
    base = pins("base")
    assert pins(name)
    assert {package: base.get(package) for package in pins(name)} == pins(name)


def test_the_image_that_is_reached_from_outside_holds_no_more_than_it_needs() -> None:
    assert not {"tensorflow-cpu", "dm-reverb", "grpcio", "tensorboard"} & set(pins("evalserver"))
    assert {"tensorflow-cpu", "dm-reverb"} <= set(pins("replay"))


def test_the_evaluation_server_s_image_holds_every_library_that_our_code_imports_there() -> None:
    code = (
        "import sys, evalserver.app, evalserver.worker; evalserver.worker.warm_up();"
        "print(*[m.__file__ for n, m in sys.modules.items() if n.startswith(('apprentice.', 'evalserver.'))])"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert loaded.returncode == 0, loaded.stderr
    imported = {name for file in loaded.stdout.split() for name in imports_of(Path(file))}
    libraries = imported - sys.stdlib_module_names - {"apprentice", "evalserver", "torch"}
    installed = importlib.metadata.packages_distributions()
    missing = {
        name
        for name in libraries
        if not {d.lower().replace("_", "-") for d in installed[name]} & set(pins("evalserver"))
    }
    assert "h5py" in libraries
    assert missing == set()


def imports_of(file: Path) -> set[str]:
    """Return the top-level names of all that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found
