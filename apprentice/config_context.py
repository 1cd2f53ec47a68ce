"""Settings of conditioning: how a policy is told its task by demonstrations of it, and how that is learned."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field, model_validator

from apprentice.config_base import Settings

ENCODER: Final = (
    *("encoder", "inputs", "window", "latent_size", "hidden_size", "num_hidden_layers"),
    *("linear", "time_pooling", "demonstration_pooling", "batch_norm"),
)
"""Settings that say what the encoder computes, where all others say how that is learned."""


class ContextSettings(Settings):
    """A context encoder turns a few demonstrations of a task into `latent`, which networks may read.

    It is read only where `reads` names `latent`.
    """

    encoder: Literal["context_window", "posterior"] = "posterior"
    """`posterior`: each step through an MLP, pooled over time and demonstrations, a Gaussian (SMILe);
    `context_window`: the last steps of each demonstration side by side through an MLP, no noise."""
    inputs: Literal["state_action_next_state", "state_next_state"] = "state_action_next_state"
    """What the encoder sees of a step."""
    fewest: int = Field(1, ge=1, le=64)
    """Fewest demonstrations shown at once."""
    most: int = Field(1, ge=1, le=64)
    """Most demonstrations shown at once; each draw has a size of its own."""
    episodes: int | None = Field(None, ge=1)
    """Context demonstrations of each train task that are used; null means all there are."""
    window: int = Field(4, ge=1, le=100)
    """Last steps that `context_window` sees of a demonstration."""
    steps: int | None = Field(40, ge=1)
    """Steps of each demonstration that an update of `posterior` sees, drawn at random; null means all. Acting
    always sees all."""
    latent_size: int = Field(8, ge=1, le=1024)
    """Numbers that tell the task."""
    hidden_size: int = Field(64, ge=4, le=4096)
    """Units of the encoder's hidden layers; of no account where `context_window` is `linear`."""
    num_hidden_layers: int = Field(2, ge=1, le=8)
    """Hidden layers before pooling; one more lies between pooling and `latent`, unless it is `linear`."""
    linear: bool = False
    """Make `latent` linear in the steps' average, which `posterior` then weighs by attention (its layers score each
    step), or in the window of `context_window`, which then has no hidden layers."""
    time_pooling: Literal["mean", "sum"] = "mean"
    """How `posterior` pools the steps of a demonstration, unless it is `linear`."""
    demonstration_pooling: Literal["mean", "sum"] = "mean"
    """How demonstrations are pooled; the published code's sum makes the scale grow with their number."""
    batch_norm: bool = False
    """Normalise hidden layers over the batch in training, by running statistics otherwise."""
    learning_rate: float = Field(3e-4, gt=0, le=1)
    """Adam's step size for the encoder."""
    adam_betas: tuple[float, float] = (0.9, 0.999)
    """Adam's decay rates of both moments."""
    max_gradient_norm: float | None = Field(None, gt=0)
    """Clip the encoder's gradient to this norm; null means no clipping."""
    pretrain_updates: int = Field(0, ge=0)
    """Updates of the encoder by behaviour cloning of the context demonstrations' actions before anything else; of
    others than those shown, where a task has more than `most`."""
    pretrain_learning_rate: float = Field(1e-3, gt=0, le=1)
    """Adam's step size of that."""
    learned: bool = True
    """Train the encoder with the discriminator (or the cloned policy); false leaves it as pretraining left it."""
    learned_updates: int | None = Field(None, ge=1)
    """The encoder's own updates, pretraining's not among them, over which its step size falls in a straight line to 0
    (on top of `learner.learning_rate_schedule`); then the encoder stays as it is. Null keeps the step size."""
    kl_coefficient: float = Field(0.0, ge=0)
    """Weight of KL(q(z | context), N(0, I)) at the ramp's end; where it comes near the cross-entropy (in pretraining:
    the squared error of actions) it drowns z."""
    kl_ramp: tuple[int, int] = (0, 1)
    """Updates between which that weight rises linearly from 0; pretraining and what follows count their own."""
    information_coefficient: float = Field(0.0, ge=0)
    """Weight of a lower bound on the mutual information of `latent` and task (InfoNCE over the batch's tasks)."""
    relabel: Literal["stored", "fresh"] = "stored"
    """Demonstrations that `latent` is inferred anew from for the policy's batch: those its actor was shown, or
    others of the task."""
    refresh_period: int = Field(8, ge=1, le=1000)
    """Updates between two times that all demonstrations are encoded anew for that, until the encoder rests."""

    @model_validator(mode="after")
    def _sizes_in_order(self) -> ContextSettings:
        if self.fewest > self.most:
            raise ValueError(
                f"context.fewest: expected at most context.most ({self.most}), found {self.fewest}"
            )
        if self.episodes is not None and self.episodes < self.most:
            raise ValueError(
                f"context.episodes: expected at least context.most ({self.most}), found {self.episodes}"
            )
        least = 2 * self.most if self.information_coefficient else 0
        if self.episodes is not None and self.episodes < least:
            raise ValueError(
                "context.episodes: expected at least twice context.most with context.information_coefficient, which "
                f"compares two sets without a demonstration in common ({least}), found {self.episodes}"
            )
        if self.kl_ramp[0] >= self.kl_ramp[1]:
            raise ValueError(
                f"context.kl_ramp: expected a first update before the last one, found {list(self.kl_ramp)}"
            )
        if not self.learned and not self.pretrain_updates:
            raise ValueError(
                "context.learned: expected true where context.pretrain_updates is 0, or the encoder would stay as it "
                "was drawn; found false"
            )
        if self.learned_updates is not None and not self.learned:
            raise ValueError(
                "context.learned_updates: expected null where context.learned is false and only pretraining trains the "
                f"encoder, found {self.learned_updates}"
            )
        if self.linear and self.encoder == "posterior" and self.time_pooling != "mean":
            raise ValueError(
                "context.time_pooling: expected 'mean' with context.linear, which averages the steps by attention; "
                f"found {self.time_pooling!r}"
            )
        if self.linear and self.encoder == "context_window" and self.batch_norm:
            raise ValueError(
                "context.batch_norm: expected false with context.linear and 'context_window', which then has no hidden "
                "layers; found true"
            )
        if self.encoder == "context_window" and self.kl_coefficient:
            raise ValueError(
                "context.kl_coefficient: expected 0 with 'context_window', whose latent has no noise; found "
                f"{self.kl_coefficient}"
            )
        return self
