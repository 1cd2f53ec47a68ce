"""Returns of Soft Actor-Critic at 100,000 frames: five tasks, three seeds, 20 deterministic episodes each.

Trains the variants of `experiments/sac-baselines.yaml` that are not finished yet (hours on two cores;
interrupted, it goes on where it was), and reads the evaluation at each run's end.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from apprentice.experiments import expand  # noqa: E402 - found by the line above
from apprentice.runs import Catalogue, RunFolder  # noqa: E402

EXPERIMENT = "sac-baselines"


def finished_runs(root: Path) -> dict[int, RunFolder]:
    """Return the newest finished run of each variant."""
    variants = expand(EXPERIMENT)
    found: dict[int, RunFolder] = {}
    for folder in Catalogue(root).runs():
        status = folder.read_status()
        if status is None or status.state != "finished":
            continue
        experiment = folder.read_experiment()
        if experiment in variants:
            found.setdefault(experiment.variant, folder)
    return found


def row_of(folder: RunFolder) -> dict[str, object]:
    """Return a run's last evaluation as a row of the results' columns."""
    experiment = folder.read_experiment()
    last = max(folder.evaluations.glob("step-*.json"))
    evaluation = json.loads(last.read_text())
    return {
        "task": experiment.task,
        "method": "sac",
        "demonstrations": 0,
        "rows": 0,
        "seed": experiment.seed,
        "frames": evaluation["steps"] * experiment.environment.action_repeat,
        "return": round(statistics.fmean(evaluation["returns"]), 1),
        "expert_return": None,
        "random_return": None,
        "normalised": None,
    }


def main() -> None:
    """Train what is missing and print a row for each finished run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs")
    parser.add_argument("--variants", type=int, nargs="*", help="default: all")
    arguments = parser.parse_args()
    variants = range(len(expand(EXPERIMENT))) if not arguments.variants else arguments.variants
    for variant in variants:
        command = [sys.executable, "-m", "cli", "grid", EXPERIMENT, "--variant", str(variant)]
        command += ["--plain", "--runs", str(arguments.runs.absolute())]
        subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr)
    runs = finished_runs(arguments.runs.absolute())
    rows = [row_of(runs[variant]) for variant in sorted(runs) if variant in variants]
    print(json.dumps(rows, indent=None if arguments.json else 2))


if __name__ == "__main__":
    main()
