"""An experiment: every setting once, with its default and its meaning, and which go together.

An experiment file under `experiments/` holds only what differs (`apprentice/experiments.py` reads it).
The sections lie in `config_*.py` and are offered here; all models are frozen and refuse unknown keys.
"""

from __future__ import annotations

from pydantic import Field, model_validator

from apprentice.config_agent import EnvironmentSettings, NetworkSettings, ReadsSettings, SACSettings
from apprentice.config_base import Name, Settings, tells_task
from apprentice.config_context import ContextSettings
from apprentice.config_family import FamilySettings
from apprentice.config_imitation import (
    CloningSettings,
    DemonstrationSettings,
    DiscriminatorSettings,
    ImitationSettings,
    RewardSettings,
)
from apprentice.config_services import (
    ActorSettings,
    CheckpointSettings,
    EvaluationSettings,
    LearnerSettings,
    ReplaySettings,
    ServiceSettings,
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
        if self.context.information_coefficient and self.replay.tasks_per_batch == 1:
            raise ValueError(
                "replay.tasks_per_batch: expected 2 or more with context.information_coefficient, which tells a "
                "batch's tasks apart; found 1"
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
