"""Reads files that may crash, hang or fill the memory, in a process of its own; prints what came of it as JSON.

python -m tests.demonstrations.reading_child read PATH
python -m tests.demonstrations.reading_child mutate PATH FIRST_SEED NUM
"""

from __future__ import annotations

import faulthandler
import json
import random
import resource
import sys
from pathlib import Path

import numpy as np

from apprentice.demonstrations.exchange import import_npz
from apprentice.demonstrations.format import DemonstrationError, DemonstrationSet
from apprentice.demonstrations.reading import read_demonstrations

MIB = 1 << 20
MOST_BYTES = 512 * MIB
"""Of address space that reading may take on top of what the libraries have."""


def read(path: Path) -> DemonstrationSet:
    return import_npz(path) if path.suffix == ".npz" else read_demonstrations(path)


def complaints(found: DemonstrationSet) -> list[str]:
    """Say what is wrong with a set that was accepted; [] where nothing is."""
    wrong = []
    for number, episode in enumerate(found.trajectories):
        length = len(episode.action)
        arrays = {
            "action": (episode.action, length),
            "pre_tanh_action": (episode.pre_tanh_action, length),
            "environment_reward": (episode.environment_reward, length),
            "discount": (episode.discount, length),
            "physics_state": (episode.physics_state, length + 1),
            **{key: (value, length + 1) for key, value in episode.observation.items()},
        }
        for name, (array, rows) in arrays.items():
            if len(array) != rows:
                wrong.append(f"{name} of {number}: {len(array)} rows, not {rows}")
            frames = name in episode.observation and array.ndim > 2
            if array.dtype not in (np.float32, np.float64, *[np.uint8] * frames):
                wrong.append(f"{name} of {number}: {array.dtype}")
        # An archive's numbers are looked at when they are written as HDF5.
        if np.isfinite(episode.action).all() and np.abs(episode.action).max() > 1.0 + 1e-6:
            wrong.append(f"action of {number}: out of bounds")
        if not all(np.isfinite(array).all() for array, _ in arrays.values()):
            wrong.append(f"{number}: not finite")
    return wrong


def mutated(content: bytes, seed: int) -> bytes:
    """Return a file with a few bytes changed, as a seed says."""
    draw, result = random.Random(seed), bytearray(content)
    for _ in range(draw.choice([1, 1, 1, 2, 8])):
        at, kind = draw.randrange(len(result)), draw.random()
        if kind < 0.5:
            result[at] ^= 1 << draw.randrange(8)
        elif kind < 0.8:
            result[at] = draw.choice([0, 255, draw.randrange(256)])
        elif kind < 0.97:
            word = draw.choice([0, 2**64 - 1, draw.randrange(2**40), draw.randrange(len(result))])
            result[at : at + 8] = word.to_bytes(8, "little")
        else:
            del result[at : at + draw.randrange(64)]
    return bytes(result)


def mutate(path: Path, first: int, num: int) -> dict[str, object]:
    """Read `num` mutations of a file; count what was accepted and refused, and list what should not be."""
    content, accepted, refused, wrong = path.read_bytes(), 0, 0, []
    target = path.with_name(f"mutated{path.suffix}")
    for seed in range(first, first + num):
        target.write_bytes(mutated(content, seed))
        try:
            wrong += [f"seed {seed}: {complaint}" for complaint in complaints(read(target))]
            accepted += 1
        except DemonstrationError as error:
            refused += 1
            if not str(error).startswith(str(target)) or "found" not in str(error):
                wrong.append(f"seed {seed}: refused with {error}")
        except Exception as error:  # noqa: BLE001
            wrong.append(f"seed {seed}: {type(error).__name__}: {error}")
    return {"accepted": accepted, "refused": refused, "wrong": wrong}


def bounded(path: Path) -> dict[str, object]:
    """Read one file with a bound on memory, and say how far memory rose."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MOST_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refusal = None
    try:
        read(path)
    except DemonstrationError as error:
        refusal = str(error)
    risen = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"refusal": refusal, "risen_mib": risen * 1024 / MIB}


if __name__ == "__main__":
    faulthandler.enable()
    command, file, *numbers = sys.argv[1:]
    result = bounded(Path(file)) if command == "read" else mutate(Path(file), *map(int, numbers))
    print(json.dumps(result))
