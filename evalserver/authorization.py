"""Lets only those in who know the token: programs with every request, browsers by signing in once."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from urllib.parse import parse_qs

from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from apprentice.tokens import bearer, same_token
from evalserver.documents import fill, html
from evalserver.problems import problem

OPEN = frozenset({"/livez", "/readyz", "/static/page.css"})
"""Paths that tell nothing of the runs: health, and what the sign-in page looks like."""
SIGN_IN = "/sign-in"
COOKIE = "apprentice-session"
LARGEST_FORM = 4096
FORM_SECONDS = 10.0
_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="apprentice"'}


class RequireToken:
    """Answers 401 to what carries neither the token nor the cookie that the sign-in page gives for it.

    The cookie follows from the token and not the other way round, so that who finds it in a browser
    can do no more than that browser could: it does not open the other services.
    """

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._token = app, token
        purpose = b"apprentice evaluation server: session"
        self._session = hmac.new(token.encode(), purpose, hashlib.sha256).hexdigest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request, take a sign-in, or refuse with 401."""
        if scope["type"] == "lifespan" or scope["path"] in OPEN:
            await self._app(scope, receive, send)
            return
        if scope["path"] == SIGN_IN and scope.get("method") == "POST":
            answer = await self._sign_in(Request(scope, receive))
        elif not self._is_known(connection := HTTPConnection(scope)):
            answer = _refusal(connection)
        elif scope["path"] == SIGN_IN:
            answer = RedirectResponse("/", 303)
        else:
            await self._app(scope, receive, send)
            return
        await answer(scope, receive, send)

    def _is_known(self, connection: HTTPConnection) -> bool:
        if same_token(bearer(connection.headers.get("authorization", "")), self._token):
            return True
        # Browsers do not send the cookie from other sites (SameSite); where they say who asks, nor
        # may another server on this host use it.
        if connection.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return False
        return same_token(connection.cookies.get(COOKIE, ""), self._session)

    async def _sign_in(self, request: Request) -> Response:
        try:
            async with asyncio.timeout(FORM_SECONDS):
                token = await _read_token_field(request)
        except TimeoutError:
            return problem(408, "Too slow", f"expected the form within {FORM_SECONDS:.0f} s")
        except ClientDisconnect:
            return Response(status_code=499)
        if token is None:
            return problem(413, "Too large", f"expected a form of at most {LARGEST_FORM} bytes")
        if not same_token(token, self._token):
            return _sign_in_page("That is not the token.")
        answer = RedirectResponse("/", 303, {"Cache-Control": "no-store"})
        answer.set_cookie(
            COOKIE,
            self._session,
            path="/",
            secure=request.url.scheme == "https",
            httponly=True,
            samesite="strict",
        )
        return answer


async def _read_token_field(request: Request) -> str | None:
    """Return the token of a posted form, "" without one; None where the form is too large."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > LARGEST_FORM:
            return None
    try:
        fields = parse_qs(body.decode("ascii"), max_num_fields=8)
    except ValueError:
        return ""
    return fields.get("token", [""])[0].strip()


def _refusal(connection: HTTPConnection) -> Response:
    """Return 401 as the sign-in page for people, and as problem+json for programs."""
    if connection.scope.get("method") == "GET" and "text/html" in connection.headers.get(
        "accept", ""
    ):
        return _sign_in_page()
    detail = (
        "expected the token as `Authorization: Bearer TOKEN`, found none or another; it lies in the "
        "file that --token-file names, which the learner makes; browsers sign in at /sign-in"
    )
    return problem(401, "Who are you?", detail, headers=_CHALLENGE)


def _sign_in_page(complaint: str = "") -> Response:
    return html(fill("sign-in.html", complaint=complaint), 401, _CHALLENGE)
