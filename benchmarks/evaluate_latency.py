"""Seconds that `GET /evaluate` takes for an mp4 of a 1,000-step reacher episode, 320x320, server warm."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

START_SECONDS = 90.0
TASK = "reacher-easy"


def make_run(root: Path) -> str:
    """Write a run with one untrained checkpoint; return its id."""
    import torch

    from apprentice.checkpoint import write_checkpoint
    from apprentice.config import Experiment
    from apprentice.environments import environment_spec
    from apprentice.networks import build_policy
    from apprentice.runs import RunFolder

    experiment = Experiment(name="bench", task=TASK)
    folder = RunFolder.create(root, experiment)
    spec = environment_spec(TASK, ("state",), experiment.environment)
    torch.manual_seed(0)
    write_checkpoint(
        folder.checkpoints,
        run=folder.path.name,
        steps=1,
        updates=0,
        policy_version=1,
        experiment=experiment,
        environment=spec,
        tensors={"policy": build_policy(experiment, spec).state_dict()},
        state={},
    )
    return folder.path.name


def fetch(port: int, path: str, **query: object) -> bytes:
    """Return the body of an answer."""
    url = f"http://127.0.0.1:{port}{path}?{urllib.parse.urlencode(query)}"
    with urllib.request.urlopen(url, timeout=120.0) as reply:
        body: bytes = reply.read()
    return body


def measure(rounds: int) -> dict[str, float]:
    """Return the median seconds of a request, new at two frame rates, and asked for again."""
    from apprentice.ports import is_free

    port = next(port for port in range(28000, 29000) if is_free("127.0.0.1", port))
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(Path(folder))
        command = [sys.executable, "-m", "evalserver", "--runs", folder, "--port", str(port)]
        server = subprocess.Popen(command, cwd=ROOT)
        try:
            _await(port, server)
            fetch(port, "/evaluate", checkpoint=run, seed=1)
            fps = {"25_fps": 25.0, "50_fps": 50.0, "from_cache": 25.0}
            seconds: dict[str, list[float]] = {name: [] for name in fps}
            for number in range(rounds):
                for name, found in seconds.items():
                    started = time.perf_counter()
                    fetch(port, "/evaluate", checkpoint=run, fps=fps[name], seed=100 + number)
                    found.append(time.perf_counter() - started)
        finally:
            server.terminate()
            server.wait(30.0)
    return {name: statistics.median(found) for name, found in seconds.items()}


def _await(port: int, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            fetch(port, "/readyz")
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise RuntimeError("the evaluation server did not become ready")


def main() -> None:
    """Measure and print rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    rows = [
        {
            "benchmark": f"evaluate_mp4_{name}",
            "unit": "s",
            "ours": round(seconds, 3),
            "peer_name": "",
            "peer": None,
        }
        for name, seconds in measure(arguments.rounds).items()
    ]
    print(json.dumps(rows, indent=None if arguments.json else 2))


if __name__ == "__main__":
    main()
