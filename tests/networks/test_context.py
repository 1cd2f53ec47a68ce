"""The context encoder: what it is blind to, what it pools, and what a policy keeps of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from apprentice.config import ContextSettings, Experiment
from apprentice.networks import (
    Belief,
    ContextEncoder,
    Policy,
    Shown,
    build_policy,
    divergence_from_prior,
)
from apprentice.networks.acting import shown_together
from apprentice.types import ArraySpec, EnvironmentSpec

STATE, ACTIONS = 3, 2
WIDTH = 2 * STATE + ACTIONS
SPEC = EnvironmentSpec(
    "fake",
    "fake",
    {"state": ArraySpec((STATE,), "float32")},
    ArraySpec((ACTIONS,), "float32"),
    100,
    1,
    0.02,
)


def encoder(**settings: Any) -> ContextEncoder:
    torch.manual_seed(0)
    return ContextEncoder(
        SPEC, ContextSettings(**{"hidden_size": 16, "latent_size": 4, **settings})
    )


def demonstration(number: int, length: int = 9) -> np.ndarray:
    steps: np.ndarray = np.random.default_rng(number).normal(size=(length, WIDTH))
    return steps.astype(np.float32)


def believe(module: ContextEncoder, *demonstrations: np.ndarray) -> Belief:
    with torch.no_grad():
        return module(shown_together([demonstrations]))[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("kind", ["posterior", "context_window"])
def test_the_order_of_demonstrations_makes_no_difference(kind: str, linear: bool) -> None:
    module = encoder(encoder=kind, linear=linear)
    one, other = demonstration(0), demonstration(1, 5)
    torch.testing.assert_close(believe(module, one, other), believe(module, other, one))
    assert not torch.allclose(believe(module, one).mean, believe(module, other).mean)


def test_the_order_of_steps_makes_a_difference_to_a_window_alone() -> None:
    steps = demonstration(0)
    turned = steps[::-1].copy()
    torch.testing.assert_close(
        believe(encoder(), steps).mean, believe(encoder(), turned).mean, atol=1e-5, rtol=1e-5
    )
    window = encoder(encoder="context_window")
    assert not torch.allclose(believe(window, steps).mean, believe(window, turned).mean)


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("kind", ["posterior", "context_window"])
def test_padding_makes_no_difference(kind: str, linear: bool) -> None:
    module = encoder(encoder=kind, linear=linear)
    alone = believe(module, demonstration(0, 5))
    shown = shown_together([[demonstration(0, 5)], [demonstration(1, 20), demonstration(2, 8)]])
    assert shown.present.tolist() == [[True, False], [True, True]]
    garbage = shown._replace(steps=torch.where(shown.mask[..., None], shown.steps, 77.0))
    with torch.no_grad():
        torch.testing.assert_close(module(garbage)[0].mean[:1], alone.mean)
        torch.testing.assert_close(module(garbage)[0].std[:1], alone.std)


@pytest.mark.parametrize(
    ("kind", "linear"), [("posterior", False), ("posterior", True), ("context_window", False)]
)
def test_padding_is_not_in_the_statistics_of_a_batch(kind: str, linear: bool) -> None:
    module = encoder(encoder=kind, linear=linear, batch_norm=True)
    shown = shown_together([[demonstration(0, 5)], [demonstration(1, 20), demonstration(2, 8)]])
    garbage = shown._replace(steps=torch.where(shown.mask[..., None], shown.steps, 77.0))
    with torch.no_grad():
        for found, expected in zip(
            (*module(garbage, training=True)[0], module(garbage, training=True)[1]),
            (*module(shown, training=True)[0], module(shown, training=True)[1]),
            strict=True,
        ):
            torch.testing.assert_close(found, expected)


def test_a_window_sees_the_last_steps_and_repeats_the_first_of_a_short_one() -> None:
    module = encoder(encoder="context_window", window=4)
    steps = demonstration(0)
    changed = steps.copy()
    changed[:-4] = 9.0
    torch.testing.assert_close(believe(module, steps), believe(module, changed))
    short = steps[:2]
    repeated = np.concatenate([steps[:1], steps[:1], short])
    torch.testing.assert_close(believe(module, short), believe(module, repeated))
    assert float(believe(module, steps).std.max()) == 0.0


def test_a_linear_posterior_averages_the_steps_as_its_scores_weigh_them() -> None:
    module = encoder(linear=True, num_hidden_layers=1)
    steps = torch.zeros(2, WIDTH)
    steps[0, 0], steps[1, 0], steps[1, 1] = 1.0, 2.0, -4.0
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        module.step_layers[0].weight[0, 0] = 1.0  # the first unit is the first number of the state
        module.score_layer.weight[0, 0] = float(np.log(3.0))
        features, _ = module.features_of(steps[None], torch.ones(1, 2, dtype=torch.bool))
    torch.testing.assert_close(features[0, :3], torch.tensor([1.75, -3.0, 0.0]))  # 1/4 and 3/4


@pytest.mark.parametrize("kind", ["posterior", "context_window"])
def test_a_linear_latent_goes_on_as_a_line_where_the_weights_stay(kind: str) -> None:
    line, bent = encoder(encoder=kind, linear=True), encoder(encoder=kind)
    if kind == "posterior":
        with torch.no_grad():
            line.score_layer.weight.zero_()
    one, other = demonstration(0), demonstration(1)
    for module, is_linear in ((line, True), (bent, False)):
        start, near, far = (
            believe(module, one + share * (other - one)).mean for share in (0.0, 1.0, 3.0)
        )
        same = torch.allclose(far - start, 3.0 * (near - start), atol=1e-4, rtol=1e-3)
        assert same == is_linear


@pytest.mark.parametrize("pooling", ["mean", "sum"])
def test_pooling_over_demonstrations(pooling: str) -> None:
    module = encoder(demonstration_pooling=pooling)
    one = demonstration(0)
    same = torch.allclose(believe(module, one).mean, believe(module, one, one).mean)
    assert same == (pooling == "mean")


@pytest.mark.parametrize("pooling", ["mean", "sum"])
def test_pooling_over_time(pooling: str) -> None:
    module = encoder(time_pooling=pooling)
    one = demonstration(0)
    twice = np.concatenate([one, one])
    same = torch.allclose(believe(module, one).mean, believe(module, twice).mean, atol=1e-5)
    assert same == (pooling == "mean")


@pytest.mark.parametrize(
    ("inputs", "heeded"), [("state_action_next_state", True), ("state_next_state", False)]
)
def test_actions_are_heeded_where_they_are_asked_for(inputs: str, heeded: bool) -> None:
    module = encoder(inputs=inputs)
    one = demonstration(0)
    other = one.copy()
    other[:, STATE : STATE + ACTIONS] += 1.0
    assert torch.allclose(believe(module, one).mean, believe(module, other).mean) != heeded


def test_states_are_normalised_and_actions_are_not() -> None:
    module = encoder()
    one = demonstration(0)
    before = believe(module, one).mean
    mean, scale = torch.tensor([1.0, -2.0, 3.0]), torch.tensor([0.5, 2.0, 1.5])
    module.state_mean.copy_(mean)
    module.state_scale.copy_(scale)
    moved = one.copy()
    for first in (0, STATE + ACTIONS):
        moved[:, first : first + STATE] = (
            one[:, first : first + STATE] / scale.numpy() + mean.numpy()
        )
    torch.testing.assert_close(believe(module, moved).mean, before, atol=1e-5, rtol=1e-5)


def test_a_fresh_posterior_is_nearly_certain_within_its_bounds() -> None:
    std = believe(encoder(), demonstration(0)).std
    assert float(std.min()) >= np.exp(-6.0) - 1e-6
    assert 0.05 < float(std.mean()) < 0.3


def test_batch_norm_uses_the_batch_in_training_and_running_statistics_otherwise() -> None:
    module = encoder(batch_norm=True)
    shown = shown_together([[demonstration(n)] for n in range(8)])
    plain, _, _ = module(shown, training=False)
    trained, statistics, _ = module(shown, training=True)
    assert statistics.shape == (2, 2, 16)
    assert not torch.allclose(plain.mean, trained.mean)
    module.running_mean.copy_(statistics[0])
    module.running_variance.copy_(statistics[1])
    settled, _, _ = module(shown, training=False)
    torch.testing.assert_close(settled.mean, trained.mean)


def test_the_divergence_is_the_closed_form() -> None:
    belief = Belief(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[1.0, 2.0], [1.0, 1.0]]))
    first = 0.5 * (1.0 + (4.0 - 2.0 * np.log(2.0) - 1.0))
    assert float(divergence_from_prior(belief)) == pytest.approx(first / 2, rel=1e-6)


def policy(kind: str = "posterior") -> Policy:
    experiment = Experiment.model_validate(
        {
            "name": "test",
            "task": "reacher_goal",
            "environment": {"family": {"gamma": 0.98}},
            "sac": {"gamma": 0.98},
            "reads": {key: ["state", "latent"] for key in ("policy", "critic", "discriminator")},
            "network": {"hidden_size": 16},
            "context": {"encoder": kind, "hidden_size": 16, "latent_size": 4},
            "imitation": {"method": "dac"},
        }
    )
    torch.manual_seed(1)
    return Policy(build_policy(experiment, SPEC), seed=3)


def test_each_environments_action_follows_what_it_was_shown_until_it_is_shown_something_else() -> (
    None
):
    acting = policy()
    state = {"state": np.ones((3, STATE), np.float32)}
    for place in range(3):
        acting.show(place, [demonstration(place)], deterministic=True)
    first = acting.act(state, deterministic=True).action
    assert len(np.unique(first, axis=0)) == 3
    np.testing.assert_array_equal(acting.act(state, deterministic=True).action, first)
    acting.show(1, [demonstration(0)], deterministic=True)
    then = acting.act(state, deterministic=True).action
    np.testing.assert_allclose(then[1], first[0], atol=1e-6)
    np.testing.assert_array_equal(then[[0, 2]], first[[0, 2]])


def test_exploring_samples_the_posterior_once_an_episode() -> None:
    acting = policy()
    state = {"state": np.ones((1, STATE), np.float32)}
    found = []
    for _ in range(2):
        acting.show(0, [demonstration(0)], deterministic=False)
        found.append(acting.act(state, deterministic=True).action)
        np.testing.assert_array_equal(acting.act(state, deterministic=True).action, found[-1])
    assert not np.array_equal(*found)


def test_a_policy_that_is_shown_nothing_says_so() -> None:
    acting = policy()
    assert acting.infers_task
    with pytest.raises(ValueError, match="demonstrations to show"):
        acting.show(0, [], deterministic=True)


def test_what_shown_together_pads_is_marked() -> None:
    shown = shown_together([[demonstration(0, 3)], [demonstration(1, 5), demonstration(2, 1)]])
    assert isinstance(shown, Shown)
    assert shown.steps.shape == (2, 2, 5, WIDTH)
    assert shown.mask.sum(-1).tolist() == [[3, 0], [5, 1]]
