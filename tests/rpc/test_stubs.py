"""The committed stubs are those of the committed contract."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_generating_the_stubs_anew_changes_nothing(tmp_path: Path) -> None:
    subprocess.run(
        [str(ROOT / "proto" / "generate"), str(tmp_path)],
        env={**os.environ, "PYTHON": sys.executable},
        check=True,
        capture_output=True,
        timeout=60,
    )
    generated = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert len(generated) == 4
    for path in generated:
        committed = ROOT / path.relative_to(tmp_path)
        assert committed.read_text() == path.read_text(), f"{committed.name}: run `make protos`"
