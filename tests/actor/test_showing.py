"""What an actor shows its policy, and that segments say it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from actor.segments import Origin, SegmentBuilder
from actor.showing import Showing
from apprentice.demonstrations.context import TrainContext
from apprentice.rollout import rollout
from apprentice.types import ActionBatch, Observation
from tests.actor.fakes import STATE, FakeEnvironment

PER_TASK, TASKS = 3, 2
CONTEXT = TrainContext(
    torch.arange(12.0)[:, None].expand(12, 8).contiguous(),
    torch.arange(0, 13, 2),
    torch.arange(TASKS).repeat_interleave(PER_TASK),
    100 + torch.arange(PER_TASK * TASKS),
)


class Watched:
    """A policy that remembers what it was shown, and acts by nothing."""

    def __init__(self) -> None:
        self.shown: list[tuple[int, list[float]]] = []
        self.acted_after: list[int] = []

    def show(self, place: int, demonstrations: Sequence[np.ndarray], deterministic: bool) -> None:
        assert not deterministic
        self.shown.append((place, [float(steps[0, 0]) for steps in demonstrations]))

    def act(self, observation: Observation) -> ActionBatch:
        self.acted_after.append(len(self.shown))
        zeros = np.zeros((len(observation["state"]), 2), np.float32)
        return ActionBatch(zeros, zeros)


class Walking(FakeEnvironment):
    """Plays its tasks in turns, an episode of each."""

    def reset(self):  # type: ignore[no-untyped-def]
        first = super().reset()
        self.task_index = self._episode % TASKS
        return first


def test_segments_carry_the_numbers_of_what_was_shown_in_their_episode() -> None:
    policy = Watched()
    environments = [Walking(n, episode_steps=6) for n in range(2)]
    builder = SegmentBuilder(STATE, 4, 2, Origin(0, 1), context_size=2)
    showing = Showing(CONTEXT, (1, 2), policy, builder.show, seed=0)  # type: ignore[arg-type]
    segments = []
    for number, step in enumerate(rollout(environments, policy.act, None, showing.begin)):
        segments += builder.add(step, 1)
        if number == 59:
            break
    assert policy.acted_after[0] == 2  # both environments, before the first action
    assert len(segments) == 2 * 20
    by_episode: dict[int, list[list[int]]] = {}
    sizes = set()
    for segment in segments:
        context = segment.context.tolist()
        by_episode.setdefault(segment.episode, []).append(context)
        shown = [number for number in context if number >= 0]
        sizes.add(len(shown))
        assert len(shown) == len(set(shown))
        assert context == shown + [-1] * (2 - len(shown))
        assert {(number - 100) // PER_TASK for number in shown} == {segment.task}
    assert sizes == {1, 2}
    for episode, contexts in by_episode.items():
        assert contexts == [contexts[0]] * 2
        place, firsts = policy.shown[episode]
        assert place == episode % 2
        assert [2.0 * (number - 100) for number in contexts[0] if number >= 0] == firsts


def test_what_chance_began_is_inferred_anew_and_says_the_same_numbers() -> None:
    policy = Watched()
    noted: list[tuple[int, list[int]]] = []
    showing = Showing(
        CONTEXT,
        (1, 1),
        policy,  # type: ignore[arg-type]
        lambda index, context: noted.append((index, context.tolist())),
        seed=3,
    )
    showing.begin(0, 1)
    showing.begin(1, 0)
    before = list(policy.shown)
    showing.show_again()
    assert policy.shown == before + before
    assert len(noted) == 2
