"""The discriminator's networks: gradients written by hand against automatic ones, AIRL on a small problem."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from apprentice.config_imitation import DiscriminatorSettings
from learner.discriminator import (
    Columns,
    Discriminator,
    Rows,
    ScoreNetwork,
    move_singular_vectors,
    spectrally_normalised,
)

ACTIVATIONS = ("tanh", "relu", "elu", "silu")


def random_rows(num: int, size: int, seed: int = 0) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    return Rows(
        torch.randn(num, size, generator=generator, dtype=torch.float64),
        (torch.rand(num, generator=generator) > 0.2).double(),
        torch.randn(num, generator=generator, dtype=torch.float64),
    )


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("num_hidden_layers", [1, 2, 3])
def test_a_networks_gradient_is_autograds(activation: Any, num_hidden_layers: int) -> None:
    settings = DiscriminatorSettings(
        hidden_size=7, num_hidden_layers=num_hidden_layers, activation=activation
    )
    network = ScoreNetwork(5, settings).double()
    inputs = torch.randn(11, 5, dtype=torch.float64, requires_grad=True)
    masks = [torch.randint(0, 2, (11, 7)).double() / 0.5 for _ in range(num_hidden_layers)]
    for chosen in (None, masks):
        scores, gradient = network.with_gradient(inputs, chosen)
        (expected,) = torch.autograd.grad(network(inputs, chosen).sum(), inputs)
        torch.testing.assert_close(gradient, expected)
        torch.testing.assert_close(scores, network(inputs, chosen))


@pytest.mark.parametrize("judged", ["state_action", "state"])
def test_airls_gradient_is_autograds(judged: Any) -> None:
    settings = DiscriminatorSettings(hidden_size=8, inputs=judged)
    discriminator = Discriminator(3, 2, settings, airl=True, gamma=0.9).double()
    rows = random_rows(6, 8)
    inputs = rows.inputs.clone().requires_grad_()
    (expected,) = torch.autograd.grad(discriminator(rows._replace(inputs=inputs)).sum(), inputs)
    _, gradient = discriminator.with_gradient(rows)
    torch.testing.assert_close(gradient, expected)


def tabular(network: ScoreNetwork, table: torch.Tensor) -> None:
    """Make a one-layer ReLU network answer with table[i] for the i-th unit vector."""
    with torch.no_grad():
        network.weights[0].copy_(torch.eye(len(table)))
        network.biases[0].zero_()
        network.weights[1].copy_(table[:, None])
        network.biases[1].zero_()


NUM_STATES, NUM_ACTIONS, GAMMA = 5, 3, 0.9


def soft_optimal(
    reward: torch.Tensor, successor: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return values [S] and log pi [S, A] that maximise reward [S] plus entropy, temperature 1."""
    values = torch.zeros(NUM_STATES, dtype=torch.float64)
    for _ in range(2000):
        action_values = reward[:, None] + GAMMA * values[successor]
        values = action_values.logsumexp(1)
    return values, action_values - values[:, None]


def problem() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    reward = torch.randn(NUM_STATES, generator=generator, dtype=torch.float64)
    successor = torch.randint(NUM_STATES, (NUM_STATES, NUM_ACTIONS), generator=generator)
    return reward, successor


def airl_rows(successor: torch.Tensor, log_pi: torch.Tensor) -> Rows:
    """Return one row for every state and action: [one-hot state, action, one-hot next state]."""
    one_hot = torch.eye(NUM_STATES, dtype=torch.float64)
    state = one_hot.repeat_interleave(NUM_ACTIONS, 0)
    action = torch.arange(NUM_ACTIONS, dtype=torch.float64).repeat(NUM_STATES)[:, None]
    inputs = torch.cat([state, action, one_hot[successor.flatten()]], 1)
    return Rows(inputs, torch.ones(len(inputs), dtype=torch.float64), log_pi.flatten())


def tabular_airl(reward: torch.Tensor, potential: torch.Tensor) -> Discriminator:
    settings = DiscriminatorSettings(
        inputs="state", hidden_size=NUM_STATES, num_hidden_layers=1, activation="relu"
    )
    discriminator = Discriminator(NUM_STATES, 1, settings, airl=True, gamma=GAMMA).double()
    tabular(discriminator.score, reward)
    assert discriminator.potential is not None
    tabular(discriminator.potential, potential)
    return discriminator


def test_airl_is_undecided_exactly_where_reward_and_value_are_the_experts() -> None:
    reward, successor = problem()
    values, log_pi = soft_optimal(reward, successor)
    rows = airl_rows(successor, log_pi)
    discriminator = tabular_airl(reward, values)
    # f = r(s) + gamma V(s') - V(s) is the soft advantage, which is log pi: the logit is 0, D is 1/2.
    torch.testing.assert_close(discriminator(rows), log_pi.flatten())
    torch.testing.assert_close(
        discriminator(rows) - rows.log_probability, torch.zeros(len(rows.inputs)).double()
    )
    other = tabular_airl(reward, torch.zeros(NUM_STATES).double())
    assert (other(rows) - rows.log_probability).abs().max() > 0.1


def test_airls_potential_does_not_change_what_is_optimal() -> None:
    reward, successor = problem()
    _, log_pi = soft_optimal(reward, successor)
    potential = torch.randn(NUM_STATES, dtype=torch.float64)
    f = tabular_airl(reward, potential)(airl_rows(successor, log_pi))
    shaped = f.detach().reshape(NUM_STATES, NUM_ACTIONS)
    values = torch.zeros(NUM_STATES, dtype=torch.float64)
    for _ in range(2000):
        action_values = shaped + GAMMA * values[successor]
        values = action_values.logsumexp(1)
    torch.testing.assert_close(action_values - values[:, None], log_pi)


def test_airl_leaves_out_the_next_states_potential_where_an_episode_terminated() -> None:
    reward, successor = problem()
    values, log_pi = soft_optimal(reward, successor)
    rows = airl_rows(successor, log_pi)
    ended = rows._replace(discount=torch.zeros_like(rows.discount))
    here = torch.arange(NUM_STATES).repeat_interleave(NUM_ACTIONS)
    torch.testing.assert_close(tabular_airl(reward, values)(ended), reward[here] - values[here])


def test_spectral_norm_divides_by_the_largest_singular_value() -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, 4, dtype=torch.float64)
    vectors = {"weights.0": torch.nn.functional.normalize(torch.randn(6).double(), dim=0)}
    parameters = {"weights.0": weight, "biases.0": torch.ones(4).double()}
    for _ in range(300):
        move_singular_vectors(parameters, vectors)
    found = spectrally_normalised(parameters, vectors)
    torch.testing.assert_close(
        torch.linalg.matrix_norm(found["weights.0"], 2), torch.tensor(1.0).double()
    )
    torch.testing.assert_close(found["biases.0"], parameters["biases.0"])


STATE_TWICE = (Columns(3), Columns(2, "task_parameters"), Columns(3), Columns(2, "task_parameters"))
"""Rows of states and next states, each with the two numbers that tell the task."""
STATE_AND_LATENT = (Columns(3), Columns(1), Columns(4, "latent"))
BOTH_KINDS = (Columns(3), Columns(2, "task_parameters"), Columns(1), Columns(2, "latent"))


@pytest.mark.parametrize("columns", [STATE_TWICE, STATE_AND_LATENT, BOTH_KINDS])
@pytest.mark.parametrize("dropped", [False, True])
def test_the_gradient_goes_through_products_with_the_task(
    columns: tuple[Columns, ...], dropped: bool
) -> None:
    size = sum(part.size for part in columns)
    network = ScoreNetwork(size, DiscriminatorSettings(hidden_size=7), columns).double()
    inputs = torch.randn(11, size, dtype=torch.float64, requires_grad=True)
    masks = [torch.randint(0, 2, (11, 7)).double() / 0.5 for _ in range(2)] if dropped else None
    scores, gradient = network.with_gradient(inputs, masks)
    (expected,) = torch.autograd.grad(network(inputs, masks).sum(), inputs)
    torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(scores, network(inputs, masks))


def test_the_first_layer_reads_each_number_times_each_that_tells_the_task() -> None:
    settings = DiscriminatorSettings(hidden_size=8, activation="relu", num_hidden_layers=1)
    network = ScoreNetwork(10, settings, STATE_TWICE).double()
    assert network.weights[0].shape == (10 + 6 * 2, 8)
    with torch.no_grad():
        for tensor in (*network.weights, *network.biases):
            tensor.zero_()
        network.weights[0][10 + 4 * 2 + 1, 0] = 1.0  # the fifth number seen, times the second told
        network.weights[1][0] = 1.0
    inputs = torch.rand(5, 10, dtype=torch.float64)
    torch.testing.assert_close(network(inputs), inputs[:, 6] * inputs[:, 4])
