"""Learning many tasks at once: who is waited for, what a batch holds, and what the discriminator is shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from apprentice.config import Experiment
from apprentice.environments import experiment_specs
from apprentice.types import Ending, EnvironmentSpec, Segment, Transition
from learner.demonstrated import Demonstrated
from learner.discriminator import Columns
from learner.imitation import Imitation
from learner.judging import sloped
from learner.learning import Learning
from replay.tasks import TaskRings

CPU = torch.device("cpu")
KEYS = ["state", "task_parameters"]
BLIND_POLICY = {"policy": ["state"], "critic": KEYS, "discriminator": KEYS}
BLIND_CRITIC = {"policy": KEYS, "critic": ["state"], "discriminator": KEYS}
BLIND = {
    "policy": ["state"],
    "critic": ["state"],
    "discriminator": KEYS,
}  # nothing judges without imitation
LENGTH, TASKS = 10, 16


def experiment(**changes: Any) -> Experiment:
    tree = {
        "name": "test",
        "task": "reacher_goal",
        "environment": {"family": {"gamma": 0.98}},
        "reads": {"policy": KEYS, "critic": KEYS, "discriminator": KEYS},
        "network": {"hidden_size": 16},
        "learner": {"compile": "off"},
    }
    for section, own in (
        ("sac", {"gamma": 0.98, "batch_size": 48}),
        ("replay", {"segment_length": LENGTH, "warmup_steps": 20, "capacity": 1000}),
    ):
        tree[section] = {**own, **changes.pop(section, {})}  # type: ignore[dict-item]
    return Experiment.model_validate({**tree, **changes})


def specs() -> list[EnvironmentSpec]:
    return experiment_specs("reacher_goal", KEYS, experiment().environment)


def parameters(task: int) -> np.ndarray:
    return np.full(2, task / TASKS, np.float32)


def segment(task: int, number: int, ending: Ending = Ending.TIME_LIMIT) -> Segment:
    """State and parameters say the task."""
    random = np.random.default_rng(100 * task + number)
    pre_tanh = random.normal(size=(LENGTH, 2)).astype(np.float32)
    state = random.normal(size=(LENGTH + 1, 8)).astype(np.float32)
    state[:, 0] = task
    return Segment(
        {"state": state, "task_parameters": np.tile(parameters(task), (LENGTH + 1, 1))},
        np.tanh(pre_tanh),
        pre_tanh,
        random.normal(size=LENGTH).astype(np.float32),
        np.ones(LENGTH, np.float32),
        LENGTH,
        ending,
        task=task,
        actor=0,
        incarnation=9,
        episode=100 * task + number,
        first_step=0,
        policy_version=1,
        context=np.zeros(0, np.int64),
    )


class Rows:
    """Demonstrations: 5 rows of each task, in the order of the tasks."""

    num_rows, num_terminated, subsampling = 5 * TASKS, 0, 1

    def transitions(self, index: torch.Tensor) -> Transition:
        random = np.random.default_rng(0)
        task = (index // 5).numpy()
        state = torch.from_numpy(random.normal(size=(len(index), 8)).astype(np.float32)) + 3.0
        state[:, 0] = torch.from_numpy(task)
        told = torch.from_numpy(np.stack([parameters(t) for t in task]))
        observation = {"state": state, "task_parameters": told}
        pre_tanh = torch.zeros(len(index), 2)
        ones = torch.ones(len(index))
        return Transition(observation, pre_tanh, pre_tanh, ones, ones, dict(observation))


def filled(**changes: Any) -> Learning:
    demonstrated = None
    if "imitation" in changes:
        bounds = torch.arange(TASKS + 1) * 5
        demonstrated = Demonstrated(Rows(), None, None, "", bounds)
    one = Learning(experiment(**changes), specs(), CPU, demonstrated=demonstrated)
    for task in range(TASKS):
        for number in range(2):
            one.receive(segment(task, number))
    return one


def test_no_update_is_owed_before_an_episode_of_every_task_has_come() -> None:
    one = Learning(experiment(), specs(), CPU)
    for task in range(TASKS - 1):
        one.receive(segment(task, 0))
    assert (one.warm, one.updates_owed()) == (False, 0)
    one.receive(segment(TASKS - 1, 0, Ending.GOES_ON))
    assert not one.warm  # its episode goes on
    one.receive(segment(TASKS - 1, 1))
    assert one.warm
    assert one.updates_owed() == TASKS * LENGTH + LENGTH - 20


def test_a_batch_has_as_many_rows_of_each_task_in_their_order() -> None:
    one = filled()
    batch = one._sample(one._draw_tasks())
    tasks = batch.observation["state"][:, 0]
    assert tasks.tolist() == [float(task) for task in range(TASKS) for _ in range(3)]
    told = torch.from_numpy(np.stack([parameters(int(task)) for task in tasks]))
    torch.testing.assert_close(batch.observation["task_parameters"], told)
    assert (batch.next_observation["state"][:, 0] == tasks).all()


@pytest.mark.parametrize("num", [1, 5, 16, 40])
def test_fewer_tasks_are_drawn_without_replacement(num: int) -> None:
    one = filled(replay={"tasks_per_batch": num})
    seen: set[float] = set()
    for _ in range(60):
        batch = one._sample(one._draw_tasks())
        tasks, counts = batch.observation["state"][:, 0].unique(return_counts=True)
        assert len(tasks) == min(num, TASKS)
        assert int(counts.max()) - int(counts.min()) <= 1
        seen.update(tasks.tolist())
    assert len(seen) == TASKS


def test_the_newest_are_each_tasks_own() -> None:
    one = filled()
    rings = TaskRings(one.rings)
    newest = {
        tuple(row)
        for ring in one.rings
        for row in ring.trajectory(9, 100 * one.rings.index(ring) + 1).action.tolist()
    }
    batch = rings.sample(160, torch.Generator().manual_seed(0), newest=TASKS * LENGTH)
    assert all(tuple(row) in newest for row in batch.action.tolist())
    assert rings.num_transitions == TASKS * 2 * LENGTH


def test_the_same_segments_give_the_same_parameters() -> None:
    runs = [filled(imitation={"method": "dac"}) for _ in range(2)]
    for one in runs:
        for _ in range(5):
            one.update()
    for name, tensor in runs[0].state_tensors()["networks"].items():
        assert torch.equal(tensor, runs[1].state_tensors()["networks"][name]), name


def imitation(**settings: Any) -> tuple[Learning, Imitation]:
    one = filled(imitation={"method": "dac", "discriminator": settings})
    assert one.imitation is not None
    return one, one.imitation


def test_each_of_the_policys_rows_stands_beside_one_of_the_experts_of_its_task() -> None:
    one, part = imitation(replay_window=160, replay_window_share=0.5)
    for _ in range(5):
        tasks = part._draw_tasks(48, None, part._generator)
        policy = part._policy_batch(one.experience, 48, tasks).observation
        expert = part._expert_batch(48, tasks).observation
        torch.testing.assert_close(policy["state"][:, 0], expert["state"][:, 0])
        torch.testing.assert_close(policy["task_parameters"], expert["task_parameters"])


def test_mismatched_rows_are_the_experts_of_another_task() -> None:
    one, part = imitation(mismatched_share=0.5)
    tasks = part._draw_tasks(48, None, part._generator)
    assert tasks is not None
    expert = part._expert_batch(48, tasks)
    policy = part._policy_batch(one.experience, 48, tasks)
    found = part._mismatched(policy, expert, tasks).observation
    torch.testing.assert_close(found["task_parameters"], policy.observation["task_parameters"])
    task = found["state"][:, 0]
    told = found["task_parameters"][:, 0] * TASKS
    replaced = (found["state"] != policy.observation["state"]).any(1)
    assert 15 <= int(replaced.sum()) <= 24  # of 24, those that met their own task are left
    assert (task[replaced] != told[replaced]).all()
    assert (found["state"][replaced, 1:].mean()) > 2.0  # the expert's
    assert (task[~replaced] == told[~replaced]).all()


def test_rows_of_some_tasks_stand_beside_each_other_too_and_every_task_comes() -> None:
    one = filled(
        imitation={
            "method": "dac",
            "discriminator": {"mismatched_share": 0.5, "replay_window": 160, "batch_size": 10},
        },
        replay={"tasks_per_batch": 3},
    )
    part = one.imitation
    assert part is not None
    seen: set[float] = set()
    num_replaced = 0
    for _ in range(60):
        expert, policy, _ = part._drawn_for_update(one.experience, 10)
        told = expert.observation["task_parameters"]
        torch.testing.assert_close(policy.observation["task_parameters"], told)
        tasks, counts = expert.observation["state"][:, 0].unique(return_counts=True)
        assert sorted(counts.tolist()) == [3, 3, 4]
        replaced = policy.observation["state"][:, 1:].mean(1) > 1.5  # by the expert's
        own = policy.observation["state"][:, 0] == told[:, 0] * TASKS
        assert torch.equal(own, ~replaced)
        num_replaced += int(replaced.sum())
        seen.update(tasks.tolist())
    assert len(seen) == TASKS
    assert num_replaced > 60 * 4  # of five a batch, those of other tasks


def test_diagnostics_look_at_all_tasks_where_updates_draw_some() -> None:
    one = filled(imitation={"method": "dac"}, replay={"tasks_per_batch": 1})
    part = one.imitation
    assert part is not None
    assert part._judge is not None
    looked_at = []

    def judged(
        rows: Transition, kept: Callable[[Transition], Any] = part._judge.judged
    ) -> tuple[torch.Tensor, torch.Tensor]:
        looked_at.append(rows.observation["state"][:, 0].unique().tolist())
        found: tuple[torch.Tensor, torch.Tensor] = kept(rows)
        return found

    part._judge.judged = judged  # type: ignore[method-assign]
    part._num_diagnosed = 32
    before = part._generator.get_state()
    one.metrics()
    assert looked_at == [[float(task) for task in range(TASKS)]] * 2
    part._num_diagnosed = TASKS // 2  # fewer than tasks: some are drawn, with a stream of their own
    one.metrics()
    assert torch.equal(part._generator.get_state(), before)


def test_cloning_that_is_told_the_task_draws_some_tasks() -> None:
    one = filled(imitation={"method": "bc"}, replay={"tasks_per_batch": 2})
    assert one.cloning is not None
    seen: set[float] = set()
    for _ in range(60):
        batch, _, shown = one.cloning._draw()
        assert shown is None
        tasks = set(batch.observation["state"][:, 0].tolist())
        assert len(tasks) == 2
        seen |= tasks
    assert len(seen) == TASKS
    one.update()


def relabelled(one: Learning) -> torch.Tensor:
    """Return the states of one of SAC's batches, in which the expert's come last."""
    assert one.imitation is not None
    tasks = one._draw_tasks()
    batch, _ = one.imitation.relabel(one._sample(tasks), tasks)
    return batch.observation["state"]


def test_few_rows_of_the_experts_in_the_policys_batch_come_from_every_task_by_turns() -> None:
    one = filled(imitation={"method": "dac", "demonstration_share": 0.1})
    seen: set[float] = set()
    for _ in range(60):
        seen.update(relabelled(one)[-5:, 0].tolist())
    assert len(seen) == TASKS


def test_the_experts_rows_in_the_policys_batch_are_of_the_tasks_drawn_for_it() -> None:
    one = filled(
        imitation={"method": "dac", "demonstration_share": 0.5}, replay={"tasks_per_batch": 2}
    )
    seen: set[float] = set()
    for _ in range(60):
        state = relabelled(one)
        expert = state[:, 1:].mean(1) > 1.5
        assert expert.sum() == 24
        found, counts = state[expert, 0].unique(return_counts=True)
        assert counts.tolist() == [12, 12]
        assert found.tolist() == state[~expert, 0].unique().tolist()
        seen.update(found.tolist())
    assert len(seen) == TASKS


def test_the_slope_by_what_tells_the_task_is_not_penalised() -> None:
    observed = [Columns(8), Columns(2, "task_parameters")]
    _, part = imitation(inputs="state_next_state")
    assert part._judge is not None
    columns = part._judge._columns(specs()[0], 10)
    assert columns == observed * 2
    assert sloped(columns).tolist() == ([1.0] * 8 + [0.0] * 2) * 2
    _, part = imitation()
    assert part._judge is not None
    columns = part._judge._columns(specs()[0], 10)
    assert columns == [*observed, Columns(2)]
    assert sloped(columns).tolist() == [1.0] * 8 + [0.0] * 2 + [1.0] * 2


@pytest.mark.parametrize("demonstrations", [0.0, 0.5])
def test_a_share_of_the_rows_is_told_a_task_between_two(demonstrations: float) -> None:
    settings = {"method": "dac", "imagined_share": 0.5, "demonstration_share": demonstrations}
    one = filled(imitation=settings)
    part = one.imitation
    assert part is not None
    num_imagined = num_own = 0
    for _ in range(10):
        batch = one.experience.sample(48, part._generator)
        found, reward = part.relabel(batch)
        state = found.observation["state"]
        of_policy = state[:, 1:].mean(1) < 1.5
        assert int(of_policy.sum()) == 48 * (1.0 - demonstrations)
        own = (state[:, :1] / TASKS).expand(-1, 2)
        told = found.observation["task_parameters"]
        imagined = of_policy & (told != own).any(1)
        num_imagined += int(imagined.sum())
        num_own += int(of_policy.sum())
        assert (told >= 0.0).all()
        assert (told <= (TASKS - 1) / TASKS).all()
        assert ((told[imagined] * TASKS).frac() != 0.0).all()  # a task's are multiples of 1 / 16
        torch.testing.assert_close(found.next_observation["task_parameters"], told)
        torch.testing.assert_close(reward, part.reward_of(found))
        asked = found._replace(observation=found.observation | {"task_parameters": own})
        assert (part.reward_of(asked) != reward)[imagined].all()
    assert 0.35 < num_imagined / num_own < 0.55  # now and then a row meets one of its own task


def test_networks_that_are_told_the_task_read_its_products_with_all_else() -> None:
    network = {"hidden_size": 16, "task_products": True}
    one = filled(network=network, imitation={"method": "dac"})
    assert one.imitation is not None and one.imitation._judge is not None
    judge = one.imitation._judge

    def first_layers() -> list[torch.Tensor]:
        """Return what products [H, P] are weighed by, of policy, critics and discriminator."""
        parts = one.sac._parts
        policy = parts.policy_layout.unflatten(one.sac.state.policy.parameters)
        critic = parts.critic_layout.unflatten(one.sac.state.critic.parameters)
        score = judge._layout.unflatten(judge._state.adam.parameters)
        weights = (
            policy["trunk.0.weight"],
            critic["first_weight"].T,
            score["score.weights.0"].T,
        )
        places = (slice(10, 26), slice(10, 26), slice(12, 32))  # told and seen come first
        widths = (26, 28, 32)  # the critics' last inputs are the action
        assert [weight.shape[1] for weight in weights] == list(widths)
        return [weight[:, place].clone() for weight, place in zip(weights, places, strict=True)]

    before = first_layers()
    for _ in range(3):
        one.update()
    for first, now in zip(before, first_layers(), strict=True):
        assert (first != now).any(0).all()
    assert one.metrics()["learner/rejected_updates"] == 0.0


@pytest.mark.parametrize("inputs", ["state_action", "state"])
def test_airls_parts_of_a_families_task_read_products_too(inputs: str) -> None:
    """Of one task, since AIRL's reward is of one: g of (s, a) or (s), Phi of (s)."""
    changes = {
        "task": specs()[0].task_id,
        "network": {"hidden_size": 16, "task_products": True},
        "imitation": {"method": "airl", "discriminator": {"inputs": inputs, "hidden_size": 8}},
    }
    spec = specs()[0]
    one = Learning(
        experiment(**changes), [spec], CPU, demonstrated=Demonstrated(Rows(), None, None)
    )
    assert one.imitation is not None and one.imitation._judge is not None
    module = one.imitation._judge._module
    assert module.potential is not None
    judged = 8 + 2 * (inputs == "state_action")
    assert module.score.weights[0].shape[0] == judged + 2 + judged * 2
    assert module.potential.weights[0].shape[0] == 10 + 8 * 2
    reward = one.imitation.reward_of(Rows().transitions(torch.arange(16)))
    assert torch.isfinite(reward).all()


def test_a_family_is_imitated() -> None:
    one = filled(imitation={"method": "dac", "discriminator": {"learning_rate": 1e-2}})
    for _ in range(10):
        one.update()
    found = one.metrics()
    assert found["discriminator/logit_expert_mean"] > found["discriminator/logit_policy_mean"] + 0.2
    assert found["learner/rejected_updates"] == 0.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"imitation": {"method": "airl"}}, "expected another than 'airl'"),
        (
            {"context": {"information_coefficient": 0.1}, "replay": {"tasks_per_batch": 1}},
            "tasks_per_batch: expected 2 or more with context.information_coefficient",
        ),
        ({"task": specs()[0].task_id, "imitation": {"method": "dac", "imagined_share": 0.5}}, "imagined_share"),
        ({"imitation": {"method": "bc", "imagined_share": 0.5}}, "imagined_share"),
        ({"imitation": {"method": "gail", "imagined_share": 0.5, "reward": {"override": "zero"}}}, "imagined"),
        ({"reads": BLIND_POLICY, "imitation": {"method": "dac", "imagined_share": 0.5}}, "imagined_share"),
        ({"reads": BLIND_CRITIC, "imitation": {"method": "dac", "imagined_share": 0.5}}, "imagined_share"),
        ({"reads": BLIND, "network": {"task_products": True}}, "task_products: expected false"),
        ({"task": specs()[0].task_id, "imitation": {"discriminator": {"mismatched_share": 0.5}}}, "mismatched_share"),
    ],
)  # fmt: skip
def test_what_a_family_cannot_be_learned_with_is_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        experiment(**changes)


def test_specs_differ_only_by_the_task() -> None:
    found = specs()
    assert len({spec.task_id for spec in found}) == TASKS
    first = found[0]
    for spec in found:
        assert first == replace(
            spec,
            task=first.task,
            task_id=first.task_id,
            task_parameters=first.task_parameters,
        )
