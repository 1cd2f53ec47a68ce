"""Prometheus reads what a service measures, at the moment it asks."""

from __future__ import annotations

import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from apprentice.exporter import Exporter, MetricsPortError, metric_name
from apprentice.profiling import Span


def scrape(port: int) -> dict[tuple[str, tuple[str, ...]], float]:
    url = f"http://127.0.0.1:{port}/metrics"
    with urllib.request.urlopen(url, timeout=5.0) as reply:
        families = text_string_to_metric_families(reply.read().decode())
        return {
            (sample.name, tuple(sample.labels.values())): sample.value
            for family in families
            for sample in family.samples
        }


def test_metrics_and_spans_are_read_when_asked_for() -> None:
    metrics = {"learner/updates_per_second": 150.0, "profile/learner/update/seconds": 9.0}
    spans = {"update": Span(2.5, 100)}
    exporter = Exporter("learner", "127.0.0.1:0", lambda: metrics, lambda: spans)
    try:
        assert scrape(exporter.port) == {
            ("apprentice_learner_updates_per_second", ("learner",)): 150.0,
            ("apprentice_span_seconds_total", ("learner", "update")): 2.5,
            ("apprentice_span_units_total", ("learner", "update")): 100.0,
        }
        metrics["learner/updates_per_second"] = 151.0
        found = scrape(exporter.port)
        assert found["apprentice_learner_updates_per_second", ("learner",)] == 151.0
        with pytest.raises(MetricsPortError, match="in use"):
            Exporter("actor", f"127.0.0.1:{exporter.port}", dict, dict)
    finally:
        exporter.close()


@pytest.mark.parametrize("address", ["9464", ":9464", "localhost:http", "127.0.0.1:70000"])
def test_addresses_are_checked(address: str) -> None:
    with pytest.raises(MetricsPortError, match="expected HOST:PORT"):
        Exporter("actor", address, dict, dict)


def test_names_are_made_acceptable() -> None:
    assert metric_name("replay/task/cheetah-run") == "apprentice_replay_task_cheetah_run"
