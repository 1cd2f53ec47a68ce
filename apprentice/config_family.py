"""Settings of a family of tasks: which tasks it is divided into, and how they reward and look."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from apprentice.config_base import Settings


class FamilySettings(Settings):
    """Read only where `task` names a family, or one task of a family."""

    split: str = "standard"
    """Which of the family's divisions into meta-train, validation and meta-test tasks."""
    split_seed: int = Field(0, ge=0, lt=2**31)
    """Seed of a division that draws its tasks."""
    num_train: int = Field(16, ge=1, le=1000)
    """Meta-train tasks of a division that draws them."""
    num_validation: int = Field(8, ge=1, le=1000)
    """Validation tasks of a division that draws them."""
    num_test: int = Field(16, ge=1, le=1000)
    """Meta-test tasks of a division that draws them."""
    shaping: bool = True
    """Add potential-based shaping to the reward that trains, where the family has a potential; evaluations never
    contain it, `actor/episode_return` does."""
    gamma: float = Field(0.98, gt=0, lt=1)
    """Discount factor of the shaping; must be the agent's, `sac.gamma`."""
    show_target: bool = True
    """Draw the goal in pictures, and in the `pixels` that a policy of one task may read."""


SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
"""The three parts of a division of a family's tasks."""
