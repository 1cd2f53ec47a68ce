"""Minari, in an environment of its own, where nothing of ours can be imported.

python minari_child.py open FOLDER             print what Minari finds in it, as JSON
python minari_child.py make DATASET_ID         make a data set below $MINARI_DATASETS_PATH and print the same of it
"""

from __future__ import annotations

import json
import sys
from typing import Any

import gymnasium
import minari
import numpy as np
from minari.data_collector import EpisodeBuffer

LENGTHS = (4, 3)


def told(dataset: Any) -> dict[str, Any]:
    """Return everything that a file says of its episodes, as Minari understands it."""
    return {
        "minari": minari.__version__,
        "total_episodes": int(dataset.total_episodes),
        "total_steps": int(dataset.total_steps),
        "path": str(dataset.spec.data_path),
        "observation_space": str(dataset.observation_space),
        "action_space": str(dataset.action_space),
        "episodes": [
            {
                "id": int(episode.id),
                "length": len(episode),
                "observations": state_of(episode.observations).tolist(),
                "fits": all(
                    dataset.action_space.contains(np.asarray(action)) for action in episode.actions
                ),
                "actions": episode.actions.tolist(),
                "rewards": episode.rewards.tolist(),
                "terminations": episode.terminations.tolist(),
                "truncations": episode.truncations.tolist(),
            }
            for episode in dataset.iterate_episodes()
        ],
    }


def state_of(observations: Any) -> np.ndarray:
    return np.asarray(observations["state"] if isinstance(observations, dict) else observations)


def make(dataset_id: str) -> Any:
    """Make a data set of one array of observations, or where the id says so of a dictionary with it."""
    box = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    has_keys = "dict" in dataset_id
    random = np.random.default_rng(0)
    buffers = []
    for number, length in enumerate(LENGTHS):
        state = random.normal(size=(length + 1, 3)).astype(np.float32)
        last = [False] * (length - 1) + [True]
        never = [False] * length
        buffers.append(
            EpisodeBuffer(
                id=number,
                seed=number,
                observations={"state": list(state)} if has_keys else list(state),
                actions=list(random.uniform(-1, 1, (length, 2)).astype(np.float32)),
                rewards=[float(value) for value in range(length)],
                terminations=last if number == 1 else never,
                truncations=never if number == 1 else last,
            )
        )
    return minari.create_dataset_from_buffers(
        dataset_id,
        buffers,
        observation_space=gymnasium.spaces.Dict({"state": box}) if has_keys else box,
        action_space=gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32),
        algorithm_name="random",
        author="a test",
        author_email="nobody@example.org",
        code_permalink="https://example.org",
        data_format="hdf5",
    )


if __name__ == "__main__":
    command, name = sys.argv[1:]
    print(json.dumps(told(minari.MinariDataset(name) if command == "open" else make(name))))
