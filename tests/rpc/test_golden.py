"""What went over the wire in the first release is understood by this one, and what is unknown is passed over."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
from google.protobuf.message import Message

import learner.service
from apprentice.config import Experiment
from apprentice.rpc import LearnerClient, ProtocolMismatch
from apprentice.rpc import client as rpc_client
from apprentice.rpc.messages import PolicyAssembler
from apprentice.rpc.v1 import learner_pb2 as pb
from apprentice.types import ArraySpec, EnvironmentSpec
from learner.service import SERVICE, LearnerService

INCARNATION = 0x0102030405060708
GOLDEN: list[tuple[Message, str]] = [
    (
        pb.JoinRequest(
            protocol_version=1,
            incarnation=INCARNATION,
            host="host-a",
            pid=4242,
            slot=0,
            environment_digest="ab12",
        ),
        "08011108070605040302011a06686f73742d612092212800320461623132",
    ),
    (
        pb.JoinReply(
            slot=3,
            lease_seconds=30.0,
            experiment_json='{"name": "x"}',
            environment_json=['{"task": "t"}'],
            run="run-1",
            policy_version=10007,
        ),
        "0803110000000000003e401a0d7b226e616d65223a202278227d220d7b227461736b223a202274227d2a0572756e2d3130974e",
    ),
    (
        pb.HeartbeatRequest(
            slot=3,
            incarnation=INCARNATION,
            steps=70000,
            steps_per_second=350.5,
            policy_version=7,
            episodes=[
                pb.EpisodeReport(task=0, environment_return=12.5, length=1000, policy_version=6)
            ],
            faults=2,
            spans=[pb.Span(name="physics", seconds=1.5, units=700)],
        ),
        "080311080706050403020118f0a204210000000000e875402807320e11000000000000294018e807200638024215"
        "0a077068797369637311000000000000f83f18bc05",
    ),
    (pb.HeartbeatReply(leave=True, paused=True, policy_version=9), "080110011809"),
    (
        pb.StreamPoliciesRequest(slot=3, incarnation=INCARNATION, known_policy_version=9),
        "08031108070605040302011809",
    ),
    (
        pb.PolicyChunk(
            header=pb.PolicyHeader(
                policy_version=9,
                num_bytes=24,
                sha256=bytes(range(32)),
                tensors=[pb.TensorSpec(name="w", dtype="float32", shape=[2, 3])],
            )
        ),
        "0a38080910181a20000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
        "22100a01771207666c6f617433321a020203",
    ),
    (pb.PolicyChunk(data=b"\x01\x02\x03"), "1203010203"),
    (pb.PolicyChunk(alive=True), "1801"),
    (pb.GetStatusRequest(), ""),
    (
        pb.GetStatusReply(
            status_json="{}", state="training", steps=10, updates=5, policy_version=3
        ),
        "0a027b7d1208747261696e696e67180a20052803",
    ),
    (pb.ControlRequest(action=pb.ControlRequest.ACTION_CHECKPOINT), "0804"),
    (pb.ControlReply(), ""),
]
FIELDS = {
    "JoinRequest": "protocol_version incarnation host pid slot environment_digest",
    "JoinReply": "slot lease_seconds experiment_json environment_json run policy_version",
    "EpisodeReport": "task environment_return length policy_version",
    "Span": "name seconds units",
    "HeartbeatRequest": "slot incarnation steps steps_per_second policy_version episodes faults spans",
    "HeartbeatReply": "leave paused policy_version",
    "StreamPoliciesRequest": "slot incarnation known_policy_version",
    "TensorSpec": "name dtype shape",
    "PolicyHeader": "policy_version num_bytes sha256 tensors",
    "PolicyChunk": "header data alive",
    "GetStatusRequest": "",
    "GetStatusReply": "status_json state steps updates policy_version",
    "ControlRequest": "action",
    "ControlReply": "",
}
"""Fields of the first release, in the order of their numbers, which begin at 1."""

UNKNOWN_FIELD = bytes.fromhex("c23e03616263")  # field 1000, three bytes
SPEC = EnvironmentSpec(
    "reacher-easy",
    "reacher-easy",
    {"state": ArraySpec((6,), "float32")},
    ArraySpec((2,), "float32"),
    1000,
    1,
    0.02,
)


@pytest.mark.parametrize(
    ("message", "wire"), GOLDEN, ids=lambda value: type(value).__name__ if value else ""
)
def test_the_first_release_is_understood_and_understands(message: Message, wire: str) -> None:
    assert type(message).FromString(bytes.fromhex(wire)) == message
    assert message.SerializeToString(deterministic=True).hex() == wire


@pytest.mark.parametrize(
    ("message", "wire"), GOLDEN, ids=lambda value: type(value).__name__ if value else ""
)
def test_fields_of_a_later_release_are_passed_over(message: Message, wire: str) -> None:
    found = type(message).FromString(bytes.fromhex(wire) + UNKNOWN_FIELD)
    for field in message.DESCRIPTOR.fields:
        assert getattr(found, field.name) == getattr(message, field.name)


@pytest.mark.parametrize("name", FIELDS)
def test_no_field_has_gone_or_changed_its_number(name: str) -> None:
    found = {field.number: field.name for field in getattr(pb, name).DESCRIPTOR.fields}
    expected = dict(enumerate(FIELDS[name].split(), start=1))
    assert {number: found.get(number) for number in expected} == expected


def test_every_field_is_among_the_golden_bytes() -> None:
    seen = set()

    def visit(message: Message) -> None:
        for field, value in message.ListFields():
            seen.add(field.full_name)
            if field.message_type is not None:
                for one in value if field.label == field.LABEL_REPEATED else [value]:
                    visit(one)

    for message, _ in GOLDEN:
        visit(message)
    package = "apprentice.rpc.v1"
    first = {f"{package}.{name}.{field}" for name in FIELDS for field in FIELDS[name].split()}
    # Zeros are not on the wire: these two are 0 above, and are read back as 0.
    assert first - seen <= {f"{package}.EpisodeReport.task"}


def test_a_kind_of_chunk_that_is_not_known_yet_is_no_policy() -> None:
    chunk = pb.PolicyChunk.FromString(UNKNOWN_FIELD)
    assert chunk.WhichOneof("content") is None
    assert PolicyAssembler().add(chunk) is None


@pytest.fixture
def service() -> Iterator[tuple[LearnerService, str]]:
    experiment = Experiment(name="golden", task="reacher-easy")
    service = LearnerService(experiment, [SPEC], "127.0.0.1", 0, "run")
    address = f"127.0.0.1:{service.start()}"
    yield service, address
    service.stop(0.0)


def test_an_order_that_is_not_known_yet_is_refused_and_does_nothing(
    service: tuple[LearnerService, str],
) -> None:
    learner_service, address = service
    with grpc.insecure_channel(address) as channel:
        control = channel.unary_unary(f"/{SERVICE}/Control")
        for action in ("0863", "0800", ""):  # 99, and nothing said
            with pytest.raises(grpc.RpcError) as refused:
                control(bytes.fromhex(action), timeout=10)
            assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert "expected one of" in refused.value.details()
        assert learner_service.commands() == []
        control(bytes.fromhex("0801") + UNKNOWN_FIELD, timeout=10)
    assert learner_service.commands() == ["pause"]


@pytest.mark.parametrize("version", [0, 2, 2**32 - 1])
def test_a_protocol_outside_of_the_range_is_refused_with_the_range(
    service: tuple[LearnerService, str], version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rpc_client, "PROTOCOL_VERSION", version)
    client = LearnerClient(service[1])
    with pytest.raises(ProtocolMismatch, match=rf"versions 1 to 1, the actor {version}; install"):
        client.join(11, "host", 5)
    client.close()


def test_the_release_before_is_served_by_the_one_after(
    service: tuple[LearnerService, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learner.service, "PROTOCOL_VERSION", 2)
    client = LearnerClient(service[1])
    assert client.join(11, "host", 5).slot == 0
    client.close()
