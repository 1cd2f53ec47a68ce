"""How a command ends that cannot do what was asked of it."""

from __future__ import annotations

EXIT_FAILED = 1
EXIT_DIVERGED = 71
EXIT_CONFIGURATION = 78


class CommandFailed(Exception):
    """Ends the command with a message for the user and an exit code."""

    def __init__(self, message: str, exit_code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code
