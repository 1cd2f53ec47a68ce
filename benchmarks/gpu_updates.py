"""Updates per second of the whole learner on an NVIDIA GPU, beside the same learner on the same machine's CPU.

Batches are drawn from rings of made-up episodes, so that nothing is waited for; both compile their updates unless told
otherwise. States are those of cheetah-run (17 observations, 6 actions, networks and batch of experiments/dac.yaml),
images those of experiments/reacher-pixels.yaml (84x84, three frames) at the batch that papers use, 256.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.alternating import answer, contest  # noqa: E402 - found by the line above

if TYPE_CHECKING:
    from apprentice.types import EnvironmentSpec

ACTIONS, EPISODE, NUM_EPISODES = 6, 100, 100
WORKLOADS: dict[str, dict[str, Any]] = {
    "sac_states": {"imitation": {"method": "none"}},
    "dac_states": {},
    "dac_states_wide": {"network": {"hidden_size": 1024}, "sac": {"batch_size": 1024}},
    "sac_pixels": {"imitation": {"method": "none"}, "sac": {"batch_size": 256}},
}
"""What each changes of experiments/dac.yaml."""


def spec_of(workload: str) -> EnvironmentSpec:
    """Return what made-up episodes are like."""
    from apprentice.types import ArraySpec, EnvironmentSpec

    observation = {"state": ArraySpec((17,), "float32")}
    if workload.endswith("pixels"):
        observation = {"pixels": ArraySpec((3, 84, 84, 3), "uint8")}
    return EnvironmentSpec(
        "a-b", "a-b", observation, ArraySpec((ACTIONS,), "float32"), EPISODE, 1, 0.01
    )


def be_learner(workload: str, device: str, threads: int, seconds: float, compile_mode: str) -> None:
    """Answer rounds with whole updates: sampling, discriminator, relabelling, SAC."""
    from apprentice.config import Experiment
    from apprentice.experiments import load_experiment
    from benchmarks.made_up import begun_learner
    from learner.devices import select_device

    spec = spec_of(workload)
    tree = load_experiment("dac").model_dump()
    tree["task"] = spec.task
    tree["learner"] |= {"compile": compile_mode, "device": device, "num_threads": threads}
    tree["replay"] |= {"updates_per_step": None, "warmup_steps": EPISODE, "capacity": 10_000}
    for section, changes in WORKLOADS[workload].items():
        tree[section] |= changes
    if "pixels" in spec.observation:
        tree["reads"] = {reader: ["pixels"] for reader in ("policy", "critic")}
        tree["network"]["normalise_observations"] = False
    experiment = Experiment.model_validate(tree)
    chosen = select_device(experiment.learner)
    learning = begun_learner(experiment, spec, chosen, NUM_EPISODES, EPISODE)

    def timed(num_updates: int) -> float:
        """Return the seconds that updates take, until the last of them is done."""
        started = time.perf_counter()
        for _ in range(num_updates):
            learning.update()
        learning.sac.rejected_in_a_row()
        return time.perf_counter() - started

    timed(5)
    num_updates = max(5, int(seconds * 10 / timed(10)))
    answer(lambda: num_updates / timed(num_updates))


def main() -> None:
    """Measure GPU and CPU in turns and print a row for each workload, or be one of the two."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU's update")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a round")
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--compile", choices=["on", "off"], default="on", help="learner.compile")
    parser.add_argument("--device", choices=["cuda", "cpu"], help="be the learner on it")
    arguments = parser.parse_args()
    if arguments.device:
        (workload,) = arguments.workloads
        be_learner(
            workload,
            arguments.device,
            arguments.threads,
            arguments.seconds,
            arguments.compile,
        )
        return
    import torch

    if not torch.cuda.is_available():
        sys.exit("gpu_updates: expected an NVIDIA GPU that torch can use, found none")
    flags = ["--threads", str(arguments.threads), "--seconds", str(arguments.seconds)]
    flags += ["--compile", arguments.compile]
    rows = []
    for workload in arguments.workloads:
        chosen = [sys.executable, __file__, "--workloads", workload, *flags, "--device"]
        rates = contest(
            {device: [*chosen, device] for device in ("cuda", "cpu")},
            arguments.threads,
            arguments.rounds,
        )
        rows.append(
            {
                "benchmark": f"gpu_updates_{workload} on {torch.cuda.get_device_name()}",
                "unit": "updates/s",
                "ours": round(rates["cuda"], 1),
                "peer_name": f"the same on {arguments.threads} CPU threads",
                "peer": round(rates["cpu"], 1),
            }
        )
    print(json.dumps(rows, indent=None if arguments.json else 2))


if __name__ == "__main__":
    main()
