"""The page at `/docs`: the HTTP interface in full, from its OpenAPI description."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, NamedTuple

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from evalserver.documents import fill, html

router = APIRouter(include_in_schema=False)

_BOUNDS = (
    ("minimum", "at least {}"),
    ("exclusiveMinimum", "more than {}"),
    ("maximum", "at most {}"),
    ("exclusiveMaximum", "less than {}"),
    ("minLength", "at least {} characters"),
    ("maxLength", "at most {} characters"),
    ("pattern", "matching {}"),
)


class Parameter(NamedTuple):
    """One parameter of an operation."""

    name: str
    allowed: str
    default: str
    description: str


class Operation(NamedTuple):
    """One operation, with its answers by status."""

    method: str
    path: str
    description: str
    parameters: list[Parameter]
    answers: list[tuple[str, str]]


@router.get("/docs", response_class=HTMLResponse)
async def docs(request: Request) -> HTMLResponse:
    """Describe every operation."""
    described = request.app.openapi()
    return html(fill("interface.html", operations=operations_of(described), **described["info"]))


def operations_of(described: Mapping[str, Any]) -> list[Operation]:
    """Return the operations of an OpenAPI description, in its order."""
    return [
        Operation(
            method.upper(),
            path,
            operation.get("description") or operation.get("summary", ""),
            [_parameter(entry) for entry in operation.get("parameters", ())],
            [(status, _meaning(status, a)) for status, a in operation["responses"].items()],
        )
        for path, methods in described["paths"].items()
        for method, operation in methods.items()
    ]


def _parameter(entry: Mapping[str, Any]) -> Parameter:
    schema = entry["schema"]
    default = "required" if entry.get("required") else schema.get("default", "")
    shown = str(default).lower() if isinstance(default, bool) else str(default)
    return Parameter(entry["name"], _values(schema), shown, entry.get("description", ""))


def _values(schema: Mapping[str, Any]) -> str:
    """Say what a schema allows; that a parameter may be left out is said by its default."""
    if "anyOf" in schema:
        kinds = [kind for kind in schema["anyOf"] if kind.get("type") != "null"]
        return " or ".join(_values(kind) for kind in kinds)
    if "enum" in schema:
        return ", ".join(str(value) for value in schema["enum"])
    bounds = [text.format(schema[key]) for key, text in _BOUNDS if key in schema]
    return ", ".join([schema.get("type", "anything"), *bounds])


def _meaning(status: str, answer: Mapping[str, Any]) -> str:
    meaning = str(answer.get("description") or HTTPStatus(int(status)).phrase)
    kinds = ", ".join(answer.get("content", ()))
    return f"{meaning} ({kinds})" if kinds else meaning
