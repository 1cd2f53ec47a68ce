"""The learner's rules: what is owed, what is drawn, and going on bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from apprentice.checkpoint import write_checkpoint
from apprentice.config import Experiment
from apprentice.types import ArraySpec, Ending, EnvironmentSpec, Segment
from learner.learning import Counters, Learning
from learner.resuming import checkpoint_state

CPU = torch.device("cpu")
LENGTH = 8
SPEC = EnvironmentSpec(
    "fake-task",
    "fake-task",
    {"state": ArraySpec((5,), "float32")},
    ArraySpec((2,), "float32"),
    1000,
    1,
    0.02,
)


def make_experiment(**replay: Any) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "test",
            "task": "fake-task",
            "network": {"hidden_size": 16},
            "sac": {"batch_size": 32},
            "learner": {"compile": "off"},
            "replay": {"segment_length": LENGTH, "warmup_steps": 16, "capacity": 1000, **replay},
        }
    )


def make_segment(number: int, length: int = LENGTH, version: int = 1) -> Segment:
    generator = np.random.default_rng(number)

    def padded(*shape: int) -> np.ndarray:
        values = generator.uniform(-1, 1, shape).astype(np.float32)
        values[length:] = 0
        return values

    state = generator.normal(size=(LENGTH + 1, 5)).astype(np.float32)
    state[length + 1 :] = 0
    discount = np.zeros(LENGTH, np.float32)
    discount[:length] = 1
    return Segment(
        {"state": state},
        padded(LENGTH, 2),
        padded(LENGTH, 2),
        padded(LENGTH),
        discount,
        length,
        Ending.TIME_LIMIT,
        task=0,
        actor=0,
        incarnation=2**63 + 5,
        episode=number,
        first_step=0,
        policy_version=version,
        context=np.zeros(0, np.int64),
    )


def drive(learning: Learning, first: int, last: int) -> None:
    """Lock step: a segment, then every update owed for it."""
    for number in range(first, last):
        learning.receive(make_segment(number))
        while learning.updates_owed():
            learning.update()


def keep(learning: Learning, folder: Path) -> Path:
    """Write a checkpoint of all that it has learned."""
    return write_checkpoint(
        folder,
        run="run",
        steps=5,
        updates=5,
        policy_version=1,
        experiment=learning.experiment,
        environment=learning.specs[0],
        tensors=learning.state_tensors(),
        state=checkpoint_state(learning),
    )


def assert_same_state(found: Learning, expected: Learning) -> None:
    theirs, ours = expected.state_tensors(), found.state_tensors()
    assert theirs.keys() == ours.keys()
    for group, tensors in theirs.items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, ours[group][name]), f"{group}/{name}"


def test_no_update_is_owed_before_the_warm_up_ends() -> None:
    learning = Learning(make_experiment(warmup_steps=17), [SPEC], CPU)
    learning.receive(make_segment(0))
    learning.receive(make_segment(1))
    assert (learning.counters.steps, learning.warm, learning.updates_owed()) == (16, False, 0)
    learning.receive(make_segment(2))
    # 24 steps have come, 17 of them were warm-up.
    assert (learning.warm, learning.updates_owed()) == (True, 7)


@pytest.mark.parametrize(("ratio", "owed"), [(1.0, 24), (0.5, 12), (0.33, 7), (2.0, 48)])
def test_updates_owed_follow_the_ratio(ratio: float, owed: int) -> None:
    learning = Learning(make_experiment(updates_per_step=ratio), [SPEC], CPU)
    for number in range(5):
        learning.receive(make_segment(number))
    assert learning.updates_owed() == owed
    for _ in range(owed):
        learning.update()
    assert learning.updates_owed() == 0
    assert learning.counters.updates == owed


def test_a_duplicate_is_counted_and_nothing_is_owed_for_it() -> None:
    learning = Learning(make_experiment(), [SPEC], CPU)
    assert learning.receive(make_segment(0))
    assert not learning.receive(make_segment(0))
    assert learning.counters == Counters(steps=8, segments=1, duplicates=1)


def test_the_same_segments_give_the_same_parameters_bit_for_bit() -> None:
    runs = [Learning(make_experiment(), [SPEC], CPU) for _ in range(2)]
    for learning in runs:
        drive(learning, 0, 8)
    assert runs[0].counters.updates == 48
    assert_same_state(runs[0], runs[1])


@pytest.mark.parametrize("sampling", ["transitions", "segments", "mixed"])
@pytest.mark.parametrize("normalise", [False, True])
def test_stop_restore_and_go_on_equals_an_uninterrupted_run(sampling: str, normalise: bool) -> None:
    base = make_experiment(sampling=sampling, sampled_length=4, capacity=72)
    network = base.network.model_copy(update={"normalise_observations": normalise})
    experiment = base.model_copy(update={"network": network})
    whole = Learning(experiment, [SPEC], CPU)
    drive(whole, 0, 12)  # the ring has forgotten the first segments by then
    saved, counters = whole.state_tensors(), whole.counters
    drive(whole, 12, 20)

    resumed = Learning(experiment.model_copy(update={"seed": 99}), [SPEC], CPU)
    resumed.load_state(saved, counters, normalised=True)
    shuffled = [make_segment(number) for number in (9, 4, 11, 3, 7, 10, 5, 8, 6)]
    missing, new = resumed.refill(shuffled, saved["rings"]["identities"])
    assert (missing, new) == (0, 0)
    drive(resumed, 12, 20)

    assert_same_state(resumed, whole)
    assert [r.digest() for r in resumed.rings] == [r.digest() for r in whole.rings]
    assert resumed.counters == whole.counters
    assert resumed.metrics().keys() == whole.metrics().keys()


def test_after_a_crash_newer_segments_count_and_missing_ones_are_named() -> None:
    learning = Learning(make_experiment(), [SPEC], CPU)
    drive(learning, 0, 4)
    saved, counters = learning.state_tensors(), learning.counters
    resumed = Learning(make_experiment(), [SPEC], CPU)
    resumed.load_state(saved, counters, normalised=True)
    recovered = [make_segment(number) for number in (0, 1, 3, 4, 5)]  # 2 is lost, 4 and 5 are new
    assert resumed.refill(recovered, saved["rings"]["identities"]) == (1, 2)
    assert resumed.counters.steps == counters.steps + 16
    assert resumed.updates_owed() == 16


def test_where_replay_was_lost_nothing_is_learned_by_heart() -> None:
    learning = Learning(make_experiment(), [SPEC], CPU)
    drive(learning, 0, 4)
    saved, counters = learning.state_tensors(), learning.counters
    resumed = Learning(make_experiment(), [SPEC], CPU)
    resumed.load_state(saved, counters, normalised=True)
    assert resumed.refill([make_segment(7)], saved["rings"]["identities"]) == (4, 1)
    assert (resumed.warm, resumed.num_missing, resumed.updates_owed()) == (True, 8, 0)
    resumed.receive(make_segment(8))
    assert (resumed.num_missing, resumed.updates_owed()) == (0, 16)
    drive(resumed, 9, 10)
    assert resumed.counters.updates == counters.updates + 24


def test_preparing_moves_neither_state_nor_random_stream() -> None:
    runs = [Learning(make_experiment(), [SPEC], CPU) for _ in range(2)]
    drive(runs[0], 0, 2)
    drive(runs[1], 0, 2)
    runs[1].prepare()
    drive(runs[0], 2, 5)
    drive(runs[1], 2, 5)
    assert_same_state(runs[1], runs[0])


def test_the_normaliser_is_fitted_to_the_warm_up_and_then_frozen() -> None:
    base = make_experiment(warmup_steps=80)
    network = base.network.model_copy(update={"normalise_observations": True})
    learning = Learning(base.model_copy(update={"network": network}), [SPEC], CPU)
    for number in range(10):
        learning.receive(make_segment(number))
    states = np.concatenate([make_segment(n).observation["state"][:LENGTH] for n in range(10)])
    encoder = learning.sac.policy.encoder
    np.testing.assert_allclose(encoder.state_mean, states.mean(0), atol=0.1)
    np.testing.assert_allclose(encoder.state_scale, 1 / states.std(0), rtol=0.1)
    fitted = encoder.state_mean.clone()
    drive(learning, 10, 14)
    assert torch.equal(encoder.state_mean, fitted)
    assert torch.equal(learning.sac.policy_tensors()["encoder.state_mean"], fitted)


def test_after_a_rollback_the_step_size_is_halved_and_counters_stay() -> None:
    learning = Learning(make_experiment(), [SPEC], CPU)
    drive(learning, 0, 4)
    counters = learning.counters
    learning.load_state(learning.state_tensors(), counters._replace(updates=1), normalised=True)
    learning.rolled_back(counters, times=2)
    assert learning.counters == counters
    drive(learning, 4, 5)
    assert learning.sac.rate_factor.item() == 0.25


def test_a_linear_schedule_ends_at_step_size_0_and_keeps_what_rollbacks_took() -> None:
    base = make_experiment()
    learner = {"learning_rate_schedule": "linear", "max_steps": 10 * LENGTH}
    experiment = base.model_copy(update={"learner": base.learner.model_copy(update=learner)})
    learning = Learning(experiment, [SPEC], CPU)
    drive(learning, 0, 5)
    assert learning.sac.rate_factor.item() == pytest.approx(0.5)
    learning.rolled_back(learning.counters, times=1)
    restored = Learning(experiment, [SPEC], CPU)
    restored.load_state(learning.state_tensors(), learning.counters, normalised=True)
    drive(restored, 5, 8)
    assert restored.sac.rate_factor.item() == pytest.approx(0.5 * 0.2)
    drive(restored, 8, 9)
    before = restored.sac.policy_tensors()
    restored.receive(make_segment(9))
    restored.update()
    assert restored.counters.steps == 10 * LENGTH
    for name, tensor in restored.sac.policy_tensors().items():
        assert torch.equal(tensor, before[name]), name
