"""The observation encoder: what it puts side by side, and what it multiplies."""

from __future__ import annotations

import pytest
import torch

from apprentice.config import NetworkSettings
from apprentice.networks import ObservationEncoder
from apprentice.types import ArraySpec, EnvironmentSpec

SPEC = EnvironmentSpec(
    "fake",
    "fake",
    {
        "state": ArraySpec((3,), "float32"),
        "task_parameters": ArraySpec((2,), "float32"),
        "latent": ArraySpec((4,), "float32"),
    },
    ArraySpec((2,), "float32"),
    100,
    1,
    0.02,
)
PRODUCTS = NetworkSettings(task_products=True)


def observation(num: int = 5) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        key: torch.randn(num, spec.shape[0], generator=generator)
        for key, spec in SPEC.observation.items()
    }


@pytest.mark.parametrize("keys", [("state", "latent"), ("task_parameters", "state")])
def test_each_number_of_the_state_comes_times_each_that_tells_the_task(
    keys: tuple[str, ...],
) -> None:
    encoder = ObservationEncoder(SPEC, keys, PRODUCTS)
    encoder.state_mean.fill_(0.5)
    encoder.state_scale.fill_(2.0)
    seen = observation()
    beside = ObservationEncoder(SPEC, keys, NetworkSettings())
    beside.load_state_dict(encoder.state_dict())
    found = encoder(seen)
    told = seen["latent" if "latent" in keys else "task_parameters"]
    state = 2.0 * (seen["state"] - 0.5)
    products = torch.einsum("bs,bt->bst", state, told).flatten(1)
    torch.testing.assert_close(found, torch.cat([beside(seen), products], dim=1))
    assert encoder.output_size == found.shape[1]


@pytest.mark.parametrize("key", ["state", "task_parameters"])
def test_nothing_is_multiplied_where_one_of_the_two_is_not_read(key: str) -> None:
    seen = observation()
    encoder = ObservationEncoder(SPEC, (key,), PRODUCTS)
    torch.testing.assert_close(encoder(seen), seen[key])
    assert encoder.output_size == seen[key].shape[1]
