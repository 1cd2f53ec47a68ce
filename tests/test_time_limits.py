"""A time limit is no termination in any wrapper, from the environment to the learner's batch; a fall is one in all."""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from actor.segments import Origin, SegmentBuilder
from apprentice.config import EnvironmentSettings, Experiment
from apprentice.demonstrations.dataset import DemonstrationDataset
from apprentice.demonstrations.exchange import export_minari, export_npz, import_npz
from apprentice.demonstrations.format import DemonstrationMetadata, DemonstrationSet
from apprentice.demonstrations.reading import read_demonstrations
from apprentice.demonstrations.writing import write_demonstrations
from apprentice.environments import environment_spec, make_environment
from apprentice.evaluation import evaluate
from apprentice.networks import UniformPolicy
from apprentice.rollout import rollout
from apprentice.trajectories import load_trajectory, save_trajectory
from apprentice.types import Ending, Segment, Trajectory, Transition
from learner.absorbing import share_beside, with_absorbing_states
from learner.learning import Learning
from replay.rings import Ring

SETTINGS = EnvironmentSettings(action_repeat=16)
CASES = [("cartpole-balance", Ending.TIME_LIMIT), ("hopper-hop_until_fall", Ending.TERMINATED)]
every_ending = pytest.mark.parametrize(("task", "ending"), CASES)


def last_discount(ending: Ending) -> float:
    return float(ending != Ending.TERMINATED)


def segments_of(task: str, num_episodes: int = 2) -> list[Segment]:
    """Play with random actions and return what an actor sends of it."""
    spec = environment_spec(task, ("state",), SETTINGS)
    builder = SegmentBuilder(spec, 8, 1, Origin(0, 1))
    found: list[Segment] = []
    steps = rollout(
        [make_environment(task, 0, ("state",), SETTINGS)], UniformPolicy(spec, seed=0).act
    )
    for step in islice(steps, 300):
        found += builder.add(step, 1)
        if sum(segment.ending != Ending.GOES_ON for segment in found) == num_episodes:
            break
    return found


def trajectory_of(task: str) -> Trajectory:
    """Return an episode as evaluation keeps it and demonstrations are made of."""
    spec = environment_spec(task, ("state",), SETTINGS)
    evaluation = evaluate(
        UniformPolicy(spec, seed=0), task, [3], settings=SETTINGS, keep_trajectories=1
    )
    found = evaluation.episodes[0].trajectory
    assert found is not None
    return found


def demonstrations_of(task: str) -> DemonstrationSet:
    spec = environment_spec(task, ("state",), SETTINGS)
    metadata = DemonstrationMetadata(environment=spec.to_dict(), settings=SETTINGS)
    return DemonstrationSet(metadata, (trajectory_of(task),))


def every_row(ring: Ring) -> Transition:
    return ring.sample(2000, torch.Generator().manual_seed(0))


@every_ending
def test_segments_and_rings_keep_the_ending(task: str, ending: Ending) -> None:
    segments = segments_of(task)
    ring = Ring(environment_spec(task, ("state",), SETTINGS), 1000, 8)
    for segment in segments:
        if segment.ending != Ending.GOES_ON:
            assert segment.ending == ending
            assert segment.discount[segment.length - 1] == last_discount(ending)
        ring.append(segment)
    assert ring.num_episodes == 2
    assert bool((every_row(ring).discount == 0.0).any()) is (ending == Ending.TERMINATED)


@every_ending
def test_kept_episodes_and_demonstrations_keep_the_ending(
    task: str, ending: Ending, tmp_path: Path
) -> None:
    kept = trajectory_of(task)
    save_trajectory(tmp_path / "kept.safetensors", kept, task=task, settings=SETTINGS)
    demonstrations = demonstrations_of(task)
    write_demonstrations(tmp_path / "demos.hdf5", demonstrations)
    export_npz(tmp_path / "demos.npz", demonstrations)
    for found in (
        kept,
        load_trajectory(tmp_path / "kept.safetensors").trajectory,
        read_demonstrations(tmp_path / "demos.hdf5").trajectories[0],
        import_npz(tmp_path / "demos.npz").trajectories[0],
    ):
        assert found.ending == ending
        assert found.discount.tolist() == [1.0] * (len(found.action) - 1) + [last_discount(ending)]
    dataset = DemonstrationDataset([kept])
    assert dataset.num_terminated == (1 if ending == Ending.TERMINATED else 0)


@every_ending
def test_minari_is_told_of_a_truncation(task: str, ending: Ending, tmp_path: Path) -> None:
    export_minari(tmp_path / "minari", demonstrations_of(task))
    with h5py.File(tmp_path / "minari" / "main_data.hdf5") as file:
        ended, cut = (file[f"episode_0/{name}"][()] for name in ("terminations", "truncations"))
    assert (bool(ended[-1]), bool(cut[-1])) == (
        ending == Ending.TERMINATED,
        ending != Ending.TERMINATED,
    )
    assert not ended[:-1].any()
    assert not cut[:-1].any()


@every_ending
def test_only_a_termination_leads_into_an_absorbing_state(task: str, ending: Ending) -> None:
    ring = Ring(environment_spec(task, ("state",), SETTINGS), 1000, 8)
    for segment in segments_of(task):
        ring.append(segment)
    rows = every_row(ring)
    batch = with_absorbing_states(rows, share_beside(rows), torch.Generator().manual_seed(0))
    led = float(batch.next_observation["absorbing"].sum())
    assert (led > 0) is (ending == Ending.TERMINATED)
    assert bool((batch.discount == 1.0).all())


@every_ending
def test_the_critics_look_beyond_a_time_limit_and_not_beyond_an_end(
    task: str, ending: Ending
) -> None:
    """With a discount factor of nearly 0 the target is the reward; with 0.9 what follows is in it or not."""
    spec = environment_spec(task, ("state",), SETTINGS)
    targets = []
    for gamma in (1e-6, 0.9):
        experiment = Experiment.model_validate(
            {
                "name": "test",
                "task": task,
                "environment": SETTINGS.model_dump(),
                "network": {"hidden_size": 16},
                "sac": {"batch_size": 64, "gamma": gamma, "initial_temperature": 1.0},
                "learner": {"compile": "off"},
                "replay": {"segment_length": 8, "warmup_steps": 8, "capacity": 1000},
            }
        )
        one = Learning(experiment, [spec], torch.device("cpu"))
        for number, segment in enumerate(segments_of(task)):
            if segment.ending != Ending.GOES_ON:
                one.receive(only(segment, slice(segment.length - 1, segment.length), number))
        one.update()
        targets.append(one.metrics()["learner/target_mean"])
    assert (abs(targets[1] - targets[0]) < 1e-4) is (ending == Ending.TERMINATED)


def only(segment: Segment, rows: slice, episode: int) -> Segment:
    """Return a segment of these steps alone, padded."""

    def cut(array: np.ndarray, more: int = 0) -> np.ndarray:
        kept = np.zeros_like(array)
        taken = array[rows.start : rows.stop + more]
        kept[: len(taken)] = taken
        return kept

    return segment._replace(
        observation={key: cut(value, 1) for key, value in segment.observation.items()},
        action=cut(segment.action),
        pre_tanh_action=cut(segment.pre_tanh_action),
        environment_reward=cut(segment.environment_reward),
        discount=cut(segment.discount),
        length=rows.stop - rows.start,
        first_step=0,
        episode=episode,
    )


def test_the_peers_environment_truncates_and_does_not_terminate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Peers bootstrap from what gymnasium calls truncated, and take what it calls terminated for an end."""
    spaces = SimpleNamespace(Box=lambda *arguments: arguments)
    monkeypatch.setitem(sys.modules, "gymnasium", SimpleNamespace(Env=object, spaces=spaces))
    monkeypatch.delitem(sys.modules, "benchmarks.flat_environment", raising=False)
    from benchmarks.flat_environment import Flat

    environment: Any = Flat("cartpole-balance", 16, 0)
    environment.reset()
    outcomes = [environment.step(np.zeros(1, np.float32))[2:4] for _ in range(63)]
    assert outcomes == [(False, False)] * 62 + [(False, True)]
    monkeypatch.delitem(sys.modules, "benchmarks.flat_environment")
