"""The bytes of a segment, and what may not become one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apprentice.config import ReplaySettings
from apprentice.types import ArraySpec, Ending, EnvironmentSpec, Segment
from replay.errors import SegmentRejected
from replay.tables import (
    REVERB_BASE_BYTES,
    SegmentFormat,
    full_tables_bytes,
    replay_digest,
    signed,
    table_sizes,
    unsigned,
)
from tests.replay.cases import LENGTH, PIXELS, SETTINGS, STATE, assert_same, make_segment

FORMAT = SegmentFormat([STATE, PIXELS], LENGTH)


@pytest.mark.parametrize("length", [1, 5, LENGTH])
@pytest.mark.parametrize("task", [0, 1])
def test_a_segment_comes_back_as_it_went(length: int, task: int) -> None:
    segment = make_segment(
        [STATE, PIXELS][task], task=task, length=length, ending=Ending.TERMINATED
    )
    found = FORMAT.decode(FORMAT.encode(segment))
    assert_same(segment, found)
    assert isinstance(found.ending, Ending)


def test_segments_of_all_tasks_have_the_same_size() -> None:
    sizes = {
        len(FORMAT.encode(make_segment(STATE))),
        len(FORMAT.encode(make_segment(PIXELS, task=1))),
    }
    assert sizes == {FORMAT.num_bytes}


def test_context_ids_travel() -> None:
    wider = SegmentFormat([STATE], LENGTH, context_size=2)
    segment = make_segment()._replace(context=np.array([5, -6], np.int64))
    assert wider.decode(wider.encode(segment)).context.tolist() == [5, -6]


@given(st.integers(0, 2**64 - 1))
def test_an_incarnation_keeps_its_bits(incarnation: int) -> None:
    assert -(2**63) <= signed(incarnation) < 2**63
    assert unsigned(signed(incarnation)) == incarnation
    segment = make_segment(incarnation=incarnation)
    assert FORMAT.decode(FORMAT.encode(segment)).incarnation == incarnation


ARRAYS = ("state", "action", "pre_tanh_action", "environment_reward", "discount")


def _array(segment: Segment, name: str) -> np.ndarray:
    return segment.observation["state"] if name == "state" else getattr(segment, name)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(ARRAYS), st.sampled_from([np.nan, np.inf, -np.inf]), st.data())
def test_nan_or_infinity_anywhere_is_rejected_on_both_sides(
    name: str, value: float, data: st.DataObject
) -> None:
    segment = make_segment()
    array = _array(segment, name)
    at = data.draw(st.integers(0, array.size - 1))
    encoded = FORMAT.encode(segment)
    array.flat[at] = value
    with pytest.raises(SegmentRejected, match=f"{name}: expected finite"):
        FORMAT.encode(segment)
    copy = FORMAT.decode(encoded)  # views of the bytes: spoil them as a raw client would
    _array(copy, name).flat[at] = value
    with pytest.raises(SegmentRejected, match=f"{name}: expected finite") as caught:
        FORMAT.decode(encoded)
    assert caught.value.actor == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": 0}, "length: expected 1 to 8, found 0"),
        ({"length": LENGTH + 1}, "length: expected 1 to 8, found 9"),
        ({"ending": 4}, "ending: expected 0 to 3, found 4"),
        ({"task": 2}, "task: expected 0 to 1, found 2"),
        ({"first_step": -1}, "first_step: expected 0 or more"),
        (
            {"action": np.full((LENGTH, 2), 1.5, np.float32)},
            r"action: expected \[-1, 1\], found 1.5",
        ),
        (
            {"action": np.zeros((LENGTH, 3), np.float32)},
            r"action: expected float32 \[8, 2\], found",
        ),
        ({"action": np.zeros((LENGTH, 2))}, "action: expected float32 .* found float64"),
        ({"discount": np.full(LENGTH, 2.0, np.float32)}, r"discount: expected \[0, 1\]"),
        ({"discount": np.zeros(LENGTH, np.float32)}, "discount: expected 0 only at the last step"),
        ({"observation": {}}, "expected observations"),
        ({"context": np.zeros(1, np.int64)}, "context: expected"),
    ],
)
def test_a_segment_that_breaks_its_contract_is_rejected(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(SegmentRejected, match=message):
        FORMAT.encode(make_segment()._replace(**changes))  # type: ignore[arg-type]


def test_bytes_of_another_experiment_are_rejected() -> None:
    other = dataclasses.replace(
        STATE, observation={"state": ArraySpec((3,), "float32")}, action_repeat=2
    )
    mine, theirs = SegmentFormat([STATE], LENGTH), SegmentFormat([other], LENGTH)
    assert mine.num_bytes == theirs.num_bytes
    with pytest.raises(SegmentRejected, match="its layout is not this experiment's"):
        mine.decode(theirs.encode(make_segment()))
    with pytest.raises(SegmentRejected, match="expected uint8"):
        mine.decode(np.zeros(3, np.uint8))


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=FORMAT.num_bytes, max_size=FORMAT.num_bytes))
def test_random_bytes_never_decode(data: bytes) -> None:
    with pytest.raises(SegmentRejected):
        FORMAT.decode(np.frombuffer(data, np.uint8))


def test_the_digest_changes_with_specs_sizes_and_nothing_else() -> None:
    digest = replay_digest([STATE], SETTINGS)
    assert digest == replay_digest([EnvironmentSpec.from_dict(STATE.to_dict())], SETTINGS)
    assert digest == replay_digest([STATE], SETTINGS.model_copy(update={"warmup_steps": 7}))
    changed = [
        replay_digest([dataclasses.replace(STATE, action_repeat=2)], SETTINGS),
        replay_digest([STATE, PIXELS], SETTINGS),
        replay_digest([STATE], SETTINGS.model_copy(update={"capacity": 800})),
        replay_digest([STATE], SETTINGS.model_copy(update={"segment_length": 4})),
        replay_digest([STATE], SETTINGS.model_copy(update={"feed_segments": 5})),
    ]
    assert len({digest, *changed}) == 6


def test_tables_hold_the_capacity_in_segments_and_at_least_one() -> None:
    assert table_sizes([STATE], SETTINGS) == {"task/cheetah-run": 50, "feed": 4}
    tiny = ReplaySettings(capacity=8, segment_length=8, warmup_steps=1)
    assert table_sizes([STATE], tiny)["task/cheetah-run"] == 1


def test_a_million_cheetah_transitions_are_expected_to_need_a_fifth_of_a_gigabyte() -> None:
    spec = dataclasses.replace(
        STATE, observation={"state": ArraySpec((17,), "float32")}, action=ArraySpec((6,), "float32")
    )
    expected = full_tables_bytes([spec], ReplaySettings()) - REVERB_BASE_BYTES
    assert 120_000_000 < expected < 200_000_000
