"""Reverb with no more of TensorFlow than it needs.

`import reverb` imports all of TensorFlow: 3 s of a processor and 160 MB of every process's own memory. Reverb's
clients and servers need the native library and the specification of a tensor, 0.6 s and 48 MB; the rest serves its
datasets, which nothing here uses. The start of each service, and the restart of what crashed, is that much shorter.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

_lock = threading.Lock()
_loaded: Reverb | None = None


class Reverb(NamedTuple):
    """What is used of it."""

    Client: Any
    Server: Any
    Table: Any
    TensorSpec: Any
    checkpointers: Any
    pybind: Any
    rate_limiters: Any
    selectors: Any


def load_reverb() -> Reverb:
    """Import Reverb, with TensorFlow held to one thread and silent; from any thread, and again after a failure.

    Raises ModuleNotFoundError where one of the two is not installed. Another thread that imports TensorFlow meanwhile
    gets an empty package; afterwards either can be imported whole, but Reverb's datasets do not work in this process.
    """
    global _loaded
    with _lock:
        if _loaded is None:
            for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
                os.environ.setdefault(name, "1")
            os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
            with _empty_packages() as empty:
                _loaded = _import_parts(empty)
        return _loaded


@contextmanager
def _empty_packages() -> Iterator[dict[str, ModuleType]]:
    """Put empty packages in the places of those that import everything, but where they are imported already."""
    empty = {}
    for name in ("tensorflow", "reverb"):
        if name in sys.modules:
            continue
        found = importlib.util.find_spec(name)
        if found is None or found.submodule_search_locations is None:
            raise ModuleNotFoundError(f"no package {name!r}; `make install` installs it", name=name)
        empty[name] = importlib.util.module_from_spec(found)  # which does not run it
    if "tensorflow" in empty:
        for name in ("tensorflow.compat", "tensorflow.compat.v1"):
            empty[name] = importlib.util.module_from_spec(ModuleSpec(name, None))
    sys.modules.update(empty)
    try:
        yield empty
    finally:
        for name in empty:
            sys.modules.pop(name, None)


def _import_parts(empty: dict[str, ModuleType]) -> Reverb:
    """Import what is used, and give the empty packages what Reverb's modules look at meanwhile."""
    if "tensorflow" in empty:
        # The first that all of TensorFlow does; without it a shape's entries are of a kind of their own.
        importlib.import_module("tensorflow.python.tf2").enable()
        versions = importlib.import_module("tensorflow.python.framework.versions")
        empty["tensorflow"].__dict__["__version__"] = versions.VERSION
    tensor_spec = importlib.import_module("tensorflow.python.framework.tensor_spec").TensorSpec
    if "tensorflow.compat.v1" in empty:
        empty["tensorflow.compat.v1"].__dict__.update(Tensor=np.ndarray, TensorSpec=tensor_spec)
    client = importlib.import_module("reverb.client")
    server = importlib.import_module("reverb.server")
    return Reverb(
        Client=client.Client,
        Server=server.Server,
        Table=server.Table,
        TensorSpec=tensor_spec,
        checkpointers=importlib.import_module("reverb.platform.default.checkpointers"),
        pybind=importlib.import_module("reverb.pybind"),
        rate_limiters=importlib.import_module("reverb.rate_limiters"),
        selectors=importlib.import_module("reverb.item_selectors"),
    )
