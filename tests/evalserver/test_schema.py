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

from apprentice.config_family import SPLITS
from evalserver.app import create_app
from evalserver.schemas import EXPERT
from tests.evalserver.family_runs import make_family_run, task_of
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
FAMILY = "meta"
ANY_CONTEXT = ("1", "2", "3", "0", "ids:4", "ids:4,5", "#7", "ids:", "x")
BOTH = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    run = runs / make_run(runs, "reach", "reacher-easy")
    keep_episode(run, 100)
    make_family_run(runs, FAMILY)
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


def name_a_family(case: Case, run: str) -> None:
    """Ask for the family's run, in tasks and with demonstrations that there are, or nearly."""
    query: dict[str, Any] = case.query
    tasks = [task_of(split, number) for split in SPLITS for number in (0, 1)]
    for name, values in (("task", tasks), ("context", ANY_CONTEXT), ("beside", (run, EXPERT))):
        if isinstance(query.get(name), str):
            query[name] = values[len(query[name]) % len(values)]
    if "checkpoint" in query:
        query["checkpoint"] = run


@pytest.mark.parametrize("path", OPERATIONS)
def test_whatever_is_asked_for_the_server_does_not_fail(schema: BaseSchema, path: str) -> None:
    modes = BOTH if OPERATIONS[path]["get"].get("parameters") else BOTH[:1]
    for mode in modes:
        ask(schema, path, mode, None, 15)


@needs_graphics
@pytest.mark.parametrize("path", ["/evaluate", "/episodes"])
@pytest.mark.parametrize("mode", BOTH, ids=["allowed", "forbidden"])
@pytest.mark.parametrize("examples", [15, pytest.param(300, marks=pytest.mark.slow)])
def test_whatever_is_asked_of_what_there_is_the_server_does_not_fail(
    schema: BaseSchema, run: Path, path: str, mode: GenerationMode, examples: int
) -> None:
    ask(schema, path, mode, run.name, examples)


@needs_graphics
@pytest.mark.parametrize("mode", BOTH, ids=["allowed", "forbidden"])
def test_whatever_is_asked_of_a_family_the_server_does_not_fail(
    schema: BaseSchema, run: Path, mode: GenerationMode
) -> None:
    (family,) = (path.name for path in run.parent.glob(f"{FAMILY}-*"))

    @given(case=schema["/evaluate"]["GET"].as_strategy(generation_mode=mode))
    @settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
    def asked(case: Case) -> None:
        name_what_is_there(case, family)
        name_a_family(case, family)
        case.call_and_validate(checks=CHECKS, timeout=60)

    asked()


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
