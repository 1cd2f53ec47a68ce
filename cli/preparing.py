"""What a run learns from and is not there yet: an expert is trained, and its demonstrations are recorded.

Only where an experiment says which expert (`imitation.demonstrations.expert`); a second start finds all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from apprentice import exit_codes
from cli.failure import CommandFailed
from cli.launch import (
    Launch,
    exit_code_of,
    new_run,
    read_experiment,
    require_checkpoints,
    resumed_run,
)

if TYPE_CHECKING:
    from apprentice.config import Experiment
    from apprentice.runs import RunFolder
    from cli.supervisor import Outcome

RECORDING_SECONDS = 3600.0

Watch = Callable[[Launch], "Outcome"]


def prepare(experiment: Experiment, runs: Path, replay_checkpoints: Path, watch: Watch) -> None:
    """Make the demonstrations that an experiment names and nobody has made; `watch` runs an expert to its end.

    The expert's services listen where the learner's will. It learns on the division of its own file, and is recorded
    in the learner's: it need not be blind to the learner's test tasks, where it must act well to be shown. One that
    has been trained already is used, and one that was interrupted is gone on with. One whose demonstrations could not
    be learned from is refused before it is trained.
    """
    settings = experiment.imitation.demonstrations
    if experiment.imitation.method == "none" or settings.expert is None or settings.file is None:
        return
    out = Path(settings.file)
    if out.exists():
        return
    expert = _with_services(read_experiment(settings.expert), experiment)
    _require_fitting(experiment, expert)
    require_checkpoints(experiment)
    folders = [
        _finished_run(
            expert.model_copy(update={"seed": expert.seed + number}),
            out,
            runs,
            replay_checkpoints,
            watch,
        )
        for number in range(settings.experts)
    ]
    _record(experiment, folders, out)


def _finished_run(
    expert: Experiment, out: Path, runs: Path, replay_checkpoints: Path, watch: Watch
) -> RunFolder:
    """Return the run of an expert, which is trained where it is not."""
    folder = _newest_run(expert, runs)
    status = None if folder is None else folder.read_status()
    if status is None or status.state != "finished":
        print(
            f"{out} is not there yet: its expert {expert.name}, seed {expert.seed}, is trained first",
            flush=True,
        )
        if folder is None:
            launch = new_run(expert, runs, replay_checkpoints)
        else:
            launch = resumed_run(folder.path.name, runs, replay_checkpoints, expert.services)
        outcome = watch(launch)
        folder = launch.folder
        status = folder.read_status()
        if status is None or status.state != "finished":
            raise CommandFailed(
                f"the expert {expert.name}, seed {expert.seed}, is not finished: there are no demonstrations to "
                "learn from; the same command goes on with it",
                exit_code_of(outcome) or exit_codes.FAILED,
            )
    assert folder is not None
    return folder


def _require_fitting(experiment: Experiment, expert: Experiment) -> None:
    """Refuse what the learner would refuse once the demonstrations are there."""
    problem = _division_problem(experiment) or _expert_problem(experiment, expert)
    problem = problem or _number_problem(experiment)
    if problem is not None:
        raise CommandFailed(problem, exit_codes.CONFIGURATION)


def _division_problem(experiment: Experiment) -> str | None:
    if not experiment.is_family:
        return None
    from apprentice.demonstrations.choosing import fitting_split
    from apprentice.demonstrations.format import DemonstrationError
    from apprentice.environments.families import FamilyError

    try:
        fitting_split(experiment)
    except (FamilyError, DemonstrationError) as error:
        return str(error)
    return None


def _expert_problem(experiment: Experiment, expert: Experiment) -> str | None:
    repeats = (experiment.environment.action_repeat, expert.environment.action_repeat)
    for key, wanted, found in (
        ("task", experiment.task, expert.task),
        ("environment.action_repeat", *repeats),
    ):
        if wanted != found:
            return (
                f"imitation.demonstrations.expert: {key}: expected {wanted!r} as in {experiment.name}, found {found!r} "
                f"in {expert.name}; name an expert that fits"
            )
    return None


def _number_problem(experiment: Experiment) -> str | None:
    """Say which setting asks for more episodes than would be recorded."""
    settings, context = experiment.imitation.demonstrations, experiment.context
    asked: dict[str, int | None] = {"imitation.demonstrations.episodes": settings.episodes}
    if not experiment.is_family:
        asked = {"imitation.demonstrations": (settings.episodes or 1) + settings.held_out}
    if experiment.infers_task:
        from apprentice.demonstrations.choosing import shown_limits

        limits = shown_limits(context, settings.recorded, settings.recorded)
        asked |= {key: number for key, number, _ in limits}
    for key, number in asked.items():
        if number is not None and number > settings.recorded:
            return (
                f"{key}: expected at most {settings.recorded} demonstrations, as many as "
                f"imitation.demonstrations.recorded lets the expert make, found {number}"
            )
    return None


def _with_services(experiment: Experiment, other: Experiment) -> Experiment:
    """Return the experiment with its services where the other's listen."""
    return experiment.model_copy(update={"services": other.services})


def _newest_run(expert: Experiment, runs: Path) -> RunFolder | None:
    """Return the newest run of exactly this experiment, wherever its services listened."""
    from apprentice.experiments import ExperimentError
    from apprentice.runs import Catalogue

    for folder in Catalogue(runs.absolute()).runs():
        try:
            if _with_services(folder.read_experiment(), expert) == expert:
                return folder
        except ExperimentError:
            continue  # Made by another version, or by hand.
    return None


def _record(experiment: Experiment, folders: Sequence[RunFolder], out: Path) -> None:
    from apprentice.checkpoint import CheckpointError, newest_checkpoint
    from apprentice.demonstrations.format import DemonstrationError
    from apprentice.demonstrations.recording import record_demonstrations, record_family
    from apprentice.demonstrations.writing import write_demonstrations
    from apprentice.environments.families import FamilyError
    from apprentice.evaluation import EvaluationError

    settings = experiment.imitation.demonstrations
    print(f"recording {', '.join(folder.path.name for folder in folders)} for {out}", flush=True)
    num = settings.recorded
    try:
        checkpoints = []
        for folder in folders:
            found = newest_checkpoint(folder.checkpoints, repair=False)
            if found is None:
                raise CheckpointError(f"{folder.path}: expected a checkpoint, found none")
            checkpoints.append(found[0])
        out.parent.mkdir(parents=True, exist_ok=True)
        if experiment.is_family:
            record_family(
                checkpoints,
                num,
                num,
                out,
                deadline_seconds=RECORDING_SECONDS,
                settings=experiment.environment.family,
            )
        else:
            recorded = record_demonstrations(
                checkpoints[0], num, deadline_seconds=RECORDING_SECONDS
            )
            write_demonstrations(out, recorded)
    except (CheckpointError, DemonstrationError, EvaluationError, FamilyError, OSError) as error:
        raise CommandFailed(
            f"the demonstrations could not be recorded: {error}", exit_codes.CONFIGURATION
        ) from None
