"""Builds the evaluation server's application."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from apprentice.runs import Catalogue
from evalserver import interface, page
from evalserver.authorization import RequireToken
from evalserver.cache import MediaCache
from evalserver.documents import FOLDER, SecurityHeaders
from evalserver.hosts import RequireKnownHost
from evalserver.jobs import Answer, Jobs
from evalserver.problems import problem
from evalserver.routes import router
from evalserver.sharing import Shared
from evalserver.telemetry import CountRequests, Telemetry

log = structlog.get_logger()

NUM_WORKERS = 2
MAX_WAITING = 8
DEADLINE_SECONDS = 120.0
CACHE_BYTES = 128 * 2**20


def create_app(
    runs: Path,
    num_workers: int = NUM_WORKERS,
    max_waiting: int = MAX_WAITING,
    deadline_seconds: float = DEADLINE_SECONDS,
    cache_bytes: int = CACHE_BYTES,
    allowed_hosts: Collection[str] = (),
    token: str | None = None,
) -> FastAPI:
    """Return the application that serves the runs in a folder; with a `token`, to those who know it."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        jobs = Jobs(num_workers, max_waiting, deadline_seconds)
        app.state.jobs = app.state.telemetry.server.jobs = jobs
        jobs.start()
        try:
            yield
        finally:
            await jobs.close()

    app = FastAPI(
        title="Apprentice",
        summary="Rollouts of trained policies over HTTP.",
        version="1",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's page is loaded from elsewhere; `interface` is our own.
        redoc_url=None,
    )
    app.state.shared = Shared[Answer]()
    app.state.cache = cache = MediaCache(cache_bytes)
    app.state.catalogue = catalogue = Catalogue(runs)
    app.state.telemetry = telemetry = Telemetry(catalogue, cache)
    # From the inside out.
    if token is not None:
        app.add_middleware(RequireToken, token=token)
    app.add_middleware(RequireKnownHost, allowed=allowed_hosts)
    app.add_middleware(CountRequests, telemetry=telemetry)
    app.add_middleware(SecurityHeaders)
    app.include_router(router)
    app.include_router(page.router)
    app.include_router(interface.router)
    app.mount("/static", StaticFiles(directory=FOLDER / "static"), name="static")

    @app.exception_handler(RequestValidationError)
    async def refuse_parameters(request: Request, error: RequestValidationError) -> JSONResponse:
        details = "; ".join(
            f"{'.'.join(str(part) for part in entry['loc'][1:]) or 'request'}: {entry['msg']}"
            for entry in error.errors()
        )
        return problem(422, "A parameter is wrong", details)

    @app.exception_handler(HTTPException)
    async def refuse(request: Request, error: HTTPException) -> JSONResponse:
        return problem(error.status_code, "Refused", str(error.detail), headers=error.headers)

    @app.exception_handler(Exception)
    async def admit(request: Request, error: Exception) -> JSONResponse:
        incident = secrets.token_hex(4)
        log.error("a request failed", incident=incident, path=request.url.path, reason=repr(error))
        return problem(500, "This is a mistake in the server", "its log says more", incident)

    return app
