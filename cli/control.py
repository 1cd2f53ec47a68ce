"""`apprentice control ACTION [RUN]`: pause, resume or stop a run that is going on, or checkpoint it now."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from apprentice import exit_codes
from cli.failure import CommandFailed

if TYPE_CHECKING:
    from apprentice.rpc import LearnerClient
    from apprentice.runs import RunFolder

ACTIONS = ("pause", "resume", "stop", "checkpoint")
OBEYED_SECONDS = 15.0
_OVER = ("finished", "stopped", "failed")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=ACTIONS)
    parser.add_argument("name", nargs="?", metavar="RUN", help="a run's name (the newest run)")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), metavar="DIR", help="folder of runs (runs)"
    )
    parser.add_argument(
        "--learner", metavar="HOST:PORT", help="the learner, where it is not on this machine"
    )
    parser.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="what the learner asks for (RUNS/.token, if it is there)",
    )


def run(arguments: argparse.Namespace) -> int:
    folder = _find(arguments.name, arguments.runs)
    address = arguments.learner or _address_of(folder)
    from apprentice.rpc import LearnerClient, LearnerError
    from apprentice.tokens import TokenError, read_token

    token_file = arguments.token_file
    if token_file is None and (arguments.runs / ".token").is_file():
        token_file = arguments.runs / ".token"
    try:
        token = None if token_file is None else read_token(token_file)
        client = LearnerClient(address, token=token)
    except TokenError as error:
        raise CommandFailed(str(error), exit_codes.CONFIGURATION) from None
    try:
        client.control(arguments.action)
        state = _await(client, arguments.action)
    except LearnerError as error:
        raise CommandFailed(str(error)) from None
    finally:
        client.close()
    print(f"run {folder.path.name}: {state}")
    return 0


def _find(name: str | None, runs: Path) -> RunFolder:
    from apprentice.runs import Catalogue, UnknownCheckpoint

    catalogue = Catalogue(runs.absolute())
    try:
        if name is not None:
            return catalogue.find_run(name)
    except UnknownCheckpoint as error:
        raise CommandFailed(str(error), exit_codes.CONFIGURATION) from None
    folders = catalogue.runs()
    if not folders:
        raise CommandFailed(f"expected runs in {runs}, found none", exit_codes.CONFIGURATION)
    return folders[0]


def _address_of(folder: RunFolder) -> str:
    status = folder.read_status()
    if status is None or not status.learner or status.state in _OVER:
        state = "has not started" if status is None or not status.learner else f"is {status.state}"
        raise CommandFailed(
            f"expected run {folder.path.name} to be going on, found that it {state}; "
            f"apprentice up --resume {folder.path.name} goes on with it"
        )
    host, _, port = status.learner.rpartition(":")
    return f"127.0.0.1:{port}" if host == "0.0.0.0" else status.learner  # noqa: S104


def _await(client: LearnerClient, action: str) -> str:
    """Wait until the learner's state shows that it obeyed; return what it says."""
    from apprentice.rpc import LearnerUnavailable

    deadline = time.monotonic() + OBEYED_SECONDS
    while time.monotonic() < deadline:
        try:
            status = client.status()
        except LearnerUnavailable:
            if action == "stop":
                return "stopped"
            raise
        obeyed = {
            "pause": status.state == "paused",
            "resume": status.state != "paused",
            "stop": status.state in _OVER,
            "checkpoint": True,
        }
        if obeyed[action]:
            done = "a checkpoint is being written" if action == "checkpoint" else status.state
            return f"{done} at {status.steps:,} steps"
        time.sleep(0.2)
    return f"{action} was asked for; the learner has not obeyed within {OBEYED_SECONDS:.0f} s"
