"""The learner's gRPC service: membership, policies, status, control, health and reflection."""

from __future__ import annotations

import json
import math
import queue
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

import grpc
import structlog
import torch
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from pydantic import JsonValue

from apprentice.config import Experiment
from apprentice.demonstrations.context import TrainContext
from apprentice.ports import describe_holder, is_free
from apprentice.profiling import Span
from apprentice.rpc.messages import (
    LARGEST_MESSAGE_BYTES,
    LARGEST_REQUEST_BYTES,
    OLDEST_PROTOCOL_VERSION,
    PROTOCOL_VERSION,
    EncodedPolicy,
    EpisodeReport,
    encode_policy,
)
from apprentice.rpc.v1 import learner_pb2 as pb
from apprentice.rpc.v1 import learner_pb2_grpc as pb_grpc
from apprentice.types import EnvironmentSpec
from learner.authorization import RequireToken
from learner.leases import ActorState, Leases, SlotHeld, UnknownLease

log = structlog.get_logger()

SERVICE = "apprentice.rpc.v1.Learner"
ALIVE_SECONDS = 1.0
MAX_CALLS = 600
"""Calls served at once; every actor holds one for its stream."""
MAX_EPISODES = 10_000
MAX_EPISODES_A_HEARTBEAT = 1000
MAX_SPANS = 64
LONGEST_NAME = 255

_COMMANDS = {
    pb.ControlRequest.ACTION_PAUSE: "pause",
    pb.ControlRequest.ACTION_RESUME: "resume",
    pb.ControlRequest.ACTION_STOP: "stop",
    pb.ControlRequest.ACTION_CHECKPOINT: "checkpoint",
}


class ServicePortError(Exception):
    """The port is held by somebody else."""


class LearnerService:
    """Runs in threads of its own; the learner's loop talks to it through this class only."""

    def __init__(
        self,
        experiment: Experiment,
        specs: Sequence[EnvironmentSpec],
        host: str,
        port: int,
        run: str = "",
        lease_seconds: float = 25.0,
        token: str | None = None,
        context: TrainContext | None = None,
    ) -> None:
        """Prepare to serve; with a `token`, only to those who know it.

        `context` are the demonstrations that actors show the policy, where it infers its task.
        """
        self.address, self._host, self._port = f"{host}:{port}", host, port
        """HOST:PORT, with the real port once it listens."""
        self._leases = Leases(lease_seconds)
        self._handler = _Handler(experiment, specs, run, self._leases, context)
        self._health = health.HealthServicer()
        self._server = grpc.server(
            ThreadPoolExecutor(MAX_CALLS, thread_name_prefix="rpc"),
            options=[
                # Without this a second learner would share the port silently.
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", LARGEST_REQUEST_BYTES),
                ("grpc.max_send_message_length", LARGEST_MESSAGE_BYTES),
                ("grpc.keepalive_time_ms", 10_000),
                ("grpc.keepalive_timeout_ms", 5_000),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
            ],
            maximum_concurrent_rpcs=MAX_CALLS,
            interceptors=[] if token is None else [RequireToken(token)],
        )
        pb_grpc.add_LearnerServicer_to_server(self._handler, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)

    def start(self) -> int:
        """Begin to serve; return the port. Raises ServicePortError where it is taken."""
        if self._port and not is_free(self._host, self._port):
            raise ServicePortError(
                f"expected port {self._port} to be free for the learner, found it held by "
                f"{describe_holder(self._port)}; end that process or choose another port"
            )
        try:
            port = self._server.add_insecure_port(self.address)
        except RuntimeError as error:
            raise ServicePortError(f"cannot listen on {self.address}: {error}") from error
        if port == 0:
            raise ServicePortError(f"cannot listen on {self.address}")
        self._server.start()
        self.set_healthy(True)
        self.address = f"{self._host}:{port}"
        log.info("the learner listens", address=self.address)
        return port

    def set_healthy(self, healthy: bool) -> None:
        """Say SERVING or NOT_SERVING to whoever asks the health service; calls are answered either way."""
        status = health_pb2.HealthCheckResponse
        for name in ("", SERVICE):
            self._health.set(name, status.SERVING if healthy else status.NOT_SERVING)

    def publish(self, policy_version: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Send a policy to all actors; encoded once, and sent by the service's own threads."""
        self._handler.publish(encode_policy(policy_version, tensors))

    def set_status(self, status_json: str, state: str, steps: int, updates: int) -> None:
        """Say what GetStatus answers; `paused` as the state lets actors rest."""
        self._handler.set_status(status_json, state, steps, updates)

    def commands(self) -> list[str]:
        """Return what was asked for since the last call: pause, resume, stop, checkpoint."""
        return self._handler.drain_commands()

    def finish(self) -> None:
        """Let every heartbeat from now on tell its actor to leave."""
        self._handler.finished.set()

    @property
    def finishing(self) -> bool:
        """Whether actors are told to leave."""
        return self._handler.finished.is_set()

    def actors(self) -> tuple[ActorState, ...]:
        """Return the living actors."""
        return self._leases.living()

    def actors_summary(self) -> tuple[dict[str, JsonValue], ...]:
        """Return the living actors as status.json shows them."""
        return tuple(
            {
                "slot": actor.slot,
                "host": actor.host,
                "pid": actor.pid,
                "steps": actor.steps,
                "steps_per_second": round(actor.steps_per_second, 1),
                "policy_version": actor.policy_version,
                "heartbeat_age_seconds": round(actor.heartbeat_age_seconds, 1),
                "faults": actor.faults,
            }
            for actor in self._leases.living()
        )

    def drain_episodes(self) -> list[EpisodeReport]:
        """Return the episodes reported since the last call; the oldest are lost over MAX_EPISODES."""
        return self._handler.drain_episodes()

    def spans(self) -> dict[int, Mapping[str, Span]]:
        """Return each living actor's profile by slot."""
        return {actor.slot: actor.spans for actor in self._leases.living() if actor.spans}

    def stop(self, grace: float) -> None:
        """End all calls and close the port, within about `grace` seconds."""
        self._health.enter_graceful_shutdown()
        self._handler.stopped.set()
        self._server.stop(grace).wait(grace + 5.0)


class _Handler(pb_grpc.LearnerServicer):
    def __init__(
        self,
        experiment: Experiment,
        specs: Sequence[EnvironmentSpec],
        run: str,
        leases: Leases,
        context: TrainContext | None,
    ) -> None:
        self._context = None if context is None else encode_policy(0, context.tensors())
        self._context_sha256 = "" if self._context is None else self._context.header.sha256.hex()
        self._experiment_json = experiment.model_dump_json()
        self._specs = tuple(specs)
        self._run = run
        self._leases = leases
        self._news = threading.Condition()
        self._policy: EncodedPolicy | None = None
        self._status = pb.GetStatusReply(state="starting")
        self._commands: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._episodes: deque[EpisodeReport] = deque(maxlen=MAX_EPISODES)
        self.finished = threading.Event()
        self.stopped = threading.Event()

    def publish(self, policy: EncodedPolicy) -> None:
        with self._news:
            self._policy = policy
            self._news.notify_all()

    def set_status(self, status_json: str, state: str, steps: int, updates: int) -> None:
        self._status = pb.GetStatusReply(
            status_json=status_json,
            state=state,
            steps=steps,
            updates=updates,
            policy_version=self._policy_version,
        )

    def drain_commands(self) -> list[str]:
        commands = []
        while not self._commands.empty():
            commands.append(self._commands.get_nowait())
        return commands

    def drain_episodes(self) -> list[EpisodeReport]:
        return [self._episodes.popleft() for _ in range(len(self._episodes))]

    @property
    def _policy_version(self) -> int:
        return self._policy.header.policy_version if self._policy else 0

    def Join(self, request: pb.JoinRequest, context: grpc.ServicerContext) -> pb.JoinReply:
        if not OLDEST_PROTOCOL_VERSION <= request.protocol_version <= PROTOCOL_VERSION:
            _refuse(
                context,
                grpc.StatusCode.FAILED_PRECONDITION,
                f"protocol: this learner speaks versions {OLDEST_PROTOCOL_VERSION} to "
                f"{PROTOCOL_VERSION}, the actor {request.protocol_version}; install the same release "
                "on both sides",
            )
        if not request.incarnation:
            _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "expected an incarnation, found 0")
        digest = self._specs[0].digest()
        if request.environment_digest not in ("", digest):
            _refuse(
                context,
                grpc.StatusCode.FAILED_PRECONDITION,
                f"environment: the learner trains on {self._specs[0].task} with observations "
                f"{ {k: s.shape for k, s in self._specs[0].observation.items()} } and "
                f"{self._specs[0].action_size} actions (digest {digest}), the actor was built for "
                f"digest {request.environment_digest}; start the actor anew",
            )
        slot = request.slot if request.HasField("slot") else None
        try:
            host = request.host[:LONGEST_NAME]
            actor = self._leases.take(request.incarnation, host, request.pid, slot)
        except SlotHeld as error:
            _refuse(context, grpc.StatusCode.ALREADY_EXISTS, str(error))
        return pb.JoinReply(
            slot=actor.slot,
            lease_seconds=self._leases.lease_seconds,
            experiment_json=self._experiment_json,
            environment_json=[json.dumps(spec.to_dict()) for spec in self._specs],
            run=self._run,
            policy_version=self._policy_version,
            context_sha256=self._context_sha256,
        )

    def GetContext(
        self, request: pb.GetContextRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.PolicyChunk]:
        if self._context is None or request.sha256 != self._context_sha256:
            _refuse(
                context,
                grpc.StatusCode.NOT_FOUND,
                f"context: expected {self._context_sha256 or 'to be asked for none'}, found "
                f"{request.sha256[:LONGEST_NAME]!r}; join again",
            )
        yield from self._context.chunks()

    def Heartbeat(
        self, request: pb.HeartbeatRequest, context: grpc.ServicerContext
    ) -> pb.HeartbeatReply:
        try:
            actor = self._leases.renew(request.slot, request.incarnation)
        except UnknownLease as error:
            _refuse(context, grpc.StatusCode.NOT_FOUND, str(error))
        actor.steps = request.steps
        actor.steps_per_second = _finite(request.steps_per_second)
        actor.policy_version = request.policy_version
        actor.faults = request.faults
        actor.spans = {
            span.name[:LONGEST_NAME]: Span(_finite(span.seconds), span.units)
            for span in request.spans[:MAX_SPANS]
        }
        for episode in request.episodes[:MAX_EPISODES_A_HEARTBEAT]:
            if math.isfinite(episode.environment_return):
                self._episodes.append(
                    EpisodeReport(
                        episode.task,
                        episode.environment_return,
                        episode.length,
                        episode.policy_version,
                    )
                )
        leave = self.finished.is_set()
        if leave:
            self._leases.end(request.slot, request.incarnation)
        return pb.HeartbeatReply(
            leave=leave,
            paused=self._status.state == "paused",
            policy_version=self._policy_version,
        )

    def StreamPolicies(
        self, request: pb.StreamPoliciesRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.PolicyChunk]:
        sent = request.known_policy_version
        yield pb.PolicyChunk(alive=True)
        while context.is_active() and not self.stopped.is_set():
            with self._news:
                policy = self._policy
                if policy is None or policy.header.policy_version <= sent:
                    self._news.wait(ALIVE_SECONDS)
                    policy = self._policy
            if policy is None or policy.header.policy_version <= sent:
                yield pb.PolicyChunk(alive=True)
                continue
            yield from policy.chunks()
            sent = policy.header.policy_version

    def GetStatus(
        self, request: pb.GetStatusRequest, context: grpc.ServicerContext
    ) -> pb.GetStatusReply:
        return self._status

    def Control(self, request: pb.ControlRequest, context: grpc.ServicerContext) -> pb.ControlReply:
        command = _COMMANDS.get(request.action)
        if command is None:
            _refuse(
                context,
                grpc.StatusCode.INVALID_ARGUMENT,
                f"expected one of {sorted(_COMMANDS.values())}, found action {request.action}",
            )
        self._commands.put(command)
        return pb.ControlReply()


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0


def _refuse(context: grpc.ServicerContext, code: grpc.StatusCode, details: str) -> NoReturn:
    context.abort(code, details)
    raise AssertionError("abort raises")
