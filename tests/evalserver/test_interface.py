"""The page of the HTTP interface says what its OpenAPI description says."""

from __future__ import annotations

from pathlib import Path

from fastapi.testclient import TestClient

from evalserver.app import create_app
from evalserver.interface import Parameter, operations_of
from tests.evalserver.test_page import Outline


def test_every_operation_and_parameter_is_shown(tmp_path: Path) -> None:
    app = create_app(tmp_path)
    text = TestClient(app, base_url="http://localhost").get("/docs").text
    assert Outline(text).open == []
    paths = app.openapi()["paths"]
    assert {"/evaluate", "/episodes", "/runs", "/checkpoints", "/metrics", "/livez"} <= set(paths)
    for path, methods in paths.items():
        assert f"GET {path}<" in text
        for parameter in methods["get"].get("parameters", ()):
            assert f"<code>{parameter['name']}</code>" in text
    assert "mp4, gif, webp, png, json" in text
    assert "<code>503</code> Too many requests" in text


def test_bounds_and_defaults_are_written_out() -> None:
    schema = {"type": "integer", "minimum": 1, "exclusiveMaximum": 9, "default": 4}
    optional = {"anyOf": [{"type": "string", "maxLength": 5}, {"type": "null"}]}
    (operation,) = operations_of(
        {
            "paths": {
                "/x": {
                    "get": {
                        "summary": "Do it.",
                        "parameters": [
                            {"name": "a", "schema": schema, "description": "How many."},
                            {"name": "b", "schema": optional},
                            {"name": "c", "schema": {"type": "boolean", "default": True}},
                            {"name": "d", "schema": {"enum": ["p", "q"]}, "required": True},
                        ],
                        "responses": {
                            "200": {"content": {"video/mp4": {}}},
                            "404": {"description": "No."},
                        },
                    }
                }
            }
        }
    )
    assert operation[:3] == ("GET", "/x", "Do it.")
    assert operation.parameters == [
        Parameter("a", "integer, at least 1, less than 9", "4", "How many."),
        Parameter("b", "string, at most 5 characters", "", ""),
        Parameter("c", "boolean", "true", ""),
        Parameter("d", "p, q", "required", ""),
    ]
    assert operation.answers == [("200", "OK (video/mp4)"), ("404", "No.")]
