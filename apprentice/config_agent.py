"""Settings of the agent: what it acts in, what its networks read and compute, how SAC learns."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from apprentice.config_base import ObservationKey, Settings, require_moderate_decay
from apprentice.config_family import FamilySettings


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
