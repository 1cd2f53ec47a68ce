"""What a run that imitates tells of its expert: returns, and one episode to be shown beside the policy's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from apprentice.checkpoint_files import read_text
from apprentice.runs import EXPERT_EPISODE, EXPERT_RECORD, Catalogue, RunFolder, UnknownCheckpoint

LARGEST_RECORD_BYTES = 2**20


class Expert(BaseModel):
    """The expert's numbers, as the learner left them."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    expert_return: float
    random_return: float | None
    seed: int

    def normalised(self, environment_return: float | None) -> float | None:
        """Return (R - random) / (expert - random), where all three are known."""
        if environment_return is None or self.random_return is None:
            return None
        span = self.expert_return - self.random_return
        return (environment_return - self.random_return) / span if span else None


class ExpertEpisode(NamedTuple):
    """A demonstration that can be drawn, of a run on one task."""

    path: Path
    seed: int


def read_expert(folder: RunFolder) -> Expert | None:
    """Return a run's expert; None where it imitates nobody."""
    try:
        text = read_text(folder.evaluations / EXPERT_RECORD, LARGEST_RECORD_BYTES)
        return Expert.model_validate(json.loads(text)) if text else None
    except (OSError, ValueError, ValidationError):
        return None


def find_expert(catalogue: Catalogue, run: str) -> ExpertEpisode | None:
    """Return the episode of a run's expert; None where there is none to be shown."""
    try:
        folder = catalogue.find_run(run)
    except UnknownCheckpoint:
        return None
    expert, path = read_expert(folder), folder.evaluations / EXPERT_EPISODE
    if expert is None or path.is_symlink() or not path.is_file():
        return None
    return ExpertEpisode(path, max(0, expert.seed))


def keeps_context(catalogue: Catalogue, run: str) -> bool:
    """Return whether a run of a family keeps demonstrations of every task, to be shown to its policy or beside it."""
    try:
        folder = catalogue.find_run(run)
    except UnknownCheckpoint:
        return False
    linked = folder.context.is_symlink() or folder.context_index.is_symlink()
    return folder.context_index.is_file() and not linked
