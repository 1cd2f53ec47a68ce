"""The bearer token that services of one run ask each other for, in a file that all of them can read."""

from __future__ import annotations

import hmac
import os
import secrets
import time
from pathlib import Path

from apprentice.checkpoint_files import read_text

_SHORTEST = 32
_POLL_SECONDS = 0.5


class TokenError(Exception):
    """There is no token that can be used; the message says where and what to do."""


def ensure_token(path: Path) -> str:
    """Return the token in a file, which is made (mode 0600) where it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        return read_token(path)
    except OSError as error:
        raise TokenError(f"{path}: the token cannot be written: {error.strerror}") from error
    token = secrets.token_urlsafe(32)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(token + "\n")
    return token


def read_token(path: Path, wait_seconds: float = 0.0) -> str:
    """Return the token in a file, waiting for whoever makes it; raise TokenError where there is none."""
    deadline = time.monotonic() + wait_seconds
    while True:
        token = (read_text(path, 1024) or "").strip()
        if len(token) >= _SHORTEST and token.isascii():
            return token
        if time.monotonic() >= deadline:
            found = f"one of {len(token)} characters" if token else "none"
            raise TokenError(
                f"{path}: expected a token of {_SHORTEST} characters or more, found {found}; "
                "the learner makes it at its first start"
            )
        time.sleep(_POLL_SECONDS)


def same_token(found: str, expected: str) -> bool:
    """Compare in a time that does not tell how much of it is right."""
    return hmac.compare_digest(found.encode(), expected.encode())


def bearer(header: str) -> str:
    """Return the token of an `Authorization: Bearer TOKEN` header; "" where it holds none."""
    scheme, _, token = header.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""
