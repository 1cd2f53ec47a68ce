"""What the evaluation server keeps, and the parts of it that browsers ask for."""

from __future__ import annotations

import pytest
from fastapi import FastAPI, Request, Response
from fastapi.testclient import TestClient

from evalserver.cache import MediaCache, make_media
from evalserver.ranges import answer_with

DATA = bytes(range(100))


def test_the_longest_unused_goes_first_and_the_limit_holds() -> None:
    cache = MediaCache(limit_bytes=3 * 12_048)
    for name in "abc":
        cache.put(name, make_media({}, b"x" * 10_000, "video/mp4"))
    assert cache.get("a") is not None
    cache.put("d", make_media({}, b"y" * 10_000, "video/mp4"))
    assert [name for name in "abcd" if cache.get(name) is not None] == ["a", "c", "d"]
    assert cache.num_bytes == 3 * 12_048
    cache.put("a", make_media({}, b"z", "video/mp4"))
    assert cache.num_bytes == 2 * 12_048 + 2_049
    cache.put("large", make_media({}, b"x" * 50_000, "video/mp4"))
    assert cache.get("large") is None
    assert len(cache) == 3


def make_client() -> TestClient:
    app = FastAPI()

    @app.get("/")
    def media(request: Request) -> Response:
        return answer_with(DATA, "video/mp4", '"tag"', {"X-More": "yes"}, request)

    return TestClient(app)


@pytest.mark.parametrize(
    ("asked", "status", "body", "span"),
    [
        (None, 200, DATA, None),
        ("bytes=0-", 206, DATA, "bytes 0-99/100"),
        ("bytes=0-0", 206, DATA[:1], "bytes 0-0/100"),
        ("bytes=90-1000", 206, DATA[90:], "bytes 90-99/100"),
        ("bytes=-10", 206, DATA[-10:], "bytes 90-99/100"),
        ("bytes=-1000", 206, DATA, "bytes 0-99/100"),
        ("bytes=100-", 416, b"", "bytes */100"),
        ("bytes=-0", 416, b"", "bytes */100"),
        ("bytes=9-3", 416, b"", "bytes */100"),
        ("bytes=-", 416, b"", "bytes */100"),
        ("bytes=0-1,5-6", 200, DATA, None),
        ("lines=1-2", 200, DATA, None),
        ("bytes=a-b", 200, DATA, None),
        (f"bytes={'9' * 5000}-", 200, DATA, None),  # more digits than Python makes a number of
        (f"bytes=-{'9' * 5000}", 200, DATA, None),
        ("bytes=" + ",".join(f"{n}-{n}" for n in range(10_000)), 200, DATA, None),
        ("bytes=" + "0-," * 10_000, 200, DATA, None),
    ],
)
def test_ranges(asked: str | None, status: int, body: bytes, span: str | None) -> None:
    reply = make_client().get("/", headers={"Range": asked} if asked else {})
    assert (reply.status_code, reply.content) == (status, body)
    assert reply.headers.get("content-range") == span
    assert reply.headers["etag"] == '"tag"'
    assert reply.headers["accept-ranges"] == "bytes"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"If-None-Match": '"tag"'}, 304),
        ({"If-None-Match": 'W/"tag", "other"'}, 304),
        ({"If-None-Match": '"other"'}, 200),
        ({"Range": "bytes=0-1", "If-Range": '"tag"'}, 206),
        ({"Range": "bytes=0-1", "If-Range": '"older"'}, 200),
    ],
)
def test_conditions(headers: dict[str, str], status: int) -> None:
    assert make_client().get("/", headers=headers).status_code == status
