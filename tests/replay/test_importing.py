"""Reverb works with the part of TensorFlow that is imported for it, and no empty package stays."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_LOAD = """
import sys
from concurrent.futures import ThreadPoolExecutor
from replay.importing import load_reverb
with ThreadPoolExecutor(4) as pool:
    loaded = list(pool.map(lambda _: load_reverb(), range(4)))
assert all(each is loaded[0] for each in loaded)
names = {'tensorflow', 'tensorflow.compat', 'tensorflow.compat.v1', 'reverb'}
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
        + "assert not names & sys.modules.keys()\n"
        + "assert not any(name.startswith(('keras', 'tensorflow._api')) for name in sys.modules)\n"
        + "assert repr(tuple(load_reverb().TensorSpec([3], 'uint8').shape)) == '(3,)'\n"
    )


def test_what_is_missing_is_named_and_a_second_try_succeeds(tmp_path: Path) -> None:
    # A package without modules stands for a Reverb that is not there, or broken.
    (tmp_path / "reverb").mkdir()
    (tmp_path / "reverb" / "__init__.py").touch()
    _run(
        f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\n"
        "from replay.importing import load_reverb\n"
        "try:\n    load_reverb()\nexcept ModuleNotFoundError as error:\n"
        "    assert error.name == 'reverb.client', error\nelse:\n    raise AssertionError\n"
        "sys.path.pop(0)\nsys.path_importer_cache.clear()\n" + _LOAD
    )


def test_other_threads_can_look_for_tensorflow_meanwhile() -> None:
    # torch.compile does, and a module without a spec is an error to it.
    _run(
        "import importlib.util, sys\nfrom replay.importing import _empty_packages\n"
        "with _empty_packages() as empty:\n"
        "    assert set(empty) == {'tensorflow', 'tensorflow.compat', 'tensorflow.compat.v1', 'reverb'}\n"
        "    assert all(importlib.util.find_spec(name) is not None for name in empty)\n"
        "assert not set(empty) & sys.modules.keys()\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize("code", [_LOAD + _IS_WHOLE, "import tensorflow\n" + _LOAD + _IS_WHOLE])
def test_all_of_it_can_be_imported_before_and_after(code: str) -> None:
    _run(code)
