"""The run folder, its lock, and the catalogue that finds runs and checkpoints by their ids.

Each file of a run folder has one owner that writes it: `experiment.yaml` and `commits` whoever starts the run, all
the rest the learner. Ids are matched against what lies in the catalogue and never made into a path.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

import structlog
from pydantic import ValidationError

from apprentice.checkpoint_files import read_text
from apprentice.checkpoint_retention import (
    list_checkpoints,
    pinned_checkpoints,
    read_best,
    steps_of,
)
from apprentice.config import Experiment
from apprentice.experiments import ExperimentError, load_resolved, save_experiment
from apprentice.run_status import RunState, RunStatus

__all__ = [
    "Catalogue",
    "CheckpointEntry",
    "InvalidCheckpointId",
    "RunFolder",
    "RunLocked",
    "RunState",
    "RunStatus",
    "UnknownCheckpoint",
]

log = structlog.get_logger()

CONTEXT: Final = "context"
"""Folder of a run that holds what a policy which infers its task may be shown."""
EXPERT_RECORD = "expert.json"
EXPERT_EPISODE = "expert.trajectory.safetensors"
"""In the folder of evaluations: what a run that imitates tells of its expert."""
EVALUATED_FAMILY: Final = "family.json"
"""In the same folder: how the final policy does in tasks of its family that it never learned."""
MAX_TEXT_BYTES = 2**20
_ID_PART = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)
_TIME_IN_NAME = re.compile(r"-([0-9]{8}T[0-9]{6})(?:-([0-9]{1,6}))?\Z", re.ASCII)
_TIME_FORMAT = "%Y%m%dT%H%M%S"


class RunLocked(Exception):
    """Another process uses the run folder."""


class InvalidCheckpointId(ValueError):
    """The text cannot be the id of a checkpoint, whatever lies in the catalogue."""


class UnknownCheckpoint(LookupError):
    """The catalogue holds nothing of that id."""


class RunFolder:
    """The files of one run. The properties are paths, whether or not anything is there yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._created: str | None = None

    @classmethod
    def create(cls, root: Path, experiment: Experiment, now: datetime | None = None) -> RunFolder:
        """Make the folder of a new run, `<experiment>-<variant>-<seed>-<UTC time>`, with its experiment.

        Where that name is taken, `-2`, `-3` and so on is added.
        """
        time = (now or datetime.now(UTC)).strftime(_TIME_FORMAT)
        base = f"{experiment.name}-{experiment.variant}-{experiment.seed}-{time}"
        root.mkdir(parents=True, exist_ok=True)
        name, copies = base, 1
        while True:
            try:
                (root / name).mkdir()
                break
            except FileExistsError:
                copies += 1
                name = f"{base}-{copies}"
        folder = cls(root / name)
        for path in (folder.tensorboard, folder.checkpoints, folder.evaluations, folder.logs):
            path.mkdir()
        save_experiment(experiment, folder.experiment)
        return folder

    @property
    def experiment(self) -> Path:
        return self.path / "experiment.yaml"

    @property
    def commits(self) -> Path:
        """The code that the run was started and resumed with, a line each; not there in containers."""
        return self.path / "commits"

    @property
    def status(self) -> Path:
        return self.path / "status.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def evaluations(self) -> Path:
        return self.path / "evaluations"

    @property
    def context(self) -> Path:
        return self.path / CONTEXT

    @property
    def context_index(self) -> Path:
        """Is there where `context` is whole; says of each task how many demonstrations it has."""
        return self.context / "family.json"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be the run's only learner; the lock goes with the process, however it ends.

        Raises RunLocked naming the host and process that hold it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self.path / ".lock", flags, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunLocked(
                    f"expected to be the only learner of run {self.path.name}, found it locked by "
                    f"{_holder(descriptor)}: stop that one, or start another run"
                ) from None
            holder = {"host": socket.gethostname(), "pid": os.getpid()}
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(holder).encode(), 0)
            yield
            os.ftruncate(descriptor, 0)
        finally:
            os.close(descriptor)

    def note_commit(self, commit: str) -> None:
        """Add the code that the run goes on with, where it is not what it went on with before.

        Where the run began with code that nobody noted, `unknown` comes first.
        """
        known = self.read_commits()
        if known[-1:] == (commit,):
            return
        began = [] if known or self.read_status() is None else ["unknown"]
        with self.commits.open("a") as file:
            file.writelines(f"{line}\n" for line in (*began, commit))

    def read_commits(self) -> tuple[str, ...]:
        """Return the code that the run was started and resumed with; none where nobody noted it."""
        return tuple(read_text(self.commits, MAX_TEXT_BYTES).split())

    def read_experiment(self) -> Experiment:
        """Return the resolved experiment; raise ExperimentError where it cannot be read."""
        return load_resolved(self.experiment)

    def write_status(self, status: RunStatus) -> None:
        """Replace `status.json` whole, stamping `updated` and keeping the first `created`.

        A status that cannot be written (full disk) is logged and given up: training matters more.
        """
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        if self._created is None:
            before = self.read_status()
            self._created = status.created or (before.created if before else None) or now
        stamped = status.model_copy(update={"created": self._created, "updated": now})
        try:
            _replace(self.status, stamped.model_dump_json(indent=1))
        except OSError as error:
            log.error("the run's status could not be written", run=self.path.name, error=str(error))

    def read_status(self) -> RunStatus | None:
        """Return the newest status; None where there is none, or (with a warning) none that parses."""
        text = read_text(self.status, MAX_TEXT_BYTES)
        if not text:
            return None
        try:
            return RunStatus.model_validate_json(text)
        except ValidationError as error:
            log.warning("a run's status cannot be read", run=self.path.name, error=str(error)[:200])
            return None

    def describe(self) -> RunStatus:
        """Return the newest status, under the folder's name; what its experiment says where there is none."""
        status = self.read_status()
        if status is not None:
            return status.model_copy(update={"run": self.path.name})
        name, task, max_steps = "", "", 0
        try:
            experiment = self.read_experiment()
        except ExperimentError as error:
            log.debug("an experiment cannot be read", run=self.path.name, reason=str(error))
        else:
            name, task, max_steps = experiment.name, experiment.task, experiment.learner.max_steps
        return RunStatus(
            run=self.path.name, experiment=name, task=task, state="starting", max_steps=max_steps
        )

    def created(self) -> datetime:
        """Return when the run was made: by its name, else by its status, else by the folder's time."""
        match = _TIME_IN_NAME.search(self.path.name)
        status = None if match else self.read_status()
        try:
            if match:
                return datetime.strptime(match[1], _TIME_FORMAT).replace(tzinfo=UTC)
            if status and status.created:
                return datetime.fromisoformat(status.created).astimezone(UTC)
        except ValueError as error:
            log.debug("not a time", run=self.path.name, error=str(error))
        return datetime.fromtimestamp(self.path.stat().st_mtime, UTC)


class CheckpointEntry(NamedTuple):
    """One checkpoint of the catalogue. It is listed by name: only reading it tells whether it is valid."""

    id: str  # "RUN:STEPS"
    run: str
    steps: int
    path: Path
    latest: bool  # has the most steps of its run
    best: bool  # evaluated best so far
    pinned: bool


class Catalogue:
    """All runs and checkpoints under one folder, read anew at each call. Links in it do not exist."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def runs(self) -> tuple[RunFolder, ...]:
        """List the runs, newest first."""
        names = [name for name in _list_folders(self._root) if _ID_PART.fullmatch(name)]
        folders = [RunFolder(self._root / name) for name in names if not name.startswith(".")]
        dated = []
        for folder in folders:
            with suppress(FileNotFoundError):  # removed since it was listed
                if _is_run(folder):
                    dated.append((folder.created(), _copy_number(folder), folder.path.name, folder))
        return tuple(entry[-1] for entry in sorted(dated, key=lambda e: e[:3], reverse=True))

    def checkpoints(self, run: str) -> tuple[CheckpointEntry, ...]:
        """List the checkpoints of a run, fewest steps first; raise UnknownCheckpoint for no such run."""
        return self.checkpoints_of(self.find_run(run))

    @staticmethod
    def checkpoints_of(folder: RunFolder) -> tuple[CheckpointEntry, ...]:
        """List the checkpoints of a run, fewest steps first; none where it has been removed meanwhile."""
        return _checkpoints_of(folder)

    def resolve(self, identifier: str) -> CheckpointEntry:
        """Find `RUN`, `RUN:latest`, `RUN:best`, `RUN:STEPS`, or `latest`: the newest run that has one.

        Raises InvalidCheckpointId for what is no id, UnknownCheckpoint for what is not there.
        """
        run, which = _split(identifier)
        if run == "latest" and which is None:
            for folder in self.runs():
                entries = _checkpoints_of(folder)
                if entries:
                    return entries[-1]
            raise UnknownCheckpoint(
                "expected a run with a checkpoint, found none yet: wait for the first"
            )
        entries = _checkpoints_of(self.find_run(run))
        if not entries:
            raise UnknownCheckpoint(f"run {run} has no checkpoint yet: wait for the first")
        which = which or "latest"
        for entry in entries:
            if (
                (which == "latest" and entry.latest)
                or (which == "best" and entry.best)
                or (which.isdigit() and int(which) == entry.steps)
            ):
                return entry
        steps = ", ".join(str(entry.steps) for entry in entries[-5:])
        hint = "it has not been evaluated yet; " if which == "best" else ""
        raise UnknownCheckpoint(
            f"run {run} has no checkpoint {which!r}: {hint}expected latest, best, or one of the steps "
            f"{steps}" + (f" ({len(entries)} in all)" if len(entries) > 5 else "")
        )

    def find_run(self, run: str) -> RunFolder:
        """Return a run by its name; raise UnknownCheckpoint where there is none."""
        folders = self.runs()
        for folder in folders:
            if folder.path.name == run:
                return folder
        names = ", ".join(folder.path.name for folder in folders[:5]) or "none yet"
        raise UnknownCheckpoint(
            f"no such run; newest of the {len(folders)} runs: {names}. The id is RUN, RUN:latest, RUN:best, "
            "RUN:STEPS, or latest"
        )


def _split(identifier: str) -> tuple[str, str | None]:
    parts = identifier.split(":")
    if len(parts) > 2 or not all(_ID_PART.fullmatch(part) for part in parts):
        raise InvalidCheckpointId(
            "expected RUN, RUN:latest, RUN:best, RUN:STEPS, or latest, each part of 1 to 128 of the "
            "characters A-Z a-z 0-9 . _ -, found something else"
        )
    if len(parts) == 1:
        return parts[0], None
    if parts[1] not in ("latest", "best") and not re.fullmatch(r"[0-9]{1,12}", parts[1], re.ASCII):
        raise InvalidCheckpointId("expected latest, best or a number of steps after the colon")
    return parts[0], parts[1]


def _checkpoints_of(folder: RunFolder) -> tuple[CheckpointEntry, ...]:
    if folder.checkpoints.name not in _list_folders(folder.path):
        return ()
    paths = list_checkpoints(folder.checkpoints)
    best, pinned = read_best(folder.checkpoints), pinned_checkpoints(folder.checkpoints)
    run = folder.path.name
    return tuple(
        CheckpointEntry(
            id=f"{run}:{steps}",
            run=run,
            steps=steps,
            path=path,
            latest=path == paths[-1],
            best=best is not None and best.name == path.name,
            pinned=path.name in pinned,
        )
        for path in paths
        if (steps := steps_of(path.name)) is not None
    )


def _list_folders(path: Path) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_run(folder: RunFolder) -> bool:
    return any(map(os.path.lexists, (folder.experiment, folder.status, folder.checkpoints)))


def _copy_number(folder: RunFolder) -> int:
    match = _TIME_IN_NAME.search(folder.path.name)
    return int(match[2] or 1) if match else 1


def _holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {int(holder['pid'])} on host {holder['host']}"
    except (ValueError, KeyError, TypeError):
        return "a process that has not said its name yet"


def _replace(path: Path, text: str) -> None:
    """Give a file new content whole, without waiting for the disk."""
    stage = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        stage.write_text(text)
        os.rename(stage, path)
    except OSError:
        stage.unlink(missing_ok=True)
        raise
