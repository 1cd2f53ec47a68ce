"""The learner's service as an actor, a view or a tool calls it: every call has a deadline."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import grpc
import torch

from apprentice.config import Experiment
from apprentice.profiling import Span
from apprentice.rpc.channel import open_channel
from apprentice.rpc.errors import (
    LearnerError,
    LearnerUnavailable,
    NotAMember,
    NotAuthorised,
    ProtocolMismatch,
    Refused,
    SlotTaken,
    SpecMismatch,
)
from apprentice.rpc.messages import (
    LARGEST_MESSAGE_BYTES,
    PROTOCOL_VERSION,
    EpisodeReport,
    PolicyAssembler,
    TornPolicy,
    span_messages,
)
from apprentice.rpc.subscription import PolicySubscription
from apprentice.rpc.v1 import learner_pb2 as pb
from apprentice.rpc.v1 import learner_pb2_grpc as pb_grpc
from apprentice.types import EnvironmentSpec

CONTEXT_SECONDS = 30.0
"""Deadline of the one call that may bring much."""
Action = Literal["pause", "resume", "stop", "checkpoint"]

_ACTIONS = {
    "pause": pb.ControlRequest.ACTION_PAUSE,
    "resume": pb.ControlRequest.ACTION_RESUME,
    "stop": pb.ControlRequest.ACTION_STOP,
    "checkpoint": pb.ControlRequest.ACTION_CHECKPOINT,
}
_TRANSIENT = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", LARGEST_MESSAGE_BYTES),
    ("grpc.max_send_message_length", LARGEST_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # Calls that come and go do not keep the timeout above alive; a connection that answers no ping is
    # given up after a minute by default.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.ping_timeout_ms", 10_000),
    # A learner that comes back must not be waited for by a back-off of minutes, nor be looked for at
    # the address that its name had before: names are looked up anew at most once in 30 s by default.
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.dns_min_time_between_resolutions_ms", 2_000),
)


class Membership(NamedTuple):
    """What an actor gets when it joins."""

    slot: int
    experiment: Experiment
    specs: tuple[EnvironmentSpec, ...]
    lease_seconds: float
    run: str
    policy_version: int  # 0: none yet, act uniformly at random
    context_sha256: str = ""  # of the demonstrations to show; "" where the policy infers no task


@dataclass(frozen=True)
class ActorReport:
    """What an actor says of itself in a heartbeat."""

    slot: int
    incarnation: int
    steps: int = 0
    steps_per_second: float = 0.0
    policy_version: int = 0
    episodes: Sequence[EpisodeReport] = ()
    faults: int = 0
    spans: Mapping[str, Span] = field(default_factory=dict)


class HeartbeatReply(NamedTuple):
    """What the learner answers to a heartbeat."""

    leave: bool
    paused: bool
    policy_version: int


class LearnerStatus(NamedTuple):
    """The run's status; `fields` is status.json."""

    state: str
    steps: int
    updates: int
    policy_version: int
    fields: dict[str, Any]


class LearnerClient:
    """A connection to one learner. Transient failures are tried again until the deadline."""

    def __init__(
        self, address: str, timeout_seconds: float = 10.0, token: str | None = None
    ) -> None:
        self._address = address
        self._timeout = timeout_seconds
        self._token = token
        self._channel = open_channel(address, CHANNEL_OPTIONS, token)
        self._stub = pb_grpc.LearnerStub(self._channel)

    def join(
        self,
        incarnation: int,
        host: str,
        pid: int,
        slot: int | None = None,
        environment_digest: str = "",
    ) -> Membership:
        """Take a slot. Raises SlotTaken, SpecMismatch, ProtocolMismatch or LearnerUnavailable."""
        reply = self._call(
            self._stub.Join,
            pb.JoinRequest(
                protocol_version=PROTOCOL_VERSION,
                incarnation=incarnation,
                host=host,
                pid=pid,
                slot=slot,
                environment_digest=environment_digest,
            ),
        )
        return Membership(
            reply.slot,
            Experiment.model_validate_json(reply.experiment_json),
            tuple(EnvironmentSpec.from_dict(json.loads(text)) for text in reply.environment_json),
            reply.lease_seconds,
            reply.run,
            reply.policy_version,
            reply.context_sha256,
        )

    def context(self, sha256: str) -> dict[str, torch.Tensor]:
        """Return the demonstrations of this digest as named tensors.

        Raises Refused where the learner has others, LearnerUnavailable where they do not arrive whole.
        """
        request = pb.GetContextRequest(sha256=sha256)
        assembler = PolicyAssembler()
        try:
            for chunk in self._stub.GetContext(request, timeout=CONTEXT_SECONDS):
                whole = assembler.add(chunk)
                if whole is not None:
                    return whole.tensors
        except grpc.RpcError as error:
            raise _translated(error, self._address) from error
        except TornPolicy as error:
            raise LearnerUnavailable(f"the demonstrations to show: {error}") from error
        raise LearnerUnavailable("the demonstrations to show ended before they were whole")

    def heartbeat(self, report: ActorReport) -> HeartbeatReply:
        """Renew the lease. Raises NotAMember where it has ended, LearnerUnavailable where nobody answers."""
        request = pb.HeartbeatRequest(
            slot=report.slot,
            incarnation=report.incarnation,
            steps=report.steps,
            steps_per_second=report.steps_per_second,
            policy_version=report.policy_version,
            episodes=[
                pb.EpisodeReport(
                    task=episode.task,
                    environment_return=episode.environment_return,
                    length=episode.length,
                    policy_version=episode.policy_version,
                )
                for episode in report.episodes
            ],
            faults=report.faults,
            spans=span_messages(report.spans),
        )
        reply = self._call(self._stub.Heartbeat, request)
        return HeartbeatReply(reply.leave, reply.paused, reply.policy_version)

    def subscribe(self, slot: int = 0, incarnation: int = 0) -> PolicySubscription:
        """Follow the learner's policies from now on, in a thread of the subscription's own."""
        return PolicySubscription(self._address, CHANNEL_OPTIONS, slot, incarnation, self._token)

    def status(self) -> LearnerStatus:
        """Return how the run is doing."""
        reply = self._call(self._stub.GetStatus, pb.GetStatusRequest())
        fields = json.loads(reply.status_json) if reply.status_json else {}
        return LearnerStatus(reply.state, reply.steps, reply.updates, reply.policy_version, fields)

    def control(self, action: Action) -> None:
        """Ask the learner to pause, resume, stop, or write a checkpoint now."""
        if action not in _ACTIONS:
            raise ValueError(f"expected one of {sorted(_ACTIONS)}, found {action!r}")
        self._call(self._stub.Control, pb.ControlRequest(action=_ACTIONS[action]))

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def _call(self, method: Callable[..., Any], request: Any) -> Any:
        deadline = time.monotonic() + self._timeout
        pause = 0.1
        while True:
            left = deadline - time.monotonic()
            try:
                return method(request, timeout=max(0.05, left), wait_for_ready=False)
            except grpc.RpcError as error:
                code = error.code()
                pause = min(2.0, pause * 2) * random.uniform(0.5, 1.0)  # noqa: S311 - only jitter
                if code not in _TRANSIENT or time.monotonic() + pause > deadline:
                    raise _translated(error, self._address) from error
            time.sleep(pause)


def _translated(error: Any, address: str) -> LearnerError:
    code, details = error.code(), error.details() or ""
    if code in _TRANSIENT:
        return LearnerUnavailable(f"no answer from the learner at {address}: {details}")
    if code == grpc.StatusCode.ALREADY_EXISTS:
        return SlotTaken(details)
    if code == grpc.StatusCode.NOT_FOUND:
        return NotAMember(details)
    if code == grpc.StatusCode.UNAUTHENTICATED:
        return NotAuthorised(f"the learner at {address}: {details}")
    if code == grpc.StatusCode.FAILED_PRECONDITION:
        return (ProtocolMismatch if details.startswith("protocol") else SpecMismatch)(details)
    return Refused(f"the learner at {address} answered {code.name}: {details}")
