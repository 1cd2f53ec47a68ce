"""What a worker shows a policy that infers its task, and the demonstration that stands beside a policy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from evalserver.rollouts import Answerable, Rollout, kept_episode

if TYPE_CHECKING:
    from apprentice.config import Experiment
    from apprentice.demonstrations.context import ContextChoice, ContextLibrary


def choose_shown(
    asked: str | None, checkpoint: Path, experiment: Experiment, task: str
) -> ContextChoice | None:
    """Return what a checkpoint's policy is shown in a task; null for one that infers nothing. Raises Answerable."""
    from apprentice.demonstrations.context import choose_context
    from apprentice.demonstrations.format import DemonstrationError

    try:
        choice = choose_context(asked, checkpoint, experiment.infers_task, [task])
        if choice is not None:
            _require_family(choice.library, experiment)
    except DemonstrationError as error:
        raise _answerable(error, checkpoint) from None
    return choice


def demonstrations_beside(checkpoint: Path, experiment: Experiment, rollout: Rollout) -> Rollout:
    """Return the first demonstration that was shown in each episode of a rollout; where none was, one of the task.

    Raises Answerable.
    """
    from apprentice.demonstrations.context import context_of
    from apprentice.demonstrations.format import DemonstrationError
    from apprentice.evaluation import Evaluation

    try:
        library = context_of(checkpoint)
        _require_family(library, experiment)
        episodes = []
        for episode in rollout.evaluation.episodes:
            shown = episode.context or library.draw(rollout.task, 1, episode.seed)
            one = library[shown[0]]
            episodes.append(kept_episode(one.task_id, one.trajectory, (one.number,)))
    except DemonstrationError as error:
        raise _answerable(error, checkpoint) from None
    return rollout._replace(steps=0, evaluation=Evaluation(tuple(episodes), 0.0))


def _require_family(library: ContextLibrary, experiment: Experiment) -> None:
    if library.family != experiment.task:
        raise Answerable(
            422,
            f"context: expected demonstrations of {experiment.task} in the run's folder, found {library.family}'s",
        )


def _answerable(error: Exception, checkpoint: Path) -> Answerable:
    """Return a refusal that tells nothing of where the runs lie."""
    return Answerable(422, str(error).replace(f"{checkpoint.resolve().parent.parent}/", ""))
