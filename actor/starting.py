"""Builds an actor from what the learner tells it, and turns failures into exit codes."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import structlog

from actor.errors import CannotJoin, DoesNotFit, LearnerLost, NoPolicy
from actor.membership import Heartbeats, Progress, join
from apprentice import exit_codes
from apprentice.exporter import Exporter, MetricsPortError
from apprentice.profiling import Profile
from apprentice.rpc import LearnerClient, LearnerError, Membership, NotAuthorised
from apprentice.tokens import TokenError, read_token
from replay.errors import ReplayMismatch

if TYPE_CHECKING:
    from actor.segments import SegmentBuilder
    from actor.showing import Showing
    from actor.walking import WalkingEnvironment
    from apprentice.environments import Environment
    from apprentice.networks import Policy

log = structlog.get_logger()

JOIN_SECONDS = 600.0
TOKEN_SECONDS = 60.0
"""How long to wait for a learner that has not made its token yet."""
CALL_SECONDS = 4.0
"""Deadline of a single call to the learner: an actor must be gone 5 seconds after SIGTERM."""


def start(
    learner: str,
    replay: str,
    slot: int | None,
    reason_to_stop: Callable[[], str | None],
    metrics: str | None = None,
    token_file: Path | None = None,
) -> int:
    """Serve the learner at HOST:PORT until the run is over; return the process's exit code.

    `metrics` is where Prometheus may ask, HOST:PORT; `token_file` holds what the learner asks for.
    """
    profile, incarnation = Profile(), secrets.randbits(64) | 1
    try:
        with ExitStack() as stack:
            token = None
            if token_file is not None:
                token = read_token(token_file, TOKEN_SECONDS, lambda: reason_to_stop() is not None)
            client = LearnerClient(learner, CALL_SECONDS, token)
            stack.callback(client.close)
            membership = join(client, incarnation, slot, JOIN_SECONDS, reason_to_stop)
            if membership is None:
                return 0
            log.info("joined", run=membership.run, slot=membership.slot)
            profile.lap("joining")
            progress = Progress()
            heartbeats = Heartbeats(client, membership, incarnation, progress, profile.snapshot)
            stack.callback(heartbeats.close)
            serving = _Serving(membership, incarnation, replay, client, heartbeats)
            if metrics is not None:
                exporter = Exporter(
                    "actor",
                    metrics,
                    progress.metrics,
                    profile.snapshot,
                    serving.problem,
                    token_file,
                )
                stack.callback(exporter.close)
            reason = serving.act(progress, profile, reason_to_stop)
            log.info("the actor leaves", reason=reason, steps=progress.steps)
            return 0
    except (NotAuthorised, TokenError) as error:
        if reason_to_stop() is not None:
            return 0
        log.error("the learner does not let this actor in", reason=str(error))
        return exit_codes.CONFIGURATION
    except (DoesNotFit, ReplayMismatch, MetricsPortError) as error:
        log.error("this actor does not fit", reason=str(error))
        return exit_codes.CONFIGURATION
    except (CannotJoin, NoPolicy, LearnerLost, LearnerError) as error:
        log.error("the actor gives up and may be started again", reason=str(error))
        return exit_codes.TRY_AGAIN


class _Serving:
    """One membership, from the experiment that came with it to the end of the loop."""

    def __init__(
        self,
        membership: Membership,
        incarnation: int,
        replay: str,
        client: LearnerClient,
        heartbeats: Heartbeats,
    ) -> None:
        self._membership = membership
        self._incarnation = incarnation
        self._replay = replay
        self._client = client
        self._heartbeats = heartbeats
        self._problems = [heartbeats.problem]

    def problem(self) -> str | None:
        """Say why this actor is not well; from any thread."""
        return next(filter(None, (find() for find in self._problems)), None)

    def act(
        self, progress: Progress, profile: Profile, reason_to_stop: Callable[[], str | None]
    ) -> str:
        """Build environments, policy and connections, and act; return why it ended."""
        experiment, spec = self._membership.experiment, self._membership.specs[0]
        if "pixels" not in experiment.observation_keys:
            os.environ["MUJOCO_GL"] = "disabled"
        # These import the simulation, after it is known whether anything will be drawn.
        import torch

        from actor.acting import Actor, Connections, Limits
        from actor.fresh_policy import FreshPolicy
        from actor.segments import Origin, SegmentBuilder
        from apprentice.environments import RenderingUnavailable
        from apprentice.networks import Policy, UniformPolicy, build_policy
        from apprentice.watchdog import Watchdog
        from replay.writer import SegmentWriter

        torch.set_num_threads(1)
        settings, slot = experiment.actor, self._membership.slot
        seeds = environment_seeds(experiment.seed, slot, self._incarnation, settings.environments)
        with ExitStack() as stack:
            environments = self._environments(seeds[2:], stack)
            for environment in environments:
                environment.profile = profile
            policies = self._client.subscribe(slot, self._incarnation)
            stack.callback(policies.close)
            writer = SegmentWriter(self._replay, self._membership.specs, experiment.replay)
            stack.callback(writer.close, 0.0)
            watchdog = Watchdog("actor", settings.stall_seconds)
            watchdog.start()
            stack.callback(watchdog.stop)
            self._problems += [watchdog.problem, writer.problem]
            origin = Origin(actor=slot, incarnation=self._incarnation)
            replay, policy = experiment.replay, Policy(build_policy(experiment, spec), seeds[0])
            builder = SegmentBuilder(
                spec, replay.segment_length, len(environments), origin, replay.context_size
            )
            actor = Actor(
                environments,
                FreshPolicy(policy, UniformPolicy(spec, seeds[1])),
                builder,
                Connections(writer, policies, self._heartbeats),
                progress,
                profile,
                watchdog,
                Limits(settings.max_policy_age_seconds),
                reason_to_stop,
                self._showing(policy, builder, seeds[1]),
            )
            profile.lap("starting")
            try:
                return actor.run(self._membership.policy_version)
            except RenderingUnavailable as error:
                raise DoesNotFit(f"this experiment reads pixels: {error}") from error

    def _showing(self, policy: Policy, builder: SegmentBuilder, seed: int) -> Showing | None:
        """Fetch the demonstrations to show, where the policy infers its task."""
        from actor.showing import Showing
        from apprentice.demonstrations.context import TrainContext
        from apprentice.demonstrations.format import DemonstrationError

        membership = self._membership
        # A learner whose run is over has nothing to show, and lets this actor go at once.
        if not membership.experiment.infers_task or not membership.context_sha256:
            return None
        settings = membership.experiment.context
        try:
            tensors = self._client.context(membership.context_sha256)
            context = TrainContext.from_tensors(tensors)
        except DemonstrationError as error:
            raise DoesNotFit(str(error)) from error
        sizes = (settings.fewest, settings.most)
        return Showing(context, sizes, policy, builder.show, seed)

    def _environments(
        self, seeds: list[int], stack: ExitStack
    ) -> Sequence[Environment] | Sequence[WalkingEnvironment]:
        """Build the environments: of the one task, or each a walk over a family's."""
        from actor.walking import TaskEnvironments, TaskWalk, WalkingEnvironment
        from apprentice.environments import UnknownTask, experiment_specs, make_environment

        experiment, specs = self._membership.experiment, self._membership.specs
        keys, settings = experiment.observation_keys, experiment.environment
        try:
            built = experiment_specs(experiment.task, keys, settings)
        except UnknownTask as error:
            raise DoesNotFit(str(error)) from error
        if built != list(specs):
            differing = next(
                (pair for pair in zip(specs, built, strict=False) if pair[0] != pair[1]),
                (specs[0], built[0]),
            )
            raise DoesNotFit(
                f"the learner expects {len(specs)} environments like {differing[0].to_dict()}, this machine builds "
                f"{len(built)} like {differing[1].to_dict()}; install the same versions on both"
            )

        def build(task: int, number: int) -> Environment:
            seed = task_seed(seeds[number % len(seeds)], task)
            environment = make_environment(specs[task].task_id, seed, keys, settings)
            stack.callback(environment.close)
            return environment

        if len(specs) == 1:
            return [build(0, number) for number in range(len(seeds))]
        walk = TaskWalk(len(specs), (experiment.seed, self._membership.slot, self._incarnation))
        lent = TaskEnvironments(build)
        return [WalkingEnvironment(walk, lent) for _ in seeds]


def environment_seeds(seed: int, slot: int, incarnation: int, num: int) -> list[int]:
    """Return seeds for policy, uniform policy and `num` environments, of no other start of an actor."""
    words = [seed, slot, incarnation & 0xFFFF_FFFF, incarnation >> 32]
    return [int(word) for word in np.random.SeedSequence(words).generate_state(num + 2)]


def task_seed(seed: int, task: int) -> int:
    """Return the seed of an environment of a family's task, from 0 to 2**32 - 1; the first task keeps `seed`."""
    return (seed + 7919 * task) % 2**32
