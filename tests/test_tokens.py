"""The token: made once, readable by its owner only, and asked for."""

from __future__ import annotations

import stat
import threading
import time
from pathlib import Path

import pytest

from apprentice.tokens import (
    METRICS_FILE,
    TokenError,
    bearer,
    ensure_token,
    metrics_token,
    read_token,
    same_token,
)


def test_it_is_made_once_and_is_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "secrets" / "token"
    token = ensure_token(path)
    assert len(token) >= 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert ensure_token(path) == token == read_token(path)
    assert ensure_token(tmp_path / "other") != token


def test_what_opens_the_metrics_opens_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "secrets" / "token"
    token = ensure_token(path)
    other = path.with_name(METRICS_FILE)
    assert stat.S_IMODE(other.stat().st_mode) == 0o644
    assert other.read_text().strip() == metrics_token(token)
    assert not same_token(metrics_token(token), token)
    other.unlink()  # of a volume that an earlier release made
    ensure_token(path)
    assert other.read_text().strip() == metrics_token(token)


def test_whoever_reads_waits_for_whoever_makes_it(tmp_path: Path) -> None:
    path = tmp_path / "token"
    maker = threading.Timer(0.3, ensure_token, [path])
    maker.start()
    assert len(read_token(path, wait_seconds=10.0)) >= 32
    maker.join()


@pytest.mark.parametrize("content", [None, "", "short", "ä" * 40])
def test_what_is_no_token_is_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_text(content)
    started = time.monotonic()
    with pytest.raises(TokenError, match="expected a token of 32 characters or more"):
        read_token(path)
    assert time.monotonic() - started < 0.4


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    ensure_token(tmp_path / "real")
    (tmp_path / "token").symlink_to(tmp_path / "real")
    with pytest.raises(TokenError):
        read_token(tmp_path / "token")


@pytest.mark.parametrize(
    ("header", "token"),
    [
        ("Bearer abc", "abc"),
        ("bearer  abc ", "abc"),
        ("Basic abc", ""),
        ("abc", ""),
        ("", ""),
    ],
)
def test_headers(header: str, token: str) -> None:
    assert bearer(header) == token


def test_tokens_compare() -> None:
    assert same_token("a" * 40, "a" * 40)
    assert not same_token("a" * 39 + "b", "a" * 40)
    assert not same_token("", "a" * 40)
    assert not same_token("ä", "a" * 40)
