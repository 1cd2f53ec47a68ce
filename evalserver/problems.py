"""Errors as application/problem+json (RFC 9457)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi.responses import JSONResponse

from evalserver.schemas import Problem

MEDIA_TYPE = "application/problem+json"


def problem(
    status: int,
    title: str,
    detail: str,
    incident: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """Return an error's answer."""
    body = Problem(title=title, status=status, detail=detail, incident=incident)
    return JSONResponse(
        body.model_dump(exclude_none=True),
        status_code=status,
        headers=headers,
        media_type=MEDIA_TYPE,
    )


def described(meanings: Mapping[int, str]) -> dict[int | str, dict[str, Any]]:
    """Return errors by status as OpenAPI describes them."""
    schema = Problem.model_json_schema()
    return {
        status: {"description": meaning, "content": {MEDIA_TYPE: {"schema": schema}}}
        for status, meaning in meanings.items()
    }
