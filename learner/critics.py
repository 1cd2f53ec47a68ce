"""The twin critics of SAC, packed: both networks' layers in one set of tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from apprentice.config import NetworkSettings
from apprentice.networks import ObservationEncoder, initialise_orthogonally
from apprentice.types import EnvironmentSpec


class TwinCritic(nn.Module):
    """Q_1 and Q_2 of (s, a) as one wide product followed by batched ones."""

    def __init__(
        self, spec: EnvironmentSpec, keys: Sequence[str], settings: NetworkSettings
    ) -> None:
        super().__init__()
        self.encoder = ObservationEncoder(spec, keys, settings)
        initialise_orthogonally(self.encoder)
        hidden = settings.hidden_size
        inputs = self.encoder.output_size + spec.action_size
        sizes = [inputs, *[hidden] * settings.num_hidden_layers, 1]
        self.hidden_size = hidden
        self.first_weight = nn.Parameter(
            torch.cat([_orthogonal(inputs, hidden), _orthogonal(inputs, hidden)], dim=1)
        )  # [inputs, 2 H]
        self.first_bias = nn.Parameter(torch.zeros(2 * hidden))
        self.weights = nn.ParameterList(
            torch.stack([_orthogonal(rows, columns), _orthogonal(rows, columns)])
            for rows, columns in zip(sizes[1:-1], sizes[2:], strict=True)
        )  # each [2, in, out]
        self.biases = nn.ParameterList(torch.zeros(2, 1, columns) for columns in sizes[2:])

    def forward(
        self,
        observation: dict[str, torch.Tensor],
        action: torch.Tensor,
        pixel_features: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return both values [2, B] of each observation and action [B, A]."""
        inputs = torch.cat([self.encoder(observation, pixel_features), action], dim=-1)
        # Biases are added outside the products: a compiler fuses them with what follows, while
        # `addmm` first copies them into its output.
        hidden = torch.relu(torch.mm(inputs, self.first_weight) + self.first_bias)
        values = hidden.view(-1, 2, self.hidden_size).transpose(0, 1)  # [2, B, H]
        weights, biases = list(self.weights), list(self.biases)
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            values = torch.relu(torch.bmm(values, weight) + bias)
        # One output per critic is a sum of products, cheaper than a product with one column.
        products = values * weights[-1].transpose(1, 2)
        return torch.add(products.sum(-1), biases[-1].squeeze(-1))


def _orthogonal(rows: int, columns: int) -> torch.Tensor:
    return nn.init.orthogonal_(torch.empty(columns, rows)).T.contiguous()
