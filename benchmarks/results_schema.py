"""Columns of the committed results, one CSV per benchmark under `benchmarks/results/`."""

from __future__ import annotations

SPEED_COLUMNS = (
    "benchmark",  # what was measured
    "unit",  # of `ours` and `peer`
    "ours",
    "peer_name",  # empty where there is nobody to compare with
    "peer",
    "ratio",  # ours / peer: above 1 is better for rates, below 1 for times and sizes
    "command",  # reproduces the row
    "commit",  # of this repository; "-dirty" where the code differed from it
    "hardware",
    "date",
)

LEARNING_COLUMNS = (
    "task",
    "method",
    "demonstrations",  # expert episodes given; 0 for reinforcement learning
    "rows",  # expert transitions kept of each
    "seed",
    "frames",  # environment frames, action repeat counted
    "return",
    "expert_return",
    "random_return",
    "normalised",  # (return - random_return) / (expert_return - random_return)
    "command",
    "commit",
)

FAMILY_COLUMNS = (
    "family",
    "split",  # division of the family's tasks; rows are of its meta-test tasks
    "method",
    "context",  # demonstrations shown; 0 where the policy infers nothing
    "task_id",
    "seed",
    "return",
    "metric",  # what the family measures beside the return, `name=value;name=value`
    "expert_return",
    "normalised",  # (return - blind) / (told - blind), of this task: 0 imitates not knowing it, 1 being told it
    "command",
    "commit",
)
