"""What an actor says of segments that nobody takes."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from actor.outbox import Outbox
from apprentice.profiling import Profile
from apprentice.types import Segment
from replay.errors import ReplayUnavailable
from tests.learner.test_learning import make_segment


class Writer:
    """Takes nothing while `full`."""

    full = True

    def append(self, segment: Segment, timeout_seconds: float | None = None) -> None:
        if self.full:
            raise ReplayUnavailable("table 'feed' holds 16 of 16 segments and nobody takes them")

    def flush(self, timeout_seconds: float | None = None) -> None:
        pass


def test_why_nothing_is_taken_is_said_once_it_has_lasted(monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Writer()
    outbox = Outbox(writer, Profile())
    outbox.put([make_segment(0), make_segment(1)])
    with capture_logs() as said:
        assert not outbox.send(0.0)
        assert said == []
        monkeypatch.setattr("actor.outbox.LONG_SECONDS", 0.0)
        assert not outbox.send(0.0)
        assert not outbox.send(0.0)
        assert [line["event"] for line in said] == ["segments are not taken"]
        assert "'feed' holds 16 of 16" in said[0]["reason"]
        writer.full = False
        assert outbox.send(0.0)
        writer.full = True
        assert not outbox.send(0.0)
        assert len(said) == 2  # another wait is another message
