"""Settings of the services: replay, actors, learner, its checkpoints and evaluations, where they listen."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from apprentice.config_base import Port, Settings


class ReplaySettings(Settings):
    """The durable replay, and how fast it may be used."""

    capacity: int = Field(1_000_000, ge=1)
    """Transitions kept per task, in the replay server and in the learner's ring alike."""
    segment_length: int = Field(32, ge=1, le=1024)
    """Most steps in a segment."""
    feed_segments: int = Field(4, ge=1, le=100_000)
    """Segments that may wait in the feed before actors are held up."""
    updates_per_step: float | None = Field(1.0, gt=0, le=64)
    """Updates per agent step received; null lets actors and learner both run free."""
    warmup_steps: int = Field(5_000, ge=1)
    """Agent steps of uniform random actions over all actors, before which there is no update."""
    sampling: Literal["transitions", "segments", "mixed"] = "transitions"
    """What a batch is drawn as: single transitions, contiguous pieces, or a random half of such pieces."""
    sampled_length: int = Field(8, ge=1, le=1024)
    """Steps of a contiguous piece, where sampling is not by transitions."""
    tasks_per_batch: int | None = Field(None, ge=1)
    """Tasks of a family that a batch is drawn from, without replacement, as many rows of each; null means all (and
    for `bc` that is told its task rows of any). Each of SAC's batches and of the discriminator's draws its own tasks;
    the expert's rows in a batch are of the same tasks as the policy's. A batch needs a row of each that is imitated."""
    context_size: int = Field(0, ge=0, le=64)
    """Ids of demonstrations that a segment carries: `context.most` where anything reads `latent`, else 0."""
    checkpoint_period_seconds: float = Field(300.0, gt=0)
    """Seconds between two checkpoints of the replay server: what its crash may lose."""
    memory_limit_gigabytes: float = Field(4.0, gt=0)
    """Refuse to start if full tables would need more than this."""

    @model_validator(mode="after")
    def _limits_can_be_met(self) -> ReplaySettings:
        if self.warmup_steps > self.capacity:
            raise ValueError(
                f"replay.warmup_steps: expected at most replay.capacity ({self.capacity}), found {self.warmup_steps}; "
                "the learner would wait for ever"
            )
        if self.segment_length > self.capacity:
            raise ValueError(
                f"replay.segment_length: expected at most replay.capacity ({self.capacity}), "
                f"found {self.segment_length}"
            )
        if self.sampling != "transitions" and self.sampled_length > self.segment_length:
            raise ValueError(
                "replay.sampled_length: expected at most replay.segment_length "
                f"({self.segment_length}), found {self.sampled_length}"
            )
        return self


class ActorSettings(Settings):
    """One actor process."""

    num_actors: int = Field(1, ge=0, le=256)
    """Actor processes that `apprentice up` starts; more may join at any time."""
    environments: int = Field(4, ge=1, le=1024)
    """Environments stepped together by one actor process."""
    max_policy_age_seconds: float = Field(300.0, gt=0)
    """Stop collecting when no learner has been heard of for this long."""
    stall_seconds: float = Field(120.0, gt=0)
    """Exit with 70 when no step was made for this long and nobody was waited for."""


class LearnerSettings(Settings):
    """The learner's process and budget."""

    max_steps: int = Field(100_000, ge=1)
    """Agent steps after which the run has finished."""
    learning_rate_schedule: Literal["constant", "linear"] = "constant"
    """`linear` lets the step sizes of all networks fall in a straight line, to 0 at `max_steps`."""
    warm_start: str | None = None
    """Path of an earlier run's checkpoint, whose networks a new run begins with; null begins with fresh ones."""
    warm_start_networks: Literal["policy", "all"] = "policy"
    """What is taken of it: the policy with its normaliser, or critics and temperature too."""
    target_return: float | None = None
    """Finish when two evaluations in a row reach this mean return."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes a GPU where there is one."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Number format of the matrix products in the update."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the update; `auto` falls back to the plain one, with a warning, where there is no compiler."""
    num_threads: int = Field(1, ge=1, le=64)
    """Threads of the update on a CPU."""
    publish_period_seconds: float = Field(1.0, gt=0)
    """Seconds between two published policies."""
    metrics_period_seconds: float = Field(5.0, gt=0)
    """Seconds between two lines of metrics."""
    stall_seconds: float = Field(300.0, gt=0)
    """Exit with 70 when neither an update nor a segment came about for this long and nobody was waited for."""
    max_bad_updates: int = Field(10, ge=1)
    """Updates with a non-finite loss in a row before the learner returns to its last checkpoint."""
    max_rollbacks: int = Field(3, ge=0)
    """Such returns, each with a halved step size, before it stops with exit code 71."""


class CheckpointSettings(Settings):
    """When checkpoints are written and which are kept."""

    period_steps: int = Field(10_000, ge=1)
    """Agent steps between two checkpoints."""
    period_seconds: float = Field(300.0, gt=0)
    """Seconds after which one is written even if fewer steps were made."""
    keep: int = Field(3, ge=1)
    """Newest checkpoints kept, beside the best and the pinned ones."""


class EvaluationSettings(Settings):
    """Periodic evaluation by a child process of the learner."""

    period_steps: int = Field(10_000, ge=1)
    """Agent steps between two evaluations."""
    episodes: int = Field(10, ge=1, le=1000)
    """Episodes of each evaluation, on start states outside training."""
    timeout_seconds: float = Field(600.0, gt=0)
    """An evaluation that takes longer is stopped, logged and skipped."""
    quality: Literal["full", "look", "fast"] = "look"
    """Rendering of rollouts that people look at."""


class ServiceSettings(Settings):
    """Where services listen in a run on one machine. Port 0 picks a free one."""

    host: str = "127.0.0.1"
    """Interface of learner and evaluation server (the replay server always listens on all)."""
    replay_port: Port = 0
    """Port of the replay server."""
    learner_port: Port = 0
    """Port of the learner's gRPC service."""
    evalserver_port: Port = 8000
    """Port of the evaluation server."""
