"""What the OpenAPI description allows, and what it forbids, never makes the server fail."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.openapi import from_url
from schemathesis.schemas import BaseSchema
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from evalserver.app import create_app
from tests.evalserver.serving import Server, keep_episode, make_run, needs_graphics

OPERATIONS = create_app(Path("nowhere")).openapi()["paths"]
CHECKS = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
)
"""Every answer is one that the description names, in a type and a shape that it names."""
LONGEST = {"max_steps": 10, "episodes": 2, "width": 64, "height": 64}
"""What may be asked for is tried; what takes long is cut, for the sake of the test's time."""
BOTH = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    run = runs / make_run(runs, "reach", "reacher-easy")
    keep_episode(run, 100)
    return run


@pytest.fixture(scope="module")
def schema(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BaseSchema]:
    server = Server(run.parent, tmp_path_factory.mktemp("log") / "server.log")
    server.wait_until_ready()
    yield from_url(f"http://127.0.0.1:{server.port}/openapi.json")
    server.end()


def name_what_is_there(case: Case, run: str) -> None:
    """Ask for the run and the checkpoint that there are, and for little of them."""
    query: dict[str, Any] = case.query
    for name, value in (("checkpoint", run), ("beside", run), ("run", run), ("steps", 100)):
        if name in query:
            query[name] = value
    if case.path == "/evaluate":
        query.setdefault("max_steps", LONGEST["max_steps"])
    for name, most in LONGEST.items():
        if isinstance(query.get(name), int):
            query[name] = min(query[name], most)


@pytest.mark.parametrize("path", OPERATIONS)
def test_whatever_is_asked_for_the_server_does_not_fail(schema: BaseSchema, path: str) -> None:
    modes = BOTH if OPERATIONS[path]["get"].get("parameters") else BOTH[:1]
    for mode in modes:
        ask(schema, path, mode, None, 30)


@needs_graphics
@pytest.mark.parametrize("path", ["/evaluate", "/episodes"])
@pytest.mark.parametrize("mode", BOTH, ids=["allowed", "forbidden"])
@pytest.mark.parametrize("examples", [30, pytest.param(300, marks=pytest.mark.slow)])
def test_whatever_is_asked_of_what_there_is_the_server_does_not_fail(
    schema: BaseSchema, run: Path, path: str, mode: GenerationMode, examples: int
) -> None:
    ask(schema, path, mode, run.name, examples)


def ask(
    schema: BaseSchema, path: str, mode: GenerationMode, run: str | None, examples: int
) -> None:
    @given(case=schema[path]["GET"].as_strategy(generation_mode=mode))
    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    def asked(case: Case) -> None:
        if run is not None:
            name_what_is_there(case, run)
        case.call_and_validate(checks=CHECKS, timeout=60)

    asked()
