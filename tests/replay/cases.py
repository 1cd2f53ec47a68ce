"""Specs, segments and episodes to store, whose every number tells where it belongs."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from apprentice.config import ReplaySettings
from apprentice.types import ArraySpec, Ending, EnvironmentSpec, Segment, SegmentId
from replay.errors import ReplayMismatch
from replay.reader import FeedReader

STATE = EnvironmentSpec(
    "cheetah-run",
    "cheetah-run",
    {"state": ArraySpec((3,), "float32")},
    ArraySpec((2,), "float32"),
    1000,
    1,
    0.01,
)
PIXELS = EnvironmentSpec(
    "reacher-easy",
    "reacher-easy",
    {"state": ArraySpec((3,), "float32"), "pixels": ArraySpec((3, 4, 5, 3), "uint8")},
    ArraySpec((2,), "float32"),
    1000,
    1,
    0.02,
)
LENGTH = 8
SETTINGS = ReplaySettings(capacity=400, segment_length=LENGTH, feed_segments=4, warmup_steps=1)


def make_segment(
    spec: EnvironmentSpec = STATE,
    *,
    episode: int = 0,
    first_step: int = 0,
    length: int = LENGTH,
    ending: Ending = Ending.GOES_ON,
    segment_length: int = LENGTH,
    incarnation: int = 2**64 - 7,
    actor: int = 1,
    task: int = 0,
    policy_version: int = 1,
) -> Segment:
    """Build a segment: state row of step t is [episode, t, t + 1/2], the frame after it t % 251."""
    size = spec.action_size
    steps = np.arange(first_step, first_step + length)
    rows = np.arange(first_step, first_step + length + 1)
    observation = {"state": np.zeros((segment_length + 1, 3), np.float32)}
    observation["state"][: length + 1] = np.stack(
        [np.full(len(rows), episode), rows, rows + 0.5], 1
    )
    if "pixels" in spec.observation:
        stack, shape = spec.num_leading_frames("pixels"), spec.frame_shape("pixels")
        pixels = np.zeros((stack + segment_length, *shape), np.uint8)
        for row in range(stack + length):
            pixels[row] = frame_value(episode, max(0, first_step + row - stack + 1))
        observation["pixels"] = pixels
    action = np.zeros((segment_length, size), np.float32)
    action[:length] = (steps[:, None] % 10) / 10
    pre_tanh_action = np.zeros((segment_length, size), np.float32)
    pre_tanh_action[:length] = np.arctanh(action[:length])
    environment_reward = np.zeros(segment_length, np.float32)
    environment_reward[:length] = 1000 * episode + steps
    discount = np.zeros(segment_length, np.float32)
    discount[:length] = 1.0
    if ending == Ending.TERMINATED:
        discount[length - 1] = 0.0
    return Segment(
        observation,
        action,
        pre_tanh_action,
        environment_reward,
        discount,
        length,
        ending,
        task,
        actor,
        incarnation,
        episode,
        first_step,
        policy_version,
        np.zeros(0, np.int64),
    )


def frame_value(episode: int, moment: int) -> int:
    """Return the grey value of the frame of an episode after `moment` steps."""
    return (37 * episode + moment) % 251


def make_episode(
    num_steps: int,
    spec: EnvironmentSpec = STATE,
    *,
    episode: int = 0,
    ending: Ending = Ending.TIME_LIMIT,
) -> list[Segment]:
    """Cut an episode into segments; the last one carries its ending."""
    return [
        make_segment(
            spec,
            episode=episode,
            first_step=first,
            length=min(LENGTH, num_steps - first),
            ending=ending if first + LENGTH >= num_steps else Ending.GOES_ON,
        )
        for first in range(0, num_steps, LENGTH)
    ]


def assert_same(expected: Segment, found: Segment) -> None:
    """Compare two segments field by field."""
    assert expected.observation.keys() == found.observation.keys()
    for key, value in expected.observation.items():
        np.testing.assert_array_equal(value, found.observation[key])
    for name in Segment._fields[1:]:
        np.testing.assert_array_equal(getattr(expected, name), getattr(found, name), name)


def ids(segments: list[Segment]) -> set[SegmentId]:
    return {segment.id for segment in segments}


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Poll until the condition holds; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain"
        time.sleep(0.02)


def refuses(reader: FeedReader) -> bool:
    """Return whether a reader has found that the server is not its experiment's."""
    try:
        reader.poll(1, 0.1)
    except ReplayMismatch:
        return True
    return False
