from __future__ import annotations

import io

import pytest
from rich.console import Console

from apprentice.runs import RunStatus
from cli.supervisor import ServiceState
from cli.view import LiveView, PlainView, clock, eta, render, sparkline, status_line

_STATUS = RunStatus(
    run="tiny-0-0-20260101T000000",
    experiment="tiny",
    task="reacher-easy",
    state="training",
    steps=25_000,
    max_steps=100_000,
    environment_frames=50_000,
    updates=20_000,
    policy_version=17,
    evaluation_returns=(100.0, 500.0, 912.4),
    best_return=912.4,
    training_return=850.0,
    replay_ratio=0.9996,
    steps_per_second=250.0,
    updates_per_second=249.0,
    policy_lag_steps=383.6,
    actors=(
        {
            "slot": 0,
            "host": "atlas",
            "pid": 4711,
            "steps_per_second": 250.0,
            "heartbeat_age_seconds": 1.2,
            "policy_version": 17,
        },
    ),
)
_SERVICES = (
    ServiceState("replay", "running", 10, 0, 65.0),
    ServiceState("learner", "restarting", None, 2, 4.0),
)


def _text_of(status: RunStatus | None) -> str:
    console = Console(file=io.StringIO(), width=110, record=True)
    console.print(render("tiny", "curl -o rollout.mp4 'URL'", status, _SERVICES))
    return console.export_text()


def test_line_says_how_the_run_is_and_what_is_in_trouble() -> None:
    assert status_line(_STATUS, _SERVICES) == (
        "training 25,000/100,000 steps (25 %) · return 912 · best 912 · training return 850 · "
        "steps/s 250 · updates/s 249 · updates/step 1.000 · lag 384 steps · ETA 5:00 · 1 actors · "
        "learner restarting"
    )


def test_line_before_the_first_report_says_that_it_starts() -> None:
    assert status_line(None, _SERVICES[:1]) == "starting"


def test_picture_shows_progress_returns_rates_actors_services_and_how_to_look() -> None:
    text = _text_of(_STATUS)
    for part in (
        "25,000 of 100,000 steps",
        "ETA 5:00",
        "▁▄█  100  500  912",
        "updates/step 1.000",
        "lag 384 steps",
        "atlas",
        "4711",
        "1 s ago",
        "learner",
        "restarting",
        "in 0:04",
        "1:05",
        "curl -o rollout.mp4 'URL'",
    ):
        assert part in text


def test_picture_waits_for_the_first_report() -> None:
    assert "waiting for the learner's first report" in _text_of(None)


def test_picture_of_a_run_without_any_measure_is_drawn() -> None:
    bare = RunStatus(run="r", experiment="tiny", task="a-b", state="starting", max_steps=10)
    assert "ETA ?" in _text_of(bare)


def test_message_with_brackets_is_shown_as_it_is() -> None:
    assert "lost [3] segments" in _text_of(
        _STATUS.model_copy(update={"message": "lost [3] segments"})
    )


@pytest.mark.parametrize(
    ("values", "bars"),
    [((), ""), ((3.0,), "▄"), ((2.0, 2.0), "▄▄"), ((0.0, 1.0), "▁█"), ((0.0, 50.0, 100.0), "▁▅█")],
)
def test_sparkline_reaches_from_the_smallest_to_the_largest(
    values: tuple[float, ...], bars: str
) -> None:
    assert sparkline(values) == bars


def test_times_are_written_as_a_clock_shows_them() -> None:
    assert [clock(seconds) for seconds in (0, 59.6, 3599, 3661)] == [
        "0:00",
        "1:00",
        "59:59",
        "1:01:01",
    ]


def test_time_left_is_unknown_while_nothing_moves() -> None:
    assert eta(_STATUS.model_copy(update={"steps_per_second": 0.0})) == "?"
    assert eta(_STATUS.model_copy(update={"steps": 100_000})) == "0:00"


def test_plain_view_repeats_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    view = PlainView(lambda: _STATUS)
    for _ in range(50):
        view.tick(_SERVICES)
    view.event("learner crashed")
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_live_view_leaves_the_terminal_as_it_was() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=110)
    view = LiveView(console, "tiny", "footer", lambda: _STATUS)
    view.tick(_SERVICES)
    view.event("learner [crashed]")
    view.close()
    hide, show = "\x1b[?25l", "\x1b[?25h"
    assert screen.getvalue().count(hide) == 1
    assert screen.getvalue().rindex(show) > screen.getvalue().rindex(hide)
    assert "learner [crashed]" in screen.getvalue()
