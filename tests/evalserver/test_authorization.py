"""Who may ask: programs by the token, browsers by signing in with it, nobody else."""

from __future__ import annotations

import asyncio
import dataclasses
import re
import subprocess
import sys
import threading
import time
from http.cookies import SimpleCookie
from pathlib import Path

import httpx2
import pytest
from fastapi.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from apprentice import exit_codes
from apprentice.tokens import TokenError, ensure_token
from evalserver.__main__ import Flags, token_to_ask_for
from evalserver.app import create_app
from evalserver.authorization import COOKIE, LARGEST_FORM, RequireToken
from tests.evalserver.serving import ROOT, free_port

TOKEN = "n0b0dy-kn0ws-th1s-but-the-serv1ces-of-a-run"  # noqa: S105 - made up
EVERYWHERE = "0.0.0.0"  # noqa: S104 - it is to be refused
BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
PROTECTED = (
    "/",
    "/live?run=x",
    "/curves?run=x",
    "/evaluate?checkpoint=latest",
    "/episodes?run=x&steps=1",
    "/runs",
    "/checkpoints",
    "/metrics",
    "/docs",
    "/openapi.json",
    "/static/page.js",
    "/static/../runs",
    "//runs",
    "/livez/",
    "/LIVEZ",
    "/nowhere",
)


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    app = create_app(tmp_path, token=TOKEN)
    return TestClient(app, base_url="http://localhost", follow_redirects=False)


def sign_in(client: TestClient, token: str = TOKEN, **headers: str) -> httpx2.Response:
    return client.post("/sign-in", data={"token": token}, headers=headers)


@pytest.mark.parametrize("path", PROTECTED)
def test_without_the_token_a_program_is_told_what_to_send(client: TestClient, path: str) -> None:
    reply = client.get(path)
    assert reply.status_code == 401
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.headers["www-authenticate"].startswith("Bearer")
    assert "Authorization: Bearer" in reply.json()["detail"]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH"])
def test_other_methods_are_asked_for_the_token_too(client: TestClient, method: str) -> None:
    assert client.request(method, "/runs", headers=BROWSER).status_code == 401


@pytest.mark.parametrize("path", ["/runs", "/metrics", "/docs", "/openapi.json", "/"])
def test_the_token_opens_everything(client: TestClient, path: str) -> None:
    reply = client.get(path, headers={"Authorization": f"Bearer {TOKEN}"})
    assert reply.status_code == 200


@pytest.mark.parametrize("path", ["/livez", "/static/page.css"])
def test_health_and_the_style_sheet_are_open(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 200


def test_readiness_is_open(tmp_path: Path) -> None:
    with TestClient(create_app(tmp_path, token=TOKEN), base_url="http://localhost") as client:
        assert "ready" in client.get("/readyz").json()


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        f"Basic {TOKEN}",
        TOKEN,
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN.upper()}",
        f"Bearer {TOKEN} {TOKEN}",
        "Bearer " + "é" * 43,
    ],
)
def test_anything_but_the_token_is_refused(client: TestClient, header: str) -> None:
    headers = {"Authorization": header.encode("latin-1")}
    assert client.get("/runs", headers=headers).status_code == 401


def test_without_a_token_to_ask_for_nobody_is_asked(tmp_path: Path) -> None:
    client = TestClient(create_app(tmp_path), base_url="http://localhost")
    assert client.get("/runs").status_code == 200
    assert client.post("/sign-in", data={"token": TOKEN}).status_code == 404


def test_a_browser_gets_a_form_that_needs_no_script(client: TestClient) -> None:
    reply = client.get("/?run=x", headers=BROWSER)
    assert reply.status_code == 401
    assert reply.headers["content-type"].startswith("text/html")
    assert "<script" not in reply.text
    assert 'style="' not in reply.text
    assert '<form class="sign-in" method="post" action="/sign-in">' in reply.text
    addresses = re.findall(r'(?:href|src|action)="([^"]*)"', reply.text)
    assert set(addresses) == {"/static/page.css", "data:,", "/sign-in"}


def test_signing_in_sets_a_cookie_that_is_not_the_token_and_opens_everything(
    client: TestClient,
) -> None:
    reply = sign_in(client)
    assert (reply.status_code, reply.headers["location"]) == (303, "/")
    assert TOKEN not in str(reply.headers) + reply.text
    cookie = SimpleCookie(reply.headers["set-cookie"])[COOKIE]
    assert len(cookie.value) == 64
    assert cookie["httponly"]
    assert (cookie["samesite"], cookie["path"], cookie["secure"]) == ("strict", "/", "")
    assert cookie["domain"] == ""
    for path in ("/", "/runs", "/docs", "/static/page.js"):
        assert client.get(path, headers=BROWSER).status_code == 200
    assert client.get("/sign-in", headers=BROWSER).headers["location"] == "/"


def test_over_tls_the_cookie_never_travels_without(tmp_path: Path) -> None:
    app = create_app(tmp_path, token=TOKEN)
    client = TestClient(app, base_url="https://localhost", follow_redirects=False)
    assert SimpleCookie(sign_in(client).headers["set-cookie"])[COOKIE]["secure"]


def test_another_token_makes_the_cookie_worthless(tmp_path: Path, client: TestClient) -> None:
    sign_in(client)
    cookie = client.cookies[COOKIE]
    other = TestClient(create_app(tmp_path, token=TOKEN[::-1]), base_url="http://localhost")
    assert other.get("/runs", headers={"Cookie": f"{COOKIE}={cookie}"}).status_code == 401


@pytest.mark.parametrize("value", ["", TOKEN, "0" * 64, "é", "a; apprentice-session=b"])
def test_cookies_that_were_not_given_out_are_refused(client: TestClient, value: str) -> None:
    headers = {"Cookie": f"{COOKIE}={value}".encode("latin-1")}
    assert client.get("/runs", headers=headers).status_code == 401


@pytest.mark.parametrize(
    ("site", "status"),
    [("same-origin", 200), ("none", 200), ("cross-site", 401), ("same-site", 401), ("?", 401)],
)
def test_the_cookie_counts_for_the_page_itself_only(
    client: TestClient, site: str, status: int
) -> None:
    sign_in(client)
    assert client.get("/runs", headers={"Sec-Fetch-Site": site}).status_code == status
    bearer = {"Sec-Fetch-Site": site, "Authorization": f"Bearer {TOKEN}"}
    assert client.get("/runs", headers=bearer).status_code == 200


@pytest.mark.parametrize("token", ["", "x", TOKEN + "x", TOKEN[:-1], "é" * 43, "&token=" + TOKEN])
def test_a_wrong_token_gets_the_form_again_and_no_cookie(client: TestClient, token: str) -> None:
    reply = sign_in(client, token)
    assert reply.status_code == 401
    assert "That is not the token" in reply.text
    assert 'name="token"' in reply.text
    assert "set-cookie" not in reply.headers
    assert client.get("/runs").status_code == 401


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 401),
        (b"\xff\x00\xfe", 401),
        (b"token", 401),
        (b"&" * 100, 401),
        (b"token=" + b"x" * (LARGEST_FORM - 6), 401),
        (b"token=" + b"x" * (LARGEST_FORM - 5), 413),
        (b"token=" + b"x" * 10_000_000, 413),
    ],
)
def test_forms_are_small_and_may_hold_anything(
    client: TestClient, body: bytes, status: int
) -> None:
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    assert client.post("/sign-in", content=body, headers=kind).status_code == status


def test_a_name_that_is_not_the_servers_is_refused_before_the_token_is_looked_at(
    client: TestClient,
) -> None:
    headers = {"Host": "evil.example", "Authorization": f"Bearer {TOKEN}"}
    assert client.get("/runs", headers=headers).status_code == 421
    assert sign_in(client, Host="evil.example").status_code == 421


@pytest.mark.parametrize("signed_in", [False, True])
@pytest.mark.parametrize("path", ["/", "/?run=nobody", "/docs", "/live?run=nobody"])
def test_every_document_forbids_what_is_loaded_from_elsewhere(
    client: TestClient, path: str, signed_in: bool
) -> None:
    if signed_in:
        sign_in(client)
    reply = client.get(path, headers=BROWSER)
    assert reply.headers["content-type"].startswith("text/html")
    policy = reply.headers["content-security-policy"]
    assert policy.startswith("default-src 'self';")
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["referrer-policy"] == "no-referrer"
    assert "http://" not in reply.text
    assert "https://" not in reply.text


@pytest.mark.parametrize("path", ["/livez", "/static/page.css", "/runs", "/nowhere"])
def test_no_answer_is_taken_for_something_else(client: TestClient, path: str) -> None:
    assert client.get(path).headers["x-content-type-options"] == "nosniff"


def command(runs: Path, *flags: str) -> list[str]:
    port = str(free_port())
    return [sys.executable, "-m", "evalserver", "--runs", str(runs), "--port", port, *flags]


def test_beyond_this_machine_it_does_not_start_without_a_token(tmp_path: Path) -> None:
    result = subprocess.run(
        command(tmp_path, "--host", EVERYWHERE),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == exit_codes.CONFIGURATION
    assert "expected --token-file" in result.stderr
    assert "--reached-from-loopback-only" in result.stderr


def first_answer(process: subprocess.Popen[bytes], port: int, path: str) -> httpx2.Response:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            return httpx2.get(f"http://127.0.0.1:{port}{path}", timeout=10)
        except httpx2.TransportError:
            assert process.poll() is None
            time.sleep(0.1)
    raise AssertionError("the server does not answer")


@pytest.mark.parametrize("loopback_only", [False, True])
def test_where_it_can_be_reached_from_decides_whether_it_asks(
    tmp_path: Path, loopback_only: bool
) -> None:
    token_file = tmp_path / ".token"
    flags = ["--token-file", str(token_file)]
    if loopback_only:
        flags = ["--reached-from-loopback-only"]
    asked = command(tmp_path / "runs", "--host", EVERYWHERE, *flags)
    port = int(asked[asked.index("--port") + 1])
    with subprocess.Popen(asked, cwd=ROOT) as process:
        try:
            # The learner makes the token after the evaluation server has started.
            maker = threading.Timer(1.0, ensure_token, [token_file])
            maker.start()
            status = first_answer(process, port, "/runs").status_code
            assert status == (200 if loopback_only else 401)
            maker.join()
            headers = {"Authorization": f"Bearer {ensure_token(token_file)}"}
            reply = httpx2.get(f"http://127.0.0.1:{port}/runs", headers=headers)
            assert reply.json() == []
            process.terminate()
            assert process.wait(20) == 0
        finally:
            process.kill()


def test_the_wait_for_the_token_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = Flags(tmp_path, host=EVERYWHERE, token_file=tmp_path / ".token")
    started = time.monotonic()
    with pytest.raises(TokenError, match="the learner makes it"):
        token_to_ask_for(flags, lambda: True)  # asked to stop
    monkeypatch.setattr("evalserver.__main__.TOKEN_SECONDS", 0.1)
    with pytest.raises(TokenError, match="the learner makes it"):
        token_to_ask_for(flags, lambda: False)
    assert time.monotonic() - started < 10.0


@pytest.mark.parametrize(
    ("host", "loopback_only", "needs"),
    [
        ("127.0.0.1", False, False),
        ("::1", False, False),
        ("localhost", False, False),
        (EVERYWHERE, False, True),
        ("::", False, True),
        ("192.168.1.2", False, True),
        ("localhost.evil.example", False, True),
        (EVERYWHERE, True, False),
    ],
)
def test_a_token_is_needed_wherever_others_can_ask(
    tmp_path: Path, host: str, loopback_only: bool, needs: bool
) -> None:
    flags = Flags(tmp_path, host=host, reached_from_loopback_only=loopback_only)
    if needs:
        with pytest.raises(TokenError, match="expected --token-file"):
            token_to_ask_for(flags, lambda: False)
    else:
        assert token_to_ask_for(flags, lambda: False) is None
    # Who names a file wants it to be asked for, wherever the server listens.
    named = dataclasses.replace(flags, token_file=tmp_path / ".token")
    token = ensure_token(tmp_path / ".token")
    assert token_to_ask_for(named, lambda: False) == token


async def unreachable(scope: Scope, receive: Receive, send: Send) -> None:
    raise AssertionError("the request was served")


def post_form(receive: Receive) -> list[Message]:
    """Return what is answered to a form whose body comes from `receive`."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/sign-in",
        "headers": [],
        "query_string": b"",
    }
    asyncio.run(RequireToken(unreachable, TOKEN)(scope, receive, send))
    return sent


def test_a_form_that_does_not_arrive_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evalserver.authorization.FORM_SECONDS", 0.1)

    async def never() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    assert post_form(never)[0]["status"] == 408


def test_a_browser_that_leaves_before_its_form_has_arrived_is_no_error() -> None:
    async def gone() -> Message:
        return {"type": "http.disconnect"}

    assert post_form(gone)[0]["status"] == 499
