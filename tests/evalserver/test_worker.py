"""What a worker answers by itself, without a server around it."""

from __future__ import annotations

from pathlib import Path

import pytest

from apprentice.environments import RenderingBackend
from apprentice.runs import RunFolder
from evalserver.rollouts import Answerable
from evalserver.schemas import EvaluateQuery
from evalserver.worker import Worker
from tests.evalserver.serving import make_run

NOTHING_DRAWS = RenderingBackend("none", "egl: no driver. To mend it: apt-get install x")


def test_a_policy_that_reads_pixels_where_nothing_draws_is_answered_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apprentice.environments.renderer.probe_rendering", lambda: NOTHING_DRAWS)
    run = make_run(tmp_path, "sees", "reacher-easy", reads=("pixels",))
    paths = [str(path) for path in RunFolder(tmp_path / run).checkpoints.glob("step-*")]
    query = EvaluateQuery(checkpoint=run, format="json", max_steps=1)
    with pytest.raises(Answerable, match="reads pixels: .* apt-get install x") as refused:
        Worker().answer({**query.model_dump(), "paths": paths, "deadline_seconds": 60.0})
    assert refused.value.status == 503
