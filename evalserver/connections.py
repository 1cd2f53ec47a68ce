"""HTTP connections that end where the other side neither asks in time nor takes its answer in time."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

PIECE = 4096


class TimedConnection(H11Protocol):
    """uvicorn's connection with two deadlines more, and a limit of a head's size that always holds.

    uvicorn waits for ever for the rest of a request's head, and for whoever has stopped reading.
    """

    head_seconds = 10.0
    """For the head of a request, from the moment the connection is open or the last answer was sent."""
    answer_seconds = 300.0
    """For all of an answer to be made and taken."""

    _since = 0.0
    _watch: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to watch."""
        super().connection_made(transport)
        self._since = self.loop.time()
        self._look_later()

    def data_received(self, data: bytes) -> None:
        """Take data in pieces: h11 holds its limit of a head's size against what is incomplete."""
        for start in range(0, len(data), PIECE):
            if self.transport.is_closing():
                return
            super().data_received(data[start : start + PIECE])

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop to watch."""
        if self._watch is not None:
            self._watch.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Give the next request its time."""
        self._since = self.loop.time()
        super().on_response_complete()

    def _look_later(self) -> None:
        self._watch = self.loop.call_later(self.head_seconds / 4, self._look)

    def _look(self) -> None:
        answered = self.cycle is None or self.cycle.response_complete
        taken = self.transport.get_write_buffer_size() == 0
        limit = self.head_seconds if answered and taken else self.answer_seconds
        if self.loop.time() - self._since > limit:
            self.transport.abort()
        else:
            self._look_later()
