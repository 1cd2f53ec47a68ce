"""What a run learns from and is not there yet: an expert is trained, and its demonstrations are recorded.

Only where an experiment says which expert (`imitation.demonstrations.expert`); a second start finds all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from apprentice import exit_codes
from cli.failure import CommandFailed
from cli.launch import Launch, exit_code_of, new_run, read_experiment, resumed_run

if TYPE_CHECKING:
    from apprentice.config import Experiment
    from apprentice.runs import RunFolder
    from cli.supervisor import Outcome

RECORDING_SECONDS = 3600.0

Watch = Callable[[Launch], "Outcome"]


def prepare(experiment: Experiment, runs: Path, replay_checkpoints: Path, watch: Watch) -> None:
    """Make the demonstrations that an experiment names and nobody has made; `watch` runs an expert to its end.

    The expert learns on the division of its own file, and is recorded in the learner's: it need not be blind to the
    learner's test tasks, where it must act well to be shown. One that has been trained already is used, and one that
    was interrupted is gone on with.
    """
    settings = experiment.imitation.demonstrations
    if experiment.imitation.method == "none" or settings.expert is None or settings.file is None:
        return
    out = Path(settings.file)
    if out.exists():
        return
    expert = read_experiment(settings.expert)
    folder = _newest_run(expert, runs)
    status = None if folder is None else folder.read_status()
    if status is None or status.state != "finished":
        print(f"{out} is not there yet: its expert {expert.name} is trained first", flush=True)
        if folder is None:
            launch = new_run(expert, runs, replay_checkpoints)
        else:
            launch = resumed_run(folder.path.name, runs, replay_checkpoints)
        outcome = watch(launch)
        folder = launch.folder
        status = folder.read_status()
        if status is None or status.state != "finished":
            raise CommandFailed(
                f"the expert {expert.name} is not finished, so that there are no demonstrations to learn from; "
                "the same command goes on with it",
                exit_code_of(outcome) or exit_codes.FAILED,
            )
    assert folder is not None
    _record(experiment, folder, out)


def _newest_run(expert: Experiment, runs: Path) -> RunFolder | None:
    """Return the newest run of exactly this experiment."""
    from apprentice.experiments import ExperimentError
    from apprentice.runs import Catalogue

    for folder in Catalogue(runs.absolute()).runs():
        try:
            if folder.read_experiment() == expert:
                return folder
        except ExperimentError:
            continue  # Made by another version, or by hand.
    return None


def _record(experiment: Experiment, folder: RunFolder, out: Path) -> None:
    from apprentice.checkpoint import CheckpointError, newest_checkpoint
    from apprentice.demonstrations.format import DemonstrationError
    from apprentice.demonstrations.recording import record_demonstrations, record_family
    from apprentice.demonstrations.writing import write_demonstrations
    from apprentice.evaluation import EvaluationError

    settings = experiment.imitation.demonstrations
    print(f"recording {folder.path.name} for {out}", flush=True)
    num = settings.recorded
    try:
        found = newest_checkpoint(folder.checkpoints, repair=False)
        if found is None:
            raise CheckpointError(f"{folder.path}: expected a checkpoint, found none")
        out.parent.mkdir(parents=True, exist_ok=True)
        if experiment.is_family:
            record_family(
                found[0],
                num,
                num,
                out,
                deadline_seconds=RECORDING_SECONDS,
                settings=experiment.environment.family,
            )
        else:
            recorded = record_demonstrations(found[0], num, deadline_seconds=RECORDING_SECONDS)
            write_demonstrations(out, recorded)
    except (CheckpointError, DemonstrationError, EvaluationError, OSError) as error:
        raise CommandFailed(
            f"the demonstrations could not be recorded: {error}", exit_codes.CONFIGURATION
        ) from None
