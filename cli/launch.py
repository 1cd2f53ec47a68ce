"""One run on this machine: its folder, its ports, its services, and what their exits mean.

`apprentice up`, `profile` and `grid` all start runs through here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from apprentice import exit_codes
from apprentice.ports import is_loopback
from cli.failure import CommandFailed
from cli.machine import describe_commit
from cli.ports import PortTaken, choose_port
from cli.processes import Service, describe_exit
from cli.spans import REPLAY_PROFILE
from cli.supervisor import Judgement, Outcome, ServiceState, Supervisor, Verdict

if TYPE_CHECKING:
    from apprentice.config import Experiment, ServiceSettings
    from apprentice.runs import RunFolder, RunStatus

_SOURCES = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Ports:
    """Where the services listen, the same over all restarts."""

    replay: int
    learner: int
    evalserver: int


@dataclass(frozen=True)
class Launch:
    """A run that can be started."""

    experiment: Experiment
    folder: RunFolder
    ports: Ports
    replay_checkpoints: Path

    @property
    def evaluation_url(self) -> str:
        host = self.experiment.services.host
        shown = "127.0.0.1" if host == "0.0.0.0" else host  # noqa: S104
        return f"http://{shown}:{self.ports.evalserver}"


def read_experiment(
    name: str, variant: int | None = None, overrides: Sequence[str] = ()
) -> Experiment:
    """Return the resolved experiment; what is wrong with it ends the command with 78."""
    from apprentice.experiments import ExperimentError, load_experiment

    try:
        return load_experiment(name, variant, overrides)
    except ExperimentError as error:
        raise CommandFailed(str(error), exit_codes.CONFIGURATION) from None


def new_run(experiment: Experiment, runs: Path, replay_checkpoints: Path) -> Launch:
    """Choose ports and make the run's folder, after a look at what the run will learn from."""
    require_checkpoints(experiment)
    _require_demonstrations(experiment)
    ports = _choose_ports(experiment.services)
    from apprentice.runs import RunFolder

    try:
        folder = RunFolder.create(runs.absolute(), experiment)
    except OSError as error:
        raise CommandFailed(f"cannot make a run folder in {runs}: {error}") from None
    return Launch(experiment, folder, ports, replay_checkpoints.absolute())


def _require_demonstrations(experiment: Experiment) -> None:
    if experiment.imitation.method == "none":
        return
    from apprentice.demonstrations.choosing import require_demonstrations
    from apprentice.demonstrations.format import DemonstrationError
    from apprentice.environments.families import FamilyError

    try:
        require_demonstrations(experiment)
    except (DemonstrationError, FamilyError) as error:
        raise CommandFailed(str(error), exit_codes.CONFIGURATION) from None


def require_checkpoints(experiment: Experiment) -> None:
    """Look at the checkpoints of earlier runs that the reward is taken from, and that the run begins with."""
    _require_warm_start(experiment)
    for key in ("recovered_checkpoint", "expert_checkpoint"):
        path = getattr(experiment.imitation.reward, key)
        if path is None:
            continue
        from apprentice.checkpoint import CheckpointError, verify_checkpoint

        try:
            verify_checkpoint(Path(path))
        except CheckpointError as error:
            raise CommandFailed(
                f"imitation.reward.{key}: {error}", exit_codes.CONFIGURATION
            ) from None


def _require_warm_start(experiment: Experiment) -> None:
    """Look at the checkpoint that the run begins with."""
    if experiment.learner.warm_start is None:
        return
    from apprentice.environments import experiment_specs
    from apprentice.warm_start import CannotWarmStart, read_warm_start

    spec = experiment_specs(experiment.task, experiment.observation_keys, experiment.environment)[0]
    try:
        read_warm_start(experiment, spec)
    except CannotWarmStart as error:
        raise CommandFailed(str(error), exit_codes.CONFIGURATION) from None


def resumed_run(
    run: str, runs: Path, replay_checkpoints: Path, services: ServiceSettings | None = None
) -> Launch:
    """Take up a run where it stopped, with the experiment it was started with; its services may listen elsewhere."""
    path = runs.absolute() / run
    if path.parent != runs.absolute() or not (path / "experiment.yaml").is_file():
        known = sorted(entry.parent.name for entry in runs.glob("*/experiment.yaml"))
        newest = ", ".join(known[-5:]) or "none"
        raise CommandFailed(
            f"--resume: expected the name of a run in {runs}, found {run!r}; there are: {newest}",
            exit_codes.CONFIGURATION,
        )
    from apprentice.experiments import ExperimentError
    from apprentice.runs import RunFolder, RunLocked

    folder = RunFolder(path)
    try:
        with folder.lock():
            experiment = folder.read_experiment()
    except RunLocked as error:
        raise CommandFailed(str(error), exit_codes.CONFIGURATION) from None
    except (OSError, ExperimentError) as error:
        raise CommandFailed(str(error), exit_codes.CONFIGURATION) from None
    if services is not None:
        experiment = experiment.model_copy(update={"services": services})
    ports = _choose_ports(experiment.services)
    return Launch(experiment, folder, ports, replay_checkpoints.absolute())


def supervise(
    launch: Launch,
    *,
    exit_when_done: bool,
    seconds: float | None = None,
    on_event: Callable[[str], None],
    on_tick: Callable[[Sequence[ServiceState]], None],
) -> Outcome:
    """Start the run's services and keep them alive until the run and they have ended."""
    launch.folder.logs.mkdir(parents=True, exist_ok=True)
    launch.folder.note_commit(describe_commit())
    supervisor = Supervisor(
        services_of(launch, exit_when_done),
        launch.folder.logs,
        lambda service, code: judge(service, code, launch.folder.read_status()),
        on_event=on_event,
        on_tick=on_tick,
    )
    return supervisor.run(seconds)


def services_of(launch: Launch, exit_when_done: bool) -> tuple[Service, ...]:
    """Return the run's services in the order of the data flow.

    The replay server goes last, so that what the others still hold reaches it.
    """
    folder, ports, host = launch.folder, launch.ports, launch.experiment.services.host
    learner_host = "127.0.0.1" if host == "0.0.0.0" else host  # noqa: S104
    replay_address, learner_address = (
        f"127.0.0.1:{ports.replay}",
        f"{learner_host}:{ports.learner}",
    )
    experiment = ("--experiment", str(folder.experiment))
    # Whoever can reach the services from elsewhere has to know what lies in this file.
    token_file = folder.path.parent / ".token"
    token = () if is_loopback(host) else ("--token-file", str(token_file))
    checkpoints = ("--checkpoints", str(launch.replay_checkpoints / folder.path.name))
    replay = _service(
        "replay",
        (
            *(*experiment, "--port", str(ports.replay), *checkpoints),
            *("--profile", str(folder.path / REPLAY_PROFILE)),
        ),
        30.0,
        stop_stage=1,
    )
    learner = _service(
        "learner",
        (
            *experiment,
            *("--run-directory", str(folder.path), "--replay", replay_address),
            *("--host", host, "--port", str(ports.learner)),
            *token,
        ),
        30.0,
    )
    actors = tuple(
        _service(
            f"actor-{number}",
            ("--learner", learner_address, "--replay", replay_address, *token),
            5.0,
        )
        for number in range(launch.experiment.actor.num_actors)
    )
    evalserver = _service(
        "evalserver",
        (
            *("--runs", str(folder.path.parent)),
            *("--host", host, "--port", str(ports.evalserver)),
            *token,
        ),
        10.0,
        outlives_run=not exit_when_done,
    )
    return (replay, learner, *actors, evalserver)


def judge(service: Service, code: int, status: RunStatus | None) -> Judgement:
    """Say what the exit of a service, which nobody asked for, means for the run."""
    state = status.state if status is not None else ""
    if code == exit_codes.CONFIGURATION:
        return Judgement(Verdict.FAIL, describe_exit(code))
    if service.name == "learner" and code == exit_codes.DIVERGED:
        return Judgement(Verdict.FAIL, describe_exit(code))
    if code == 0 and state in ("finished", "stopped"):
        if service.name == "learner":
            text = "the run has finished" if state == "finished" else "the run was stopped"
            return Judgement(Verdict.FINISH, text)
        if service.name.startswith("actor-"):
            return Judgement(Verdict.LEAVE, "left, because the run is over")
    if code == 0:
        return Judgement(Verdict.RESTART, "left although the run goes on")
    return Judgement(Verdict.RESTART, describe_exit(code))


def exit_code_of(outcome: Outcome) -> int:
    """Return what the command exits with; an orderly stop is a success."""
    if outcome.kind == "failed":
        known = (exit_codes.CONFIGURATION, exit_codes.DIVERGED)
        return outcome.exit_code if outcome.exit_code in known else exit_codes.FAILED
    return 130 if outcome.kind == "killed" else 0


def _service(
    name: str,
    arguments: tuple[str, ...],
    stop_seconds: float,
    stop_stage: int = 0,
    outlives_run: bool = False,
) -> Service:
    module = name.partition("-")[0]
    # The services are found wherever the command was started, installed or not, and a folder
    # there that happens to be called `replay` is not taken for one of them (-P).
    path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(_SOURCES))))
    return Service(
        name=name,
        command=(sys.executable, "-P", "-m", module, *arguments),
        stop_seconds=stop_seconds,
        stop_stage=stop_stage,
        outlives_run=outlives_run,
        environment={"PYTHONPATH": path},
    )


def _choose_ports(settings: ServiceSettings) -> Ports:
    taken: set[int] = set()
    # A port that is asked for is not to be given to a service that takes any.
    wanted = {
        "replay_port": settings.replay_port,
        "learner_port": settings.learner_port,
        "evalserver_port": settings.evalserver_port,
    }
    try:
        chosen = {
            what: choose_port(settings.host, port, what, taken)
            for what, port in sorted(wanted.items(), key=lambda item: item[1] == 0)
        }
    except PortTaken as error:
        raise CommandFailed(str(error), exit_codes.CONFIGURATION) from None
    return Ports(chosen["replay_port"], chosen["learner_port"], chosen["evalserver_port"])
