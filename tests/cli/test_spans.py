from __future__ import annotations

import json
from pathlib import Path

import pytest

from apprentice.metrics import MetricsWriter
from cli.spans import describe_sum, read_profiles, spans_of_metrics, to_json

_ROWS: list[dict[str, float | None]] = [
    {"profile/learner/update/seconds": 1.0, "profile/learner/update/units": 10.0},
    {
        "profile/learner/update/seconds": 6.0,
        "profile/learner/update/units": 2000.0,
        "profile/learner/feed read/seconds": 3.0,
        "profile/learner/feed read/units": 1000.0,
        "profile/learner/other/seconds": 1.0,
        "profile/learner/other/units": 1.0,
        "profile/actor-0/physics/seconds": 9.9,
        "profile/actor-0/physics/units": 100.0,
        "profile/actor-0/other/seconds": 0.1,
        "profile/actor-0/other/units": 1.0,
    },
    {"learner/critic_loss": None},
]


def _write(folder: Path) -> Path:
    with MetricsWriter(folder / "metrics.jsonl") as writer:
        for row in _ROWS:
            writer.write(1, 1, {key: value for key, value in row.items() if value is not None})
    return folder


def test_newest_spans_of_each_process_count() -> None:
    spans = spans_of_metrics(_ROWS)
    assert spans["learner"]["update"] == (6.0, 2000)
    assert spans["actor-0"] == {"physics": (9.9, 100), "other": (0.1, 1)}


def test_shares_add_up_to_the_wall_time_with_the_largest_first(tmp_path: Path) -> None:
    actor, learner = read_profiles(_write(tmp_path))
    assert (actor.process, learner.process) == ("actor-0", "learner")
    assert learner.wall_seconds == pytest.approx(10.0)
    assert [span.name for span in learner.spans] == ["update", "feed read", "other"]
    assert [span.share for span in learner.spans] == pytest.approx([0.6, 0.3, 0.1])
    assert learner.spans[0].microseconds_per_unit == pytest.approx(3000.0)


def test_table_says_when_too_much_time_is_unexplained(tmp_path: Path) -> None:
    actor, learner = read_profiles(_write(tmp_path))
    assert describe_sum(actor) == "the named spans explain 99.0 % of 10.0 s of wall time"
    assert "90.0 %" in describe_sum(learner)
    assert "less than 95 %" in describe_sum(learner)


def test_replay_server_speaks_for_itself(tmp_path: Path) -> None:
    span = {"seconds": 2.0, "units": 4}
    (tmp_path / "replay-profile.json").write_text(json.dumps({"checkpoint save": span}))
    (replay,) = read_profiles(tmp_path)
    assert replay.process == "replay"
    assert replay.spans[0].microseconds_per_unit == pytest.approx(500_000.0)


def test_run_without_spans_has_no_profiles(tmp_path: Path) -> None:
    assert read_profiles(tmp_path) == ()


def test_json_carries_what_the_table_shows(tmp_path: Path) -> None:
    document = to_json("reacher", 60.0, read_profiles(_write(tmp_path)))
    update = document["processes"]["learner"]["spans"]["update"]
    assert update == {
        "seconds": 6.0,
        "units": 2000,
        "microseconds_per_unit": pytest.approx(3000.0),
        "share": pytest.approx(0.6),
    }
    assert json.loads(json.dumps(document))["experiment"] == "reacher"
