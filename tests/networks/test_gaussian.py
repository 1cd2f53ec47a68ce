"""The squashed Gaussian against a reference in float64."""

import math

import numpy as np
import pytest
import torch

from apprentice.networks import log_probability


def reference(pre_tanh: np.ndarray, mean: np.ndarray, log_std: np.ndarray) -> np.ndarray:
    """Change of variables in float64, with log(1 - tanh^2) through log cosh."""
    normal = -0.5 * ((pre_tanh - mean) / np.exp(log_std)) ** 2
    normal -= log_std + 0.5 * math.log(2 * math.pi)
    log_cosh = np.logaddexp(pre_tanh, -pre_tanh) - math.log(2)
    return (normal + 2 * log_cosh).sum(-1)


@pytest.mark.parametrize("size", [1, 6, 8])
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_log_probability_agrees_with_change_of_variables(size: int, scale: float) -> None:
    generator = np.random.default_rng(size)
    pre_tanh = scale * generator.normal(size=(50, size))
    mean = generator.normal(size=(50, size))
    log_std = generator.uniform(-3, 1, size=(50, size))
    found = log_probability(*(torch.tensor(x).float() for x in (pre_tanh, mean, log_std)))
    np.testing.assert_allclose(found, reference(pre_tanh, mean, log_std), rtol=2e-4, atol=2e-3)


@pytest.mark.parametrize("size", [1, 6, 8])
@pytest.mark.parametrize("reach", [5.0, 9.0, 20.0, 40.0])
def test_log_probability_stays_exact_as_actions_go_to_one(size: int, reach: float) -> None:
    """1 - |a| is 1e-4, 3e-8, and then 0 in float32; its logarithm is -2 |u| + log 4 all the way."""
    pre_tanh = torch.full((2, size), reach)
    pre_tanh[1] *= -1.0
    assert (torch.tanh(pre_tanh).abs().min() == 1.0) == (reach > 9.5)
    found = log_probability(pre_tanh, pre_tanh.clone(), torch.zeros(2, size))
    log_one_minus_square = math.log(4.0) - 2 * reach - 2 * math.log1p(math.exp(-2 * reach))
    expected = size * (-0.5 * math.log(2 * math.pi) - log_one_minus_square)
    torch.testing.assert_close(found, torch.full((2,), expected))
    numbers = (pre_tanh.double().numpy(), pre_tanh.double().numpy(), np.zeros((2, size)))
    np.testing.assert_allclose(found, reference(*numbers), rtol=1e-6)


def test_density_integrates_to_one_over_actions() -> None:
    actions = torch.linspace(-1 + 1e-5, 1 - 1e-5, 400_001, dtype=torch.float64)
    pre_tanh = torch.atanh(actions)[:, None]
    mean, log_std = torch.full_like(pre_tanh, 0.4), torch.full_like(pre_tanh, -0.7)
    density = log_probability(pre_tanh, mean, log_std).exp()
    assert abs(torch.trapezoid(density, actions).item() - 1.0) < 1e-3
