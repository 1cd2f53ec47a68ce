"""The bearer token that services of one run ask each other for, in a file that all of them can read."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path

from apprentice.checkpoint_files import read_text

METRICS_FILE = "metrics-token"
"""Name of the file beside the token's that anyone on the machine may read."""
_SHORTEST = 32
_POLL_SECONDS = 0.5


class TokenError(Exception):
    """There is no token that can be used; the message says where and what to do."""


def ensure_token(path: Path) -> str:
    """Return the token in a file, which is made (mode 0600) where it is not there, METRICS_FILE beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        token = secrets.token_urlsafe(32)
        if not _create(path, token, 0o600):
            token = read_token(path)
        _create(path.with_name(METRICS_FILE), metrics_token(token), 0o644)
    except OSError as error:
        raise TokenError(f"{path}: the token cannot be written: {error.strerror}") from error
    return token


def metrics_token(token: str) -> str:
    """Return what follows from a token and opens only the metrics: Prometheus runs as a user of its own."""
    return hmac.new(token.encode(), b"apprentice: metrics", hashlib.sha256).hexdigest()


def _create(path: Path, text: str, mode: int) -> bool:
    """Write a file that is not there yet; return False where it is."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(text + "\n")
    return True


def read_token(
    path: Path, wait_seconds: float = 0.0, should_stop: Callable[[], bool] = lambda: False
) -> str:
    """Return the token in a file, waiting for whoever makes it, or until `should_stop` is true.

    Raises TokenError where there is none.
    """
    deadline = time.monotonic() + wait_seconds
    while True:
        token = (read_text(path, 1024) or "").strip()
        if len(token) >= _SHORTEST and token.isascii():
            return token
        if time.monotonic() >= deadline or should_stop():
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
