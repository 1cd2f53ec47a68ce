"""The replay server: Reverb with this experiment's tables, and checkpoints that can be trusted."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import structlog

from apprentice.config import ReplaySettings
from apprentice.profiling import Profile, Span
from apprentice.types import EnvironmentSpec, Metrics
from apprentice.watchdog import Watchdog
from replay.checkpointing import CheckpointStore
from replay.connection import Connection, make_tables
from replay.errors import CheckpointFailed, NotEnoughMemory, ReplayError, ReplayUnavailable
from replay.importing import load_reverb
from replay.loading import try_load
from replay.locks import hold_folder, hold_port
from replay.tables import full_tables_bytes, replay_digest

log = structlog.get_logger()

_STATUS_SECONDS = 5.0
FINAL_CHECKPOINT_SECONDS = 25.0
OWN_GIGABYTES = 0.8
"""Of a replay server without a segment: TensorFlow, Reverb, and room to write a checkpoint."""
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
STALL_SECONDS = 300.0
"""A server whose Reverb answers nobody, or whose checkpoint does not end, for this long exits to be restarted."""


class ReplayServer:
    """One Reverb server with its port, its folder and its thread for checkpoints.

    FOLDER/status.json says how it is: `serving`, or `degraded` where a checkpoint could not be loaded or
    the last one could not be written.
    """

    def __init__(
        self,
        specs: Sequence[EnvironmentSpec],
        settings: ReplaySettings,
        port: int,
        folder: Path,
        profile_path: Path | None = None,
    ) -> None:
        """Take the port and the folder, and load the newest good checkpoint; raise ServerRefused.

        Listens when this returns.
        """
        self._profile = Profile()
        self._profile_path = profile_path
        _check_memory(specs, settings)
        self._port, self._folder, self._period = port, folder, settings.checkpoint_period_seconds
        self._port_lock = hold_port(port)
        self._folder_lock = hold_folder(folder)
        self._store = CheckpointStore(folder, replay_digest(specs, settings))
        self._prepared = self._store.prepare(lambda live: try_load(live, specs, settings))
        reverb = load_reverb()
        self._server: Any = reverb.Server(
            make_tables(specs, settings),
            port=port,
            checkpointer=reverb.checkpointers.DefaultCheckpointer(path=str(self._store.live)),
        )
        self._client: Any = reverb.Client(f"127.0.0.1:{port}")
        self._connection = Connection(f"127.0.0.1:{port}", specs, settings)
        self._num_checkpoints = self._num_failures = 0
        self._last_failure: str | None = None
        self._watchdog = Watchdog("replay", STALL_SECONDS)
        self._stopping = threading.Event()
        self._finished = threading.Event()
        self._saved_at_the_end = False
        self._checkpointer = threading.Thread(target=self._run, name="checkpoints", daemon=True)
        self._profile.lap("replay loading", sum(self._connection.sizes().values()) or 1)
        self._write_status()
        log.warning(
            "Reverb listens on all interfaces and asks nobody who they are: keep the port inside "
            "a firewall or a private network",
            port=port,
        )
        log.info(
            "the replay server is up",
            port=port,
            state=self._state(),
            loaded=self._prepared.loaded,
            degraded=self._prepared.degraded,
            segments=self._connection.sizes(),
        )

    def serve(self, should_stop: Callable[[], bool]) -> bool:
        """Serve until asked to stop, write a last checkpoint, stop; return whether that was written.

        The caller's thread waits in Python, where signals are handled.
        """
        self._checkpointer.start()
        self._watchdog.start()
        while not should_stop():
            self._stopping.wait(0.2)
        self._stopping.set()
        deadline = time.monotonic() + FINAL_CHECKPOINT_SECONDS
        while not self._finished.wait(0.2) and time.monotonic() < deadline:
            pass
        if not self._finished.is_set():
            log.error("the last checkpoint took too long", seconds=FINAL_CHECKPOINT_SECONDS)
        self._watchdog.stop()
        self.close()
        return self._saved_at_the_end

    def checkpoint(self) -> None:
        """Write a checkpoint, verify and keep it; raise CheckpointFailed where that failed."""
        started = time.monotonic()
        self._profile.lap("serving")
        try:
            path = self._write_checkpoint()
            self._store.keep(path)
        except CheckpointFailed as error:
            self._num_failures += 1
            self._last_failure = str(error)
            self._store.discard_unfinished()
            log.error(
                "a replay checkpoint failed; the server goes on",
                reason=str(error),
                failures=self._num_failures,
            )
            raise
        finally:
            self._profile.lap("replay saving")
            self._write_status()
        self._num_checkpoints += 1
        self._last_failure = None
        self._write_status()
        seconds = round(time.monotonic() - started, 2)
        log.info("a replay checkpoint was written", name=path.name, seconds=seconds)

    def metrics(self) -> Metrics:
        """Return the segments of each table, and the checkpoints written and failed; from any thread."""
        try:
            sizes = self._connection.sizes()
        except ReplayUnavailable:
            sizes = {}
        return {
            **{f"replay/segments/{table}": float(size) for table, size in sizes.items()},
            "replay/checkpoints": float(self._num_checkpoints),
            "replay/failed_checkpoints": float(self._num_failures),
            "replay/degraded": float(self._state() == "degraded"),
        }

    def problem(self) -> str | None:
        """Say why the server is not well; from any thread."""
        try:
            self._connection.sizes()
        except ReplayUnavailable as error:
            return str(error)
        return self._last_failure

    def spans(self) -> dict[str, Span]:
        """Return where this process's time went; from any thread."""
        return self._profile.snapshot()

    def close(self) -> None:
        """Stop Reverb and give port and folder back."""
        self._server.stop()
        self._write_status("stopped")
        self._port_lock.release()
        self._folder_lock.release()

    def _write_checkpoint(self) -> Path:
        path = self._ask_for_checkpoint()
        if path.exists():
            return path
        # Reverb deletes all but the entry that sorts last, the new one too if the clock went back.
        log.error("Reverb deleted the checkpoint that it had just written", path=str(path))
        self._store.make_way()
        return self._ask_for_checkpoint()

    def _ask_for_checkpoint(self) -> Path:
        try:
            return Path(self._client.checkpoint())
        except Exception as error:  # Reverb maps each status to a builtin exception of its choice
            raise CheckpointFailed(f"Reverb could not write it: {error}") from error

    def _run(self) -> None:
        """Write a checkpoint every period, and a last one."""
        next_checkpoint = time.monotonic() + self._period
        while not self._stopping.wait(min(_STATUS_SECONDS, self._period / 4)):
            if time.monotonic() >= next_checkpoint:
                self._attempt()
                next_checkpoint = time.monotonic() + self._period
            with contextlib.suppress(OSError):
                self._profile.lap("serving")
                self._write_status()
            with contextlib.suppress(ReplayUnavailable):
                self._connection.sizes()  # Reverb answers, and no checkpoint hangs.
                self._watchdog.beat()
        self._saved_at_the_end = self._attempt()
        self._finished.set()

    def _attempt(self) -> bool:
        try:
            self.checkpoint()
        except (CheckpointFailed, OSError):  # OSError: a full disk may be the log's, too
            return False
        return True

    def _state(self) -> str:
        return "degraded" if self._prepared.degraded or self._last_failure else "serving"

    def _write_status(self, state: str | None = None) -> None:
        status = {
            "state": state or self._state(),
            "pid": os.getpid(),
            "port": self._port,
            "loaded": self._prepared.loaded,
            "not_loaded": self._prepared.degraded,
            "checkpoints": self._num_checkpoints,
            "checkpoint_failures": self._num_failures,
            "last_failure": self._last_failure,
        }
        if state is None:
            try:
                status["segments"] = self._connection.sizes()
            except ReplayError as error:
                status["segments"] = str(error)
        _write_json(self._folder / "status.json", status)
        if self._profile_path is not None:
            spans = self._profile.snapshot()
            _write_json(self._profile_path, {name: span._asdict() for name, span in spans.items()})


def _check_memory(specs: Sequence[EnvironmentSpec], settings: ReplaySettings) -> None:
    needed = full_tables_bytes(specs, settings) / 1e9
    if needed > settings.memory_limit_gigabytes:
        raise NotEnoughMemory(
            f"full tables of {settings.capacity} transitions for {len(specs)} task(s) may need "
            f"{needed:.2f} GB, replay.memory_limit_gigabytes is {settings.memory_limit_gigabytes:g}; "
            "raise it, or lower replay.capacity"
        )
    allowed = memory_limit_bytes()
    if allowed is not None and needed + OWN_GIGABYTES > allowed / 1e9:
        raise NotEnoughMemory(
            f"full tables may need {needed:.2f} GB and the process itself {OWN_GIGABYTES:g}, this container is allowed "
            f"{allowed / 1e9:.2f}: the kernel would kill it later on; raise the limit (REPLAY_MEMORY of the compose "
            "file), or lower replay.capacity"
        )


def memory_limit_bytes(path: Path = CGROUP_LIMIT) -> int | None:
    """Return what the kernel allows this container; None where it sets no limit."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _write_json(path: Path, value: dict[str, Any]) -> None:
    stage = path.with_name(f"{path.name}.stage")
    try:
        stage.write_text(json.dumps(value, indent=1))
        stage.replace(path)
    except OSError as error:  # a full disk must not end the server
        log.debug("a status file could not be written", path=str(path), reason=str(error))
