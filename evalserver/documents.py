"""HTML documents: their templates, and what browsers are told about every answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

FOLDER = Path(__file__).resolve().parent
POLICY = (
    "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
"""A document loads nothing from elsewhere, and nobody may frame it."""


def number(value: float | None, digits: int | None = None) -> str:
    """Write a number for people; a dash where there is none."""
    if value is None:
        return "–"
    if digits is not None:
        return f"{value:,.{digits}f}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.3g}"


_templates = Environment(
    loader=FileSystemLoader(FOLDER / "templates"),
    autoescape=select_autoescape(),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.globals["number"] = number


def fill(template: str, **values: Any) -> str:
    """Return a template with its values, which are escaped."""
    return _templates.get_template(template).render(**values)


def html(text: str, status: int = 200, headers: dict[str, str] | None = None) -> HTMLResponse:
    """Return a document that nobody keeps."""
    return HTMLResponse(text, status, {**(headers or {}), "Cache-Control": "no-store"})


class SecurityHeaders:
    """Tells browsers to take every answer for what it says it is, and what documents may load."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, and add the headers to its answer."""

        async def adding(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
                if headers.get("content-type", "").startswith("text/html"):
                    headers["Content-Security-Policy"] = POLICY
            await send(message)

        await self._app(scope, receive, adding)
