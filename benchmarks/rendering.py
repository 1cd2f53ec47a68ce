"""Frames per second at 84x84 of each rendering quality on one core, beside dm_control's `physics.render`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.alternating import answer, contest  # noqa: E402 - found by the line above

SIZE = 84
OURS = ("look", "fast", "full")


def answer_with_ours(task: str, quality: str, seconds: float) -> None:
    """Answer rounds with one environment's `render`, stepped in between."""
    from apprentice.environments import make_environment
    from apprentice.environments.renderer import Quality

    environment = make_environment(task, seed=0)
    environment.reset()
    action = [0.2] * environment.spec.action_size

    def step() -> None:
        import numpy as np

        environment.step(np.array(action, np.float32))

    chosen = cast("Quality", quality)
    _answer(step, lambda: environment.render(SIZE, SIZE, camera=0, quality=chosen), seconds)


def answer_with_dm_control(task: str, backend: str, seconds: float) -> None:
    """Answer rounds with dm_control's own picture; it looks for its backend when it is imported."""
    os.environ["MUJOCO_GL"] = backend
    import numpy as np
    from dm_control import suite

    domain, _, name = task.partition("-")
    environment = suite.load(domain, name, task_kwargs={"random": 0})
    environment.reset()
    action = np.full(environment.action_spec().shape, 0.2)
    _answer(
        lambda: environment.step(action),
        lambda: environment.physics.render(SIZE, SIZE, camera_id=0),
        seconds,
    )


def _answer(step: Callable[[], object], render: Callable[[], object], seconds: float) -> None:
    """Time the pictures alone; the steps between them only make them differ."""

    def measure(seconds: float = seconds) -> float:
        spent, frames = 0.0, 0
        while spent < seconds:
            step()
            started = time.perf_counter()
            render()
            spent += time.perf_counter() - started
            frames += 1
        return frames / spent

    measure(0.5)
    answer(measure)


def main() -> None:
    """Measure all in turns and print rows, or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument(
        "--tasks", nargs="+", default=["reacher-easy", "cheetah-run", "walker-walk"]
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a round")
    parser.add_argument("--contestant", choices=[*OURS, "dm_control"], help="be this one")
    parser.add_argument(
        "--backend", default="egl", help="of dm_control, where it is to be that one"
    )
    arguments = parser.parse_args()
    if arguments.contestant == "dm_control":
        answer_with_dm_control(arguments.tasks[0], arguments.backend, arguments.seconds)
        return
    if arguments.contestant:
        answer_with_ours(arguments.tasks[0], arguments.contestant, arguments.seconds)
        return
    from apprentice.environments import probe_rendering

    backend = probe_rendering().name
    rows = []
    for task in arguments.tasks:
        flags = ["--tasks", task, "--seconds", str(arguments.seconds), "--backend", backend]
        commands = {
            name: [sys.executable, __file__, "--contestant", name, *flags]
            for name in (*OURS, "dm_control")
        }
        rates = contest(commands, 1, arguments.rounds)
        rows += [
            {
                "benchmark": f"rendering_{name}_{task}",
                "unit": "frames/s",
                "ours": round(rates[name], 1),
                "peer_name": "dm_control physics.render",
                "peer": round(rates["dm_control"], 1),
            }
            for name in OURS
        ]
    print(json.dumps(rows, indent=None if arguments.json else 2))


if __name__ == "__main__":
    main()
