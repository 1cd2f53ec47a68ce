"""A network that drops everything, is slow, or breaks; services that stand still. All of it heals by itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from typing import Self

import pytest

from apprentice.rpc import LearnerError
from tests.faults.services import ServiceProcess, Services

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

OUTAGE_SECONDS = 45.0
"""Longer than a lease (25 s) and than a service may be silent (20 s)."""
NOTICE_SECONDS = 30.0
"""From the moment a service stands still until those who need it say so, a busy machine included."""
ANSWER_SECONDS = 8.0
"""Of a health check or a call to the learner, with a margin for a busy machine."""
FLAT_BYTES = 32 << 20


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    services = Services(tmp_path_factory.mktemp("services"))
    yield services
    services.close()


@pytest.fixture
def services(shared: Services) -> Iterator[Services]:
    """The services as they train, each of them the process that it was before and after."""
    shared.trains()
    pids = {name: one.process.pid for name, one in shared.all.items()}
    yield shared
    for relay in shared.relays:
        relay.slow_down(None, 0.0)
        relay.pass_again()
    for one in shared.all.values():
        one.resume()
    shared.trains()
    assert {name: one.process.pid for name, one in shared.all.items()} == pids


def problem_in_time(service: ServiceProcess) -> str | None:
    """Ask for a service's health; fail where the answer takes longer than it may."""
    started = time.monotonic()
    problem = service.problem()
    assert time.monotonic() - started < ANSWER_SECONDS, f"{service.name}: {problem}"
    return problem


def complains(service: ServiceProcess, of: str) -> bool:
    problem = problem_in_time(service)
    return problem is not None and of in problem


class Watch:
    """Notes from a thread of its own when each service first complains, and when the leases have ended."""

    def __init__(self, services: Services, of: Sequence[ServiceProcess]) -> None:
        self.heard: dict[str, tuple[float, str]] = {}
        self._services, self._of, self._over = services, of, threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join(30.0)

    def _run(self) -> None:
        while not self._over.wait(0.5):
            for one in self._of:
                problem = one.problem()
                if problem is not None:
                    self.heard.setdefault(one.name, (time.monotonic(), problem))
            if not self._services.status()["actors"]:
                self.heard.setdefault("leases", (time.monotonic(), "no actor"))


def largest_growth(services: Services, service: ServiceProcess, seconds: float) -> int:
    """Return by how many bytes a process grew at most within the next seconds."""
    before, growth, deadline = service.resident_bytes(), 0, time.monotonic() + seconds

    def over() -> bool:
        nonlocal growth
        growth = max(growth, service.resident_bytes() - before)
        return time.monotonic() > deadline

    services.wait(over, "the time to pass", seconds + 10.0)
    return growth


def rests(service: ServiceProcess) -> bool:
    """Say whether the actor makes no steps for two seconds."""
    before, deadline = service.metric("apprentice_actor_steps"), time.monotonic() + 2.0
    while time.monotonic() < deadline:
        if service.metric("apprentice_actor_steps") != before:
            return False
        time.sleep(0.1)
    return True


def test_an_actor_without_a_way_to_replay_waits_in_flat_memory(services: Services) -> None:
    services.actor_to_replay.stop_passing()
    services.wait(lambda: rests(services.actor), "the actor to rest")
    steps = services.actor.metric("apprentice_actor_steps")
    assert largest_growth(services, services.actor, OUTAGE_SECONDS) < FLAT_BYTES
    assert services.actor.metric("apprentice_actor_steps") == steps
    assert complains(services.actor, "the replay server at")
    assert len(services.status()["actors"]) == 1  # the learner hears of it all the while
    assert problem_in_time(services.learner) is None
    assert problem_in_time(services.replay) is None
    services.actor_to_replay.pass_again()
    services.wait(
        lambda: services.actor.metric("apprentice_actor_steps") > steps, "the actor to step", 30.0
    )


def test_an_actor_without_a_way_to_the_learner_rests_and_is_taken_in_again(
    services: Services,
) -> None:
    version = services.actor.metric("apprentice_actor_policy_version")
    services.actor_to_learner.stop_passing()
    services.wait(lambda: not services.status()["actors"], "the lease to end", OUTAGE_SECONDS)
    services.wait(lambda: rests(services.actor), "the actor to rest")
    services.wait(
        lambda: complains(services.actor, "the learner has not answered"),
        "the actor to say so",
        OUTAGE_SECONDS,
    )
    assert largest_growth(services, services.actor, 10.0) < FLAT_BYTES
    assert problem_in_time(services.learner) is None
    services.actor_to_learner.pass_again()
    services.wait(
        lambda: (
            services.status()["actors"]
            and services.actor.metric("apprentice_actor_policy_version") > version
        ),
        "the actor to be back with a newer policy",
    )


def test_a_learner_without_a_way_to_replay_says_so_and_finds_it_again(services: Services) -> None:
    services.learner_to_replay.stop_passing()
    services.wait(
        lambda: complains(services.learner, "the replay server at"),
        "the learner to say so",
        2 * OUTAGE_SECONDS,
    )
    started = time.monotonic()
    assert services.client.status().state == "training"
    assert time.monotonic() - started < ANSWER_SECONDS
    assert len(services.status()["actors"]) == 1
    services.learner_to_replay.pass_again()


def test_broken_connections_are_made_anew(services: Services) -> None:
    for _ in range(3):
        for relay in services.relays:
            relay.break_connections()
        services.trains(60.0)


def test_on_a_slow_line_nobody_is_given_up_and_policies_are_skipped(services: Services) -> None:
    for relay in services.relays:
        relay.slow_down(bits_per_second=1_000_000, round_trip_seconds=0.3)
    learner_before = services.learner.metric("apprentice_learner_policy_version")
    lost = services.learner.log.read_text().count("an actor was lost")
    seen: list[float] = []
    ages: list[float] = []
    begun, deadline = services.status()["steps"], time.monotonic() + 60.0

    def over() -> bool:
        version = services.actor.metric("apprentice_actor_policy_version")
        if not seen or version != seen[-1]:
            seen.append(version)
        actors = services.status()["actors"]
        ages.extend(actor["heartbeat_age_seconds"] for actor in actors)
        assert problem_in_time(services.actor) is None
        assert problem_in_time(services.learner) is None
        return time.monotonic() > deadline

    services.wait(over, "a minute to pass", 90.0)
    published = services.learner.metric("apprentice_learner_policy_version") - learner_before
    assert services.status()["steps"] > begun + 500
    assert len(seen) >= 5  # a policy is 270 KB: more than two seconds on this line
    assert len(seen) < published  # and one is made every half second
    assert seen == sorted(seen)
    assert ages
    assert max(ages) < 30.0
    assert services.learner.log.read_text().count("an actor was lost") == lost


@pytest.mark.parametrize(
    ("still", "complaints"),
    [
        ("replay", {"learner": "the replay server at", "actor": "the replay server at"}),
        ("learner", {"actor": "the learner has not answered"}),
        ("actor", {"leases": "no actor"}),
    ],
)
def test_a_service_that_stands_still_blocks_nobody_and_goes_on(
    services: Services, still: str, complaints: dict[str, str]
) -> None:
    stopped = services.all[still]
    others = [one for one in services.all.values() if one is not stopped]
    with Watch(services, others) as watch:
        stopped.suspend()
        begun = time.monotonic()

        def over() -> bool:
            assert problem_in_time(stopped) is not None  # nobody answers
            for one in others:
                problem_in_time(one)
            asked = time.monotonic()
            try:
                answered = services.client.status().state != ""
            except LearnerError:
                answered = False
            assert time.monotonic() - asked < ANSWER_SECONDS + 5.0
            assert answered == (still != "learner")
            return time.monotonic() - begun > OUTAGE_SECONDS

        services.wait(over, "the outage to pass", OUTAGE_SECONDS + 30.0)
        noticed = {who: when - begun for who, (when, _) in watch.heard.items()}
        said = {who: what for who, (_, what) in watch.heard.items()}
        stopped.resume()
    assert noticed.keys() == complaints.keys()
    assert max(noticed.values()) < NOTICE_SECONDS, noticed
    for name, part in complaints.items():
        assert part in said[name]
    services.wait(
        lambda: all(one.problem() is None for one in services.all.values()), "all to be well"
    )
