"""Reverb works with the part of TensorFlow that is imported for it, and leaves no empty package behind."""

from __future__ import annotations

import subprocess
import sys

import pytest

_LOAD = """
import sys
from concurrent.futures import ThreadPoolExecutor
from replay.importing import load_reverb
with ThreadPoolExecutor(4) as pool:
    loaded = list(pool.map(lambda _: load_reverb(), range(4)))
assert all(each is loaded[0] for each in loaded)
"""
_IS_WHOLE = """
import reverb, tensorflow
assert reverb.Client is load_reverb().Client
assert tensorflow.TensorSpec is load_reverb().TensorSpec
assert int(tensorflow.constant([1, 2])[1]) == 2
"""


def _run(code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_part_of_tensorflow_is_imported_once_and_nothing_empty_stays() -> None:
    _run(
        _LOAD
        + "names = {'tensorflow', 'tensorflow.compat', 'tensorflow.compat.v1', 'reverb'}\n"
        + "assert not names & sys.modules.keys()\n"
        + "assert not any(name.startswith(('keras', 'tensorflow._api')) for name in sys.modules)\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize("code", [_LOAD + _IS_WHOLE, "import tensorflow\n" + _LOAD + _IS_WHOLE])
def test_all_of_it_can_be_imported_before_and_after(code: str) -> None:
    _run(code)
