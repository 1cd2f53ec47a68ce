"""The HTTP routes: rollouts of checkpoints, the catalogue, and health."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Awaitable
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from apprentice.runs import Catalogue, CheckpointEntry, InvalidCheckpointId, UnknownCheckpoint
from evalserver.jobs import Answer, Busy, DeadlinePassed, Jobs, WorkerFailed
from evalserver.schemas import CheckpointAnswer, EvaluateAnswer, EvaluateQuery, Problem

log = structlog.get_logger()

router = APIRouter()
DISCONNECT_SECONDS = 0.25


class ClientGone(Exception):
    """The client closed the connection before its answer was ready."""


@router.get(
    "/evaluate",
    response_model=EvaluateAnswer,
    responses={
        200: {"content": {"video/mp4": {}}, "description": "The rollout, or its returns."},
        404: {"model": Problem, "description": "No such checkpoint."},
        422: {"model": Problem, "description": "A parameter or the checkpoint is at fault."},
        503: {"model": Problem, "description": "Too many requests, or nothing here can draw."},
        504: {"model": Problem, "description": "It took too long."},
    },
)
async def evaluate(query: Annotated[EvaluateQuery, Query()], request: Request) -> Response:
    """Run a checkpoint's policy and answer with the rollout itself."""
    catalogue: Catalogue = request.app.state.catalogue
    jobs: Jobs = request.app.state.jobs
    try:
        entry = await asyncio.to_thread(catalogue.resolve, query.checkpoint)
    except UnknownCheckpoint as error:
        return problem(404, "No such checkpoint", str(error))
    except InvalidCheckpointId as error:
        return problem(422, "Not a checkpoint id", str(error))
    try:
        answer = await _unless_gone(
            jobs.run({**query.model_dump(), "path": str(entry.path)}), request
        )
    except Busy as busy:
        headers = {"Retry-After": str(busy.retry_seconds)}
        return problem(503, "Busy", str(busy), headers=headers)
    except DeadlinePassed as error:
        return problem(504, "Took too long", str(error))
    except WorkerFailed as error:
        incident = secrets.token_hex(4)
        log.error("a worker failed", incident=incident, query=query.model_dump())
        return problem(500, "The evaluation failed", str(error), incident)
    except ClientGone:
        return Response(status_code=499)
    if answer.status != 200:
        return problem(answer.status, "The request cannot be served", answer.report["detail"])
    report = {
        "checkpoint": entry.id,
        "run": entry.run,
        "deterministic": query.deterministic,
        **answer.report,
    }
    if query.format == "json":
        return JSONResponse(EvaluateAnswer.model_validate(report).model_dump())
    return Response(answer.media, media_type="video/mp4", headers=_video_headers(entry, report))


@router.get("/checkpoints")
async def checkpoints(
    request: Request, run: Annotated[str | None, Query(max_length=300)] = None
) -> list[CheckpointAnswer]:
    """List the checkpoints of all runs, or of one, newest run first."""
    catalogue: Catalogue = request.app.state.catalogue
    return await asyncio.to_thread(_list_checkpoints, catalogue, run)


@router.get("/livez")
async def livez() -> dict[str, str]:
    """Say that the server answers."""
    return {"status": "alive"}


@router.get("/readyz", responses={503: {"description": "Evaluations cannot be served yet."}})
async def readyz(request: Request) -> JSONResponse:
    """Say whether evaluations can be served, and whether they can be drawn."""
    jobs: Jobs = request.app.state.jobs
    catalogue: Catalogue = request.app.state.catalogue
    readable = await asyncio.to_thread(_readable, catalogue)
    ready = readable and jobs.rendering != "unknown"
    rendering = "unavailable" if jobs.rendering == "none" else jobs.rendering
    body = {
        "ready": ready,
        "rendering": rendering,
        "detail": jobs.detail,
        "runs": "readable" if readable else "the folder of runs cannot be read",
    }
    return JSONResponse(body, status_code=200 if ready else 503)


def problem(
    status: int,
    title: str,
    detail: str,
    incident: str | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """Return an error as application/problem+json."""
    body = Problem(title=title, status=status, detail=detail, incident=incident)
    return JSONResponse(
        body.model_dump(exclude_none=True),
        status_code=status,
        headers=headers,
        media_type="application/problem+json",
    )


async def _unless_gone(work: Awaitable[Answer], request: Request) -> Answer:
    """Await work, and give it up when the client closes the connection."""
    task = asyncio.ensure_future(work)
    try:
        while True:
            done, _ = await asyncio.wait({task}, timeout=DISCONNECT_SECONDS)
            if done:
                return task.result()
            if await request.is_disconnected():
                raise ClientGone
    finally:
        task.cancel()


def _video_headers(entry: CheckpointEntry, report: dict[str, Any]) -> dict[str, str]:
    name = re.sub(r"[^A-Za-z0-9._-]", "_", f"{entry.id}-seed{report['episodes'][0]['seed']}.mp4")
    returns = ",".join(f"{episode['environment_return']:.3f}" for episode in report["episodes"])
    return {
        "Content-Disposition": f'inline; filename="{name}"',
        "X-Apprentice-Checkpoint": entry.id,
        "X-Apprentice-Return-Mean": f"{report['return_mean']:.3f}",
        "X-Apprentice-Returns": returns,
        "Cache-Control": "no-store",
    }


def _list_checkpoints(catalogue: Catalogue, run: str | None) -> list[CheckpointAnswer]:
    return [
        CheckpointAnswer(id=entry.id, run=entry.run, steps=entry.steps, best=entry.best)
        for folder in catalogue.runs()
        if run is None or folder.path.name == run
        for entry in catalogue.checkpoints(folder.path.name)
    ]


def _readable(catalogue: Catalogue) -> bool:
    try:
        catalogue.runs()
    except OSError:
        return False
    return True
