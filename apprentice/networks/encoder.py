"""From a dict of observations to one feature vector: the only place that normalises."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from apprentice.config import NetworkSettings
from apprentice.config_base import TELLING
from apprentice.types import EnvironmentSpec

ABSORBING = "absorbing"
"""Key of the entry [B, 1] that is 1 in an absorbing state, whose normalised state is then 0."""
TORSO_PREFIX = "encoder.torso."
"""Names of the parameters that critics and policy share where both read pixels."""


class PixelTorso(nn.Module):
    """Reduce stacked frames by four 3x3 convolutions (DrQ-v2, arXiv 2107.09645, appendix B)."""

    def __init__(self, shape: tuple[int, ...], channels: int) -> None:
        super().__init__()
        stack, height, width, colours = shape
        self.convolutions = nn.Sequential(
            nn.Conv2d(stack * colours, channels, 3, stride=2),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3),
            nn.ReLU(),
        )

        def reduced(size: int) -> int:
            return (size - 3) // 2 + 1 - 6

        self.output_size = channels * reduced(height) * reduced(width)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Map uint8 frames [B, S, H, W, 3] to features [B, F]."""
        batch, stack, height, width, colours = pixels.shape
        planes = pixels.permute(0, 1, 4, 2, 3).reshape(batch, stack * colours, height, width)
        features: torch.Tensor = self.convolutions(planes.float() / 255.0 - 0.5)
        return features.flatten(1)


class ObservationEncoder(nn.Module):
    """Concatenate what `keys` name: vectors normalised, pixels through torso and projection."""

    state_mean: torch.Tensor
    state_scale: torch.Tensor

    def __init__(
        self, spec: EnvironmentSpec, keys: Sequence[str], settings: NetworkSettings
    ) -> None:
        super().__init__()
        missing = [key for key in keys if key not in spec.observation]
        if missing:
            raise ValueError(
                f"observation keys {missing} are to be read, but the environment only has "
                f"{sorted(spec.observation)}; change `reads` or the environment"
            )
        self.keys = tuple(keys)
        self.output_size = 0
        self.torso: PixelTorso | None = None
        for key in self.keys:
            shape = spec.observation[key].shape
            if key == "pixels":
                self.torso = PixelTorso(shape, settings.encoder_channels)
                self.projection = nn.Sequential(
                    nn.Linear(self.torso.output_size, settings.encoder_features),
                    nn.LayerNorm(settings.encoder_features),
                    nn.Tanh(),
                )
                self.output_size += settings.encoder_features
            else:
                self.output_size += shape[0]
        told = sum(spec.observation[key].shape[0] for key in self.keys if key in TELLING)
        self.multiplies = settings.task_products and 0 < told < self.output_size
        if self.multiplies:
            self.output_size += (self.output_size - told) * told
        if "state" in self.keys:
            size = spec.observation["state"].shape[0]
            self.register_buffer("state_mean", torch.zeros(size))
            self.register_buffer("state_scale", torch.ones(size))

    def forward(
        self, observation: dict[str, torch.Tensor], pixel_features: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Encode a batch of observations [B, ...] as [B, output_size].

        `pixel_features` [B, F] are the torso's output, for callers that have computed it already.
        """
        parts = []
        for key in self.keys:
            if key == "pixels":
                if pixel_features is None:
                    assert self.torso is not None
                    pixel_features = self.torso(observation["pixels"])
                parts.append(self.projection(pixel_features))
            elif key == "state":
                state = (observation["state"] - self.state_mean) * self.state_scale
                if ABSORBING in self.keys:
                    state = state * (1.0 - observation[ABSORBING])
                parts.append(state)
            else:
                parts.append(observation[key])
        if self.multiplies:
            by_key = list(zip(self.keys, parts, strict=True))
            told = [part for key, part in by_key if key in TELLING]
            seen = [part for key, part in by_key if key not in TELLING]
            parts.append(task_products(torch.cat(seen, dim=-1), torch.cat(told, dim=-1)))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def task_products(seen: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
    """Return the products [B, X T] of each number of `seen` [B, X] with each of `told` [B, T], number by number."""
    return (seen[..., :, None] * told[..., None, :]).flatten(-2)


def initialise_orthogonally(module: nn.Module) -> None:
    """Give linear and convolutional layers orthogonal weights and zero biases."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.orthogonal_(layer.weight)
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.Conv2d):
            nn.init.orthogonal_(layer.weight, gain=nn.init.calculate_gain("relu"))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
