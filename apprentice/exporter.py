"""A service's numbers for Prometheus, and whether it is well, on a port of their own."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, ProcessCollector, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from apprentice.ports import is_loopback, split_address
from apprentice.profiling import Span
from apprentice.tokens import TokenError, bearer, metrics_token, read_token, same_token

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

_REQUEST_SECONDS = 10.0

ReadMetrics = Callable[[], Mapping[str, float]]
ReadSpans = Callable[[], Mapping[str, Span]]
FindProblem = Callable[[], str | None]
"""Says in a sentence why the service is not well; None where it is."""


class MetricsPortError(Exception):
    """The address for Prometheus cannot be used."""


class Exporter:
    """Serves `GET /metrics` and `GET /healthz` from threads of its own, reading the numbers when asked.

    A metric `learner/updates_per_second` is exported as the gauge `apprentice_learner_updates_per_second`;
    spans as the counters `apprentice_span_seconds_total` and `apprentice_span_units_total`, by `service`
    and `span`. Spans among the metrics are left out. Beside them stand the process's own numbers, memory
    and open files among them, under the names that Prometheus gives them. `/healthz` answers 200, or 503
    with the problem. Where others than this machine can reach it, they must carry the token.
    """

    def __init__(
        self,
        service: str,
        address: str,
        metrics: ReadMetrics,
        spans: ReadSpans,
        problem: FindProblem,
        token_file: Path | None = None,
    ) -> None:
        """Listen on `address` (HOST:PORT).

        `token_file` holds what callers from other addresses than this machine's loopback must carry; until it is
        there they are refused. Raises MetricsPortError where listening is not possible, or others could ask
        without a token.
        """
        registry = CollectorRegistry()
        registry.register(_ServiceCollector(service, metrics, spans))
        ProcessCollector(registry=registry)
        try:
            host, port = split_address(address)
            if token_file is None and not is_loopback(host):
                raise ValueError(
                    f"{host} can be reached from other machines: expected --token-file, the file of the token "
                    "that they must then carry (the learner makes it)"
                )
            self._server = make_server(
                host,
                port,
                _Pages(registry, problem, token_file),
                _server_class(host),
                _QuietHandler,
            )
        except (OSError, ValueError) as error:
            raise MetricsPortError(f"--metrics {address}: {error}") from error
        self.port = int(self._server.server_port)
        self._thread = threading.Thread(target=self._serve, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(2.0)

    def _serve(self) -> None:
        self._server.serve_forever(poll_interval=0.2)


class _Pages:
    def __init__(
        self, registry: CollectorRegistry, problem: FindProblem, token_file: Path | None
    ) -> None:
        self._metrics = make_wsgi_app(registry)
        self._problem, self._token_file = problem, token_file

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        if not self._may_ask(environ):
            challenge = ("WWW-Authenticate", 'Bearer realm="apprentice"')
            start_response("401 Unauthorized", [("Content-Type", "text/plain"), challenge])
            return [b"expected the token of the run: Authorization: Bearer ...\n"]
        path = environ.get("PATH_INFO")
        if path == "/metrics":
            pages: Iterable[bytes] = self._metrics(environ, start_response)
            return pages
        if path != "/healthz":
            status, text = "404 Not Found", "there are /metrics and /healthz"
        elif problem := self._problem():
            status, text = "503 Service Unavailable", problem
        else:
            status, text = "200 OK", "ok"
        start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [f"{text}\n".encode()]

    def _may_ask(self, environ: WSGIEnvironment) -> bool:
        """Return whether the caller is on this machine, as the container's health check is, or knows the token."""
        if self._token_file is None or is_loopback(str(environ.get("REMOTE_ADDR", ""))):
            return True
        try:
            token = read_token(self._token_file)
        except TokenError:
            return False
        found = bearer(str(environ.get("HTTP_AUTHORIZATION", "")))
        return same_token(found, metrics_token(token)) or same_token(found, token)


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    block_on_close = False


class _Server6(_Server):
    address_family = socket.AF_INET6


def _server_class(host: str) -> type[_Server]:
    return _Server6 if ":" in host else _Server


class _QuietHandler(WSGIRequestHandler):
    timeout = _REQUEST_SECONDS

    def log_message(self, format: str, *args: object) -> None:
        """Write nothing: a scrape every few seconds is no news."""


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
            if name == "other":  # what no lap has charged yet falls when one does: no counter
                continue
            seconds.add_metric([self._service, name], span.seconds)
            units.add_metric([self._service, name], span.units)
        yield seconds
        yield units


def metric_name(name: str) -> str:
    """Return a name that Prometheus accepts: `a/b-c` becomes `apprentice_a_b_c`."""
    return "apprentice_" + re.sub(r"[^A-Za-z0-9_]", "_", name)
