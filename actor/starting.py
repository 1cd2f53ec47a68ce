"""Builds an actor from what the learner tells it, and turns failures into exit codes."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable

import numpy as np
import structlog

from actor.acting import Actor, DoesNotFit
from actor.membership import CannotJoin, Heartbeats, Progress, join
from actor.segments import Origin, SegmentBuilder
from apprentice.profiling import Profile
from apprentice.rpc import LearnerClient, Membership, ProtocolMismatch, SpecMismatch
from apprentice.watchdog import Watchdog

log = structlog.get_logger()

EXIT_TRY_AGAIN = 75
EXIT_CONFIGURATION = 78
JOIN_SECONDS = 600.0
FLUSH_SECONDS = 2.0


def start(learner: str, replay: str, slot: int | None, should_stop: Callable[[], bool]) -> int:
    """Serve the learner at HOST:PORT until the run is over; return the process's exit code."""
    incarnation = secrets.randbits(64) | 1
    client = LearnerClient(learner)
    try:
        membership = join(client, incarnation, slot, JOIN_SECONDS, should_stop)
        if membership is None:
            return 0
        log.info("joined", run=membership.run, slot=membership.slot)
        return _act(client, membership, incarnation, replay, should_stop)
    except (SpecMismatch, ProtocolMismatch, DoesNotFit) as error:
        log.error("this actor does not fit the learner", reason=str(error))
        return EXIT_CONFIGURATION
    except CannotJoin as error:
        log.error("the actor gives up and may be started again", reason=str(error))
        return EXIT_TRY_AGAIN
    finally:
        client.close()


def _act(
    client: LearnerClient,
    membership: Membership,
    incarnation: int,
    replay: str,
    should_stop: Callable[[], bool],
) -> int:
    experiment = membership.experiment
    if "pixels" not in experiment.observation_keys:
        os.environ["MUJOCO_GL"] = "disabled"
    # These import the simulation and torch, after it is known what is needed of them.
    import torch

    from apprentice.environments import make_environment
    from apprentice.networks import Policy, UniformPolicy, build_policy
    from replay.errors import ReplayUnavailable
    from replay.writer import SegmentWriter

    torch.set_num_threads(1)
    settings, spec = experiment.actor, membership.specs[0]
    seeds = environment_seeds(experiment.seed, membership.slot, incarnation, settings.environments)
    environments = [
        make_environment(experiment.task, seed, experiment.observation_keys, experiment.environment)
        for seed in seeds[2:]
    ]
    if environments[0].spec != spec:
        raise DoesNotFit(
            f"the learner expects the environment {spec.to_dict()}, this machine builds "
            f"{environments[0].spec.to_dict()}; install the same versions on both"
        )
    profile, progress = Profile(), Progress()
    for environment in environments:
        environment.profile = profile
    writer = SegmentWriter(replay, membership.specs, experiment.replay)
    policies = client.subscribe(membership.slot, incarnation)
    heartbeats = Heartbeats(client, membership, incarnation, progress, profile.snapshot)
    watchdog = Watchdog("actor", settings.stall_seconds)
    watchdog.start()
    try:
        actor = Actor(
            environments,
            Policy(build_policy(experiment, spec), seeds[0]),
            UniformPolicy(spec, seeds[1]),
            SegmentBuilder(
                spec,
                experiment.replay.segment_length,
                len(environments),
                Origin(task=0, actor=membership.slot, incarnation=incarnation),
            ),
            writer,
            policies,
            heartbeats,
            progress,
            profile,
            watchdog,
            settings.max_policy_age_seconds,
            should_stop,
        )
        profile.lap("starting")
        reason = actor.run(membership.policy_version)
        log.info("the actor leaves", reason=reason, steps=progress.steps)
        try:
            writer.flush(FLUSH_SECONDS)
        except ReplayUnavailable as error:
            log.warning("the last segments may be lost", reason=str(error))
        return 0
    finally:
        watchdog.stop()
        heartbeats.close()
        policies.close()
        writer.close()
        for environment in environments:
            environment.close()


def environment_seeds(seed: int, slot: int, incarnation: int, num: int) -> list[int]:
    """Return seeds for policy, uniform policy and `num` environments, of no other start of an actor."""
    words = [seed, slot, incarnation & 0xFFFF_FFFF, incarnation >> 32]
    return [int(word) for word in np.random.SeedSequence(words).generate_state(num + 2)]
