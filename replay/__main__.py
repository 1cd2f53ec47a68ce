"""`python -m replay`: keep the segments of one run, and hand them to whoever learns."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from apprentice import exit_codes


@dataclass(frozen=True)
class Flags:
    """What the replay server serves, where, and where it keeps its checkpoints."""

    experiment: Path
    """A resolved experiment (YAML)."""
    port: int
    """Port to listen on, on all interfaces: Reverb cannot be bound to one."""
    checkpoints: Path
    """Folder for this run's checkpoints, `status.json` and Reverb's messages."""
    run_directory: Path | None = None
    """The run's folder: checkpoints go into a folder of its name, and when it says that the run has
    finished the server leaves."""
    profile: Path | None = None
    """Write here, as JSON, where the time of this process goes."""
    metrics: str | None = None
    """Serve Prometheus metrics on this HOST:PORT."""
    token_file: Path | None = None
    """File of the token that others than this machine must carry to read them; the learner makes it."""


def main() -> int:
    """Run the server; return its exit code."""
    import structlog
    import tyro

    from apprentice.logs import configure_logging
    from apprentice.stopping import StopSignal

    flags = tyro.cli(Flags, prog="python -m replay")
    stop = StopSignal().install()
    os.environ.setdefault("MUJOCO_GL", "disabled")
    run = None if flags.run_directory is None else flags.run_directory.resolve()
    folder = flags.checkpoints if run is None else flags.checkpoints / run.name
    folder.mkdir(parents=True, exist_ok=True)
    _divert_native_messages(folder / "reverb.log")
    configure_logging("replay")
    log = structlog.get_logger()

    from apprentice.environments import experiment_specs
    from apprentice.experiments import ExperimentError, load_resolved
    from replay.errors import ServerRefused
    from replay.server import ReplayServer

    try:
        experiment = load_resolved(flags.experiment)
        specs = experiment_specs(
            experiment.task, experiment.observation_keys, experiment.environment
        )
        server = ReplayServer(specs, experiment.replay, flags.port, folder, flags.profile)
    except (ExperimentError, ServerRefused, ValueError) as error:
        log.error("the replay server cannot start", reason=str(error))
        return exit_codes.CONFIGURATION
    with ExitStack() as stack:
        if flags.metrics is not None:
            from apprentice.exporter import Exporter, MetricsPortError

            try:
                exporter = Exporter(
                    "replay",
                    flags.metrics,
                    server.metrics,
                    server.spans,
                    server.problem,
                    flags.token_file,
                )
            except MetricsPortError as error:
                log.error("the replay server cannot start", reason=str(error))
                server.close()
                return exit_codes.CONFIGURATION
            stack.callback(exporter.close)
        over = _finished(run)
        return 0 if server.serve(lambda: stop.asked() or over()) else exit_codes.TRY_AGAIN


def _finished(run: Path | None) -> Callable[[], bool]:
    """Return what says whether the run has finished, as far as is known; it looks once a second."""
    from apprentice.runs import RunFolder

    folder, next_look = None if run is None else RunFolder(run), 0.0

    def over() -> bool:
        nonlocal next_look
        if folder is None or time.monotonic() < next_look:
            return False
        next_look = time.monotonic() + 1.0
        status = folder.read_status()
        return status is not None and status.state == "finished"

    return over


def _divert_native_messages(path: Path) -> None:
    """Send what C++ code writes to standard error into a file; Python's stays where it was.

    Reverb logs through neither Python nor anything that can be turned down.
    """
    python_stderr = os.dup(2)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(file, 2)
    os.close(file)
    sys.stderr = os.fdopen(python_stderr, "w", buffering=1)


if __name__ == "__main__":
    sys.exit(main())
