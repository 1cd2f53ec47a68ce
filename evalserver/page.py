"""The page at `/`: runs, learning curves, checkpoints and a player, made on the server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse
from markupsafe import Markup

from apprentice.checkpoint_files import read_text
from apprentice.runs import Catalogue, RunFolder, UnknownCheckpoint
from apprentice.suite_tasks import SUITE_TASKS
from evalserver.curves import DEFAULTS, draw_curve, read_curves
from evalserver.documents import fill, html
from evalserver.experts import find_expert, keeps_context, read_expert
from evalserver.families import FamilyView, RunUnreadable, describe_family

router = APIRouter(include_in_schema=False)

IMITATION = ("discriminator/", "cloning/", "evaluation/normalised_return")
"""Metrics that are all drawn, where a run has them."""
MOST_RUNS = 50
MOST_ROWS = 200
RunName = Annotated[str, Query(max_length=300)]
MetricName = Annotated[str, Query(max_length=200)]


class EvaluationRow(NamedTuple):
    """One periodic evaluation of a run."""

    steps: int
    mean: float
    low: float
    high: float
    episodes: int
    kept: bool  # whether its first episode can be watched


@router.get("/", response_class=HTMLResponse)
async def page(
    request: Request,
    run: RunName | None = None,
    first: MetricName | None = None,
    second: MetricName | None = None,
) -> HTMLResponse:
    """Show one run, the newest unless another is named, and the list of all."""
    catalogue: Catalogue = request.app.state.catalogue
    return await _answer(_page, catalogue, run, (first, second))


@router.get("/live", response_class=HTMLResponse)
async def live(request: Request, run: RunName) -> HTMLResponse:
    """The part of the page that changes every second."""
    catalogue: Catalogue = request.app.state.catalogue
    return await _answer(lambda: _live(catalogue.find_run(run)))


@router.get("/curves", response_class=HTMLResponse)
async def curves(
    request: Request,
    run: RunName,
    first: MetricName | None = None,
    second: MetricName | None = None,
) -> HTMLResponse:
    """The two learning curves."""
    catalogue: Catalogue = request.app.state.catalogue
    return await _answer(lambda: _curves(catalogue.find_run(run), (first, second)))


@router.get("/imitation", response_class=HTMLResponse)
async def imitation(request: Request, run: RunName) -> HTMLResponse:
    """All curves of what a run that imitates tells of its discriminator; nothing for another."""
    catalogue: Catalogue = request.app.state.catalogue
    return await _answer(lambda: _imitation(catalogue.find_run(run)))


async def _answer(make: Callable[..., str], *arguments: Any) -> HTMLResponse:
    """Answer with what `make` returns, which reads files; 404 where the run is not there."""
    try:
        return html(await asyncio.to_thread(make, *arguments))
    except UnknownCheckpoint as error:
        return html(fill("missing.html", reason=str(error)), 404)


def _page(catalogue: Catalogue, run: str | None, metrics: tuple[str | None, str | None]) -> str:
    folders = catalogue.runs()
    entries = [folder.describe() for folder in folders[:MOST_RUNS]]
    if run is None and not folders:
        return fill("page.html", run=None, runs=[])
    folder = folders[0] if run is None else catalogue.find_run(run)
    evaluations = _evaluations(folder)
    returns = {row.steps: row.mean for row in evaluations}
    checkpoints = [
        {**entry._asdict(), "environment_return": returns.get(entry.steps)}
        for entry in reversed(catalogue.checkpoints(folder.path.name))
    ]
    newest = checkpoints[0]["id"] if checkpoints else None
    family, family_part = _family(folder, newest)
    expert = keeps_context(catalogue, folder.path.name) or find_expert(catalogue, folder.path.name)
    return fill(
        "page.html",
        run=folder.path.name,
        runs=entries,
        status=folder.describe(),
        live=Markup(_live(folder)),  # noqa: S704 - our own template's output
        curves=Markup(_curves(folder, metrics)),  # noqa: S704
        imitation=Markup(_imitation(folder)),  # noqa: S704
        checkpoints=checkpoints[:MOST_ROWS],
        expert=expert,
        family=family,
        family_part=family_part,
        evaluations=list(reversed(evaluations))[:MOST_ROWS],
        tasks=SUITE_TASKS,
    )


def _family(folder: RunFolder, checkpoint: str | None) -> tuple[FamilyView | None, Markup]:
    """Return the run's family and the part of the page on it, or none and why the run's settings cannot be read."""
    try:
        family = describe_family(folder, checkpoint)
    except RunUnreadable as error:
        return None, Markup(fill("unreadable.html", reason=str(error)))  # noqa: S704
    if family is None:
        return None, Markup()
    return family, Markup(fill("family.html", family=family, checkpoint=checkpoint))  # noqa: S704


def _live(folder: RunFolder) -> str:
    status = folder.describe()
    expert = read_expert(folder)
    newest = status.evaluation_returns[-1] if status.evaluation_returns else None
    return fill(
        "live.html",
        status=status,
        age=_age(status.updated),
        expert=expert,
        normalised=None if expert is None else expert.normalised(newest),
    )


def _curves(folder: RunFolder, metrics: tuple[str | None, str | None]) -> str:
    found = read_curves(folder.metrics)
    charts = []
    for which, asked, default in zip(("first", "second"), metrics, DEFAULTS, strict=True):
        name = asked or default
        drawn = Markup(draw_curve(name, found.get(name, [])))  # noqa: S704 - escaped where drawn
        charts.append((which, name, drawn))
    names = sorted(found.keys() | {name for _, name, _ in charts})
    return fill("curves.html", charts=charts, metrics=names)


def _imitation(folder: RunFolder) -> str:
    found = read_curves(folder.metrics)
    charts = [
        (name, Markup(draw_curve(name, found[name])))  # noqa: S704 - escaped where drawn
        for name in sorted(found, key=lambda name: (not name.startswith("evaluation/"), name))
        if name.startswith(IMITATION)
    ]
    return fill("imitation.html", charts=charts)


def _evaluations(folder: RunFolder) -> list[EvaluationRow]:
    rows = []
    for path in sorted(folder.evaluations.glob("step-*.json")):
        try:
            stored: dict[str, Any] = json.loads(read_text(path, 2**20) or "")
            returns = [float(value) for value in stored["returns"]]
            kept = path.with_suffix(".trajectory.safetensors").is_file()
            mean = sum(returns) / len(returns)
            row = (int(stored["steps"]), mean, min(returns), max(returns), len(returns), kept)
            rows.append(EvaluationRow(*row))
        except (ValueError, KeyError, TypeError, ZeroDivisionError):
            continue  # Half written, or not one of ours.
    return rows


def _age(updated: str | None) -> str:
    """Write how long ago a moment was; "" where it is not known."""
    if updated is None:
        return ""
    try:
        seconds = (datetime.now(UTC) - datetime.fromisoformat(updated)).total_seconds()
    except (ValueError, TypeError):
        return ""
    for unit, size in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
