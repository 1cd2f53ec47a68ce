"""A service's numbers for Prometheus, on a port of their own."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from apprentice.ports import split_address
from apprentice.profiling import Span

ReadMetrics = Callable[[], Mapping[str, float]]
ReadSpans = Callable[[], Mapping[str, Span]]


class MetricsPortError(Exception):
    """The address for Prometheus cannot be used."""


class Exporter:
    """Serves `GET /metrics` from a thread of its own, reading the numbers when it is asked.

    A metric `learner/updates_per_second` is exported as the gauge `apprentice_learner_updates_per_second`;
    spans as the counters `apprentice_span_seconds_total` and `apprentice_span_units_total`, by `service`
    and `span`. What is not a finite or infinite number, or is a span among the metrics, is left out.
    """

    def __init__(self, service: str, address: str, metrics: ReadMetrics, spans: ReadSpans) -> None:
        """Listen on `address` (HOST:PORT); raise MetricsPortError where that is not possible."""
        registry = CollectorRegistry()
        registry.register(_ServiceCollector(service, metrics, spans))
        try:
            host, port = split_address(address)
            self._server, self._thread = start_http_server(port, host, registry)
        except (OSError, ValueError) as error:
            raise MetricsPortError(f"--metrics {address}: {error}") from error
        self.port = int(self._server.server_port)

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(2.0)


class _ServiceCollector(Collector):
    def __init__(self, service: str, metrics: ReadMetrics, spans: ReadSpans) -> None:
        self._service, self._metrics, self._spans = service, metrics, spans

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """Read everything anew."""
        for name, value in sorted(self._metrics().items()):
            if not name.startswith("profile/"):
                gauge = GaugeMetricFamily(metric_name(name), name, labels=["service"])
                gauge.add_metric([self._service], value)
                yield gauge
        labels = ["service", "span"]
        seconds = CounterMetricFamily("apprentice_span_seconds", "Wall time.", labels=labels)
        units = CounterMetricFamily("apprentice_span_units", "Work done in it.", labels=labels)
        for name, span in self._spans().items():
            seconds.add_metric([self._service, name], span.seconds)
            units.add_metric([self._service, name], span.units)
        yield seconds
        yield units


def metric_name(name: str) -> str:
    """Return a name that Prometheus accepts: `a/b-c` becomes `apprentice_a_b_c`."""
    return "apprentice_" + re.sub(r"[^A-Za-z0-9_]", "_", name)
