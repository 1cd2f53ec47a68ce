"""A new run that begins with the networks of an earlier one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from apprentice.config import Experiment
from apprentice.environments import environment_spec
from apprentice.types import EnvironmentSpec
from apprentice.warm_start import CannotWarmStart, read_warm_start
from cli.main import main
from learner.learning import Learning
from tests.learner.test_learning import CPU, keep

TASK = "pendulum-swingup"


def experiment(**changes: Any) -> Experiment:
    tree: dict[str, Any] = {
        "name": "test",
        "task": TASK,
        "network": {"hidden_size": 16, "normalise_observations": True},
        "sac": {"batch_size": 8},
        "learner": {"compile": "off"},
    }
    for section, values in changes.items():
        tree[section] = {**tree.get(section, {}), **values}
    return Experiment.model_validate(tree)


def spec() -> EnvironmentSpec:
    return environment_spec(TASK, ("state",), experiment().environment)


@pytest.fixture
def earlier(tmp_path: Path) -> tuple[Path, Learning]:
    made = experiment(sac={"policy_average_tau": 0.5})
    one = Learning(made, [spec()], CPU)
    one._fit_normaliser(torch.randn(100, 3, generator=torch.Generator().manual_seed(0)) + 2.0)
    assert one.sac.state.slow_policy is not None
    one.sac.state.slow_policy.add_(0.1)
    one.sac.state.critic.parameters.add_(0.2)
    return keep(one, tmp_path / "runs" / "run" / "checkpoints"), one


def begun(path: Path, **learner: Any) -> Learning:
    chosen = experiment(learner={"warm_start": str(path), **learner})
    one = Learning(chosen, [spec()], CPU)
    found = read_warm_start(chosen, spec())
    assert found is not None
    one.begin_with(found)
    return one


def test_the_policy_that_a_checkpoint_shows_and_its_normaliser_are_taken(
    earlier: tuple[Path, Learning],
) -> None:
    path, before = earlier
    one, fresh = begun(path), Learning(experiment(), [spec()], CPU)
    for name, tensor in before.sac.policy_tensors(averaged=True).items():
        assert torch.equal(one.sac.policy_tensors()[name], tensor), name
    assert torch.equal(one.sac.normaliser[0], before.sac.normaliser[0])
    assert torch.equal(one.sac.critic.encoder.state_mean, before.sac.normaliser[0])
    assert one.normalised
    critic = one.sac.state.critic.parameters
    assert torch.equal(critic, fresh.sac.state.critic.parameters)
    assert not one.sac.state.policy.first_moment.any()


def test_critics_and_temperature_are_taken_where_all_is_asked_for(
    earlier: tuple[Path, Learning],
) -> None:
    path, before = earlier
    one = begun(path, warm_start_networks="all")
    for name in ("critic", "log_temperature"):
        ours, theirs = (getattr(found.sac.state, name).parameters for found in (one, before))
        assert torch.equal(ours, theirs), name
    assert torch.equal(one.sac.state.target_critic, before.sac.state.target_critic)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": {"hidden_size": 8}}, "network.hidden_size: expected 8, found 16"),
        ({"network": {"normalise_observations": False}}, "expected False, found True"),
    ],
)
def test_other_networks_are_named(
    earlier: tuple[Path, Learning], changes: dict[str, Any], message: str
) -> None:
    chosen = experiment(learner={"warm_start": str(earlier[0])}, **changes)
    with pytest.raises(CannotWarmStart, match=message):
        read_warm_start(chosen, spec())


def test_another_tasks_observations_are_refused_before_anything_starts(
    earlier: tuple[Path, Learning], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "up",
        "reacher-easy",
        "--runs",
        str(tmp_path / "runs"),
        "--warm-start",
        str(earlier[0]),
    ]
    assert main(words) == 78
    said = capsys.readouterr().err
    assert "learner.warm_start: the checkpoint is of other networks" in said
    assert "observation 'state': expected ArraySpec(shape=(6,)" in said
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["run"]


def test_what_cannot_be_begun_with_is_refused() -> None:
    with pytest.raises(ValidationError, match="warm_start_networks: expected 'all'"):
        experiment(learner={"warm_start": "x"}, reads={"policy": ["pixels"], "critic": ["pixels"]})
    missing = experiment(learner={"warm_start": "nowhere"})
    with pytest.raises(CannotWarmStart, match="learner.warm_start: .*nowhere"):
        read_warm_start(missing, spec())
