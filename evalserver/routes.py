"""The HTTP routes: rollouts of checkpoints, the catalogue, and health."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import urllib.parse
from collections.abc import Awaitable
from contextlib import suppress
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from apprentice.checkpoint_format import MANIFEST
from apprentice.runs import (
    Catalogue,
    CheckpointEntry,
    InvalidCheckpointId,
    RunFolder,
    UnknownCheckpoint,
)
from evalserver.cache import Media, MediaCache, make_media
from evalserver.experts import ExpertEpisode, find_expert, keeps_context
from evalserver.jobs import Answer, Busy, DeadlinePassed, Jobs, WorkerFailed
from evalserver.problems import described, problem
from evalserver.ranges import answer_with
from evalserver.schemas import (
    EXPERT,
    MEDIA_TYPES,
    SHOWN,
    CheckpointAnswer,
    EpisodeQuery,
    EvaluateAnswer,
    EvaluateQuery,
    RunAnswer,
)
from evalserver.sharing import Shared
from evalserver.telemetry import Telemetry

log = structlog.get_logger()

router = APIRouter()
DISCONNECT_SECONDS = 0.25
MOST_TRIES = 3
"""Of a request whose checkpoint the learner removes while it waits for a worker."""
WRONG = "A parameter is wrong."
FAILURES = described(
    {
        500: "A worker failed; the next request has another one.",
        503: "Too many requests (Retry-After says when to come back), or nothing here can draw.",
        504: "It took too long.",
    }
)


class ClientGone(Exception):
    """The client closed the connection before its answer was ready."""


@router.get(
    "/evaluate",
    response_model=EvaluateAnswer,
    responses={
        200: {
            "content": {media_type: {} for media_type in MEDIA_TYPES.values()},
            "description": "The rollout, or its returns.",
        },
        206: {"description": "The part of the rollout that a Range header asked for."},
        304: {"description": "The rollout is the one that If-None-Match names."},
        416: {"description": "The rollout ends before the part that a Range header asked for."},
        **described(
            {404: "No such checkpoint.", 422: "A parameter or the checkpoint is at fault."}
        ),
        **FAILURES,
    },
)
async def evaluate(query: Annotated[EvaluateQuery, Query()], request: Request) -> Response:
    """Run a checkpoint's policy and answer with the rollout itself."""
    catalogue: Catalogue = request.app.state.catalogue
    names = [query.checkpoint]
    if query.beside is not None and query.beside != EXPERT:
        names.append(query.beside)
    for _ in range(MOST_TRIES):
        try:
            entries = [await asyncio.to_thread(catalogue.resolve, name) for name in names]
        except UnknownCheckpoint as error:
            return problem(404, "No such checkpoint", str(error))
        except InvalidCheckpointId as error:
            return problem(422, "Not a checkpoint id", str(error))
        answer = await _evaluated(query, entries, request)
        # What `latest` and `best` mean may have been removed since; by now they mean another.
        if answer.status_code != 422 or all(entry.path.is_dir() for entry in entries):
            break
    return answer


async def _evaluated(
    query: EvaluateQuery, entries: list[CheckpointEntry], request: Request
) -> Response:
    """Answer with the rollout of these checkpoints, kept or made now."""
    catalogue: Catalogue = request.app.state.catalogue
    cache: MediaCache = request.app.state.cache
    expert: ExpertEpisode | None = None
    if query.beside == EXPERT and not await asyncio.to_thread(
        keeps_context, catalogue, entries[0].run
    ):
        expert = await asyncio.to_thread(find_expert, catalogue, entries[0].run)
        if expert is None:
            return problem(
                404, "No such episode", f"run {entries[0].run} keeps no episode of an expert"
            )
        if query.episodes > 1 or query.task is not None:
            return problem(
                422,
                "A parameter is wrong",
                "beside=expert: expected one episode of the run's own task, found "
                f"episodes={query.episodes}, task={query.task}",
            )
        query = query.model_copy(update={"seed": expert.seed})
    key = _cache_key(query, entries)
    media = cache.get(key)
    if media is None:
        made = await _make(query, entries, expert, request)
        if isinstance(made, Response):
            return made
        media = made
        cache.put(key, media)
    if query.format == "json":
        return JSONResponse(media.report)
    headers = _media_headers(query, entries[0], media.report)
    return answer_with(media.data, media.media_type, media.etag, headers, request)


async def _make(
    query: EvaluateQuery,
    entries: list[CheckpointEntry],
    expert: ExpertEpisode | None,
    request: Request,
) -> Media | Response:
    """Have the workers make what is asked for; return a Response where that failed."""
    asked: dict[str, Any] = {**query.model_dump(), "paths": [str(entry.path) for entry in entries]}
    if query.beside == EXPERT:
        asked["expert"] = str(expert.path) if expert is not None else SHOWN
    answer = await _work(asked, request)
    if isinstance(answer, Response):
        return answer
    first, *others = entries
    report = {
        **answer.report,
        "checkpoint": first.id,
        "run": first.run,
        "deterministic": query.deterministic,
        "media": _media_links(query, entries),
    }
    for entry in others:
        report["beside"] = {**report["beside"], "checkpoint": entry.id, "run": entry.run}
    if query.beside == EXPERT:
        report["beside"] = {**report["beside"], "checkpoint": EXPERT, "run": first.run}
    report = EvaluateAnswer.model_validate(report).model_dump()
    return make_media(report, answer.media, MEDIA_TYPES.get(query.format, "application/json"))


@router.get(
    "/episodes",
    response_class=Response,
    responses={
        200: {
            "content": {media_type: {} for media_type in MEDIA_TYPES.values()},
            "description": "The episode.",
        },
        206: {"description": "The part of the episode that a Range header asked for."},
        304: {"description": "The episode is the one that If-None-Match names."},
        416: {"description": "The episode ends before the part that a Range header asked for."},
        **described({404: "No such run, or it kept no such episode.", 422: WRONG}),
        **FAILURES,
    },
)
async def episodes(query: Annotated[EpisodeQuery, Query()], request: Request) -> Response:
    """Answer with an episode that a run's periodic evaluation kept, as a video."""
    catalogue: Catalogue = request.app.state.catalogue
    cache: MediaCache = request.app.state.cache
    try:
        folder = await asyncio.to_thread(catalogue.find_run, query.run)
    except UnknownCheckpoint as error:
        return problem(404, "No such run", str(error))
    path = folder.evaluations / f"step-{query.steps:012d}.trajectory.safetensors"
    if path.is_symlink() or not path.is_file():
        detail = f"run {folder.path.name} kept no episode of an evaluation at {query.steps} steps"
        return problem(404, "No such episode", detail)
    key = f"episode {path.stat().st_mtime_ns} {query.model_dump_json()}"
    media = cache.get(key)
    if media is None:
        answer = await _work({**query.model_dump(), "trajectory": str(path)}, request)
        if isinstance(answer, Response):
            return answer
        media = make_media(answer.report, answer.media, MEDIA_TYPES[query.format])
        cache.put(key, media)
    headers = {"X-Apprentice-Return-Mean": f"{media.report['return_mean']:.3f}"}
    return answer_with(media.data, media.media_type, media.etag, headers, request)


async def _work(asked: dict[str, Any], request: Request) -> Answer | Response:
    """Have a worker serve what is asked, once for all who ask the same; return a Response where that failed."""
    jobs: Jobs = request.app.state.jobs
    shared: Shared[Answer] = request.app.state.shared
    key = json.dumps(asked, sort_keys=True, default=str)
    try:
        answer = await _unless_gone(shared.run(key, lambda: jobs.run(asked)), request)
    except Busy as busy:
        headers = {"Retry-After": str(busy.retry_seconds)}
        return problem(503, "Busy", str(busy), headers=headers)
    except DeadlinePassed as error:
        return problem(504, "Took too long", str(error))
    except WorkerFailed as error:
        incident = secrets.token_hex(4)
        log.error("a worker failed", incident=incident, asked=asked)
        return problem(500, "The evaluation failed", str(error), incident)
    except ClientGone:
        return Response(status_code=499)
    if answer.status == 500:
        incident = secrets.token_hex(4)
        log.error("a worker failed", incident=incident, asked=asked, reason=answer.report["detail"])
        return problem(answer.status, "The evaluation failed", answer.report["detail"], incident)
    if answer.status != 200:
        return problem(answer.status, "The request cannot be served", answer.report["detail"])
    telemetry: Telemetry = request.app.state.telemetry
    telemetry.charge(answer.report["seconds"])
    return answer


def _cache_key(query: EvaluateQuery, entries: list[CheckpointEntry]) -> str:
    """Name what is asked for by what it depends on: the checkpoints found, not how they were named, and what they
    are shown."""
    files: list[list[Any]] = []
    for entry in entries:
        files.append([entry.id])
        for path in (entry.path / MANIFEST, RunFolder(entry.path.parent.parent).context_index):
            with suppress(OSError):
                found = path.stat()
                files[-1] += [path.name, found.st_ino, found.st_mtime_ns, found.st_size]
    asked = query.model_dump(mode="json", exclude={"checkpoint", "beside"})
    return json.dumps([files, asked, query.beside == EXPERT], sort_keys=True)


def _media_links(query: EvaluateQuery, entries: list[CheckpointEntry]) -> dict[str, str]:
    """Return links to the same rollout in each format, by its checkpoints' own ids."""
    asked = query.model_dump(mode="json", exclude_defaults=True, exclude={"format"})
    asked["checkpoint"] = entries[0].id
    if query.beside is not None:
        asked["beside"] = EXPERT if query.beside == EXPERT else entries[1].id
    return {
        kind: "/evaluate?" + urllib.parse.urlencode({**asked, "format": kind})
        for kind in MEDIA_TYPES
    }


@router.get("/runs")
async def runs(request: Request) -> list[RunAnswer]:
    """List the runs, newest first, as their learners last described them."""
    catalogue: Catalogue = request.app.state.catalogue
    return await asyncio.to_thread(_list_runs, catalogue)


@router.get("/checkpoints", responses=described({422: WRONG}))
async def checkpoints(
    request: Request, run: Annotated[str | None, Query(max_length=300)] = None
) -> list[CheckpointAnswer]:
    """List the checkpoints of all runs, or of one, newest run first."""
    catalogue: Catalogue = request.app.state.catalogue
    return await asyncio.to_thread(_list_checkpoints, catalogue, run)


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Answer with this server's numbers and the runs', for Prometheus."""
    telemetry: Telemetry = request.app.state.telemetry
    text = await asyncio.to_thread(telemetry.text)
    return Response(text, media_type=CONTENT_TYPE_LATEST)


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


def _media_headers(
    query: EvaluateQuery, entry: CheckpointEntry, report: dict[str, Any]
) -> dict[str, str]:
    name = f"{entry.id}-seed{query.seed}.{query.format}"
    returns = ",".join(f"{episode['environment_return']:.3f}" for episode in report["episodes"])
    shown = ";".join(",".join(map(str, episode["context"])) for episode in report["episodes"])
    return {
        "Content-Disposition": f'inline; filename="{re.sub(r"[^A-Za-z0-9._-]", "_", name)}"',
        "X-Apprentice-Checkpoint": entry.id,
        "X-Apprentice-Return-Mean": f"{report['return_mean']:.3f}",
        "X-Apprentice-Returns": returns,
        **({"X-Apprentice-Context": shown} if shown.strip(";") else {}),
    }


def _list_runs(catalogue: Catalogue) -> list[RunAnswer]:
    answers = []
    for folder in catalogue.runs():
        status = folder.describe().model_dump()
        answer = {name: status[name] for name in RunAnswer.model_fields if name in status}
        answer["checkpoints"] = len(catalogue.checkpoints_of(folder))
        answers.append(RunAnswer.model_validate(answer))
    return answers


def _list_checkpoints(catalogue: Catalogue, run: str | None) -> list[CheckpointAnswer]:
    return [
        CheckpointAnswer(id=entry.id, run=entry.run, steps=entry.steps, best=entry.best)
        for folder in catalogue.runs()
        if run is None or folder.path.name == run
        for entry in catalogue.checkpoints_of(folder)
    ]


def _readable(catalogue: Catalogue) -> bool:
    try:
        catalogue.runs()
    except OSError:
        return False
    return True
