"""Gradient penalties, which hold a discriminator's slope near a value everywhere between expert and policy.

WGAN-GP (Gulrajani et al. 2017, arXiv 1704.00028) two- and one-sided, zero-centred (Mescheder et al.
2018, 1801.04406, on interpolates), DRAGAN (Kodali et al. 2017, 1705.07215).
"""

from __future__ import annotations

from typing import Literal

import torch

from learner.discriminator import Rows

Kind = Literal["none", "two_sided", "one_sided", "zero_centred", "dragan"]
DRAGAN_SPREAD = 0.5
"""DRAGAN's noise: uniform in 0 to this times the expert rows' deviation."""


def penalised_rows(kind: Kind, expert: Rows, policy: Rows, uniform: torch.Tensor) -> Rows:
    """Return the rows at which the gradient is penalised.

    `uniform` [B, 1 + X] in 0..1 gives one share per row to mix expert row i and policy row i, which were
    drawn independently, in all their inputs; for DRAGAN the noise around expert rows instead.
    """
    if kind == "dragan":
        spread = DRAGAN_SPREAD * expert.inputs.std(0)
        return expert._replace(inputs=expert.inputs + spread * uniform[:, 1:])
    share = uniform[:, 0]
    return Rows(
        torch.lerp(policy.inputs, expert.inputs, share[:, None]),
        torch.lerp(policy.discount, expert.discount, share),
        torch.lerp(policy.log_probability, expert.log_probability, share),
    )


def gradient_penalty(kind: Kind, gradient: torch.Tensor) -> torch.Tensor:
    """Return the mean penalty [] of gradients [B, X]."""
    squares = gradient.square().sum(1)
    if kind == "zero_centred":
        return squares.mean()
    # The small number keeps the root's derivative finite where the gradient vanishes.
    excess = (squares + 1e-12).sqrt() - 1.0
    if kind == "one_sided":
        excess = excess.clamp_min(0.0)
    return excess.square().mean()
