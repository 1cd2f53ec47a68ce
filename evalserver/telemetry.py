"""The evaluation server's own numbers, and those of the runs it serves, for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from apprentice.runs import Catalogue
from evalserver.cache import MediaCache
from evalserver.jobs import Jobs

MOST_RUNS = 20
SECONDS = (0.005, 0.02, 0.1, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
RUN_NUMBERS = (
    "steps",
    "max_steps",
    "updates",
    "policy_version",
    "best_return",
    "training_return",
    "replay_ratio",
    "steps_per_second",
    "updates_per_second",
    "policy_lag_steps",
)


class Telemetry:
    """Counts requests, and reads everything else when Prometheus asks."""

    def __init__(self, catalogue: Catalogue, cache: MediaCache) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "apprentice_http_requests",
            "Answers by route and status.",
            ["route", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "apprentice_http_request_seconds",
            "Seconds until the answer was sent, by route.",
            ["route"],
            buckets=SECONDS,
            registry=self._registry,
        )
        labels = ["service", "span"]
        self._spans = tuple(
            Counter(f"apprentice_span_{name}", text, labels, registry=self._registry)
            for name, text in (("seconds", "Wall time."), ("units", "Work done in it."))
        )
        self.server = _ServerCollector(cache)
        self._registry.register(self.server)
        self._registry.register(_RunsCollector(catalogue))
        ProcessCollector(registry=self._registry)

    def note(self, route: str, status: int, seconds: float) -> None:
        """Count one answer."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def charge(self, seconds: Mapping[str, float]) -> None:
        """Add a worker's time over one request, by what it was spent on."""
        for name, value in seconds.items():
            for counter, amount in zip(self._spans, (value, 1.0), strict=True):
                counter.labels("evalserver", name.replace("_", " ")).inc(amount)

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self._registry)


class CountRequests:
    """Tells the telemetry of every answer, by the route's pattern and never by what was asked."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        self._app, self._telemetry = app, telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request and count it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._telemetry.note(route, status, time.perf_counter() - started)


class _ServerCollector(Collector):
    def __init__(self, cache: MediaCache) -> None:
        self._cache = cache
        self.jobs: Jobs | None = None

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """Read the queue and the cache."""
        cache = self._cache
        inside = self.jobs.num_inside if self.jobs else 0
        yield GaugeMetricFamily("apprentice_media_cache_bytes", "Media kept.", cache.num_bytes)
        yield GaugeMetricFamily("apprentice_media_cache_entries", "Media kept.", len(cache))
        yield CounterMetricFamily(
            "apprentice_media_cache_hits", "Answers from the cache.", cache.num_hits
        )
        yield CounterMetricFamily(
            "apprentice_media_cache_misses", "Answers that had to be made.", cache.num_misses
        )
        yield GaugeMetricFamily(
            "apprentice_evaluations_in_progress", "Evaluations served or waiting.", inside
        )


class _RunsCollector(Collector):
    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Read the newest runs' status files."""
        labels = ["run", "task", "state"]
        gauges = {
            name: GaugeMetricFamily(f"apprentice_run_{name}", f"{name} of a run.", labels=labels)
            for name in RUN_NUMBERS
        }
        evaluation = GaugeMetricFamily(
            "apprentice_run_evaluation_return", "Newest evaluation of a run.", labels=labels
        )
        actors = GaugeMetricFamily(
            "apprentice_run_actors", "Living actors of a run.", labels=labels
        )
        for folder in self._catalogue.runs()[:MOST_RUNS]:
            status = folder.read_status()
            if status is None:
                continue
            values = [folder.path.name, status.task, status.state]
            for name, gauge in gauges.items():
                number = getattr(status, name)
                if number is not None:
                    gauge.add_metric(values, number)
            if status.evaluation_returns:
                evaluation.add_metric(values, status.evaluation_returns[-1])
            living = status.actors if status.state in ("waiting", "training", "paused") else ()
            actors.add_metric(values, len(living))
        yield from gauges.values()
        yield evaluation
        yield actors
