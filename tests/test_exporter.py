"""Prometheus reads what a service measures, at the moment it asks."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from apprentice.exporter import Exporter, MetricsPortError, metric_name
from apprentice.healthcheck import find_problem
from apprentice.profiling import Span
from apprentice.tokens import ensure_token, metrics_token


def scrape(port: int) -> dict[tuple[str, tuple[str, ...]], float]:
    url = f"http://127.0.0.1:{port}/metrics"
    with urllib.request.urlopen(url, timeout=5.0) as reply:
        families = text_string_to_metric_families(reply.read().decode())
        return {
            (sample.name, tuple(sample.labels.values())): sample.value
            for family in families
            for sample in family.samples
        }


def _well() -> None:
    return None


def test_metrics_and_spans_are_read_when_asked_for() -> None:
    metrics = {"learner/updates_per_second": 150.0, "profile/learner/update/seconds": 9.0}
    spans = {"update": Span(2.5, 100)}
    exporter = Exporter("learner", "127.0.0.1:0", lambda: metrics, lambda: spans, _well)
    try:
        own = {k: v for k, v in scrape(exporter.port).items() if k[0].startswith("apprentice_")}
        assert own == {
            ("apprentice_learner_updates_per_second", ("learner",)): 150.0,
            ("apprentice_span_seconds_total", ("learner", "update")): 2.5,
            ("apprentice_span_units_total", ("learner", "update")): 100.0,
        }
        metrics["learner/updates_per_second"] = 151.0
        found = scrape(exporter.port)
        assert found["apprentice_learner_updates_per_second", ("learner",)] == 151.0
        with pytest.raises(MetricsPortError, match="in use"):
            Exporter("actor", f"127.0.0.1:{exporter.port}", dict, dict, _well)
    finally:
        exporter.close()


def test_memory_and_open_files_of_the_process_are_among_them() -> None:
    exporter = Exporter("learner", "127.0.0.1:0", dict, dict, _well)
    try:
        found = scrape(exporter.port)
        with ExitStack() as held:
            for _ in range(20):
                held.enter_context(Path(os.devnull).open())
            later = scrape(exporter.port)
    finally:
        exporter.close()
    resident = psutil.Process().memory_info().rss
    assert found["process_resident_memory_bytes", ()] == pytest.approx(resident, rel=0.2)
    more = later["process_open_fds", ()] - found["process_open_fds", ()]
    assert more == pytest.approx(20, abs=2)  # The first scrape's own connection may still be there.


@pytest.mark.parametrize("address", ["9464", ":9464", "localhost:http", "127.0.0.1:70000"])
def test_addresses_are_checked(address: str) -> None:
    with pytest.raises(MetricsPortError, match="expected HOST:PORT"):
        Exporter("actor", address, dict, dict, _well)


def test_names_are_made_acceptable() -> None:
    assert metric_name("replay/task/cheetah-run") == "apprentice_replay_task_cheetah_run"


def test_health_is_what_the_service_says_of_itself() -> None:
    problems: list[str | None] = [None, "3 checkpoints in a row could not be saved"]
    exporter = Exporter("learner", "127.0.0.1:0", dict, dict, lambda: problems.pop(0))
    url = f"http://127.0.0.1:{exporter.port}"
    try:
        assert find_problem(f"{url}/healthz") is None
        assert find_problem(f"{url}/healthz") == "503: 3 checkpoints in a row could not be saved"
        assert find_problem(f"{url}/") == "404: there are /metrics and /healthz"
    finally:
        exporter.close()
    found = find_problem(f"{url}/healthz")
    assert found is not None
    assert "refused" in found


def test_a_healthcheck_is_a_process_with_an_exit_code() -> None:
    exporter = Exporter("replay", "127.0.0.1:0", dict, dict, _well)
    try:
        codes = [
            subprocess.run(
                [sys.executable, "-m", "apprentice.healthcheck", *arguments],
                timeout=30,
                check=False,
                capture_output=True,
            ).returncode
            for arguments in ([f"http://127.0.0.1:{exporter.port}/healthz"], ["file:///"], [])
        ]
    finally:
        exporter.close()
    assert codes == [0, 1, 2]


def asked_from(exporter: Exporter, address: str, token: str | None) -> str:
    """Return the status of an answer to a caller at `address`."""
    environ = {"PATH_INFO": "/metrics", "REMOTE_ADDR": address, "REQUEST_METHOD": "GET"}
    if token is not None:
        environ["HTTP_AUTHORIZATION"] = f"Bearer {token}"
    statuses: list[str] = []
    application = exporter._server.get_app()
    assert application is not None
    list(application(environ, lambda status, headers, info=None: statuses.append(status)))  # type: ignore[arg-type,return-value]
    return statuses[0][:3]


def test_others_than_this_machine_must_carry_a_token(tmp_path: Path) -> None:
    file = tmp_path / "token"
    with pytest.raises(MetricsPortError, match="expected --token-file"):
        Exporter("learner", "0.0.0.0:0", dict, dict, _well)
    exporter = Exporter("learner", "0.0.0.0:0", dict, dict, _well, file)
    try:
        assert asked_from(exporter, "192.0.2.7", None) == "401"  # there is no token yet
        token = ensure_token(file)
        answers = {
            name: asked_from(exporter, "192.0.2.7", found)
            for name, found in {
                "none": None,
                "wrong": "x" * 43,
                "metrics": metrics_token(token),
                "whole": token,
            }.items()
        }
        assert answers == {"none": "401", "wrong": "401", "metrics": "200", "whole": "200"}
        assert asked_from(exporter, "127.0.0.1", None) == "200"  # the health check
    finally:
        exporter.close()
