"""The edge to Reverb: its untyped calls, given the deadlines that they lack.

Reverb's clients retry for ever by themselves, but gRPC lets up to 30 seconds pass between two tries to
reconnect. A call of a fresh client to a server that is back ends that wait for every client of the
process (measured: 0.7 instead of up to 14 s), so whoever waits calls `nudge` now and then.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from apprentice.config import ReplaySettings
from apprentice.ports import split_address
from apprentice.types import EnvironmentSpec
from replay.errors import ReplayMismatch, ReplayUnavailable
from replay.importing import load_reverb
from replay.tables import COLUMN, FEED, SegmentFormat, table_sizes, task_table

log = structlog.get_logger()

UNLIMITED = 2**40
_PROBE_SECONDS = 0.5
_CALL_SECONDS = 2
_OPEN_SECONDS = 10.0
_NUDGE_PERIOD_SECONDS = 2.0
UNHEALTHY_SILENCE_SECONDS = 20.0
"""With what passes until a silence is noticed, a server that stands still is reported within 30 s."""


def make_tables(specs: Sequence[EnvironmentSpec], settings: ReplaySettings) -> list[Any]:
    """Return the durable table of each task, and the feed."""
    reverb = load_reverb()
    num_bytes = SegmentFormat(specs, settings.segment_length, settings.context_size).num_bytes
    signature = [reverb.TensorSpec([num_bytes], "uint8", name=COLUMN)]
    sizes = table_sizes(specs, settings)
    durable = [
        reverb.Table(
            name=task_table(spec),
            sampler=reverb.selectors.Uniform(),
            remover=reverb.selectors.Fifo(),
            max_size=sizes[task_table(spec)],
            rate_limiter=reverb.rate_limiters.MinSize(1),
            signature=signature,
        )
        for spec in specs
    ]
    return [*durable, reverb.Table.queue(FEED, sizes[FEED], signature=signature)]


class Connection:
    """One client of the replay server, which is checked to hold this experiment's tables."""

    def __init__(
        self, address: str, specs: Sequence[EnvironmentSpec], settings: ReplaySettings
    ) -> None:
        self.address = address
        self._host, self._port = split_address(address)
        self.format = SegmentFormat(specs, settings.segment_length, settings.context_size)
        self._sizes = table_sizes(specs, settings)
        self._lock = threading.Lock()
        self._down = False
        self._down_since = 0.0
        self._next_nudge = 0.0
        self.reconnects = 0
        """How often the server came back after it had been gone."""

    def open(self, timeout_seconds: float, should_stop: Callable[[], bool] = lambda: False) -> Any:
        """Return a fresh low-level client once the server answers.

        Raises ReplayUnavailable at the deadline, or where `should_stop` became true before; ReplayMismatch
        where its tables are others.
        """
        deadline = time.monotonic() + timeout_seconds
        while True:
            try:
                return self._call(min(_OPEN_SECONDS, deadline - time.monotonic()))[0]
            except ReplayUnavailable:
                self._note_down()
                if time.monotonic() + 0.2 >= deadline or should_stop():
                    raise
                time.sleep(0.2)

    def sizes(self, timeout_seconds: float = _CALL_SECONDS) -> dict[str, int]:
        """Return how many segments each table holds; raise ReplayUnavailable or ReplayMismatch."""
        return self._call(timeout_seconds)[1]

    def nudge(self, timeout_seconds: float = _CALL_SECONDS) -> None:
        """Look whether the server is there, at most every two seconds, and end gRPC's wait if it is back.

        Raises ReplayMismatch where another server has taken its place.
        """
        with self._lock:
            now = time.monotonic()
            if now < self._next_nudge:
                return
            self._next_nudge = now + (0.25 if self._down else _NUDGE_PERIOD_SECONDS)
        try:
            self._call(min(timeout_seconds, _CALL_SECONDS))
        except ReplayUnavailable:
            self._note_down()

    def describe(self) -> str:
        """Say in a sentence why a segment cannot be handed over now."""
        try:
            waiting = self.sizes(1.0)[FEED]
        except ReplayUnavailable:
            return f"the replay server at {self.address} does not answer"
        return (
            f"table {FEED!r} of the replay server at {self.address} holds {waiting} of "
            f"{self._sizes[FEED]} segments and nobody takes them; is the learner running?"
        )

    def heard(self) -> None:
        """Note that the server has answered somebody."""
        if not self._down:  # The usual case, once a segment, without the lock.
            return
        with self._lock:
            if self._down:
                self.reconnects += 1
                log.info("the replay server is there", address=self.address)
            self._down = False

    def problem(self) -> str | None:
        """Say for how long the server has not answered, where that is too long; from any thread."""
        with self._lock:
            seconds = time.monotonic() - self._down_since if self._down else 0.0
        if seconds < UNHEALTHY_SILENCE_SECONDS:
            return None
        return f"the replay server at {self.address} has not answered for {seconds:.0f} s"

    def _call(self, timeout_seconds: float) -> tuple[Any, dict[str, int]]:
        """Ask a fresh client for the tables; return it with their sizes."""
        if not _listens(self._host, self._port, min(timeout_seconds, _PROBE_SECONDS)):
            raise ReplayUnavailable(f"nothing listens at {self.address}; is the replay server up?")
        client = load_reverb().Client(self.address)
        try:
            infos = client.server_info(timeout=max(1, int(timeout_seconds)))
        except Exception as error:  # Reverb raises RuntimeError and kinds of its own
            raise ReplayUnavailable(
                f"the replay server at {self.address} does not answer: {error}"
            ) from error
        self._check(infos)
        self.heard()
        return client._client, {name: int(info.current_size) for name, info in infos.items()}

    def _check(self, infos: dict[str, Any]) -> None:
        """Raise ReplayMismatch unless the tables are those of the experiment, none fewer and none more."""
        for name, size in self._sizes.items():
            info = infos.get(name)
            if info is None:
                raise ReplayMismatch(
                    f"the replay server at {self.address} has no table {name!r} but "
                    f"{sorted(infos)}; it serves another experiment"
                )
            found = [(tuple(s.shape), s.dtype.name) for s in info.signature or []]
            expected = [((self.format.num_bytes,), "uint8")]
            if found != expected or int(info.max_size) != size:
                raise ReplayMismatch(
                    f"table {name!r} of the replay server at {self.address}: expected {size} "
                    f"segments of {expected}, found {info.max_size} of {found}; start actors, "
                    "learner and replay server from the same experiment"
                )
        if others := sorted(set(infos) - set(self._sizes)):
            raise ReplayMismatch(
                f"the replay server at {self.address} has tables {others} beside those of the experiment; it serves "
                "another one, with more tasks"
            )

    def _note_down(self) -> None:
        with self._lock:
            if not self._down:
                self._down_since = time.monotonic()
                log.warning("the replay server is gone", address=self.address)
            self._down = True


def _listens(host: str, port: int, timeout_seconds: float) -> bool:
    try:
        with socket.create_connection((host, port), max(0.01, timeout_seconds)):
            return True
    except OSError:
        return False
