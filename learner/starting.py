"""Builds the learner's parts, hands them to the loop, and turns failures into exit codes."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import structlog
import torch
from safetensors.torch import save_file

from apprentice import exit_codes
from apprentice.checkpoint_format import CheckpointError
from apprentice.config import Experiment
from apprentice.demonstrations.context import keep_context
from apprentice.demonstrations.format import DemonstrationError
from apprentice.environments import UnknownTask, experiment_specs
from apprentice.environments.families import FamilyError
from apprentice.experiments import ExperimentError, load_resolved
from apprentice.exporter import Exporter, MetricsPortError
from apprentice.metrics import MetricsWriter
from apprentice.ports import is_loopback
from apprentice.profiling import Profile
from apprentice.runs import RunFolder, RunLocked
from apprentice.tokens import TokenError, ensure_token
from apprentice.types import EnvironmentSpec, Transition
from apprentice.warm_start import CannotWarmStart, read_warm_start
from learner.demonstrated import Demonstrated, ExpertRecord, keep_expert, load_demonstrated
from learner.devices import NoSuchDevice, select_device
from learner.learning import Learning
from learner.resuming import CannotResume, Resumed, resume
from learner.running import Diverged, Runner
from learner.service import LearnerService, ServicePortError
from replay.errors import ReplayMismatch
from replay.reader import FeedReader

log = structlog.get_logger()

DEPARTURE_SECONDS = 15.0
DISMISSAL_SECONDS = 30.0


@dataclass(frozen=True)
class Addresses:
    """Where the learner listens and whom it calls."""

    replay: str
    """HOST:PORT of the replay server."""
    host: str
    """Interface of the gRPC service."""
    port: int
    """Port of the gRPC service; 0 takes a free one."""
    metrics: str | None = None
    """Where Prometheus may ask, HOST:PORT."""
    token_file: Path | None = None
    """File of the token that callers must know."""


def start(
    experiment_file: Path,
    run_directory: Path,
    addresses: Addresses,
    should_stop: Callable[[], bool],
) -> int:
    """Run the learner of one run folder until it ends; return the process's exit code."""
    try:
        token = _token(addresses)
        folder = RunFolder(run_directory)
        with folder.lock():
            return _run(experiment_file, folder, addresses, token, should_stop)
    except (
        ExperimentError,
        UnknownTask,
        FamilyError,
        RunLocked,
        CannotResume,
        CannotWarmStart,
        NoSuchDevice,
        ServicePortError,
        MetricsPortError,
        TokenError,
        DemonstrationError,
    ) as error:
        log.error("the learner cannot start", reason=str(error))
        return exit_codes.CONFIGURATION
    except ReplayMismatch as error:
        log.error("the replay server is not this run's", reason=str(error))
        return exit_codes.CONFIGURATION
    except Diverged as error:
        log.error("training diverged", reason=str(error))
        return exit_codes.DIVERGED
    except (OSError, torch.AcceleratorError) as error:
        log.error("the learner gives up and may be started again", reason=str(error))
        return exit_codes.TRY_AGAIN


def _token(addresses: Addresses) -> str | None:
    """Return the token to ask for; raise TokenError where others could call without one."""
    if addresses.token_file is not None:
        return ensure_token(addresses.token_file)
    if is_loopback(addresses.host):
        return None
    raise TokenError(
        f"--host {addresses.host} can be reached from other machines: expected --token-file, the file "
        "of a token that actors must know (it is made if it is not there)"
    )


def _run(
    experiment_file: Path,
    folder: RunFolder,
    addresses: Addresses,
    token: str | None,
    should_stop: Callable[[], bool],
) -> int:
    experiment = load_resolved(experiment_file)
    device = select_device(experiment.learner)
    specs = experiment_specs(experiment.task, experiment.observation_keys, experiment.environment)
    spec = specs[0]
    status = folder.read_status()
    if status is not None and status.state == "finished":
        log.info("the run has finished already", run=folder.path.name, steps=status.steps)
        return _dismiss_actors(experiment, specs, addresses, token, should_stop)
    reader = FeedReader(addresses.replay, specs, experiment.replay)
    reader.check()
    profile = Profile()
    parts = _prepare(experiment, specs, device, folder, profile, should_stop)
    if parts is None:
        return 0
    context = None if parts.demonstrated is None else parts.demonstrated.context
    service = LearnerService(
        experiment,
        specs,
        addresses.host,
        addresses.port,
        folder.path.name,
        token=token,
        context=context,
    )
    service.start()
    metrics = MetricsWriter(folder.metrics, folder.tensorboard)
    try:
        runner = Runner(
            experiment,
            spec,
            folder,
            parts.learning,
            reader,
            service,
            metrics,
            profile,
            should_stop,
            parts.expert,
        )
        with _exporting(addresses, runner, profile):
            if parts.expert is not None:
                keep_expert(folder.evaluations, parts.expert, experiment)
            profile.lap("starting")
            if _train(runner, parts, folder) and service.finishing:
                _await_departures(service)
        return 0
    finally:
        reader.close()
        metrics.close()
        service.stop(grace=1.0)


class _Parts(NamedTuple):
    """What learns, and from what; `resumed` says which checkpoint it goes on from, if any."""

    learning: Learning
    resumed: Resumed | None
    demonstrated: Demonstrated | None
    expert: ExpertRecord | None


def _prepare(
    experiment: Experiment,
    specs: Sequence[EnvironmentSpec],
    device: torch.device,
    folder: RunFolder,
    profile: Profile,
    should_stop: Callable[[], bool],
) -> _Parts | None:
    """Read demonstrations and checkpoints, and pretrain a new run; None where it was stopped in that."""
    known = load_demonstrated(experiment, specs[0], device)
    demonstrated, expert = known if known is not None else (None, None)
    try:
        learning = Learning(experiment, specs, device, profile, demonstrated)
    except (ValueError, CheckpointError) as error:  # of what a reward is to be read from
        raise CannotResume(str(error)) from error
    profile.lap("starting")
    resumed = resume(folder.checkpoints, learning, experiment, specs[0])
    profile.lap("checkpoint loading")
    if demonstrated is not None and demonstrated.family is not None:
        keep_context(folder.context, demonstrated.family)
    if resumed is None:
        _warm_start(learning, experiment, specs[0])
        if not learning.pretrain(should_stop):
            return None
    return _Parts(learning, resumed, demonstrated, expert)


@contextlib.contextmanager
def _exporting(addresses: Addresses, runner: Runner, profile: Profile) -> Iterator[None]:
    """Answer Prometheus for as long as the block runs, where an address for that was given."""
    if addresses.metrics is None:
        yield
        return
    exporter = Exporter(
        "learner",
        addresses.metrics,
        runner.metrics,
        profile.snapshot,
        runner.problem,
        addresses.token_file,
    )
    try:
        yield
    finally:
        exporter.close()


def _train(runner: Runner, parts: _Parts, folder: RunFolder) -> bool:
    """Run the loop to its end, and say in the status why it failed; False where it was stopped before it began."""
    try:
        if parts.resumed is not None and not runner.restore(parts.resumed):
            return False
        runner.run()
    except Diverged as error:
        _write_diagnostics(folder.path, parts.learning, str(error))
        runner.failed(str(error))
        raise
    except ReplayMismatch as error:
        runner.failed(str(error))
        raise
    return True


def _warm_start(learning: Learning, experiment: Experiment, spec: EnvironmentSpec) -> None:
    """Begin with an earlier run's networks, where the experiment says so. Raises CannotWarmStart."""
    found = read_warm_start(experiment, spec)
    if found is None:
        return
    try:
        learning.begin_with(found)
    except ValueError as error:
        raise CannotWarmStart(f"learner.warm_start: {error}") from error
    log.info("beginning with an earlier run's networks", checkpoint=experiment.learner.warm_start)


def _dismiss_actors(
    experiment: Experiment,
    specs: Sequence[EnvironmentSpec],
    addresses: Addresses,
    token: str | None,
    should_stop: Callable[[], bool],
) -> int:
    """Serve for long enough that actors which were started together with this learner join and are let go."""
    service = LearnerService(experiment, specs, addresses.host, addresses.port, token=token)
    service.start()
    try:
        service.finish()
        deadline = time.monotonic() + DISMISSAL_SECONDS
        while time.monotonic() < deadline and not should_stop():
            time.sleep(0.1)
    finally:
        service.stop(grace=1.0)
    return 0


def _await_departures(service: LearnerService) -> None:
    """Give actors time to hear in a heartbeat that the run is over."""
    deadline = time.monotonic() + DEPARTURE_SECONDS
    while service.actors() and time.monotonic() < deadline:
        time.sleep(0.1)


def _write_diagnostics(folder: Path, learning: Learning, reason: str) -> None:
    """Leave what is needed to look into a divergence: counters, metrics, settings, the last batch."""
    report = {
        "reason": reason,
        "counters": learning.counters._asdict(),
        "metrics": {k: repr(v) for k, v in learning.metrics().items()},
        "experiment": learning.experiment.model_dump(mode="json"),
    }
    try:
        (folder / "divergence.json").write_text(json.dumps(report, indent=2))
        if learning.last_batch is not None:
            batch = _named(learning.last_batch)
            save_file(batch, folder / "divergence.safetensors")
    except OSError as error:
        log.error("the report on the divergence could not be written", reason=str(error))


def _named(batch: Transition) -> dict[str, torch.Tensor]:
    """Name each array of a batch: `observation.state`, `action` and so on."""
    named: dict[str, torch.Tensor] = {}
    for field, value in batch._asdict().items():
        parts = value.items() if isinstance(value, dict) else [("", value)]
        for key, tensor in parts:
            named[f"{field}.{key}".rstrip(".")] = (
                tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            )
    return named
