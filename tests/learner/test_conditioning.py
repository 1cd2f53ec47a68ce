"""Inferring the task: what is shown, what each row is told, what trains the encoder, and what is kept."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from apprentice.checkpoint import write_checkpoint
from apprentice.config import Experiment
from apprentice.demonstrations.context import NONE_SHOWN, TrainContext
from apprentice.demonstrations.format import DemonstrationError
from apprentice.environments import experiment_specs
from apprentice.types import Ending, EnvironmentSpec, Segment, Transition
from learner.conditioning import Conditioning, told_latent
from learner.context_update import information_bound, rows_summed
from learner.demonstrated import Demonstrated
from learner.family_batches import BatchTasks, draw_batch_tasks
from learner.imitation import Imitation
from learner.learning import Learning
from learner.resuming import CannotResume, checkpoint_state, resume
from learner.rewards import imitation_reward

CPU = torch.device("cpu")
KEYS = ["state", "latent"]
BLIND = ["state"]
ADVANTAGE = {
    "method": "dac",
    "reward": {
        "override": "expert_advantage",
        "expert_checkpoint": "runs/expert/checkpoints/step-1",
    },
}
LENGTH, TASKS, SHOWN = 10, 16, 3
SAC = {"gamma": 0.98, "batch_size": 48}
REPLAY = {"segment_length": LENGTH, "warmup_steps": 20, "capacity": 1000}
FIRST_NUMBER = 100
"""Demonstrations are numbered from here on, so that numbers and places differ."""


def experiment(context: dict[str, Any] | None = None, **changes: Any) -> Experiment:
    tree = {
        "name": "test",
        "task": "reacher_goal",
        "environment": {"family": {"gamma": 0.98}},
        "reads": {"policy": KEYS, "critic": KEYS, "discriminator": KEYS},
        "network": {"hidden_size": 16},
        "learner": {"compile": "off"},
        "sac": SAC,
        "replay": REPLAY,
        "context": {"hidden_size": 16, "latent_size": 3, "steps": 4, **(context or {})},
        "imitation": {"method": "dac", **changes.pop("imitation", {})},
    }
    return Experiment.model_validate({**tree, **changes})


def specs() -> list[EnvironmentSpec]:
    return experiment_specs("reacher_goal", ["state"], experiment().environment)


def all_tasks(size: int) -> BatchTasks:
    return draw_batch_tasks(size, TASKS, None, torch.Generator(), CPU)


def context() -> TrainContext:
    """SHOWN demonstrations of each task, 5 to 7 steps long; all states and actions say the task."""
    random = np.random.default_rng(0)
    steps, bounds, tasks = [], [0], []
    for task in range(TASKS):
        for number in range(SHOWN):
            length = 5 + number
            rows = 0.1 * random.normal(size=(length, 18)).astype(np.float32)
            rows += np.float32(0.1 * (task - TASKS / 2))
            rows[:, 8:10] = np.tanh(rows[:, 8:10])
            steps.append(rows)
            bounds.append(bounds[-1] + length)
            tasks.append(task)
    return TrainContext(
        torch.from_numpy(np.concatenate(steps)),
        torch.tensor(bounds),
        torch.tensor(tasks),
        FIRST_NUMBER + torch.arange(len(tasks)),
    )


def segment(task: int, number: int, size: int = 1) -> Segment:
    random = np.random.default_rng(100 * task + number)
    pre_tanh = random.normal(size=(LENGTH, 2)).astype(np.float32)
    state = random.normal(size=(LENGTH + 1, 8)).astype(np.float32)
    state[:, 0] = task
    return Segment(
        {"state": state},
        np.tanh(pre_tanh),
        pre_tanh,
        random.normal(size=LENGTH).astype(np.float32),
        np.ones(LENGTH, np.float32),
        LENGTH,
        Ending.TIME_LIMIT,
        task=task,
        actor=0,
        incarnation=9,
        episode=100 * task + number,
        first_step=0,
        policy_version=1,
        context=np.array([FIRST_NUMBER + SHOWN * task + number] + [-1] * (size - 1), np.int64),
    )


class Rows:
    """What is imitated: 5 rows of each task, in the order of the tasks."""

    num_rows, num_terminated, subsampling = 5 * TASKS, 0, 1

    def transitions(self, index: torch.Tensor) -> Transition:
        generator = torch.Generator().manual_seed(3)
        all_states = torch.randn(self.num_rows, 8, generator=generator) + 3.0
        all_states[:, 0] = torch.arange(self.num_rows) // 5
        state = all_states[index]
        pre_tanh = torch.full((len(index), 2), 0.1)
        ones = torch.ones(len(index))
        return Transition(
            {"state": state}, torch.tanh(pre_tanh), pre_tanh, ones, ones, {"state": state}
        )


def filled(
    settings: dict[str, Any] | None = None, reward_shift: float = 0.0, **changes: Any
) -> Learning:
    bounds = torch.arange(TASKS + 1) * 5
    demonstrated = Demonstrated(Rows(), None, None, "", bounds, context())
    chosen = experiment(settings, **changes)
    one = Learning(chosen, specs(), CPU, demonstrated=demonstrated)
    for task in range(TASKS):
        for number in range(2):
            made = segment(task, number, chosen.context.most)
            one.receive(made._replace(environment_reward=made.environment_reward + reward_shift))
    return one


def parts(one: Learning) -> tuple[Conditioning, Imitation]:
    assert one.conditioning is not None and one.imitation is not None
    return one.conditioning, one.imitation


def encoder_of(one: Learning) -> torch.Tensor:
    assert one.conditioning is not None
    return one.conditioning.state.adam.parameters.clone()


def test_demonstrations_of_the_right_task_are_drawn_and_no_number_twice() -> None:
    conditioning, _ = parts(filled({"fewest": 1, "most": 3}))
    generator = torch.Generator().manual_seed(0)
    tasks = torch.arange(TASKS).repeat(40)
    places = conditioning.draw(tasks, generator)
    shown = places != NONE_SHOWN
    assert places.shape == (40 * TASKS, 3)
    assert (places // SHOWN == tasks[:, None])[shown].all()
    sizes = shown.sum(1)
    assert sizes.unique().tolist() == [1, 2, 3]
    for row, size in zip(places.tolist(), sizes.tolist(), strict=True):
        assert len(set(row[:size])) == size
        assert row[size:] == [NONE_SHOWN] * (3 - size)


def test_a_row_is_told_what_the_demonstration_its_actor_was_shown_says() -> None:
    one = filled({"encoder": "context_window", "window": 2})
    conditioning, _ = parts(one)
    batch = one._sample(one._draw_tasks())
    numbers = batch.observation["context"][:, 0]
    tasks = batch.observation["state"][:, 0]
    assert ((numbers.long() - FIRST_NUMBER) // SHOWN).tolist() == tasks.long().tolist()
    told = conditioning.conditioned(batch, torch.Generator())
    expected = conditioning.latent((numbers.long() - FIRST_NUMBER)[:, None], None)
    torch.testing.assert_close(told.observation["latent"], expected)
    torch.testing.assert_close(told.next_observation["latent"], expected)
    assert "context" not in told.observation
    assert len(expected.unique(dim=0)) > TASKS


@pytest.mark.parametrize("numbers", [[-1], [FIRST_NUMBER + SHOWN], [5], [10**15]])
def test_a_segment_that_was_shown_nothing_of_its_task_is_left_out(numbers: list[int]) -> None:
    one = filled()
    before = one.rings[0].num_transitions
    spoiled = segment(0, 2)._replace(context=np.array(numbers, np.int64))
    assert not one.receive(spoiled)
    assert one.rings[0].num_transitions == before
    assert one.metrics()["replay/unknown_context_segments"] == 1.0
    assert one.receive(segment(0, 2))
    one.update()


def test_fresh_draws_are_of_the_rows_own_task() -> None:
    one = filled({"encoder": "context_window", "relabel": "fresh"})
    conditioning, _ = parts(one)
    told = conditioning.conditioned(
        one._sample(one._draw_tasks()), torch.Generator().manual_seed(1)
    )
    said = conditioning.latent(torch.arange(SHOWN * TASKS)[:, None], None)
    distances = torch.cdist(told.observation["latent"], said)
    assert float(distances.amin(1).max()) < 1e-3
    assert (distances.argmin(1) // SHOWN).tolist() == told.observation["state"][:, 0].tolist()
    assert len(distances.argmin(1).unique()) > TASKS


def test_a_batch_that_the_discriminator_has_no_row_of_every_task_in_is_refused() -> None:
    few = {"discriminator": {"batch_size": 15}}
    with pytest.raises(
        DemonstrationError, match=r"discriminator.batch_size: .*each of the 16 .*found 15"
    ):
        filled(imitation=few)
    filled(imitation=few, replay={**REPLAY, "tasks_per_batch": 15})
    filled(imitation={"method": "bc", **few})  # which has no discriminator


def test_a_posteriors_rows_are_told_samples_and_a_windows_what_it_says() -> None:
    one = filled()
    conditioning, _ = parts(one)
    place = torch.zeros(4000, 1, dtype=torch.int64)
    drawn = conditioning.latent(place, torch.Generator().manual_seed(0))
    belief = conditioning.belief(place[:1])
    torch.testing.assert_close(drawn.mean(0), belief.mean[0], atol=0.02, rtol=0.0)
    torch.testing.assert_close(drawn.std(0), belief.std[0], atol=0.02, rtol=0.05)


def test_the_discriminator_trains_the_encoder_and_the_policy_does_not() -> None:
    one = filled()
    conditioning, imitation = parts(one)
    before = encoder_of(one)
    batch = conditioning.conditioned(one._sample(one._draw_tasks()), torch.Generator())
    one.sac.update(batch, batch.environment_reward)
    assert torch.equal(encoder_of(one), before)
    imitation.learn(one.experience, 0)
    assert not torch.equal(encoder_of(one), before)


def test_the_penalty_does_not_train_the_encoder() -> None:
    moved = []
    for coefficient in (0.0, 100.0):
        one = filled(imitation={"discriminator": {"penalty_coefficient": coefficient}})
        parts(one)[1].learn(one.experience, 0)
        moved.append(encoder_of(one))
    assert torch.equal(moved[0], moved[1])


def test_clips_are_separate() -> None:
    """With the penalty clipped by itself to next to nothing, the discriminator moves as if there were none."""
    found = []
    for settings in (
        {"penalty": "none", "max_gradient_norm": 1e9},
        {"penalty_coefficient": 1e3, "max_gradient_norm": 1e9, "max_penalty_gradient_norm": 1e-12},
        {"penalty_coefficient": 1e3, "max_gradient_norm": 1e9},
    ):
        one = filled(imitation={"discriminator": settings})
        parts(one)[1].learn(one.experience, 0)
        found.append(one.state_tensors()["networks"]["imitation.discriminator"])
    torch.testing.assert_close(found[0], found[1])
    assert not torch.allclose(found[0], found[2])


def test_the_encoders_clip_bounds_its_gradient_alone() -> None:
    plain, clipped = (
        filled({"max_gradient_norm": norm, "adam_betas": (0.0, 0.999)}) for norm in (None, 1e-9)
    )
    for one in (plain, clipped):
        parts(one)[1].learn(one.experience, 0)
    assert torch.equal(
        *(one.state_tensors()["networks"]["imitation.discriminator"] for one in (plain, clipped))
    )
    assert float(parts(clipped)[0].state.adam.second_moment.sum()) < 1e-20
    assert float(parts(plain)[0].state.adam.second_moment.sum()) > 1e-20


def test_the_divergence_ramps_up_and_pulls_the_belief_to_the_prior() -> None:
    one = filled({"kl_coefficient": 2.0, "kl_ramp": (2, 4), "steps": None})
    conditioning, imitation = parts(one)
    weights = []
    for update in range(6):
        shown = conditioning.batch(all_tasks(48), torch.Generator().manual_seed(0))
        weights.append(float(shown.divergence_weight))
        imitation.learn(one.experience, update)
    assert weights == [0.0, 0.0, 0.0, 1.0, 2.0, 2.0]
    for update in range(300):
        imitation.learn(one.experience, update)
    conditioning.refresh()
    belief = conditioning.belief(torch.arange(SHOWN * TASKS)[:, None])
    assert float(belief.std.mean()) > 0.5


def test_the_encoders_step_size_falls_to_nothing_where_so_many_updates_were_asked_for() -> None:
    one = filled({"learned_updates": 4, "batch_norm": True})
    conditioning, imitation = parts(one)
    factors, encoders = [], [encoder_of(one)]
    for update in range(6):
        shown = conditioning.batch(all_tasks(48), torch.Generator().manual_seed(0))
        factors.append(float(shown.rate_factor))
        imitation.learn(one.experience, update)
        encoders.append(encoder_of(one))
    assert factors == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    moves = [not torch.equal(*pair) for pair in pairwise(encoders)]
    assert moves == [True] * 4 + [False] * 2
    statistics = conditioning.state.running_mean.clone()
    imitation.learn(one.experience, 6)
    assert torch.equal(conditioning.state.running_mean, statistics)


def test_demonstrations_are_not_encoded_anew_where_the_encoder_rests() -> None:
    one = filled({"learned_updates": 5, "refresh_period": 3})
    conditioning, imitation = parts(one)
    encoded = []

    def refresh(kept: Callable[[], None] = conditioning.refresh) -> None:
        encoded.append(update)
        kept()

    conditioning.refresh = refresh  # type: ignore[method-assign]
    for update in range(1, 13):
        imitation.learn(one.experience, update - 1)
    assert encoded == [3, 6]
    kept = conditioning._features.clone()
    conditioning.refresh()
    assert torch.equal(conditioning._features, kept)


def test_an_encoder_that_cloning_trains_comes_to_rest_as_well() -> None:
    one = filled({"learned_updates": 3}, imitation={"method": "bc"})
    encoders = [encoder_of(one)]
    for _ in range(5):
        one.update()
        encoders.append(encoder_of(one))
    moves = [not torch.equal(*pair) for pair in pairwise(encoders)]
    assert moves == [True] * 3 + [False] * 2


def test_pretraining_is_not_among_the_updates_over_which_the_step_size_falls() -> None:
    one = filled({"learned_updates": 1})
    conditioning, imitation = parts(one)
    imitation.learn(one.experience, 0)
    shown, _ = conditioning.batch_of_context(torch.arange(6) // 2, torch.Generator().manual_seed(0))
    assert float(shown.rate_factor) == 1.0
    conditioning.begin_anew()
    shown = conditioning.batch(all_tasks(48), torch.Generator().manual_seed(0))
    assert float(shown.rate_factor) == 1.0


def test_the_information_is_bounded_by_the_number_of_tasks_and_0_where_nothing_is_told() -> None:
    apart = 100.0 * torch.eye(8)
    assert float(information_bound(apart, apart)) == pytest.approx(np.log(8), abs=1e-5)
    assert float(information_bound(torch.zeros(8, 3), torch.zeros(8, 3))) == pytest.approx(
        0.0, abs=1e-6
    )
    assert float(information_bound(apart, apart.flip(0))) < -1000.0


def test_rows_of_a_table_and_their_gradient_are_those_of_indexing() -> None:
    table = torch.randn(5, 3, requires_grad=True)
    index, weight = torch.tensor([4, 0, 0, 2, 4, 4]), torch.randn(6, 3)
    (found,) = torch.autograd.grad((rows_summed(table, index) * weight).sum(), table)
    (expected,) = torch.autograd.grad((table[index] * weight).sum(), table)
    assert torch.equal(rows_summed(table, index), table[index])
    torch.testing.assert_close(found, expected)


def test_the_information_term_teaches_the_encoder_to_tell_tasks_apart() -> None:
    one = filled({"information_coefficient": 1.0, "learning_rate": 1e-2})
    found = []
    for update in range(60):
        parts(one)[1].learn(one.experience, update)
        if update in (0, 59):
            found.append(one.metrics()["discriminator/context_information"])
    assert abs(found[0]) < 0.1
    assert found[1] > 0.3


@pytest.mark.parametrize("learned", [False, True])
def test_mismatched_rows_are_the_experts_of_another_task(learned: bool) -> None:
    """An encoder that learns says in the update what each task's rows are told; rows come without."""
    one = filled(
        {"pretrain_updates": 0 if learned else 1, "learned": learned},
        imitation={"discriminator": {"mismatched_share": 0.5}},
    )
    _, imitation = parts(one)
    expert, policy, shown = imitation._drawn_for_update(one.experience, 48)
    if learned:
        assert shown is not None and "latent" not in policy.observation
    else:
        assert shown is None
        torch.testing.assert_close(expert.observation["latent"], policy.observation["latent"])
    slot = torch.arange(48) // 3
    replaced = policy.observation["state"][:, 1:].mean(1) > 1.5
    assert 12 <= int(replaced.sum()) <= 24
    task = policy.observation["state"][:, 0]
    assert (task[replaced] != slot[replaced]).all()
    assert (task[~replaced] == slot[~replaced]).all()
    assert (expert.observation["state"][:, 0] == slot).all()


def test_latents_are_mixed_and_multiplied_and_all_goes_on_as_it_was() -> None:
    context = {"pretrain_updates": 1, "learned": False}
    changes: dict[str, Any] = {
        "network": {"hidden_size": 16, "task_products": True},
        "imitation": {"imagined_share": 0.5},
    }
    one, other = (filled(context, **changes) for _ in range(2))
    assert (
        one.sac.policy.encoder.output_size
        == (1 + 8) * (1 + parts(one)[0]._settings.latent_size) - 1
    )
    conditioning, imitation = parts(one)
    batch = conditioning.conditioned(one.experience.sample(48, one._generator), one._generator)
    found, reward = imitation.relabel(batch)
    own, told = batch.observation["latent"], found.observation["latent"]
    imagined = (told != own).any(1)
    assert 12 <= int(imagined.sum()) <= 36
    torch.testing.assert_close(found.next_observation["latent"], told)
    torch.testing.assert_close(reward, imitation.reward_of(found))
    assert (imitation.reward_of(batch) != reward)[imagined].all()
    for _ in range(3):
        one.update()
    other.load_state(one.state_tensors(), one.counters, one.normalised)
    for learning in (one, other):
        learning.update()
    for name, tensor in one.state_tensors()["networks"].items():
        assert torch.equal(tensor, other.state_tensors()["networks"][name]), name


def test_all_rows_of_a_task_are_told_one_latent_in_an_update_of_the_discriminator() -> None:
    one = filled({"pretrain_updates": 1, "learned": False})
    expert, _, _ = parts(one)[1]._drawn_for_update(one.experience, 48)
    latent = expert.observation["latent"].view(TASKS, 3, -1)
    torch.testing.assert_close(latent, latent[:, :1].expand_as(latent))
    assert len(latent[:, 0].unique(dim=0)) == TASKS


@pytest.mark.parametrize("encoder", ["posterior", "context_window"])
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("method", ["dac", "bc"])
def test_rows_of_some_tasks_are_told_what_their_own_demonstrations_say(
    method: str, learned: bool, encoder: str
) -> None:
    one = filled(
        {
            "encoder": encoder,
            "pretrain_updates": 0 if learned else 1,
            "learned": learned,
            "most": SHOWN,
            "fewest": SHOWN,
            "steps": None,
        },
        imitation={"method": method},
        replay={**REPLAY, "tasks_per_batch": 5},
    )
    conditioning = one.conditioning
    assert conditioning is not None
    with torch.no_grad():  # tasks apart, and little noise
        conditioning._encoder.mean_layer.weight.mul_(100.0)
        conditioning._encoder.log_std_layer.bias.sub_(4.0)
    conditioning.refresh()
    says = conditioning.belief(torch.arange(SHOWN * TASKS).view(TASKS, SHOWN))
    seen: set[int] = set()
    for _ in range(20):
        if one.cloning is not None:
            rows, _, shown = one.cloning._draw()
        else:
            rows, policy, shown = parts(one)[1]._drawn_for_update(one.experience, 48)
            assert (policy.observation["state"][:, 0] == rows.observation["state"][:, 0]).all()
        task = rows.observation["state"][:, 0].long()
        assert len(task.unique()) == 5
        mean, std = says.mean[task], says.std[task]
        if shown is None:
            told = rows.observation["latent"]
            assert ((told - mean).abs() < 5.0 * std + 1e-5).all()
        else:
            assert len(shown.noise) == 5
            found, _, _ = conditioning.parts.encoder(shown.shown, True)
            torch.testing.assert_close(found.mean[shown.task], mean)
        seen.update(task.tolist())
    assert seen == set(range(TASKS))


def test_pretraining_moves_the_encoder_and_nothing_else() -> None:
    one = filled({"pretrain_updates": 30})
    before, encoder = one.state_tensors(), encoder_of(one)
    one.pretrain()
    after = one.state_tensors()
    assert not torch.equal(encoder_of(one), encoder)
    own = {"conditioning.context", "conditioning.context.features"}
    for name, tensor in before["networks"].items():
        assert torch.equal(tensor, after["networks"][name]) == (name not in own), name
    for name, tensor in before["random"].items():
        assert torch.equal(tensor, after["random"][name]), name
    assert float(parts(one)[0].state.adam.num_steps) == 0.0


def test_pretraining_heeds_a_stop_and_says_that_it_is_not_done() -> None:
    one = filled({"pretrain_updates": 30})
    asked = iter([False, False, True])
    assert not one.pretrain(lambda: next(asked))
    assert float(parts(one)[0].state.adam.num_steps) == 2.0
    assert one.pretrain()


def test_pretraining_learns_to_tell_tasks() -> None:
    one = filled({"pretrain_updates": 300, "learned": False, "pretrain_learning_rate": 3e-3})
    one.pretrain()
    said = parts(one)[0].belief(torch.arange(SHOWN * TASKS)[:, None]).mean
    task = torch.arange(SHOWN * TASKS) // SHOWN
    distances = torch.cdist(said, said).fill_diagonal_(torch.inf)
    nearest = distances.argmin(1)
    assert float((task[nearest] - task).abs().float().mean()) < 1.5


def test_the_divergence_weighs_in_pretraining_too() -> None:
    def noise(**context: Any) -> float:
        one = filled({"pretrain_updates": 100, "pretrain_learning_rate": 3e-3, **context})
        one.pretrain()
        return float(parts(one)[0].belief(torch.arange(SHOWN * TASKS)[:, None]).std.mean())

    assert noise(kl_coefficient=1.0) > 1.5 * noise()


def test_rows_of_pretraining_are_of_demonstrations_that_are_not_shown() -> None:
    conditioning, _ = parts(filled({"steps": None}))
    slots = torch.arange(64) // 4
    for seed in range(20):
        batch, rows = conditioning.batch_of_context(slots, torch.Generator().manual_seed(seed))
        for row, state in enumerate(rows.observation["state"]):
            shown = batch.shown.steps[slots[row], 0, :, :8]
            assert not (shown == state).all(1).any()


def test_what_the_information_compares_in_pretraining_is_not_shown() -> None:
    settings = {"steps": None, "information_coefficient": 0.1}
    conditioning, _ = parts(filled(settings))
    slots = torch.arange(64) // 4
    for seed in range(20):
        batch, _ = conditioning.batch_of_context(slots, torch.Generator().manual_seed(seed))
        assert batch.other is not None
        same = (batch.shown.steps == batch.other.steps).flatten(1).all(1)
        assert not same.any()


@pytest.mark.parametrize(
    ("encoder", "linear"),
    [
        ("posterior", False),
        ("posterior", True),
        ("context_window", False),
        ("context_window", True),
    ],
)
@pytest.mark.parametrize("method", ["dac", "bc"])
@pytest.mark.parametrize("tasks_per_batch", [None, 3])
def test_stop_restore_and_go_on_equals_going_on(
    encoder: str, linear: bool, method: str, tasks_per_batch: int | None
) -> None:
    settings = {
        "encoder": encoder,
        "linear": linear,
        "refresh_period": 3,
        "batch_norm": encoder == "posterior",
        "learned_updates": 8,
    }
    chosen = {
        "imitation": {"method": method},
        "sac": {**SAC, "policy_average_tau": 0.1},
        "replay": {**REPLAY, "tasks_per_batch": tasks_per_batch},
    }
    one, other = filled(settings, **chosen), filled(settings, **chosen)
    for _ in range(5):
        one.update()
    other.load_state(one.state_tensors(), one.counters, one.normalised)
    for _ in range(5):
        one.update()
        other.update()
    for group, tensors in one.state_tensors().items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, other.state_tensors()[group][name]), name


def test_the_experts_rows_in_sacs_batch_are_told_what_their_own_tasks_demonstrations_say() -> None:
    one = filled(
        {"encoder": "context_window", "most": SHOWN, "fewest": SHOWN},
        imitation={"demonstration_share": 0.5},
        replay={**REPLAY, "tasks_per_batch": 3},
    )
    conditioning, imitation = parts(one)
    says = conditioning.belief(torch.arange(SHOWN * TASKS).view(TASKS, SHOWN)).mean
    for _ in range(10):
        tasks = one._draw_tasks()
        batch = conditioning.conditioned(one._sample(tasks), torch.Generator())
        mixed, _ = imitation.relabel(batch, tasks)
        expert = mixed.observation["state"][-24:, 0].long()
        assert len(expert.unique()) == 3
        torch.testing.assert_close(mixed.observation["latent"][-24:], says[expert])


def test_demonstrations_in_sacs_batch_leave_rows_of_every_task() -> None:
    one = filled(imitation={"demonstration_share": 0.5})
    tasks = one._draw_tasks()
    batch = parts(one)[0].conditioned(one._sample(tasks), torch.Generator().manual_seed(0))
    mixed, _ = parts(one)[1].relabel(batch, tasks)
    own = mixed.observation["state"][:24, 0]
    assert sorted(set(own.tolist())) == [float(task) for task in range(TASKS)]


def test_what_is_published_is_what_was_learned() -> None:
    one = filled()
    for _ in range(3):
        one.update()
    published = one.sac.policy_tensors()
    layout = parts(one)[0].parts.layout
    for name, view in layout.unflatten(parts(one)[0].state.adam.parameters).items():
        assert torch.equal(published[f"context.{name}"], view), name


def test_a_checkpoint_has_the_encoders_average_beside_the_policys() -> None:
    tau = 0.25
    one = filled(sac={**SAC, "policy_average_tau": tau})
    expected = encoder_of(one)
    for _ in range(3):
        one.update()
        expected.lerp_(encoder_of(one), tau)
    kept = one.state_tensors()["policy"]
    layout = parts(one)[0].parts.layout
    for name, view in layout.unflatten(expected).items():
        torch.testing.assert_close(kept[f"context.{name}"], view)
    assert not torch.equal(expected, encoder_of(one))


@pytest.mark.parametrize("form", ["logit", "log_d", "minus_log_one_minus_d", "fairl"])
def test_the_reward_is_of_the_form_that_is_set_whatever_the_policy_is_told(form: str) -> None:
    one = filled(imitation={"reward": {"form": form}, "discriminator": {"learning_rate": 1e-2}})
    for _ in range(5):
        one.update()
    conditioning, imitation = parts(one)
    drawn = one.experience.sample(48, torch.Generator().manual_seed(0))
    told = conditioning.conditioned(drawn, torch.Generator().manual_seed(1))
    batch, reward = imitation.relabel(told)
    assert imitation._judge is not None
    logits = imitation._judge.logits(batch)
    settings = one.experiment.imitation.reward
    torch.testing.assert_close(reward, imitation_reward(logits, settings), rtol=1e-4, atol=1e-5)
    if form in ("log_d", "minus_log_one_minus_d"):
        assert bool((reward < 0.0).all()) is (form == "log_d")
    others = told_latent(batch, batch.observation["latent"].roll(20, 0))
    assert not torch.allclose(imitation.reward_of(batch), imitation.reward_of(others))


def test_the_environments_reward_is_not_learned_on() -> None:
    """Scrambled rewards leave every tensor the same, bit by bit."""
    one, other = filled(), filled(reward_shift=7.0)
    assert float(other._sample(other._draw_tasks()).environment_reward.mean()) > 5.0
    other._generator.set_state(one._generator.get_state())
    for _ in range(4):
        one.update()
        other.update()
    for name, tensor in one.state_tensors()["networks"].items():
        assert torch.equal(tensor, other.state_tensors()["networks"][name]), name


def test_meta_cloning_learns_the_experts_action() -> None:
    one = filled(
        imitation={"method": "bc", "cloning": {"loss": "mean_squared_error", "learning_rate": 1e-2}}
    )
    for _ in range(200):
        one.update()
    assert one.metrics()["cloning/action_error"] < 0.05
    batch = told_latent(Rows().transitions(torch.arange(5)), torch.zeros(5, 3))
    mean, _ = one.sac._gaussian(batch.observation)
    assert mean.shape == (5, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": specs()[0].task_id}, "expected 'latent' only with a family"),
        ({"imitation": {"method": "none"}}, "imitation.method that trains its encoder"),
        ({"reads": {"policy": BLIND, "critic": KEYS, "discriminator": KEYS}}, "reads.policy: expected 'latent'"),
        ({"reads": {"policy": KEYS, "critic": KEYS, "discriminator": BLIND}}, "reads.discriminator: expected 'latent'"),
        ({"reads": {"policy": KEYS, "critic": BLIND, "discriminator": KEYS}}, "reads.critic: expected 'latent'"),
        ({"imitation": ADVANTAGE}, "expected another than 'expert_advantage' where the task is inferred"),
        ({"context": {"most": 2, "fewest": 3}}, "context.fewest: expected at most context.most"),
        ({"context": {"learned": False}}, "context.learned: expected true"),
        ({"context": {"encoder": "context_window", "kl_coefficient": 0.1}}, "context.kl_coefficient: expected 0"),
        ({"context": {"linear": True, "time_pooling": "sum"}}, "context.time_pooling: expected 'mean'"),
        ({"context": {"linear": True, "encoder": "context_window", "batch_norm": True}}, "context.batch_norm: exp"),
        ({"imitation": {"method": "dac", "demonstrations": {"experts": 3, "episodes": 2}}}, "at most 2, .*episodes"),
        ({"context": {"episodes": 2}, "imitation": {"method": "dac", "demonstrations": {"experts": 3}}}, "y as cont"),
        ({"imitation": {"method": "dac", "demonstrations": {"experts": 3, "recorded": 1}}}, "at most 1, .*recorded"),
        ({"context": {"most": 0}}, "context.most"),
        ({"context": {"kl_ramp": [5, 5]}}, "context.kl_ramp"),
        (
            {"context": {"learned": False, "pretrain_updates": 1, "learned_updates": 9}},
            "context.learned_updates",
        ),
        ({"context": {"most": 3, "episodes": 2}}, "context.episodes: expected at least context.most"),
        ({"context": {"most": 2, "episodes": 3, "information_coefficient": 1.0}}, "at least twice context.most"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        experiment(changes.pop("context", None), **changes)


def test_segments_carry_as_many_numbers_as_may_be_shown() -> None:
    assert experiment({"most": 4}).replay.context_size == 4
    assert (
        experiment(
            reads={"policy": ["state"], "critic": ["state"], "discriminator": ["state"]}
        ).replay.context_size
        == 0
    )


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"latent_size": 2}, "context.latent_size: the checkpoint has 3, the experiment 2"),
        ({"linear": True}, "context.linear: the checkpoint has False, the experiment True"),
    ],
)
def test_a_checkpoint_with_another_encoder_is_refused_with_the_difference(
    tmp_path: Path, changed: dict[str, Any], named: str
) -> None:
    one = filled()
    write_checkpoint(
        tmp_path,
        run="test",
        steps=10,
        updates=0,
        policy_version=1,
        experiment=experiment(),
        environment=specs()[0],
        tensors=one.state_tensors(),
        state=checkpoint_state(one),
    )
    with pytest.raises(CannotResume, match=named):
        resume(tmp_path, filled(changed), experiment(changed), specs()[0])
    faster = experiment({"learning_rate": 0.1})
    assert resume(tmp_path, filled(), faster, specs()[0]) is not None
