"""`python -m evalserver`: serve rollouts of the checkpoints in a folder of runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from apprentice import exit_codes
from apprentice.ports import describe_holder, is_free, is_loopback

BEAT_SECONDS = 5
STALL_SECONDS = 120.0
"""A server whose event loop stood still for this long exits to be restarted."""
TOKEN_SECONDS = 60.0
"""How long to wait for a learner that has not made its token yet."""


@dataclass(frozen=True)
class Flags:
    """What is served, and where."""

    runs: Path
    """Folder of runs."""
    host: str = "127.0.0.1"
    """Interface to listen on."""
    port: int = 8000
    """Port to listen on."""
    allowed_hosts: tuple[str, ...] = ()
    """Further names under which requests may come, beside localhost, this machine's name and addresses."""
    token_file: Path | None = None
    """File of the token that requests must then carry; the learner makes it. Needed beyond loopback."""
    reached_from_loopback_only: bool = False
    """Says that --host can be reached through this machine's loopback only, as where a container's port
    is published on 127.0.0.1: then no token is needed."""

    @property
    def needs_token(self) -> bool:
        """Whether others than this machine's users may reach the server."""
        return not (is_loopback(self.host) or self.reached_from_loopback_only)


def main() -> int:
    """Serve until a signal asks to stop; return the exit code."""
    import structlog
    import tyro
    import uvicorn

    from apprentice.logs import configure_logging
    from apprentice.stopping import StopSignal
    from apprentice.tokens import TokenError
    from apprentice.watchdog import Watchdog
    from evalserver.app import create_app
    from evalserver.connections import TimedConnection

    flags = tyro.cli(Flags, prog="python -m evalserver")
    configure_logging("evalserver")
    # uvicorn raises the signals that ended it once more; this handler lets the process end with 0.
    stop = StopSignal().install()
    log = structlog.get_logger()
    if not is_free(flags.host, flags.port):
        log.error(
            f"expected port {flags.port} to be free, found it held by {describe_holder(flags.port)}; "
            "end that process or choose another port"
        )
        return exit_codes.CONFIGURATION
    try:
        token = token_to_ask_for(flags, stop.asked)
    except TokenError as error:
        if stop.asked():
            return 0
        log.error("the evaluation server does not start", reason=str(error))
        return exit_codes.CONFIGURATION
    watchdog = Watchdog("evalserver", STALL_SECONDS)

    async def beat() -> None:
        watchdog.beat()

    config = uvicorn.Config(
        create_app(flags.runs, allowed_hosts=flags.allowed_hosts, token=token),
        host=flags.host,
        port=flags.port,
        http=TimedConnection,
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=8,
        limit_concurrency=200,
        h11_max_incomplete_event_size=16_384,
        callback_notify=beat,  # from the event loop: where that is stuck, nothing beats
        timeout_notify=BEAT_SECONDS,
    )
    server = uvicorn.Server(config)
    watchdog.start()
    try:
        server.run()
    finally:
        watchdog.stop()
    return 0 if server.started else exit_codes.TRY_AGAIN


def token_to_ask_for(flags: Flags, should_stop: Callable[[], bool]) -> str | None:
    """Return the token that requests must carry, waiting for the learner to make it.

    None where this machine's users are all who can ask. Raises TokenError where others could without a
    token, or none comes.
    """
    from apprentice.tokens import TokenError, read_token

    if flags.token_file is None:
        if not flags.needs_token:
            return None
        raise TokenError(
            f"--host {flags.host} can be reached from other machines: expected --token-file, the file of "
            "the token that requests must carry (the learner makes it), or --reached-from-loopback-only "
            "where this machine's loopback is the only way here"
        )
    deadline = time.monotonic() + TOKEN_SECONDS
    while True:
        try:
            return read_token(flags.token_file, wait_seconds=0.5)
        except TokenError:
            if should_stop() or time.monotonic() > deadline:
                raise


if __name__ == "__main__":
    sys.exit(main())
