"""Builds the evaluation server's application."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from apprentice.runs import Catalogue
from evalserver import page
from evalserver.cache import MediaCache
from evalserver.hosts import RequireKnownHost
from evalserver.jobs import Jobs
from evalserver.routes import problem, router
from evalserver.telemetry import CountRequests, Telemetry

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
) -> FastAPI:
    """Return the application that serves the runs in a folder."""

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
    )
    app.state.cache = cache = MediaCache(cache_bytes)
    app.state.catalogue = catalogue = Catalogue(runs)
    app.state.telemetry = telemetry = Telemetry(catalogue, cache)
    app.add_middleware(RequireKnownHost, allowed=allowed_hosts)
    app.add_middleware(CountRequests, telemetry=telemetry)
    app.include_router(router)
    app.include_router(page.router)
    app.mount("/static", StaticFiles(directory=page.FOLDER / "static"), name="static")

    @app.exception_handler(RequestValidationError)
    async def refuse_parameters(request: Request, error: RequestValidationError) -> JSONResponse:
        details = "; ".join(
            f"{'.'.join(str(part) for part in entry['loc'][1:]) or 'request'}: {entry['msg']}"
            for entry in error.errors()
        )
        return problem(422, "A parameter is wrong", details)

    @app.exception_handler(HTTPException)
    async def refuse(request: Request, error: HTTPException) -> JSONResponse:
        return problem(error.status_code, "Refused", str(error.detail))

    return app
