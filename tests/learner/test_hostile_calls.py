"""Whatever is sent to the learner's port is answered with an error, and the next caller is served."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apprentice.profiling import Span
from apprentice.rpc import ActorReport, LearnerClient
from apprentice.rpc.messages import LARGEST_REQUEST_BYTES
from learner.leases import MAX_ACTORS, Leases, SlotHeld
from learner.service import LONGEST_NAME, MAX_SPANS, SERVICE
from tests.learner.test_service import Running

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 300.0
CALL_SECONDS = 30.0
UNARY = ("Join", "Heartbeat", "GetStatus", "Control")
REFUSALS = {
    grpc.StatusCode.INTERNAL,  # not a message of this kind
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,  # another protocol
    grpc.StatusCode.NOT_FOUND,  # a lease that nobody holds
    grpc.StatusCode.ALREADY_EXISTS,  # a slot that somebody holds
}
SERVE = """
import sys, time
from apprentice.logs import configure_logging
configure_logging("learner")
from learner.service import LearnerService
from tests.learner.test_service import EXPERIMENT, SPEC
service = LearnerService(EXPERIMENT, [SPEC], "127.0.0.1", 0, "run")
print(service.start(), flush=True)
time.sleep(3600)
"""


class Served:
    """A learner's service in a process of its own, and its log."""

    def __init__(self, log: Path) -> None:
        self.log = log
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", SERVE], cwd=ROOT, stdout=subprocess.PIPE, stderr=output
            )
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], START_SECONDS)
        assert readable, log.read_text()
        self.port = int(self.process.stdout.readline())
        self.address = f"127.0.0.1:{self.port}"
        self.client = LearnerClient(self.address, CALL_SECONDS)

    def still_serves(self) -> None:
        """Fail unless the process is the same and answers."""
        assert self.process.poll() is None, self.log.read_text()
        assert self.client.status().state == "starting"

    def close(self) -> None:
        self.client.close()
        self.process.kill()
        self.process.communicate(timeout=10.0)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("served") / "log")
    yield served
    served.close()


@pytest.fixture(scope="module")
def channel(served: Served) -> Iterator[grpc.Channel]:
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(served.address, options=options) as channel:
        yield channel


def answer(channel: grpc.Channel, method: str, request: bytes) -> grpc.StatusCode:
    """Send bytes to a method; return how it ended. A stream is read up to its first message."""
    try:
        if method == "StreamPolicies":
            call = channel.unary_stream(f"/{SERVICE}/{method}")(request, timeout=CALL_SECONDS)
            next(iter(call))
            call.cancel()
        else:
            channel.unary_unary(f"/{SERVICE}/{method}")(request, timeout=CALL_SECONDS)
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return grpc.StatusCode.OK


numbers = st.one_of(
    st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1])
)


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


@st.composite
def fields(draw: st.DrawFn) -> bytes:
    """One field as it might stand in a message: any number, any wire type, any value."""
    number, kind = draw(st.integers(1, 12)), draw(st.sampled_from([0, 1, 2, 3, 4, 5]))
    key = varint(number << 3 | kind)
    if kind == 0:
        return key + varint(draw(numbers))
    if kind in (1, 5):
        size = 8 if kind == 1 else 4
        return key + draw(st.binary(min_size=size, max_size=size))
    if kind == 2:
        value = draw(st.binary(max_size=40))
        return key + varint(draw(st.sampled_from([len(value), 0, 2**31, 2**40]))) + value
    return key


messages = st.one_of(st.binary(max_size=300), st.lists(fields(), max_size=12).map(b"".join))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(method=st.sampled_from([*UNARY, "StreamPolicies"]), request=messages)
def test_any_bytes_are_answered_and_the_next_caller_is_served(
    served: Served, channel: grpc.Channel, method: str, request: bytes
) -> None:
    assert answer(channel, method, request) in REFUSALS | {grpc.StatusCode.OK}
    served.still_serves()


@pytest.mark.parametrize("method", [*UNARY, "StreamPolicies"])
def test_a_message_that_is_too_large_is_refused_unread(
    served: Served, channel: grpc.Channel, method: str
) -> None:
    process = psutil.Process(served.process.pid)
    before = process.memory_info().rss
    request = bytes(64 << 20)
    assert answer(channel, method, request) == grpc.StatusCode.RESOURCE_EXHAUSTED
    just_over = bytes(LARGEST_REQUEST_BYTES + 1)
    assert answer(channel, method, just_over) == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert process.memory_info().rss - before < 32 << 20
    served.still_serves()


def test_nesting_without_end_is_refused(served: Served, channel: grpc.Channel) -> None:
    deep = b""
    for _ in range(5000):  # an unknown group within a group
        deep = b"\xa3\x06" + deep
    assert answer(channel, "Heartbeat", deep) == grpc.StatusCode.INTERNAL
    served.still_serves()


def literal(text: bytes) -> bytes:
    return bytes([len(text)]) + text


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """One frame of HTTP/2 (RFC 9113, section 4.1)."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def test_a_length_of_a_gibibyte_is_refused_before_it_has_come(served: Served) -> None:
    process = psutil.Process(served.process.pid)
    before = process.memory_info().rss
    headers = b"".join(
        b"\x00" + literal(name) + literal(value)  # RFC 7541: a literal that is not indexed
        for name, value in (
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", f"/{SERVICE}/Heartbeat".encode()),
            (b":authority", b"localhost"),
            (b"content-type", b"application/grpc"),
            (b"te", b"trailers"),
        )
    )
    prefix = b"\x00" + struct.pack(">I", 1 << 30)
    hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"")
    with socket.create_connection(("127.0.0.1", served.port), timeout=CALL_SECONDS) as connection:
        connection.sendall(hello + frame(1, 4, 1, headers) + frame(0, 0, 1, prefix + bytes(1000)))
        said = b""
        while b"larger than max" not in said:
            piece = connection.recv(65536)
            assert piece, said
            said += piece
    assert process.memory_info().rss - before < 32 << 20
    served.still_serves()


def test_noise_on_the_port_is_cut_off(served: Served) -> None:
    for number in range(20):
        with socket.create_connection(("127.0.0.1", served.port), CALL_SECONDS) as connection:
            noise = os.urandom(4000) if number % 2 else b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
            # It may have hung up before all was sent.
            with contextlib.suppress(ConnectionError):
                connection.sendall(noise)
                while connection.recv(65536):
                    pass
    served.still_serves()


def test_a_thousand_bad_messages_do_not_fill_the_log(served: Served, channel: grpc.Channel) -> None:
    before = served.log.stat().st_size
    for number in range(1000):
        method = UNARY[number % len(UNARY)]
        assert answer(channel, method, b"\xff" * 20) == grpc.StatusCode.INTERNAL
    assert served.log.stat().st_size - before < 20_000
    served.still_serves()


def test_what_an_actor_says_of_itself_is_kept_within_bounds() -> None:
    running = Running()
    try:
        client = LearnerClient(running.address, CALL_SECONDS)
        slot = client.join(5, "h" * 100_000, 1).slot
        spans = {f"{number}-" * 300: Span(float("nan"), 1) for number in range(200)}
        client.heartbeat(ActorReport(slot, 5, steps_per_second=float("inf"), spans=spans))
        client.close()
        (summary,) = running.service.actors_summary()
        assert summary["host"] == "h" * LONGEST_NAME
        json.dumps(summary, allow_nan=False)
        kept = running.service.spans()[slot]
        assert len(kept) == MAX_SPANS
        assert {len(name) for name in kept} == {LONGEST_NAME}
        assert {span.seconds for span in kept.values()} == {0.0}
    finally:
        running.service.stop(0.0)


def test_actors_without_end_are_not_taken_in() -> None:
    now = [0.0]
    leases = Leases(30.0, clock=lambda: now[0])
    for number in range(MAX_ACTORS):
        leases.take(number + 1, "host", number, None)
    with pytest.raises(SlotHeld, match=f"{MAX_ACTORS} actors have joined"):
        leases.take(MAX_ACTORS + 1, "host", 1, None)
    assert leases.take(5, "host", 4, None).slot == 4  # one that is in already is let in again
    now[0] = 31.0
    assert leases.take(MAX_ACTORS + 1, "host", 1, None).slot == 0
