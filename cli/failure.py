"""How a command ends that cannot do what was asked of it."""

from __future__ import annotations

from apprentice import exit_codes


class CommandFailed(Exception):
    """Ends the command with a message for the user and an exit code."""

    def __init__(self, message: str, exit_code: int = exit_codes.FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code
