from __future__ import annotations

import pytest

from cli.profile import _print_tables
from cli.spans import ProcessProfile, SpanRow


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
