"""Settings of imitation: demonstrations, discriminator, reward, and how each method differs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from pydantic import Field, model_validator

from apprentice.config_base import Settings, require_moderate_decay

Method = Literal["none", "gail", "dac", "fairl", "airl", "sqil", "bc"]
RewardForm = Literal["logit", "log_d", "minus_log_one_minus_d", "fairl"]

FAIRL_BOUND: Final = 10.0
PRESETS: Final[Mapping[Method, Mapping[str, Mapping[str, Any] | float]]] = {
    "none": {},
    "gail": {
        "reward": {"form": "minus_log_one_minus_d"},
        "discriminator": {"replay_window": 20_000},
    },
    "dac": {"reward": {"form": "logit"}},
    "fairl": {"reward": {"form": "fairl", "bound": FAIRL_BOUND}},
    "airl": {"reward": {"form": "logit"}},
    "sqil": {"demonstration_share": 0.5},
    "bc": {},
}
"""What a method sets where the experiment says nothing."""
ARCHITECTURES: Final[Mapping[str, Mapping[str, Any]]] = {
    "tanh_2x100": {
        "hidden_size": 100,
        "num_hidden_layers": 2,
        "activation": "tanh",
        "dropout": 0.0,
    },
}
"""What a discriminator's preset sets where the experiment says nothing."""


class DemonstrationSettings(Settings):
    """Which of an expert's episodes are learned from."""

    file: str | None = None
    """Path of a demonstration file, or the name of a bundled one; null is the task's bundled file."""
    expert: str | None = None
    """Experiment that trains the expert; where `file` is missing, `apprentice up` trains and records it first."""
    experts: int = Field(1, ge=1, le=16)
    """Experts of a family who act in turn in what is recorded then, with seeds counted up from that of `expert`'s file;
    where `file` is there, as many must have acted in it."""
    recorded: int = Field(16, ge=1, le=1000)
    """Episodes that are recorded of it then; of a family's tasks, as many to be shown and as many to be imitated."""
    episodes: int | None = Field(None, ge=1)
    """Episodes to learn from; null takes all but those held out. Of a family, those to be imitated of each train task,
    the first of them."""
    held_out: int = Field(0, ge=0)
    """Episodes kept apart, on which only the discriminator's accuracy is measured; of a family whose policy is told its
    task, those of its validation tasks are, however many."""
    subsampling: int = Field(1, ge=1, le=1000)
    """Every n-th step of an episode is kept, from a random offset on."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of which episodes are taken, unless they are a family's, and of the offsets."""

    @model_validator(mode="after")
    def _says_where_to(self) -> DemonstrationSettings:
        if self.expert is not None and self.file is None:
            raise ValueError(
                "imitation.demonstrations.file: expected the path that the expert's demonstrations are recorded to, "
                "found null"
            )
        return self


class DiscriminatorSettings(Settings):
    """The network that tells the expert's transitions from the policy's: its logit is > 0 for the expert."""

    inputs: Literal["state_action", "state_next_state", "state"] = "state_action"
    """What it judges; `airl` uses `state_action` or `state` for g."""
    preset: Literal["tanh_2x100"] | None = None
    """An architecture by name; whatever else is set beside it goes before it, not what a file below sets."""
    hidden_size: int = Field(128, ge=4, le=4096)
    """Units of each hidden layer."""
    num_hidden_layers: int = Field(2, ge=1, le=8)
    """Hidden layers."""
    activation: Literal["tanh", "relu", "elu", "silu"] = "tanh"
    """Nonlinearity after each hidden layer."""
    learning_rate: float = Field(3e-4, gt=0, le=1)
    """Adam's step size."""
    adam_betas: tuple[float, float] = (0.9, 0.999)
    """Adam's decay rates of both moments."""
    batch_size: int | None = Field(None, ge=1, le=65536)
    """Rows of the expert and of the policy each; null means sac.batch_size."""
    replay_window: int | None = Field(None, ge=1)
    """The policy's rows come from its newest transitions, this many; null means from all."""
    replay_window_share: float = Field(1.0, gt=0, le=1)
    """Share of those rows that come from the window; the others come from all."""
    mismatched_share: float = Field(0.0, ge=0, lt=1)
    """Share of the policy's rows that are replaced by the expert's of other tasks, where it reads
    `task_parameters` or `latent`: so that it cannot ignore them."""
    updates: int = Field(1, ge=1, le=100)
    """Discriminator updates each time it learns."""
    period: int = Field(1, ge=1, le=1000)
    """Policy updates between two times that the discriminator learns."""
    penalty: Literal["none", "two_sided", "one_sided", "zero_centred", "dragan"] = "two_sided"
    """Gradient penalty: (|g| - 1)^2, max(0, |g| - 1)^2 or |g|^2 between expert and policy rows; `dragan` is
    two-sided around expert rows."""
    penalty_target: Literal["logit", "reward", "exp_reward"] = "logit"
    """Whose gradient g is penalised."""
    penalty_coefficient: float = Field(10.0, ge=0)
    """Weight of the gradient penalty."""
    spectral_norm: bool = False
    """Divide each layer's weights by their largest singular value."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of hidden units left out at random in training, to the nearest 1/256 and neither all nor none."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled decay of all weights, per unit of step size."""
    entropy_bonus: float = Field(0.0, ge=0)
    """Weight of the entropy of its decisions, which is added to the objective."""
    mixup: bool = False
    """Judge random mixtures of expert and policy rows, with the mixture's weight as label."""
    input_noise: float = Field(0.0, ge=0)
    """Standard deviation of Gaussian noise on its inputs, at the start."""
    input_noise_updates: int = Field(10_000, ge=1)
    """Updates over which that noise falls linearly to 0."""
    reward_penalty: float = Field(0.0, ge=0)
    """Weight of the mean square of the reward on both batches, against rewards that grow."""
    max_gradient_norm: float | None = Field(None, gt=0)
    """Clip its gradient to this norm; null means no clipping."""
    max_penalty_gradient_norm: float | None = Field(None, gt=0)
    """Clip the penalty's part of the gradient to a norm of its own, and the rest to `max_gradient_norm`; null means
    that both are clipped together."""

    @model_validator(mode="after")
    def _fill_in_preset(self) -> DiscriminatorSettings:
        if self.preset is not None:
            for key, value in ARCHITECTURES[self.preset].items():
                if key not in self.model_fields_set:
                    object.__setattr__(self, key, value)
        return self

    @model_validator(mode="after")
    def _decays_moderately(self) -> DiscriminatorSettings:
        section = "imitation.discriminator"
        require_moderate_decay(section, "", self.learning_rate, self.weight_decay)
        return self


class RewardSettings(Settings):
    """From a logit h, with D = sigmoid(h), to the reward that SAC learns on."""

    form: RewardForm = "logit"
    """`logit` h (any sign), `log_d` log D (< 0), `minus_log_one_minus_d` (> 0), `fairl` -h exp(h)."""
    logit_bound: float | None = Field(10.0, gt=0)
    """Cut h to this magnitude before anything else; null leaves it."""
    bound: float | None = Field(None, gt=0)
    """Cut the reward to this magnitude; null leaves it. With `fairl`, whose reward grows like exp(h), it is 10
    unless set."""
    normalise: bool = False
    """Divide by a running root mean square, so that rewards have magnitude 1."""
    scale: float = Field(1.0, gt=0)
    """Factor on the result."""
    override: Literal["environment", "zero", "expert_advantage", "recovered"] | None = None
    """Learn on another reward: to tell a fault of SAC from one of the discriminator, or, with `recovered`, to
    see what the reward is worth that an earlier run learned."""
    expert_checkpoint: str | None = None
    """Path of the expert's checkpoint, for `expert_advantage`."""
    recovered_checkpoint: str | None = None
    """Path of the earlier run's checkpoint, for `recovered`."""

    @model_validator(mode="after")
    def _fairl_is_bounded(self) -> RewardSettings:
        if self.form == "fairl" and "bound" not in self.model_fields_set:
            object.__setattr__(self, "bound", FAIRL_BOUND)
        return self

    @model_validator(mode="after")
    def _checkpoint_is_known(self) -> RewardSettings:
        for override in ("expert_advantage", "recovered"):
            name = f"{override.split('_')[0]}_checkpoint"
            if (self.override == override) != (getattr(self, name) is not None):
                raise ValueError(
                    f"imitation.reward: expected {name} exactly where override is {override!r}, "
                    f"found override {self.override!r} and {name} {getattr(self, name)!r}"
                )
        return self


class CloningSettings(Settings):
    """Behaviour cloning: supervised learning of the expert's actions, without acting."""

    loss: Literal["likelihood", "mean_squared_error"] = "likelihood"
    """Log-likelihood of the action, or the squared error of the executed one, tanh of the mean."""
    learning_rate: float = Field(3e-4, gt=0, le=1)
    """Adam's step size."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled decay of all weights, per unit of step size."""
    noise: float = Field(0.0, ge=0)
    """Standard deviation of Gaussian noise on the normalised state, in training."""

    @model_validator(mode="after")
    def _decays_moderately(self) -> CloningSettings:
        require_moderate_decay("imitation.cloning", "", self.learning_rate, self.weight_decay)
        return self


class ImitationSettings(Settings):
    """Learning from demonstrations in place of the environment's reward."""

    method: Method = "none"
    """`none` is SAC on the environment's reward; the others are in docs/algorithms/imitation.md."""
    demonstrations: DemonstrationSettings = DemonstrationSettings()
    discriminator: DiscriminatorSettings = DiscriminatorSettings()
    reward: RewardSettings = RewardSettings()
    cloning: CloningSettings = CloningSettings()
    demonstration_share: float = Field(0.0, ge=0, le=0.9)
    """Share of SAC's batch that is drawn from the demonstrations."""
    imagined_share: float = Field(0.0, ge=0, le=1)
    """Share of the policy's rows in SAC's batch that are told a task between their own and another row's: a mixture of
    `task_parameters` or `latent`, for which the discriminator gives the reward (as Lee & Chung 2021, arXiv 2105.13524,
    mix latents into imaginary tasks). Where the tasks' dynamics differ, what follows is still the own task's."""
    absorbing_states: bool = True
    """Where the task can terminate: go on in an absorbing state, which critics and discriminator can tell."""
    allow_termination_bias: bool = False
    """Permit absorbing_states off on a task that can terminate, to see what that does."""

    @model_validator(mode="after")
    def _fill_in_preset(self) -> ImitationSettings:
        for key, preset in PRESETS[self.method].items():
            value: Any = preset
            if isinstance(preset, Mapping):
                section: Settings = getattr(self, key)
                left_open = {k: v for k, v in preset.items() if k not in section.model_fields_set}
                value = section.model_copy(update=left_open)
            elif key in self.model_fields_set:
                continue
            object.__setattr__(self, key, value)
        return self

    @model_validator(mode="after")
    def _fits_the_method(self) -> ImitationSettings:
        if self.method == "airl":
            if self.reward.form != "logit":
                raise ValueError(
                    f"imitation.reward.form: expected 'logit' with 'airl', found {self.reward.form!r}"
                )
            if self.discriminator.inputs == "state_next_state":
                raise ValueError(
                    "imitation.discriminator.inputs: expected 'state_action' or 'state' with 'airl', whose "
                    "potential already reads the next state; found 'state_next_state'"
                )
        if self.reward.override is not None and self.method in ("none", "bc"):
            raise ValueError(
                f"imitation.reward.override: expected null with {self.method!r}, which learns on no reward that could "
                f"be overridden; found {self.reward.override!r}: set imitation.method, 'dac' for one"
            )
        if self.method == "sqil" and self.demonstration_share == 0.0:
            raise ValueError(
                "imitation.demonstration_share: expected more than 0 with 'sqil', which rewards only "
                "demonstrations; found 0"
            )
        return self

    @property
    def adversarial(self) -> bool:
        """Whether a discriminator is trained."""
        return self.method in ("gail", "dac", "fairl", "airl")
