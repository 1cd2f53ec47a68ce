"""Parameters as one vector, Adam on it, and clipping, with numbers computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from learner.flat import AdamSettings, AdamState, FlatLayout, adam_state, adam_step, clip_by_norm

CPU = torch.device("cpu")
SETTINGS = AdamSettings(learning_rate=0.1, betas=(0.9, 0.999))
ONE, YES, NO = torch.ones(()), torch.tensor(True), torch.tensor(False)


def make_module() -> nn.Sequential:
    """Weight [[1, 2], [3, 4]] and bias [5, 6]; then weight [[7, 8]] and bias [9]."""
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    values = torch.arange(1.0, 10.0).split([4, 2, 2, 1])
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), values, strict=True):
            parameter.copy_(value.view_as(parameter))
    return module


def test_parameters_lie_one_behind_the_other_in_the_order_of_the_module() -> None:
    layout = FlatLayout(make_module())
    assert layout.names == ("0.weight", "0.bias", "1.weight", "1.bias")
    assert layout.shapes == ((2, 2), (2,), (1, 2), (1,))
    assert layout.flatten(make_module(), CPU).tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9]


def test_only_the_parameters_asked_for_are_laid_out() -> None:
    layout = FlatLayout(make_module(), lambda name: not name.startswith("0."))
    assert layout.names == ("1.weight", "1.bias")
    assert layout.flatten(make_module(), CPU).tolist() == [7, 8, 9]


def test_what_was_flattened_is_a_copy_and_what_is_unflattened_is_the_vector_itself() -> None:
    module = make_module()
    layout = FlatLayout(module)
    vector = layout.flatten(module, CPU)
    with torch.no_grad():
        module[0].bias.fill_(-1.0)
    assert vector.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    named = layout.unflatten(vector)
    assert named["0.weight"].tolist() == [[1, 2], [3, 4]]
    assert named["1.weight"].tolist() == [[7, 8]]
    vector[3], vector[8] = 40.0, 90.0
    assert named["0.weight"].tolist() == [[1, 2], [3, 40]]
    assert named["1.bias"].tolist() == [90]


def test_a_vector_of_another_length_is_refused() -> None:
    with pytest.raises(RuntimeError, match="split"):
        FlatLayout(make_module()).unflatten(torch.zeros(10))


def step(state: AdamState, *gradient: float) -> None:
    adam_step(state, torch.tensor(gradient), SETTINGS, ONE, YES)


def test_two_steps_of_adam_are_what_the_paper_says() -> None:
    state = adam_state(torch.tensor([1.0, -2.0]))
    step(state, 0.5, -4.0)
    # Corrected for their start, the moments are g and g²: a step of 0.1 against the sign of each.
    torch.testing.assert_close(state.parameters, torch.tensor([0.9, -1.9]))
    torch.testing.assert_close(state.first_moment, torch.tensor([0.05, -0.4]))
    torch.testing.assert_close(state.second_moment, torch.tensor([0.00025, 0.016]))
    step(state, 0.5, 0.0)
    # First: 0.095 / 0.19 = 0.5 and 0.00049975 / 0.001999 = 0.25, so a whole step again. Second:
    # −0.36 / 0.19 = −1.894737 and 0.015984 / 0.001999 = 7.995998, so 0.670058 of a step.
    torch.testing.assert_close(state.first_moment, torch.tensor([0.095, -0.36]))
    torch.testing.assert_close(state.second_moment, torch.tensor([0.00049975, 0.015984]))
    torch.testing.assert_close(state.parameters, torch.tensor([0.8, -1.8329942]))
    assert state.num_steps.item() == 2


def test_weights_decay_by_a_share_of_the_step_size_and_not_where_a_step_is_refused() -> None:
    settings = SETTINGS._replace(weight_decay=2.0)
    state = adam_state(torch.tensor([1.0, -2.0]))
    adam_step(state, torch.tensor([0.5, -4.0]), settings, torch.tensor(0.5), YES)
    # Half a step of 0.1 each, then 0.5 * 0.1 * 2 of what that leaves.
    torch.testing.assert_close(state.parameters, torch.tensor([0.95 * 0.9, -1.95 * 0.9]))
    before = state.parameters.clone()
    adam_step(state, torch.tensor([0.5, -4.0]), settings, ONE, NO)
    assert torch.equal(state.parameters, before)


def test_a_smaller_rate_factor_makes_the_step_smaller_and_nothing_else() -> None:
    state = adam_state(torch.tensor([1.0, -2.0]))
    adam_step(state, torch.tensor([0.5, -4.0]), SETTINGS, torch.tensor(0.5), YES)
    torch.testing.assert_close(state.parameters, torch.tensor([0.95, -1.95]))
    torch.testing.assert_close(state.first_moment, torch.tensor([0.05, -0.4]))
    torch.testing.assert_close(state.second_moment, torch.tensor([0.00025, 0.016]))


@pytest.mark.parametrize("gradient", [[3.0, 4.0], [math.nan, 1.0], [math.inf, -math.inf]])
def test_a_step_that_is_not_accepted_changes_nothing(gradient: list[float]) -> None:
    state = adam_state(torch.tensor([1.0, -2.0]))
    step(state, 0.5, -4.0)
    before = [tensor.clone() for tensor in state]
    adam_step(state, torch.tensor(gradient), SETTINGS, ONE, NO)
    assert all(torch.equal(old, new) for old, new in zip(before, state, strict=True))


def test_adam_starts_at_the_parameters_that_it_is_given_and_owns_them() -> None:
    parameters = torch.tensor([1.0, -2.0])
    state = adam_state(parameters)
    assert state.first_moment.tolist() == state.second_moment.tolist() == [0.0, 0.0]
    assert state.num_steps.item() == 0
    step(state, 1.0, 1.0)
    torch.testing.assert_close(parameters, torch.tensor([0.9, -2.1]))


@pytest.mark.parametrize(
    ("maximum", "clipped"),
    [
        (None, [3.0, -4.0]),
        (6.0, [3.0, -4.0]),
        (2.5, [1.5, -2.0]),
        (1.0, [0.6, -0.8]),
    ],
)
def test_a_gradient_that_is_too_long_is_shortened_and_keeps_its_direction(
    maximum: float | None, clipped: list[float]
) -> None:
    gradient, norm = clip_by_norm(torch.tensor([3.0, -4.0]), maximum)
    torch.testing.assert_close(gradient, torch.tensor(clipped))
    assert norm.item() == 5.0  # before clipping


def test_clipping_leaves_nothing_as_it_is_and_hides_no_nan() -> None:
    gradient, norm = clip_by_norm(torch.zeros(3), 1.0)
    assert gradient.tolist() == [0.0, 0.0, 0.0]
    assert norm.item() == 0.0
    gradient, norm = clip_by_norm(torch.tensor([math.nan, 1.0]), 1.0)
    assert math.isnan(norm.item())
    assert gradient.isnan().all()
