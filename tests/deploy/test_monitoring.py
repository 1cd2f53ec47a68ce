"""What Prometheus and Grafana are given fits the services that they look at."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from apprentice.exporter import metric_name
from evalserver.hosts import RequireKnownHost
from tests.measured import SPAN_OWNERS, Measured

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "deploy" / "monitoring"
DASHBOARD = MONITORING / "grafana" / "dashboards" / "apprentice.json"
KNOWN_TO_PROMETHEUS = {"up"}
"""Series that it makes itself."""
VARIABLES = {"__rate_interval": "1m", "run": ".+", "actor": ".+", "service": ".+"}
"""What Grafana puts in their place, for example."""
WORDS = {
    "and",
    "or",
    "unless",
    "by",
    "without",
    "on",
    "ignoring",
    "group_left",
    "group_right",
    "bool",
}
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)"
)


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    services: dict[str, Any] = load(ROOT / "docker-compose.yml")["services"]
    return services


@pytest.fixture(scope="module")
def jobs() -> dict[str, dict[str, Any]]:
    config = load(MONITORING / "prometheus.yml")
    return {job["job_name"]: job for job in config["scrape_configs"]}


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return found


def drawn(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the panels that show something."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def expressions(dashboard: dict[str, Any]) -> list[str]:
    """Return every query, with the variables filled in."""
    queries = [target["expr"] for panel in drawn(dashboard) for target in panel["targets"]]
    return [re.sub(r"\$([a-z_]\w*)", lambda found: VARIABLES[found[1]], query) for query in queries]


def metrics_in(expression: str) -> Iterator[re.Pattern[str]]:
    """Return what each metric that a PromQL expression reads must match."""
    for name in re.findall(r'__name__=~"([^"]*)"', expression):
        yield re.compile(name)
    bare = re.sub(r'"[^"]*"', "", expression)
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]", "", bare)
    bare = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", "", bare)
    for name in re.findall(r"(?<![\w.])([A-Za-z_:][\w:]*)(?!\s*\(|\w)", bare):
        if name not in WORDS:
            yield re.compile(re.escape(name))


def hosts(job: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Return the names and ports that a job asks."""
    for static in job.get("static_configs", ()):
        for target in static["targets"]:
            host, _, port = target.partition(":")
            yield host, int(port)
    for discovered in job.get("dns_sd_configs", ()):
        assert discovered["type"] == "A"
        for name in discovered["names"]:
            yield name, discovered["port"]


def test_every_service_that_has_numbers_is_asked_under_its_name(
    compose: dict[str, Any], jobs: dict[str, dict[str, Any]]
) -> None:
    listening = {}
    for name, service in compose.items():
        flags = dict(
            flag.removeprefix("--").split("=", 1)
            for flag in service.get("command", ())
            if "=" in flag
        )
        if "metrics" in flags:
            host, _, port = flags["metrics"].rpartition(":")
            assert host == "0.0.0.0"  # noqa: S104
            listening[name] = int(port)
        elif name == "evalserver":
            listening[name] = int(flags["port"])
    assert {name: list(hosts(job)) for name, job in jobs.items()} == {
        name: [(name, port)] for name, port in listening.items()
    }
    assert set(listening) == set(SPAN_OWNERS.values()) | {"evalserver"}
    networks = set(compose["prometheus"]["networks"])
    assert all(networks & set(compose[name]["networks"]) for name in listening)


def test_the_evaluation_server_answers_under_the_name_that_prometheus_asks_for(
    compose: dict[str, Any], jobs: dict[str, dict[str, Any]]
) -> None:
    flags = [str(flag) for flag in compose["evalserver"]["command"]]
    allowed = [flag.partition("=")[2] for flag in flags if flag.startswith("--allowed-hosts=")]
    guard = RequireKnownHost(lambda *_: None, allowed)  # type: ignore[arg-type,return-value]
    ((host, port),) = hosts(jobs["evalserver"])
    assert guard._is_known(f"{host}:{port}")


def test_numbers_come_every_five_seconds_and_grafana_knows_it() -> None:
    config = load(MONITORING / "prometheus.yml")
    (source,) = load(MONITORING / "grafana/provisioning/datasources/prometheus.yml")["datasources"]
    assert config["global"]["scrape_interval"] == source["jsonData"]["timeInterval"] == "5s"
    assert not any("scrape_interval" in job for job in config["scrape_configs"])


def test_grafana_finds_prometheus_and_the_dashboard(
    compose: dict[str, Any], dashboard: dict[str, Any]
) -> None:
    (source,) = load(MONITORING / "grafana/provisioning/datasources/prometheus.yml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in compose
    assert f'"{source["uid"]}"' in DASHBOARD.read_text()
    mounts = {
        volume.split(":")[0]: volume.split(":")[1] for volume in compose["grafana"]["volumes"]
    }
    (provider,) = load(MONITORING / "grafana/provisioning/dashboards/apprentice.yml")["providers"]
    assert mounts["./deploy/monitoring/grafana/dashboards"] == provider["options"]["path"]
    assert mounts["./deploy/monitoring/grafana/provisioning"] == "/etc/grafana/provisioning"
    assert (dashboard["uid"], dashboard["id"], dashboard["schemaVersion"]) == (
        "apprentice",
        None,
        39,
    )


def test_panels_have_all_a_reader_needs_and_do_not_overlap(dashboard: dict[str, Any]) -> None:
    panels, uid = dashboard["panels"], "apprentice-prometheus"
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = set(
            itertools.product(
                range(place["x"], place["x"] + place["w"]),
                range(place["y"], place["y"] + place["h"]),
            )
        )
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    for panel in drawn(dashboard):
        assert len(panel["description"]) > 20, panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["targets"], panel["title"]
        sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
        assert all(source == {"type": "prometheus", "uid": uid} for source in sources)
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references)


def test_queries_use_the_variables_that_there_are(dashboard: dict[str, Any]) -> None:
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    queries = [target["expr"] for panel in drawn(dashboard) for target in panel["targets"]]
    used = set(re.findall(r"\$([a-z]\w*)", " ".join(queries)))
    assert used == variables == VARIABLES.keys() - {"__rate_interval"}


def test_every_metric_of_the_dashboard_is_exported(
    dashboard: dict[str, Any], measured: Measured
) -> None:
    exported = frozenset().union(*measured.exported.values()) | KNOWN_TO_PROMETHEUS
    asked = [*expressions(dashboard)]
    asked += [
        re.sub(r"label_values\((.*), \w+\)", r"\1", variable["definition"])
        for variable in dashboard["templating"]["list"]
    ]
    for expression in asked:
        patterns = list(metrics_in(expression))
        assert patterns, expression
        for pattern in patterns:
            found = any(pattern.fullmatch(name) for name in exported)
            assert found, f"{pattern.pattern} is exported by nobody: {expression}"


def test_the_dashboard_shows_what_a_run_is_watched_for(dashboard: dict[str, Any]) -> None:
    shown = [pattern.pattern for one in expressions(dashboard) for pattern in metrics_in(one)]
    for key in (
        *("run/training_return", "run/evaluation_return", "actor/steps_per_second"),
        *("learner/updates_per_second", "replay/ratio", "learner/policy_lag_steps", "actor/count"),
        *("learner/critic_loss", "learner/policy_loss", "learner/temperature"),
        *("span_seconds_total", "http_requests_total", "evaluations_in_progress"),
        *("media_cache_hits_total", "http_request_seconds_bucket"),
    ):
        assert metric_name(key) in shown


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ('sum by (le) (rate(a_b{route="/x", y=~"a|b"}[5m]))', ["a_b"]),
        ("c / on (run) group_left (task) d > 0 and e", ["c", "d", "e"]),
        ('label_replace({__name__=~"f_.+"}, "t", "$1", "__name__", "f_(.+)")', ["f_.+"]),
        ("histogram_quantile(0.99, g) - scalar(max(h:i)) * 1e3", ["g", "h:i"]),
    ],
)
def test_metrics_are_found_in_expressions(expression: str, names: list[str]) -> None:
    assert [pattern.pattern for pattern in metrics_in(expression)] == names


@needs_promtool
def test_promtool_accepts_the_configuration(tmp_path: Path) -> None:
    token, file = tmp_path / "metrics-token", tmp_path / "prometheus.yml"
    token.write_text("x" * 64)  # promtool looks for it
    text = (MONITORING / "prometheus.yml").read_text()
    assert text.count("/secrets/metrics-token") == 3
    file.write_text(text.replace("/secrets/metrics-token", str(token)))
    promtool("check", "config", str(file))


@needs_promtool
def test_promtool_parses_every_expression_of_the_dashboard(
    tmp_path: Path, dashboard: dict[str, Any]
) -> None:
    rules = [
        {"record": f"dashboard:{number}", "expr": expression}
        for number, expression in enumerate(expressions(dashboard))
    ]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", str(file))
    rules[0]["expr"] += ")"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    with pytest.raises(AssertionError, match="could not parse expression"):
        promtool("check", "rules", str(file))


def promtool(*arguments: str) -> str:
    done = subprocess.run(
        ["promtool", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
