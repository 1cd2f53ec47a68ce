"""One service as a child process that cannot outlive us, and its bounded log file."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from apprentice import exit_codes
from apprentice.stopping import death_with

_LOG_LIMIT_BYTES = 16 * 2**20
_TAIL_BYTES = 32 * 2**10


@dataclass(frozen=True)
class Service:
    """What to start, and how to part with it."""

    name: str
    command: tuple[str, ...]
    stop_seconds: float
    """Time between SIGTERM and SIGKILL."""
    stop_stage: int = 0
    """Services of a higher stage get their SIGTERM once all of the lower stages have gone."""
    outlives_run: bool = False
    """Stays when the run has finished, until the user stops it."""
    environment: Mapping[str, str] = field(default_factory=dict)


class Child:
    """A started service: leader of its own session and process group, with a log to append to.

    The kernel kills it when we die, however we die. It gets no Ctrl-C of the terminal's; that is
    for the supervisor to pass on.
    """

    def __init__(self, service: Service, log: Path) -> None:
        with log.open("ab") as output:
            # The supervisor has a single thread, so running Python between fork and exec is safe,
            # and the thread whose death sends the signal is the process.
            self._popen = subprocess.Popen(  # noqa: S603
                service.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **service.environment},
                start_new_session=True,
                preexec_fn=death_with(os.getpid()),
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    def send(self, number: signal.Signals) -> None:
        """Signal the service itself; its own children are its affair while it lives."""
        if self._popen.returncode is None:
            # Not Popen.send_signal: that may reap the process before exit_code has seen it.
            os.kill(self.pid, number)

    def exit_code(self) -> int | None:
        """Return None while it runs, else its exit code, -N after signal N.

        What it started and left behind is killed before its pid, which names the group, is freed.
        """
        if self._popen.returncode is None:
            flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
            if os.waitid(os.P_PID, self.pid, flags) is None:
                return None
            self.kill()
        return self._popen.wait(timeout=10.0)

    def kill(self) -> None:
        """Kill the service and everything in its process group."""
        if self._popen.returncode is None:
            os.killpg(self.pid, signal.SIGKILL)


def bound_log(log: Path, limit_bytes: int = _LOG_LIMIT_BYTES) -> bool:
    """Move a log over the limit to `<name>.1` and empty it; say whether it was.

    The service keeps its file open in append mode, so it goes on at the new end. Lines written in
    the microseconds between copy and truncation are lost.
    """
    try:
        if log.stat().st_size <= limit_bytes:
            return False
    except FileNotFoundError:
        return False
    shutil.copyfile(log, log.with_name(log.name + ".1"))
    os.truncate(log, 0)
    return True


def last_lines(log: Path, num_lines: int = 20) -> list[str]:
    """Return the end of a log, at most `num_lines` lines."""
    try:
        with log.open("rb") as source:
            source.seek(max(0, source.seek(0, os.SEEK_END) - _TAIL_BYTES))
            text = source.read().decode(errors="replace")
    except FileNotFoundError:
        return []
    return text.splitlines()[-num_lines:]


def describe_exit(code: int) -> str:
    """Say in words how a process ended."""
    if code == -signal.SIGKILL:
        return "was killed (SIGKILL: by hand, or by the kernel for lack of memory)"
    if code < 0:
        try:
            return f"was ended by {signal.Signals(-code).name}"
        except ValueError:
            return f"was ended by signal {-code}"
    meaning = exit_codes.MEANINGS.get(code)
    return f"exited with {code}" + (f" ({meaning})" if meaning else "")
