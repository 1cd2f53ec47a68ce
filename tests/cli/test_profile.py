from __future__ import annotations

from pathlib import Path

import pytest

from apprentice.runs import RunFolder
from cli.profile import _evaluation_profiles, _print_tables
from cli.spans import ProcessProfile, SpanRow
from tests.evalserver.serving import make_run


def test_table_shows_every_span_and_what_is_left_unexplained(
    capsys: pytest.CaptureFixture[str],
) -> None:
    spans = (SpanRow("update", 9.0, 4500, 0.9), SpanRow("other", 1.0, 0, 0.1))
    _print_tables([ProcessProfile("learner", 10.0, spans)])
    printed = " ".join(capsys.readouterr().out.split())
    assert "learner" in printed
    assert "update │ 9.00 │ 4,500 │ 2,000.00 │ 90.0 %" in printed
    assert "explain 90.0 % of 10.0 s" in printed
    assert "less than 95 %" in printed


def test_an_evaluation_is_measured_by_what_it_consists_of(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / make_run(tmp_path, "swing", "cartpole-swingup"))
    (profile,) = _evaluation_profiles(folder)
    spans = {span.name: span for span in profile.spans}
    assert set(spans) == {"checkpoint loading", "evaluation", "rendering", "encoding"}
    assert spans["rendering"].units == spans["encoding"].units > 10
    assert all(span.seconds > 0.0 for span in profile.spans)
    assert _evaluation_profiles(RunFolder(tmp_path)) == ()
