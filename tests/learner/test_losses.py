"""The losses against numbers worked out by hand."""

import math

import torch

from learner.losses import critic_loss, policy_loss, soft_target, temperature_gradient


def test_soft_target_by_hand() -> None:
    target = soft_target(
        reward=torch.tensor([1.0, 0.5]),
        discount=torch.tensor([1.0, 0.0]),
        next_values=torch.tensor([[10.0, 3.0], [8.0, 5.0]]),
        next_log_probability=torch.tensor([-2.0, 1.0]),
        temperature=torch.tensor(0.1),
        gamma=0.9,
    )
    # First row: 1 + 0.9 * (8 - 0.1 * -2) = 8.38. The second terminated: its own reward only.
    torch.testing.assert_close(target, torch.tensor([8.38, 0.5]))


def test_critic_loss_is_half_the_mean_square_of_each_critic_summed() -> None:
    values = torch.tensor([[1.0, 3.0], [0.0, 2.0]])
    target = torch.tensor([0.0, 1.0])
    # First critic: (1 + 4) / 2 / 2 = 1.25; second: (0 + 1) / 2 / 2 = 0.25.
    assert math.isclose(critic_loss(values, target).item(), 1.5)


def test_policy_loss_takes_the_smaller_critic() -> None:
    values = torch.tensor([[4.0, 1.0], [2.0, 3.0]])
    log_probability = torch.tensor([-1.0, 2.0])
    # ((0.5 * -1 - 2) + (0.5 * 2 - 1)) / 2 = -1.25.
    loss = policy_loss(values, log_probability, torch.tensor(0.5))
    assert math.isclose(loss.item(), -1.25)


def test_temperature_rises_when_entropy_is_below_its_target() -> None:
    log_probability = torch.tensor([3.0, 3.0])  # entropy -3, below the target of -1
    gradient = temperature_gradient(log_probability, torch.tensor(0.5), target_entropy=-1.0)
    assert math.isclose(gradient.item(), -1.0)  # descent on it raises log alpha


def test_temperature_gradient_is_that_of_its_objective() -> None:
    log_alpha = torch.tensor(math.log(0.3), requires_grad=True)
    log_probability = torch.tensor([0.5, -1.5, 2.0])
    objective = (-log_alpha.exp() * (log_probability - 2.0)).mean()
    objective.backward()
    expected = temperature_gradient(log_probability, log_alpha.detach().exp(), -2.0)
    assert log_alpha.grad is not None
    torch.testing.assert_close(log_alpha.grad, expected)
