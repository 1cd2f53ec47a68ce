"""Every setting of an experiment, once, with its default and its meaning.

An experiment file under `experiments/` holds only what differs (`apprentice/experiments.py` reads it).
All models are frozen and refuse unknown keys.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from apprentice.config_base import (
    Name,
    ObservationKey,
    Port,
    Settings,
    require_moderate_decay,
    tells_task,
)
from apprentice.config_context import ContextSettings
from apprentice.config_family import FamilySettings
from apprentice.config_imitation import (
    CloningSettings,
    DemonstrationSettings,
    DiscriminatorSettings,
    ImitationSettings,
    RewardSettings,
)
from apprentice.suite_tasks import FAMILIES, family_of, terminates

__all__ = [
    "ActorSettings",
    "CheckpointSettings",
    "CloningSettings",
    "ContextSettings",
    "DemonstrationSettings",
    "DiscriminatorSettings",
    "EnvironmentSettings",
    "EvaluationSettings",
    "Experiment",
    "FamilySettings",
    "ImitationSettings",
    "LearnerSettings",
    "NetworkSettings",
    "ReadsSettings",
    "ReplaySettings",
    "RewardSettings",
    "SACSettings",
    "ServiceSettings",
    "Settings",
]


class EnvironmentSettings(Settings):
    """What an agent acts in, and what it may see of it."""

    action_repeat: int = Field(1, ge=1, le=16)
    """Environment frames an action is held for; rewards are summed over them."""
    frame_stack: int = Field(3, ge=1, le=8)
    """Newest frames that make up one `pixels` observation."""
    width: int = Field(84, ge=16, le=640)
    """Width of `pixels`, in pixels."""
    height: int = Field(84, ge=16, le=640)
    """Height of `pixels`, in pixels."""
    camera: int = Field(0, ge=-1, le=64)
    """Index of the camera that makes `pixels`; -1 is the free camera."""
    render_quality: Literal["full", "look", "fast"] = "look"
    """`full` is dm_control's picture, `look` nearly the same and 8 times faster, `fast` without shadows."""
    family: FamilySettings = FamilySettings()


class ReadsSettings(Settings):
    """Which observation keys each network reads. Frames are rendered only where someone reads `pixels`."""

    policy: tuple[ObservationKey, ...] = ("state",)
    """Keys the policy reads, in actors and in evaluation."""
    critic: tuple[ObservationKey, ...] = ("state",)
    """Keys the critics read."""
    discriminator: tuple[ObservationKey, ...] = ("state",)
    """Keys the discriminator reads, where there is one; `pixels` only as the critics' features of them."""

    @model_validator(mode="after")
    def _nonempty_and_distinct(self) -> ReadsSettings:
        for name in ("policy", "critic", "discriminator"):
            keys = getattr(self, name)
            if not keys or len(set(keys)) != len(keys):
                raise ValueError(
                    f"reads.{name}: expected one or more different keys, found {list(keys)}"
                )
        if "pixels" in self.discriminator and "pixels" not in self.critic:
            raise ValueError(
                "reads.discriminator: expected 'pixels' only where the critics read them too, whose "
                f"features it takes; found critic {list(self.critic)}"
            )
        return self


class NetworkSettings(Settings):
    """Sizes of the networks that act and judge."""

    hidden_size: int = Field(256, ge=8, le=4096)
    """Units of each hidden layer of policy and critics."""
    num_hidden_layers: int = Field(2, ge=1, le=8)
    """Hidden layers of policy and critics."""
    log_std_bounds: tuple[float, float] = (-20.0, 2.0)
    """Range of the Gaussian's log standard deviation."""
    log_std_parametrisation: Literal["clamp", "tanh"] = "clamp"
    """`clamp` cuts the raw output at the bounds, `tanh` squashes it between them (pytorch_sac)."""
    normalise_observations: bool = False
    """Scale `state` by the mean and deviation of the demonstrations, or of the warm-up's observations where
    there are none; fitted once and then frozen."""
    normaliser_floor: float = Field(0.01, gt=0)
    """Smallest deviation that is divided by."""
    task_products: bool = False
    """Where policy, critics or discriminator are told the task or infer it: show them each number of the observation
    times each of `task_parameters` or `latent` too, beside both (a bilinear layer: Jayakumar et al. 2020,
    "Multiplicative Interactions and Where to Find Them", ICLR)."""
    encoder_channels: int = Field(32, ge=4, le=256)
    """Channels of each convolution over `pixels`."""
    encoder_features: int = Field(50, ge=4, le=1024)
    """Features that `pixels` are reduced to."""
    random_shift: int = Field(4, ge=0, le=16)
    """Pixels by which images are shifted at random in training (DrQ-v2); 0 turns it off."""


class SACSettings(Settings):
    """Soft Actor-Critic (Haarnoja et al. 2018, arXiv 1812.05905)."""

    gamma: float = Field(0.99, gt=0, lt=1)
    """The agent's discount factor."""
    tau: float = Field(0.005, gt=0, le=1)
    """Rate at which the target critics follow the critics."""
    critic_learning_rate: float = Field(1e-3, gt=0, le=1)
    """Adam's step size for the critics (and the pixel encoder)."""
    policy_learning_rate: float = Field(1e-3, gt=0, le=1)
    """Adam's step size for the policy."""
    policy_weight_decay: float = Field(0.0, ge=0)
    """Decoupled decay of all the policy's weights, per unit of step size (Loshchilov & Hutter 2019, arXiv
    1711.05101); a policy of many tasks may need it to do what lies between them."""
    temperature_learning_rate: float = Field(1e-3, gt=0, le=1)
    """Adam's step size for the log temperature."""
    adam_betas: tuple[float, float] = (0.9, 0.999)
    """Adam's decay rates of both moments."""
    batch_size: int = Field(256, ge=1, le=65536)
    """Transitions per update."""
    initial_temperature: float = Field(0.1, gt=0)
    """Temperature at the start, or always where it is not learned."""
    learn_temperature: bool = True
    """Adjust the temperature towards the target entropy."""
    target_entropy: float | None = None
    """Entropy in nats that the temperature aims at; null means minus the number of action dimensions."""
    target_update_period: int = Field(1, ge=1, le=1000)
    """Updates between two steps of the target critics."""
    policy_update_period: int = Field(1, ge=1, le=1000)
    """Updates between two steps of the policy and the temperature."""
    reward_scale: float = Field(1.0, gt=0)
    """Factor on the reward in the critics' target."""
    max_gradient_norm: float | None = Field(None, gt=0)
    """Clip the gradient of each network to this norm; null means no clipping."""
    policy_average_tau: float | None = Field(None, gt=0, le=1)
    """Rate at which a slow average follows the policy, and a context encoder that learns beside it: checkpoints then
    hold the average, which is evaluated and shown, while actors explore with the policy itself; null keeps none."""
    trust_region: Literal["none", "penalty", "constraint"] = "none"
    """Hold the policy near a slow copy of itself: by a weight on their KL divergence, or by a bound on it."""
    trust_region_coefficient: float = Field(1.0, ge=0)
    """Weight of KL(policy, slow copy) in the policy's loss; where it is bounded, the weight at the start."""
    trust_region_bound: float = Field(0.01, gt=0)
    """Bound on the mean KL divergence in nats, which the weight is learned to hold."""
    trust_region_tau: float = Field(0.005, gt=0, le=1)
    """Rate at which the slow copy follows the policy."""

    @model_validator(mode="after")
    def _settings_fit(self) -> SACSettings:
        require_moderate_decay(
            "sac", "policy_", self.policy_learning_rate, self.policy_weight_decay
        )
        if self.policy_average_tau is not None and self.trust_region != "none":
            raise ValueError(
                "sac.policy_average_tau: expected null with a trust region, which keeps a slow copy of its own; "
                f"found {self.policy_average_tau}"
            )
        return self


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
    """Tasks of a family that a batch is drawn from, without replacement, as many rows of each; null means all."""
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


class Experiment(Settings):
    """All settings of one run."""

    name: Name
    """Name of the experiment, the file's stem."""
    variant: int = Field(0, ge=0)
    """Number of this variant in the experiment's grid."""
    task: str = Field(pattern=r"^[A-Za-z0-9_]+(-[A-Za-z0-9._-]+)?$")
    """`domain-task` of the DeepMind Control Suite; a family, to learn all its train tasks; or the id of one of them."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of the run: networks, sampling, environments."""
    environment: EnvironmentSettings = EnvironmentSettings()
    reads: ReadsSettings = ReadsSettings()
    network: NetworkSettings = NetworkSettings()
    sac: SACSettings = SACSettings()
    imitation: ImitationSettings = ImitationSettings()
    context: ContextSettings = ContextSettings()
    replay: ReplaySettings = ReplaySettings()
    actor: ActorSettings = ActorSettings()
    learner: LearnerSettings = LearnerSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    services: ServiceSettings = ServiceSettings()

    @model_validator(mode="after")
    def _goes_on_where_episodes_terminate(self) -> Experiment:
        learns = self.imitation.method not in ("none", "bc")
        imitation = self.imitation
        biased = not imitation.absorbing_states and not imitation.allow_termination_bias
        if learns and terminates(self.task) and biased:
            raise ValueError(
                f"imitation.absorbing_states: expected true with {self.task!r}, whose episodes can terminate: "
                "otherwise the reward's sign alone teaches to end them or to drag them out; found false (to see "
                "that happen, set imitation.allow_termination_bias)"
            )
        return self

    @model_validator(mode="after")
    def _judges_what_is_encoded(self) -> Experiment:
        reads = self.reads
        if (
            self.imitation.adversarial
            and "state" in reads.discriminator
            and "state" not in reads.policy + reads.critic
        ):
            raise ValueError(
                "reads.discriminator: expected 'state' only where policy or critics read it too, whose normalisation "
                f"it takes; found policy {list(reads.policy)} and critic {list(reads.critic)}"
            )
        return self

    @model_validator(mode="after")
    def _fits_its_family(self) -> Experiment:
        reads = self.reads
        privileged = "task_parameters" in reads.policy + reads.critic + reads.discriminator
        if family_of(self.task) is None:
            if privileged:
                raise ValueError(
                    "reads: 'task_parameters' exist only for families of tasks; suite tasks have 'state' and 'pixels'"
                )
            return self
        family = self.environment.family
        if family.shaping and family.gamma != self.sac.gamma:
            raise ValueError(
                "environment.family.gamma: expected sac.gamma, or the shaping would change which policy is best; "
                f"found {family.gamma} and {self.sac.gamma}"
            )
        if self.is_family and "pixels" in self.observation_keys:
            raise ValueError(
                f"reads: expected no 'pixels' with the family {self.task}, whose transitions are drawn from many rings "
                f"without frames; found {list(self.observation_keys)}: leave them out, or train on one task by its id"
            )
        if self.is_family and self.replay.sampling != "transitions":
            raise ValueError(
                f"replay.sampling: expected 'transitions' with the family {self.task}, found {self.replay.sampling!r}"
            )
        if (
            self.is_family
            and self.imitation.method != "none"
            and self.replay.tasks_per_batch is not None
        ):
            raise ValueError(
                "replay.tasks_per_batch: expected null where a family is imitated, each batch of which has rows of all "
                f"tasks; found {self.replay.tasks_per_batch}"
            )
        if self.is_family and self.imitation.method == "airl":
            raise ValueError(
                f"imitation.method: expected another than 'airl' with the family {self.task}: its reward would be "
                "of one task"
            )
        return self

    @model_validator(mode="after")
    def _mismatches_tasks_it_can_tell(self) -> Experiment:
        told = self.is_family and tells_task(self.reads.discriminator)
        if self.imitation.discriminator.mismatched_share and not told:
            raise ValueError(
                "imitation.discriminator.mismatched_share: expected 0 unless a family's discriminator reads "
                f"'task_parameters' or 'latent', found {self.imitation.discriminator.mismatched_share}"
            )
        return self

    @model_validator(mode="after")
    def _imagines_tasks_it_can_judge(self) -> Experiment:
        imitation = self.imitation
        if imitation.imagined_share == 0.0:
            return self
        reads = self.reads
        told = self.is_family and all(
            tells_task(read) for read in (reads.policy, reads.critic, reads.discriminator)
        )
        if not told or not imitation.adversarial or imitation.reward.override is not None:
            raise ValueError(
                "imitation.imagined_share: expected 0 unless the reward is a discriminator's, and it, policy and "
                f"critics read a family's 'task_parameters' or 'latent', found {imitation.imagined_share} with method "
                f"{imitation.method!r}, reward override {imitation.reward.override!r} and reads {list(reads.policy)}, "
                f"{list(reads.critic)} and {list(reads.discriminator)}"
            )
        return self

    @model_validator(mode="after")
    def _multiplies_what_is_read(self) -> Experiment:
        read = self.reads.policy + self.reads.critic
        if self.imitation.adversarial:
            read += self.reads.discriminator
        if self.network.task_products and not tells_task(read):
            raise ValueError(
                "network.task_products: expected false where no network reads 'task_parameters' or 'latent', found "
                f"true with {list(read)}"
            )
        return self

    @model_validator(mode="after")
    def _infers_where_it_can(self) -> Experiment:
        size = 0
        if self.infers_task:
            problem = self._inference_problem()
            if problem is not None:
                raise ValueError(problem)
            size = self.context.most
        if self.replay.context_size != size:
            replay = self.replay.model_copy(update={"context_size": size})
            object.__setattr__(self, "replay", replay)
        return self

    def _inference_problem(self) -> str | None:
        """Say what keeps a task from being inferred, or from being of use."""
        reads, imitation = self.reads, self.imitation
        if not self.is_family:
            return (
                "reads: expected 'latent' only with a family, which has demonstrations to be shown; found "
                f"{self.task!r}"
            )
        if imitation.method in ("none", "sqil"):
            return (
                "reads: expected 'latent' only with an imitation.method that trains its encoder (gail, dac, fairl, "
                f"bc), found {imitation.method!r}"
            )
        if "latent" not in reads.policy or "state" not in self.observation_keys:
            return (
                "reads.policy: expected 'latent', and 'state' by some network, where 'latent' is read at all; found "
                f"{list(reads.policy)}"
            )
        if imitation.adversarial and "latent" not in reads.discriminator:
            return (
                "reads.discriminator: expected 'latent' where the policy reads it, or nothing would tell the policy to "
                f"heed it; found {list(reads.discriminator)}"
            )
        if imitation.method != "bc" and not tells_task(reads.critic):
            return (
                "reads.critic: expected 'latent' where the policy reads it, or 'task_parameters': values of all tasks "
                f"would be taken for one's; found {list(reads.critic)}"
            )
        if imitation.reward.override == "expert_advantage":
            return (
                "imitation.reward.override: expected another than 'expert_advantage' where the task is inferred: the "
                "expert would have to read what the policy does, and experts are told theirs"
            )
        return None

    @model_validator(mode="after")
    def _sees_every_expert(self) -> Experiment:
        demonstrations = self.imitation.demonstrations
        name, num = "imitation.demonstrations.experts", demonstrations.experts
        if num > 1 and not self.is_family:
            raise ValueError(
                f"{name}: expected 1 with {self.task}, which is no family; found {num}"
            )
        limits = {
            "imitation.demonstrations.recorded": demonstrations.recorded,
            "imitation.demonstrations.episodes": demonstrations.episodes,
            "context.episodes": self.context.episodes if self.infers_task else None,
        }
        for key, most in limits.items():
            if most is not None and num > most:
                raise ValueError(
                    f"{name}: expected at most {most}, as many as {key} says, or some would not be seen; found {num}: "
                    f"raise {key}, or imitate fewer experts"
                )
        return self

    @model_validator(mode="after")
    def _begins_with_what_it_can(self) -> Experiment:
        learner = self.learner
        if learner.warm_start is None:
            return self
        if self.infers_task:
            raise ValueError(
                "learner.warm_start: expected null where the task is inferred, which an encoder must be trained for; "
                f"found {learner.warm_start!r}"
            )
        if "pixels" in self.reads.policy and learner.warm_start_networks == "policy":
            raise ValueError(
                "learner.warm_start_networks: expected 'all' with a policy that reads 'pixels', whose convolutions are "
                "the critics'; found 'policy'"
            )
        return self

    @property
    def acting_keys(self) -> tuple[str, ...]:
        """What an environment must show the policy: all that it reads but `latent`, which is inferred."""
        return tuple(key for key in self.reads.policy if key != "latent")

    @property
    def infers_task(self) -> bool:
        """Whether the task is inferred from demonstrations that are shown."""
        reads = self.reads
        return "latent" in reads.policy + reads.critic + reads.discriminator

    @property
    def is_family(self) -> bool:
        """Whether several tasks are learned at once."""
        return self.task in FAMILIES

    @property
    def observation_keys(self) -> tuple[str, ...]:
        """Keys that anyone reads, in the order state, pixels, task_parameters."""
        read = set(self.reads.policy) | set(self.reads.critic)
        if self.imitation.adversarial:
            read |= set(self.reads.discriminator)
        return tuple(key for key in ("state", "pixels", "task_parameters") if key in read)
