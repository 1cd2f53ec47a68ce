"""Transitions per second through the replay server with 64 tasks' tables, beside one table, in the same run."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def main() -> None:
    """Alternate the two and print one row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the row as JSON")
    parser.add_argument("--tasks", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3, help="of each measurement")
    arguments = parser.parse_args()
    from benchmarks.replay_throughput import measure

    rates: dict[int, list[float]] = {1: [], arguments.tasks: []}
    for _ in range(arguments.pairs):
        for tasks, found in rates.items():
            rows = measure(arguments.rounds, 2.0, tasks)
            found.append(float(str(rows[0]["ours"])))
    one, many = (statistics.median(found) for found in rates.values())
    row = {
        "benchmark": "replay_tables",
        "unit": "transitions/s",
        "ours": round(many),
        "peer_name": "one table",
        "peer": round(one),
    }
    print(json.dumps([row], indent=None if arguments.json else 2))


if __name__ == "__main__":
    main()
