"""The discriminator's networks: a score for each row, and its gradient by the row.

The gradient is written out as one more product per layer, so that a penalty on it needs no second
derivative through automatic differentiation, and compiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Literal, NamedTuple

import torch
from torch import nn

from apprentice.config_imitation import DiscriminatorSettings
from apprentice.networks.encoder import task_products

Activation = Literal["tanh", "relu", "elu", "silu"]
Masks = Sequence[torch.Tensor] | None
"""Dropout's factors [B, H] for each hidden layer, 0 or 1 / (share kept)."""


class Rows(NamedTuple):
    """What is judged: B rows of inputs, normalised and concatenated."""

    inputs: torch.Tensor  # [B, X]
    discount: torch.Tensor  # [B], for the potential's next state
    log_probability: (
        torch.Tensor
    )  # [B], log pi of the row's action; 0 where the logit has no such term


def activate(kind: Activation, values: torch.Tensor) -> torch.Tensor:
    """Return the activation of pre-activations [B, H]."""
    match kind:
        case "tanh":
            return torch.tanh(values)
        case "relu":
            return torch.relu(values)
        case "elu":
            return nn.functional.elu(values)
        case "silu":
            return nn.functional.silu(values)


def slope_of_activation(
    kind: Activation, values: torch.Tensor, activated: torch.Tensor
) -> torch.Tensor:
    """Return the derivative [B, H] of `activate` at pre-activations that it has made `activated`."""
    match kind:
        case "tanh":
            return 1.0 - activated.square()
        case "relu":
            return (values > 0.0).to(values.dtype)
        case "elu":
            return torch.where(values > 0.0, 1.0, activated + 1.0)
        case "silu":
            share = torch.sigmoid(values)
            return share * (1.0 + values * (1.0 - share))


class Columns(NamedTuple):
    """Some of a row's inputs, side by side."""

    size: int
    telling: str | None = None  # the key of what says which task it is, where that is what they are


class ScoreNetwork(nn.Module):
    """An MLP [B, X] -> [B] that can say how its output changes with its input.

    With `columns`, which are all of its inputs in order, its first layer also reads the products of those that tell
    the task with those that do not. What tells it may come again under the same key, and counts once.
    """

    def __init__(
        self, input_size: int, settings: DiscriminatorSettings, columns: Sequence[Columns] = ()
    ) -> None:
        super().__init__()
        self.activation: Activation = settings.activation
        assert not columns or sum(part.size for part in columns) == input_size
        self._columns = tuple(columns)
        keys = [part.telling for part in self._columns]
        self._telling = tuple(
            number for number, key in enumerate(keys) if key and keys.index(key) == number
        )
        self._seen = tuple(number for number, key in enumerate(keys) if not key)
        products = self._size(self._seen) * self._size(self._telling)
        sizes = [input_size + products, *[settings.hidden_size] * settings.num_hidden_layers, 1]
        self.weights = nn.ParameterList(
            nn.init.orthogonal_(torch.empty(after, before)).T.contiguous()
            for before, after in zip(sizes[:-1], sizes[1:], strict=True)
        )  # each [in, out]
        self.biases = nn.ParameterList(torch.zeros(size) for size in sizes[1:])

    def forward(self, inputs: torch.Tensor, masks: Masks = None) -> torch.Tensor:
        """Return scores [B]."""
        weights, biases = list(self.weights), list(self.biases)
        values = self._with_products(inputs)
        for number, (weight, bias) in enumerate(zip(weights[:-1], biases[:-1], strict=True)):
            values = activate(self.activation, torch.addmm(bias, values, weight))
            if masks is not None:
                values = values * masks[number]
        result: torch.Tensor = torch.mv(values, weights[-1][:, 0]) + biases[-1]
        return result

    def with_gradient(
        self, inputs: torch.Tensor, masks: Masks = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scores [B] and their gradients by the inputs [B, X]."""
        scores, slopes = self._hidden(inputs, masks)
        weights = list(self.weights)
        gradient = slopes[-1] * weights[-1].T
        for weight, slope in zip(reversed(weights[1:-1]), reversed(slopes[:-1]), strict=True):
            gradient = torch.mm(gradient, weight.T) * slope
        gradient = torch.mm(gradient, weights[0].T)
        return scores, self._by_inputs(gradient, inputs) if self._columns else gradient

    def _size(self, numbers: Sequence[int]) -> int:
        return sum(self._columns[number].size for number in numbers)

    def _parts(self, values: torch.Tensor) -> list[torch.Tensor]:
        return list(values.split([part.size for part in self._columns], dim=1))

    def _seen_and_told(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what tells nothing of the task [B, S], and what tells it [B, T]."""
        parts = self._parts(inputs)
        seen, told = ([parts[number] for number in which] for which in (self._seen, self._telling))
        return torch.cat(seen, dim=1), torch.cat(told, dim=1)

    def _with_products(self, inputs: torch.Tensor) -> torch.Tensor:
        if not self._columns:
            return inputs
        return torch.cat([inputs, task_products(*self._seen_and_told(inputs))], dim=1)

    def _by_inputs(self, gradient: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """Return the gradient by the inputs [B, X] from that by inputs and products: the chain rule."""
        seen, told = self._seen_and_told(inputs)
        size = inputs.shape[1]
        by_product = gradient[:, size:].unflatten(1, (seen.shape[1], told.shape[1]))
        parts = self._parts(gradient[:, :size])
        for which, more in (
            (self._seen, (by_product * told[:, None]).sum(2)),
            (self._telling, (by_product * seen[:, :, None]).sum(1)),
        ):
            sizes = [self._columns[number].size for number in which]
            for number, values in zip(which, more.split(sizes, dim=1), strict=True):
                parts[number] = parts[number] + values
        return torch.cat(parts, dim=1)

    def _hidden(
        self, inputs: torch.Tensor, masks: Masks
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return scores [B] and each hidden layer's slope [B, H], dropout included."""
        values, slopes = self._with_products(inputs), []
        weights, biases = list(self.weights), list(self.biases)
        for number, (weight, bias) in enumerate(zip(weights[:-1], biases[:-1], strict=True)):
            before = torch.mm(values, weight) + bias
            values = activate(self.activation, before)
            slope = slope_of_activation(self.activation, before, values)
            if masks is not None:
                values, slope = values * masks[number], slope * masks[number]
            slopes.append(slope)
        return (values * weights[-1].T).sum(-1) + biases[-1], slopes


class Discriminator(nn.Module):
    """h(x), or AIRL's f(s, a, s') - log pi(a|s); in either case > 0 where it takes x for the expert's.

    AIRL (Fu, Luo & Levine 2018, arXiv 1710.11248, equation 4): f = g + gamma * discount * Phi(s') - Phi(s),
    where g reads (s, a) or s alone, and rows are [s, a, s'].
    """

    def __init__(
        self,
        state_size: int,
        action_size: int,
        settings: DiscriminatorSettings,
        *,
        airl: bool,
        gamma: float,
        latent_size: int = 0,
        columns: Sequence[Columns] = (),
    ) -> None:
        super().__init__()
        self.state_size, self.action_size = state_size, action_size
        self.airl, self.gamma = airl, gamma
        judged = {
            "state_action": state_size + action_size,
            "state_next_state": 2 * state_size,
            "state": state_size,
        }[settings.inputs] + latent_size
        self.judged_size = judged
        self.input_size = 2 * state_size + action_size if airl else judged
        self.score = ScoreNetwork(judged, settings, _first(columns, judged))
        self.potential = None
        if airl:
            self.potential = ScoreNetwork(state_size, settings, _first(columns, state_size))
        self.num_masks = (3 if airl else 1) * settings.num_hidden_layers

    def forward(self, rows: Rows, masks: Masks = None) -> torch.Tensor:
        """Return h, or f of AIRL [B]: the logit before log pi is taken off."""
        if self.potential is None:
            judged: torch.Tensor = self.score(rows.inputs, masks)
            return judged
        state, next_state = self._states(rows.inputs)
        own, here, there = self._split(masks)
        score = self.score(rows.inputs[:, : self.judged_size], own)
        ahead = self.gamma * rows.discount * self.potential(next_state, there)
        result: torch.Tensor = score + ahead - self.potential(state, here)
        return result

    def with_gradient(self, rows: Rows, masks: Masks = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return h or f [B] and its gradient by the inputs [B, X]; log pi is taken for a constant."""
        if self.potential is None:
            return self.score.with_gradient(rows.inputs, masks)
        state, next_state = self._states(rows.inputs)
        own, here, there = self._split(masks)
        score, gradient = self.score.with_gradient(rows.inputs[:, : self.judged_size], own)
        value, slope = self.potential.with_gradient(state, here)
        next_value, next_slope = self.potential.with_gradient(next_state, there)
        ahead = self.gamma * rows.discount
        by_action = gradient[:, self.state_size :]
        if by_action.shape[1] == 0:
            by_action = gradient.new_zeros(len(gradient), self.action_size)
        by_state = gradient[:, : self.state_size] - slope
        whole = torch.cat([by_state, by_action, ahead[:, None] * next_slope], dim=1)
        return score + ahead * next_value - value, whole

    def _states(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return inputs[:, : self.state_size], inputs[:, self.state_size + self.action_size :]

    def _split(self, masks: Masks) -> tuple[Masks, Masks, Masks]:
        if masks is None:
            return None, None, None
        third = self.num_masks // 3
        return masks[:third], masks[third : 2 * third], masks[2 * third :]


def _first(columns: Sequence[Columns], size: int) -> list[Columns]:
    """Return those of a row's columns that make its first `size` inputs."""
    ends = accumulate(part.size for part in columns)
    return [part for part, end in zip(columns, ends, strict=True) if end <= size]


def move_singular_vectors(
    parameters: dict[str, torch.Tensor], vectors: dict[str, torch.Tensor]
) -> None:
    """Move each weight's left singular vector [in] by one step of the power iteration, in place."""
    for name, left in vectors.items():
        weight = parameters[name].detach()
        right = nn.functional.normalize(weight.T @ left, dim=0)
        left.copy_(nn.functional.normalize(weight @ right, dim=0))


def spectrally_normalised(
    parameters: dict[str, torch.Tensor], vectors: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Divide weight matrices [in, out] by their largest singular value (Miyato et al. 2018, 1802.05957).

    `vectors` [in] are their left singular vectors as far as the power iteration has come.
    """
    result = dict(parameters)
    for name, left in vectors.items():
        weight = parameters[name]
        right = nn.functional.normalize(weight.detach().T @ left, dim=0)
        result[name] = weight / torch.dot(left, weight @ right)
    return result
