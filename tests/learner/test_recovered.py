"""A reward that an earlier run learned: read from its checkpoint, drawn, and learned on afresh."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from apprentice.checkpoint import write_checkpoint
from apprentice.config import Experiment
from apprentice.environments import environment_spec, experiment_specs
from apprentice.networks.encoder import ABSORBING
from apprentice.types import ArraySpec, EnvironmentSpec, Transition
from cli.main import main
from learner.demonstrated import Demonstrated
from learner.expert_advantage import ExpertAdvantage
from learner.learning import Learning
from learner.recovered import RecoveredReward
from learner.reward_map import Axis, reward_map
from tests.family_cases import family_experiment
from tests.learner.test_learning import CPU, keep

TASK = "pendulum-swingup"


def experiment(method: str, **imitation: Any) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "test",
            "task": TASK,
            "network": {"hidden_size": 16},
            "sac": {"batch_size": 8},
            "learner": {"compile": "off"},
            "imitation": {"method": method, **imitation},
        }
    )


class Rows:
    num_rows, num_terminated, subsampling = 16, 0, 1

    def transitions(self, index: torch.Tensor) -> Transition:
        return transitions(len(index))


def transitions(num: int) -> Transition:
    generator = torch.Generator().manual_seed(num)
    state = torch.randn(num, 3, generator=generator)
    after = torch.randn(num, 3, generator=generator)
    pre_tanh = torch.randn(num, 1, generator=generator)
    ones = torch.ones(num)
    return Transition(
        {"state": state}, torch.tanh(pre_tanh), pre_tanh, ones, ones, {"state": after}
    )


def spec() -> EnvironmentSpec:
    return environment_spec(TASK, ("state",), experiment("dac").environment)


def checkpoint(folder: Path, method: str, **imitation: Any) -> tuple[Path, Learning]:
    made = experiment(method, **imitation)
    demonstrated = None if method == "none" else Demonstrated(Rows(), None, None)
    one = Learning(made, [spec()], CPU, demonstrated=demonstrated)
    return keep(one, folder), one


def test_the_reward_of_dac_is_read_as_it_was(tmp_path: Path) -> None:
    path, one = checkpoint(tmp_path, "dac")
    assert one.imitation is not None
    rows = transitions(32)
    found = RecoveredReward(str(path), CPU, spec())(rows)
    torch.testing.assert_close(found, one.imitation.reward_of(rows))


def test_of_airl_g_alone_is_read_without_its_potential(tmp_path: Path) -> None:
    path, one = checkpoint(tmp_path, "airl", discriminator={"inputs": "state"})
    assert one.imitation is not None
    rows = transitions(32)
    reward = RecoveredReward(str(path), CPU, spec())
    elsewhere = rows._replace(next_observation={"state": torch.zeros(32, 3)}, action=-rows.action)
    torch.testing.assert_close(reward(rows), reward(elsewhere))
    assert not torch.allclose(reward(rows), one.imitation.reward_of(rows))


def test_a_fresh_learner_is_trained_on_it_without_a_discriminator_of_its_own(
    tmp_path: Path,
) -> None:
    path, earlier = checkpoint(tmp_path, "dac")
    override = {"override": "recovered", "recovered_checkpoint": str(path), "scale": 2.0}
    fresh = Learning(
        experiment("dac", reward=override),
        [spec()],
        CPU,
        demonstrated=Demonstrated(Rows(), None, None),
    )
    assert fresh.imitation is not None
    assert earlier.imitation is not None
    rows = transitions(8)
    _, reward = fresh.imitation.relabel(rows)
    torch.testing.assert_close(reward, 2.0 * earlier.imitation.reward_of(rows))
    assert not any("discriminator" in name for name in fresh.state_tensors()["networks"])


def test_a_checkpoint_without_a_learned_reward_is_refused(tmp_path: Path) -> None:
    path, _ = checkpoint(tmp_path, "none")
    with pytest.raises(ValueError, match="expected a run that learned a reward, found .*'none'"):
        RecoveredReward(str(path), CPU, spec())
    with pytest.raises(ValueError, match=r"imitation.reward.recovered_checkpoint"):
        RecoveredReward(str(tmp_path / "nowhere"), CPU, spec())
    path, _ = checkpoint(tmp_path / "other", "dac")
    other = environment_spec("cartpole-swingup", ("state",), experiment("dac").environment)
    with pytest.raises(ValueError, match="expected one of cartpole-swingup"):
        RecoveredReward(str(path), CPU, other)


def test_a_discriminator_that_judges_what_the_run_does_not_see_is_refused(tmp_path: Path) -> None:
    path, _ = checkpoint(tmp_path, "dac")
    for observation, found in (
        ({"pixels": ArraySpec((3, 84, 84, 3), "uint8")}, r"{'pixels': \[3, 84, 84, 3\]}"),
        ({"state": ArraySpec((4,), "float32")}, r"{'state': \[4\]}"),
    ):
        message = (
            r"imitation.reward.recovered_checkpoint: expected one that judges what the run reads "
            rf"\({found}\), found one that judges 'state' \[3\]; set reads and environment"
        )
        with pytest.raises(ValueError, match=message):
            RecoveredReward(str(path), CPU, replace(spec(), observation=observation))


def test_a_reward_that_was_itself_recovered_is_refused(tmp_path: Path) -> None:
    earlier, _ = checkpoint(tmp_path / "earlier", "dac")
    reward = {"override": "recovered", "recovered_checkpoint": str(earlier)}
    path, _ = checkpoint(tmp_path / "later", "dac", reward=reward)
    with pytest.raises(ValueError, match="found one with method 'dac' and reward override 'recov"):
        RecoveredReward(str(path), CPU, spec())


def latent_checkpoint(folder: Path) -> Path:
    """Make a checkpoint of a run whose discriminator is told what a context encoder infers."""
    made = family_experiment()
    return write_checkpoint(
        folder,
        run="test",
        steps=5,
        updates=5,
        policy_version=1,
        experiment=made,
        environment=experiment_specs(made.task, made.observation_keys, made.environment)[0],
        tensors={"networks": {"imitation.discriminator": torch.zeros(1)}},
        state={},
    )


def test_the_command_names_the_checkpoint_that_has_no_reward_to_draw(
    tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "map.svg"
    for path, message in (
        (checkpoint(tmp_path / "sac", "none")[0], "found one with method 'none'"),
        (checkpoint(tmp_path / "bc", "bc")[0], "found one with method 'bc'"),
        (latent_checkpoint(tmp_path / "latent"), "found one that reads 'latent'"),
    ):
        assert main(["heatmap", "--checkpoint", str(path), "--out", str(out)]) == 78
        said = capsys.readouterr().err
        assert said.startswith(f"apprentice heatmap: {path}: expected a run ")
        assert message in said
        assert "recovered_checkpoint" not in said


def test_the_map_shows_the_reward_where_it_says(tmp_path: Path) -> None:
    path, _ = checkpoint(tmp_path, "dac", discriminator={"inputs": "state"})
    found = reward_map(path, Axis("position", 0, -3.0, 3.0), Axis("velocity", 0, -8.0, 8.0), 5)
    assert found.shape == (5, 5)
    # Pendulum's state is cos and sin of the angle, and the speed: the top right is angle 3, speed 8.
    state = torch.tensor([[np.cos(3.0), np.sin(3.0), 8.0]], dtype=torch.float32)
    rows = transitions(1)._replace(observation={"state": state})
    expected = RecoveredReward(str(path), CPU, spec())(rows)
    assert float(found[0, 4]) == pytest.approx(float(expected), rel=1e-4)


def test_the_command_draws_a_picture_and_refuses_other_axes(tmp_path: Path, capsys: Any) -> None:
    path, _ = checkpoint(tmp_path, "dac")
    out = tmp_path / "map.svg"
    assert main(["heatmap", "--checkpoint", str(path), "--size", "4", "--out", str(out)]) == 0
    ElementTree.parse(out)  # noqa: S314
    wrong = ["heatmap", "--checkpoint", str(path), "--x", "speed:0:1:2", "--out", str(out)]
    assert main(wrong) == 78
    assert "expected position or velocity" in capsys.readouterr().err
    outside = ["heatmap", "--checkpoint", str(path), "--x", "position:7:-1:1", "--out", str(out)]
    assert main(outside) == 78
    assert "expected from 0 to 0, found 7" in capsys.readouterr().err


def test_the_experts_advantage_is_its_own_critics_and_the_same_each_time(tmp_path: Path) -> None:
    path, expert = checkpoint(tmp_path, "none")
    advantage = ExpertAdvantage(str(path), spec(), CPU)
    batch = transitions(64)
    found = advantage(batch)
    assert torch.equal(found, advantage(batch))
    sac = expert.sac
    policy = sac.sample_action(batch.observation, torch.Generator().manual_seed(1))
    drawn = advantage(batch._replace(action=policy[0], pre_tanh_action=policy[1]))
    # Of the policy's own actions, E over a of A(s, a) is alpha E log pi.
    expected = float(sac.temperature * policy[2].mean())
    assert float(drawn.mean()) == pytest.approx(expected, abs=0.1)
    values = sac.values(batch.observation, batch.action).amin(0)
    others = sac.values(batch.observation, -batch.action).amin(0)
    flipped = advantage(batch._replace(action=-batch.action))
    torch.testing.assert_close(found - flipped, values - others)


def test_the_experts_advantage_is_the_reward_that_is_learned_on(tmp_path: Path) -> None:
    path, expert = checkpoint(tmp_path, "none")
    reward = {"override": "expert_advantage", "expert_checkpoint": str(path), "scale": 2.0}
    demonstrated = Demonstrated(Rows(), None, None)
    one = Learning(experiment("dac", reward=reward), [spec()], CPU, demonstrated=demonstrated)
    assert one.imitation is not None
    batch, found = one.imitation.relabel(transitions(64))
    other = batch._replace(action=-batch.action, pre_tanh_action=-batch.pre_tanh_action)
    _, found_of_other = one.imitation.relabel(other)
    values = expert.sac.values(batch.observation, batch.action).amin(0)
    others = expert.sac.values(batch.observation, -batch.action).amin(0)
    torch.testing.assert_close(found - found_of_other, 2.0 * (values - others))


def test_nothing_is_to_be_gained_in_an_absorbing_state(tmp_path: Path) -> None:
    path, _ = checkpoint(tmp_path, "none")
    advantage = ExpertAdvantage(str(path), spec(), CPU)
    batch = transitions(4)
    absorbing = torch.tensor([[0.0], [1.0], [0.0], [1.0]])
    found = advantage(batch._replace(observation={**batch.observation, ABSORBING: absorbing}))
    torch.testing.assert_close(found, advantage(batch) * (1.0 - absorbing[:, 0]))


def test_an_expert_of_something_else_is_refused(tmp_path: Path) -> None:
    path, _ = checkpoint(tmp_path, "none")
    for change, message in (
        ({"task": "cartpole-swingup"}, "expected an expert of cartpole-swingup"),
        ({"action_repeat": 3}, "with action repeat 3"),
        ({"observation": {"state": ArraySpec((4,), "float32")}}, "reads what the run reads"),
    ):
        with pytest.raises(ValueError, match=message):
            ExpertAdvantage(str(path), replace(spec(), **change), CPU)  # type: ignore[arg-type]
