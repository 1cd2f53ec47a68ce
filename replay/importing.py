"""Reverb with no more of TensorFlow than it needs.

`import reverb` imports all of TensorFlow: 3 s of a processor and 160 MB of every process's own memory. Reverb's
clients and servers need the native library and the specification of a tensor, 0.6 s and 48 MB; the rest serves its
datasets, which nothing here uses. The start of each service, and the restart of what crashed, is that much shorter.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import sys
import threading
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

_lock = threading.Lock()
_names: SimpleNamespace | None = None


def load_reverb() -> Any:
    """Import Reverb, with TensorFlow held to one thread and silent; from any thread.

    Returns what is used of it: Client, Server, Table, TensorSpec, and the modules checkpointers, pybind,
    rate_limiters and selectors. Raises ModuleNotFoundError where one of the two is not installed.
    """
    global _names
    with _lock:
        if _names is None:
            for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
                os.environ.setdefault(name, "1")
            os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
            _names = _import_parts()
        return _names


def _import_parts() -> SimpleNamespace:
    """Import single modules, with empty packages in the places of those that import everything."""
    names = ("tensorflow", "tensorflow.compat", "tensorflow.compat.v1", "reverb")
    empty = {name: ModuleType(name) for name in names if name not in sys.modules}
    for name in {"tensorflow", "reverb"} & empty.keys():
        found = importlib.util.find_spec(name)
        if found is None or found.submodule_search_locations is None:
            raise ModuleNotFoundError(f"no package {name!r}; `make install` installs it", name=name)
        empty[name].__path__ = list(found.submodule_search_locations)
    sys.modules.update(empty)
    try:
        specification = importlib.import_module("tensorflow.python.framework.tensor_spec")
        if "tensorflow" in empty:  # What Reverb's modules look at while they are imported.
            empty["tensorflow"].__dict__["__version__"] = importlib.metadata.version(
                "tensorflow-cpu"
            )
            first = empty["tensorflow.compat.v1"]
            first.__dict__.update(Tensor=np.ndarray, TensorSpec=specification.TensorSpec)
        client, server, pybind, selectors, rate_limiters, checkpointers = (
            importlib.import_module(f"reverb.{name}")
            for name in (
                "client",
                "server",
                "pybind",
                "item_selectors",
                "rate_limiters",
                "platform.default.checkpointers",
            )
        )
    finally:
        for name in empty:  # Whoever wants all of either gets it.
            sys.modules.pop(name, None)
    return SimpleNamespace(
        Client=client.Client,
        Server=server.Server,
        Table=server.Table,
        TensorSpec=specification.TensorSpec,
        checkpointers=checkpointers,
        pybind=pybind,
        rate_limiters=rate_limiters,
        selectors=selectors,
    )
