"""Absorbing states: what a terminated episode goes on with, and how often it is drawn."""

from __future__ import annotations

import pytest
import torch

from apprentice.networks.encoder import ABSORBING
from apprentice.types import Transition
from learner.absorbing import absorbing_share, with_absorbing_states


def batch(discount: list[float]) -> Transition:
    num = len(discount)
    return Transition(
        {"state": torch.ones(num, 3)},
        torch.full((num, 2), 0.5),
        torch.full((num, 2), 0.6),
        torch.ones(num),
        torch.tensor(discount),
        {"state": torch.full((num, 3), 2.0)},
    )


def test_an_end_leads_into_the_absorbing_state_and_goes_on() -> None:
    found = with_absorbing_states(batch([1.0, 0.0]), 0.0, torch.Generator())
    assert found.discount.tolist() == [1.0, 1.0]
    assert found.observation[ABSORBING].flatten().tolist() == [0.0, 0.0]
    assert found.next_observation[ABSORBING].flatten().tolist() == [0.0, 1.0]
    assert found.next_observation["state"].tolist() == [[2.0, 2.0, 2.0], [0.0, 0.0, 0.0]]
    assert found.observation["state"].tolist() == [[1.0] * 3] * 2
    assert found.action.tolist() == [[0.5, 0.5]] * 2


def test_a_row_that_stays_is_zero_with_its_own_entry_set() -> None:
    found = with_absorbing_states(batch([1.0] * 4), 1.0, torch.Generator())
    assert found.observation[ABSORBING].flatten().tolist() == [1.0] * 4
    assert found.next_observation[ABSORBING].flatten().tolist() == [1.0] * 4
    for values in (found.observation["state"], found.next_observation["state"], found.action):
        assert not values.any()
    assert not found.pre_tanh_action.any()
    assert not found.environment_reward.any()


def test_the_share_of_absorbing_rows_is_what_is_asked_for() -> None:
    generator = torch.Generator().manual_seed(0)
    found = with_absorbing_states(batch([1.0] * 20_000), 0.1, generator)
    assert float(found.observation[ABSORBING].mean()) == pytest.approx(0.1, abs=0.01)


def test_thinned_demonstrations_weigh_their_absorbing_rows_less() -> None:
    # Ten episodes of 100 steps that terminated, whole and with every 20th step kept: the ratio of
    # absorbing rows to others is the same.
    whole = absorbing_share(1000, 10)
    thinned = absorbing_share(50, 10, subsampling=20)
    assert whole == pytest.approx(10 / 1010)
    assert thinned == pytest.approx(whole)
    assert absorbing_share(0, 0) == 0.0
