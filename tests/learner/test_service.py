"""The learner's service and its client over real connections."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator

import grpc
import psutil
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from apprentice.config import Experiment
from apprentice.demonstrations.context import TrainContext
from apprentice.profiling import Span
from apprentice.rpc import (
    ActorReport,
    EpisodeReport,
    LearnerClient,
    LearnerUnavailable,
    NotAMember,
    NotAuthorised,
    ProtocolMismatch,
    SlotTaken,
    SpecMismatch,
)
from apprentice.rpc.v1 import learner_pb2 as pb
from apprentice.types import ArraySpec, EnvironmentSpec
from learner.leases import Leases, SlotHeld, UnknownLease
from learner.service import SERVICE, LearnerService, ServicePortError

EXPERIMENT = Experiment(name="test", task="reacher-easy")
SPEC = EnvironmentSpec(
    "reacher-easy",
    "reacher-easy",
    {"state": ArraySpec((6,), "float32")},
    ArraySpec((2,), "float32"),
    1000,
    1,
    0.02,
)
POLICY = {"weight": torch.arange(6.0).reshape(2, 3)}


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.01)


class Running:
    """A service on a port of its own, which can be stopped and started again there."""

    def __init__(self, lease_seconds: float = 30.0) -> None:
        self._lease_seconds = lease_seconds
        self.service = LearnerService(
            EXPERIMENT, [SPEC], "127.0.0.1", 0, "a-run", lease_seconds=lease_seconds
        )
        self.port = self.service.start()
        self.address = f"127.0.0.1:{self.port}"

    def restart(self, spec: EnvironmentSpec = SPEC) -> None:
        self.service.stop(0.0)
        self.service = LearnerService(
            EXPERIMENT, [spec], "127.0.0.1", self.port, "a-run", lease_seconds=self._lease_seconds
        )
        self.service.start()


@pytest.fixture
def running() -> Iterator[Running]:
    running = Running()
    yield running
    running.service.stop(0.0)


@pytest.fixture
def client(running: Running) -> Iterator[LearnerClient]:
    client = LearnerClient(running.address, timeout_seconds=5.0)
    yield client
    client.close()


def test_an_actor_learns_everything_it_needs_by_joining(client: LearnerClient) -> None:
    membership = client.join(11, "a-host", 5)
    assert membership.slot == 0
    assert membership.experiment == EXPERIMENT
    assert membership.specs == (SPEC,)
    assert (membership.run, membership.policy_version) == ("a-run", 0)
    assert client.join(12, "a-host", 6).slot == 1


def test_a_slot_is_held_while_its_lease_lives(client: LearnerClient) -> None:
    client.join(11, "a-host", 5, slot=3)
    with pytest.raises(SlotTaken, match="slot 3 is held by pid 5 on a-host"):
        client.join(12, "b-host", 6, slot=3)
    assert client.join(11, "a-host", 5, slot=3).slot == 3  # the same start may ask again
    assert client.join(12, "b-host", 6).slot == 0


def test_leases_end_without_heartbeats_and_slots_are_used_again() -> None:
    now = [0.0]
    leases = Leases(30.0, clock=lambda: now[0])
    leases.take(1, "host", 1, None)
    leases.take(2, "host", 2, None)
    now[0] = 29.0
    leases.renew(1, 2)
    now[0] = 31.0
    assert [actor.slot for actor in leases.living()] == [1]
    with pytest.raises(UnknownLease):
        leases.renew(0, 1)
    assert leases.take(3, "host", 3, 0).slot == 0
    with pytest.raises(SlotHeld):
        leases.take(4, "host", 4, 1)


def test_heartbeats_bring_reports_in_and_orders_back(
    running: Running, client: LearnerClient
) -> None:
    slot = client.join(11, "a-host", 5).slot
    report = ActorReport(
        slot,
        11,
        steps=700,
        steps_per_second=350.0,
        policy_version=4,
        episodes=[EpisodeReport(0, 12.5, 1000, 4), EpisodeReport(0, float("nan"), 1, 4)],
        faults=2,
        spans={"physics": Span(1.5, 700)},
    )
    reply = client.heartbeat(report)
    assert (reply.leave, reply.paused) == (False, False)
    assert running.service.drain_episodes() == [EpisodeReport(0, 12.5, 1000, 4)]
    assert running.service.drain_episodes() == []
    (actor,) = running.service.actors()
    assert (actor.steps, actor.steps_per_second, actor.policy_version) == (700, 350.0, 4)
    assert running.service.spans() == {0: {"physics": Span(1.5, 700)}}
    assert running.service.actors_summary()[0]["host"] == "a-host"

    running.service.set_status("{}", "paused", 1, 1)
    assert client.heartbeat(report).paused
    running.service.finish()
    assert client.heartbeat(report).leave
    assert running.service.actors() == ()
    with pytest.raises(NotAMember):
        client.heartbeat(report)


def test_an_actor_built_for_another_environment_is_told_what_differs(
    running: Running, client: LearnerClient
) -> None:
    client.join(11, "a-host", 5)
    wider = EnvironmentSpec(
        **{
            **SPEC.to_dict(),
            "observation": {"state": ArraySpec((9,), "float32")},
            "action": SPEC.action,
        }
    )
    running.restart(wider)
    with pytest.raises(SpecMismatch, match=r"'state': \(9,\).*start the actor anew"):
        client.join(11, "a-host", 5, environment_digest=SPEC.digest())


def test_another_protocol_is_refused(running: Running) -> None:
    with grpc.insecure_channel(running.address) as channel:
        call = channel.unary_unary(
            f"/{SERVICE}/Join",
            request_serializer=pb.JoinRequest.SerializeToString,
            response_deserializer=pb.JoinReply.FromString,
        )
        with pytest.raises(grpc.RpcError) as refused:
            call(pb.JoinRequest(protocol_version=99, incarnation=1), timeout=5)
    assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert ProtocolMismatch.__name__  # what the client raises for details that begin so
    assert refused.value.details().startswith("protocol")


def test_subscribers_get_the_newest_policy_and_every_later_one(
    running: Running, client: LearnerClient
) -> None:
    running.service.publish(1, POLICY)
    running.service.publish(2, POLICY)
    subscription = client.subscribe()
    found = []

    def arrived() -> bool:
        update = subscription.latest()
        if update is not None:
            found.append(update)
        return bool(found)

    wait_until(arrived)
    assert found[0].policy_version == 2
    assert torch.equal(found[0].tensors["weight"], POLICY["weight"])
    found.clear()
    running.service.publish(3, {"weight": POLICY["weight"] + 1})
    wait_until(arrived)
    assert found[0].policy_version == 3
    assert subscription.latest() is None
    assert subscription.age_seconds < 5.0
    subscription.close()


def test_policies_come_by_a_connection_of_their_own_and_hold_up_no_heartbeat(
    running: Running, client: LearnerClient
) -> None:
    running.service.publish(1, POLICY)
    client.status()
    subscription = client.subscribe()
    wait_until(lambda: subscription.latest() is not None)
    connections = psutil.Process().net_connections("tcp")
    assert sum(c.status == "ESTABLISHED" and c.raddr.port == running.port for c in connections) == 2
    subscription.close()


def test_policies_of_another_shape_are_refused_and_the_old_one_kept(
    running: Running, client: LearnerClient
) -> None:
    running.service.publish(1, POLICY)
    subscription = client.subscribe()
    wait_until(lambda: subscription.latest() is not None)
    running.service.publish(2, {"weight": torch.zeros(5)})
    wait_until(lambda: subscription.num_refused > 0)
    assert subscription.latest() is None
    subscription.close()


def test_a_subscription_survives_a_restart_of_the_learner(
    running: Running, client: LearnerClient
) -> None:
    running.service.publish(5, POLICY)
    subscription = client.subscribe()
    wait_until(lambda: subscription.latest() is not None)
    running.restart()
    running.service.publish(10_006, POLICY)
    found = []
    wait_until(lambda: bool(found.append(u) or True) if (u := subscription.latest()) else False)
    assert found[0].policy_version == 10_006
    subscription.close()


def test_sixty_four_actors_follow_and_none_waits_for_its_heartbeat(running: Running) -> None:
    clients = [LearnerClient(running.address) for _ in range(64)]
    slots = [client.join(number + 1, "host", number).slot for number, client in enumerate(clients)]
    assert sorted(slots) == list(range(64))
    subscriptions = [client.subscribe(slot, slot + 1) for slot, client in enumerate(clients)]
    running.service.publish(1, POLICY)
    got: set[int] = set()

    def all_arrived() -> bool:
        got.update(n for n, s in enumerate(subscriptions) if s.latest() is not None)
        return len(got) == 64

    wait_until(all_arrived, 20.0)
    started = time.monotonic()
    for number, client in enumerate(clients):
        client.heartbeat(ActorReport(number, number + 1))
    assert time.monotonic() - started < 10.0
    closing = [threading.Thread(target=s.close) for s in subscriptions]
    for thread in closing:
        thread.start()
    for thread in closing:
        thread.join(10.0)
    for client in clients:
        client.close()


def test_publishing_is_cheap_for_the_loop(running: Running) -> None:
    tensors = {f"layer{n}": torch.randn(256, 256) for n in range(5)}  # 330,000 parameters
    seconds = []
    for version in range(1, 30):
        started = time.perf_counter()
        running.service.publish(version, tensors)
        seconds.append(time.perf_counter() - started)
    assert sorted(seconds)[len(seconds) // 2] < 0.01


def test_status_and_control(running: Running, client: LearnerClient) -> None:
    running.service.publish(3, POLICY)
    running.service.set_status('{"message": "well"}', "training", 10, 5)
    status = client.status()
    assert (status.state, status.steps, status.updates, status.policy_version) == (
        "training",
        10,
        5,
        3,
    )
    assert status.fields == {"message": "well"}
    for action in ("pause", "resume", "checkpoint", "stop"):
        client.control(action)
    assert running.service.commands() == ["pause", "resume", "checkpoint", "stop"]
    assert running.service.commands() == []
    with pytest.raises(ValueError, match="expected one of"):
        client.control("restart")


def test_a_learner_that_is_away_is_reported_within_the_deadline() -> None:
    client = LearnerClient("127.0.0.1:9", timeout_seconds=1.0)
    started = time.monotonic()
    with pytest.raises(LearnerUnavailable, match="127.0.0.1:9"):
        client.status()
    assert time.monotonic() - started < 3.0
    client.close()


def test_two_learners_never_share_a_port(running: Running) -> None:
    second = LearnerService(EXPERIMENT, [SPEC], "127.0.0.1", running.port)
    with pytest.raises(ServicePortError, match=rf"port {running.port} .*held by pid \d+"):
        second.start()


def test_with_a_token_nobody_is_served_who_does_not_know_it() -> None:
    token = "t" * 40
    service = LearnerService(EXPERIMENT, [SPEC], "127.0.0.1", 0, "run", token=token)
    address = f"127.0.0.1:{service.start()}"
    try:
        for wrong in (None, "u" * 40, "t" * 39):
            client = LearnerClient(address, timeout_seconds=5.0, token=wrong)
            with pytest.raises(NotAuthorised, match="--token-file"):
                client.join(1, "host", 2)
            with pytest.raises(NotAuthorised):
                client.control("stop")
            refused = client.subscribe()
            service.publish(1, POLICY)
            time.sleep(0.3)
            assert refused.latest() is None
            refused.close()
            client.close()
        assert service.actors() == ()
        assert service.commands() == []
        client = LearnerClient(address, timeout_seconds=5.0, token=token)
        assert client.join(1, "host", 2).slot == 0
        policies = client.subscribe()
        wait_until(lambda: policies.latest() is not None)
        policies.close()
        client.close()
        with grpc.insecure_channel(address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            reply = stub.Check(health_pb2.HealthCheckRequest(), timeout=5.0)
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
    finally:
        service.stop(0.1)


def test_random_bytes_to_every_method_leave_the_service_alive(
    running: Running, client: LearnerClient
) -> None:
    generator = random.Random(0)
    with grpc.insecure_channel(running.address) as channel:
        for method in ("Join", "Heartbeat", "GetStatus", "Control", "StreamPolicies"):
            call = channel.unary_unary(f"/{SERVICE}/{method}")
            for _ in range(20):
                request = generator.randbytes(generator.randrange(200))
                try:
                    call(request, timeout=0.2)
                except grpc.RpcError as error:
                    assert error.code() != grpc.StatusCode.UNAVAILABLE
    assert client.status().state == "starting"


def test_health_follows_the_service(running: Running) -> None:
    with grpc.insecure_channel(running.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service=SERVICE)
        assert stub.Check(request, timeout=5).status == health_pb2.HealthCheckResponse.SERVING


def test_reflection_lists_the_service(running: Running) -> None:
    with grpc.insecure_channel(running.address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        (reply,) = stub.ServerReflectionInfo(iter([request]), timeout=5)
    names = {service.name for service in reply.list_services_response.service}
    assert {SERVICE, "grpc.health.v1.Health"} <= names


def test_demonstrations_to_show_are_served_by_their_digest() -> None:
    context = TrainContext(
        torch.randn(300_000, 4),
        torch.tensor([0, 100_000, 300_000]),
        torch.tensor([0, 0]),
        torch.tensor([4, 5]),
    )
    service = LearnerService(EXPERIMENT, [SPEC], "127.0.0.1", 0, "a-run", context=context)
    service.start()
    client = LearnerClient(service.address, 5.0)
    try:
        membership = client.join(7, "here", 1)
        assert len(membership.context_sha256) == 64
        found = TrainContext.from_tensors(client.context(membership.context_sha256))
        for mine, theirs in zip(context, found, strict=True):
            assert torch.equal(mine, theirs)
        with pytest.raises(NotAMember, match="context: expected"):
            client.context("0" * 64)
    finally:
        client.close()
        service.stop(0.1)


def test_a_run_that_shows_nothing_serves_nothing() -> None:
    service = LearnerService(EXPERIMENT, [SPEC], "127.0.0.1", 0, "a-run")
    service.start()
    client = LearnerClient(service.address, 5.0)
    try:
        assert client.join(7, "here", 1).context_sha256 == ""
        with pytest.raises(NotAMember, match="to be asked for none"):
            client.context("")
    finally:
        client.close()
        service.stop(0.1)
