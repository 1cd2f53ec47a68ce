"""Dropout's factors: rates, means, independence, seeds."""

from __future__ import annotations

import pytest
import torch

from learner.dropout import draw_dropout


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_units_are_left_out_at_the_rate_and_the_mean_stays(rate: float) -> None:
    factors = draw_dropout(rate, (3, 999, 101), torch.Generator().manual_seed(0))
    assert factors.shape == (3, 999, 101)
    dropped = float((factors == 0.0).double().mean())
    assert dropped == pytest.approx(rate, abs=1 / 256 + 0.003)
    assert 0.0 < dropped < 1.0
    assert len(factors.unique()) == 2
    assert float(factors.double().mean()) == pytest.approx(1.0, abs=0.05)


def test_half_is_half() -> None:
    factors = draw_dropout(0.5, (64, 1000), torch.Generator().manual_seed(1))
    assert set(factors.unique().tolist()) == {0.0, 2.0}
    assert float((factors == 0.0).double().mean()) == pytest.approx(0.5, abs=0.01)


def test_neighbours_are_drawn_independently_and_the_seed_says_all() -> None:
    factors = draw_dropout(0.5, (64, 1001), torch.Generator().manual_seed(2))
    signs = factors - 1.0
    for apart in (1, 7, 8, 64):
        product = (signs.flatten()[apart:] * signs.flatten()[:-apart]).mean()
        assert abs(float(product)) < 0.02
    again = draw_dropout(0.5, (64, 1001), torch.Generator().manual_seed(2))
    torch.testing.assert_close(again, factors, rtol=0.0, atol=0.0)
