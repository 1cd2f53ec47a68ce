"""`python -m evalserver`: serve rollouts of the checkpoints in a folder of runs."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from apprentice import exit_codes


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


def main() -> int:
    """Serve until a signal asks to stop; return the exit code."""
    import structlog
    import tyro
    import uvicorn

    from apprentice.logs import configure_logging
    from apprentice.ports import describe_holder, is_free
    from apprentice.stopping import StopSignal
    from evalserver.app import create_app

    flags = tyro.cli(Flags, prog="python -m evalserver")
    configure_logging("evalserver")
    # uvicorn raises the signals that ended it once more; this handler lets the process end with 0.
    StopSignal().install()
    log = structlog.get_logger()
    if not is_free(flags.host, flags.port):
        log.error(
            f"expected port {flags.port} to be free, found it held by {describe_holder(flags.port)}; "
            "end that process or choose another port"
        )
        return exit_codes.CONFIGURATION
    if flags.host not in ("127.0.0.1", "::1", "localhost"):
        log.warning("the evaluation server can be reached from other machines", host=flags.host)
    uvicorn.run(
        create_app(flags.runs, allowed_hosts=flags.allowed_hosts),
        host=flags.host,
        port=flags.port,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=8,
        limit_concurrency=200,
        h11_max_incomplete_event_size=16_384,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
