"""Results on the unseen tasks of families: a row per task, number of demonstrations and seed; a table; a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import fmean
from typing import Final, NamedTuple

import numpy as np

from apprentice.results import bootstrap_interval, interval_text, read_rows, write_rows

COLOURS: Final = (
    *("#2f6f9f", "#c0504d", "#5b8c3e", "#8064a2", "#d08a2e", "#3aa3a0", "#7f7f7f"),
    *("#9cc4e0", "#ef9f9b", "#2c4a1c", "#c9b5e6", "#7a4a0c", "#134f4d", "#111111"),
    *("#b8d48f", "#f2c46d", "#e377c2", "#1b2a6b", "#00a0e0", "#7fd1b9", "#a3153f", "#d9d9d9"),
)
"""Of methods, in the order of their names."""
LETTER: Final = 7.0
"""Width that is left for each letter of a method's name."""

BOUNDS: Final = "dac"
"""Method of the policies that are told nothing and all, which others are set against."""
TOLD: Final = {
    ("reacher_goal", division): "-products-decay1+1" for division in ("arcs", "arcs_turned")
}
"""What the told one's label goes on with, where a division has settings of its own (`reacher_goal-gail-arcs`)."""


Setting = tuple[str, str, str, int]
"""Family, division, method, demonstrations shown."""


class FamilyRow(NamedTuple):
    """A run's final policy in one unseen task; the names are the columns of the file."""

    family: str
    split: str  # division of the family's tasks; rows are of its meta-test tasks
    method: str
    context: int  # demonstrations shown; 0 where the policy infers nothing
    task_id: str
    seed: int
    environment_return: float
    metric: str  # what the family measures beside the return, `name=value;name=value`
    expert_return: float | None
    normalised: float | None  # (R - blind) / (told - blind) of this task
    command: str
    commit: str

    @property
    def key(self) -> tuple[str | int, ...]:
        """What makes two rows the same measurement."""
        return self.family, self.split, self.method, self.context, self.task_id, self.seed

    @property
    def setting(self) -> Setting:
        """What all tasks and seeds of one setting have in common."""
        return self.family, self.split, self.method, self.context

    @property
    def metrics(self) -> dict[str, float]:
        """Return the column `metric` as numbers by name."""
        pairs = (part.partition("=") for part in self.metric.split(";") if part)
        return {name: float(value) for name, _, value in pairs}


COLUMNS: Final = tuple(
    "return" if field == "environment_return" else field for field in FamilyRow._fields
)


class FamilySummary(NamedTuple):
    """All tasks and seeds of one setting."""

    mean_return: float
    low: float  # of the interquartile mean over seeds of the mean over tasks
    high: float
    share_of_expert: float | None  # mean return over the expert's
    between: float | None  # (R - blind) / (told - blind), of means over tasks
    metrics: dict[str, float]
    seeds: tuple[float, ...]  # each the mean over tasks


def metric_text(metrics: Mapping[str, float]) -> str:
    """Return metrics as the column `metric` holds them."""
    return ";".join(f"{name}={value:.4g}" for name, value in sorted(metrics.items()))


def read_family_results(path: Path) -> tuple[FamilyRow, ...]:
    """Return a file's rows; none where there is no file yet. Raises ResultsError."""
    return read_rows(path, COLUMNS, _row)


def write_family_results(path: Path, rows: Sequence[FamilyRow]) -> None:
    """Write rows in the order of their keys, each with where it lies between the bounds that are among them."""
    ordered: list[FamilyRow] = sorted(_normalised(rows), key=lambda row: row.key)
    write_rows(path, COLUMNS, ordered)


def summarise_families(rows: Sequence[FamilyRow]) -> dict[Setting, FamilySummary]:
    """Return means over tasks and seeds by setting."""
    by_setting: dict[Setting, list[FamilyRow]] = {}
    for row in rows:
        by_setting.setdefault(row.setting, []).append(row)
    means = {
        setting: float(np.mean([row.environment_return for row in found]))
        for setting, found in by_setting.items()
    }
    summaries = {}
    for setting, found in by_setting.items():
        seeds = sorted({row.seed for row in found})
        of_seeds = tuple(
            float(np.mean([row.environment_return for row in found if row.seed == seed]))
            for seed in seeds
        )
        experts = [row.expert_return for row in found if row.expert_return is not None]
        low, high = bootstrap_interval(of_seeds)
        names = found[0].metrics
        summaries[setting] = FamilySummary(
            means[setting],
            low,
            high,
            means[setting] / float(np.mean(experts)) if len(experts) == len(found) else None,
            _between(setting, means[setting], means),
            {name: float(np.mean([row.metrics[name] for row in found])) for name in names},
            of_seeds,
        )
    return summaries


def family_table(rows: Sequence[FamilyRow]) -> str:
    """Return the results as Markdown: a table for each family and division, a line for each method, the best first.

    What is shown fewest demonstrations, or none, has all of its figures there; of more, the mean return.
    """
    summaries = summarise_families(rows)
    divisions = sorted({setting[:2] for setting in summaries})
    return "\n".join(
        f"### {family}, {split}\n\n"
        + _division_table(
            {s[2:]: found for s, found in summaries.items() if s[:2] == (family, split)}
        )
        for family, split in divisions
    )


def _division_table(summaries: Mapping[tuple[str, int], FamilySummary]) -> str:
    """Return a division's table, from summaries by method and number shown."""
    fewest = {
        method: min(context for name, context in summaries if name == method)
        for method, _ in summaries
    }
    sizes = sorted({context for method, context in summaries if context > fewest[method]})
    names = sorted({name for summary in summaries.values() for name in summary.metrics})
    head = [
        "method",
        "shown",
        "return [95 % interval]",
        "each seed",
        "of the expert's",
        "between blind and told",
        *names,
        *(f"return, {size} shown" for size in sizes),
    ]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for method, context in sorted(
        fewest.items(), key=lambda item: (-summaries[item].mean_return, item)
    ):
        summary = summaries[method, context]
        more = (summaries.get((method, size)) for size in sizes)
        cells = [
            method,
            str(context or ""),
            f"{summary.mean_return:.1f}{interval_text(summary.low, summary.high, len(summary.seeds), 1)}",
            ", ".join(f"{value:.1f}" for value in summary.seeds),
            _two(summary.share_of_expert),
            _two(summary.between),
            *(f"{summary.metrics[name]:.3g}" if name in summary.metrics else "" for name in names),
            *("" if found is None else f"{found.mean_return:.1f}" for found in more),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def family_plot(rows: Sequence[FamilyRow], family: str, split: str) -> str:
    """Return an SVG: mean return on unseen tasks against demonstrations shown, each method a line.

    What infers nothing is a dashed line over all numbers.
    """
    summaries = {
        setting[2:]: summary
        for setting, summary in summarise_families(rows).items()
        if setting[:2] == (family, split)
    }
    methods = sorted({method for method, _ in summaries})
    sizes = sorted({context for _, context in summaries if context}) or [1]
    largest = 1.05 * max(summary.high for summary in summaries.values())
    left, top, width, height = 60, 20, 420, 260
    beside = 40 + LETTER * max(len(method) for method in methods)
    below = max(50, 16 * len(methods) + 10 - height)

    def x(size: float) -> float:
        return left + width * (math.log2(size) + 0.3) / (math.log2(sizes[-1]) + 0.6)

    def y(value: float) -> float:
        return top + height * (1.0 - max(value, 0.0) / largest)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + beside:.0f} {top + height + below}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for value in np.linspace(0.0, largest, 6):
        parts.append(
            f'<line x1="{left}" x2="{left + width}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#ddd"/>'
            f'<text x="{left - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.3g}</text>'
        )
    for size in sizes:
        parts.append(
            f'<text x="{x(size):.1f}" y="{top + height + 18}" text-anchor="middle">{size}</text>'
        )
    for number, method in enumerate(methods):
        colour = COLOURS[number % len(COLOURS)]
        found = {context: s for (name, context), s in summaries.items() if name == method}
        label_y = top + 16 * (number + 1)
        parts.append(
            f'<rect x="{left + width + 14}" y="{label_y - 9}" width="10" height="10" fill="{colour}"/>'
            f'<text x="{left + width + 30}" y="{label_y}">{escape(method)}</text>'
        )
        if 0 in found:
            level = y(found[0].mean_return)
            parts.append(
                f'<line x1="{left}" x2="{left + width}" y1="{level:.1f}" y2="{level:.1f}" stroke="{colour}" '
                'stroke-width="2" stroke-dasharray="6 4"/>'
            )
            continue
        points = " ".join(f"{x(c):.1f},{y(s.mean_return):.1f}" for c, s in sorted(found.items()))
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
        parts += [
            f'<line x1="{x(c):.1f}" x2="{x(c):.1f}" y1="{y(s.low):.1f}" y2="{y(s.high):.1f}" stroke="{colour}" '
            f'stroke-width="5" stroke-opacity="0.35"/>'
            for c, s in found.items()
        ]
    parts.append(
        f'<text x="{left + width / 2}" y="{top + height + 40}" text-anchor="middle">'
        f"demonstrations shown; {escape(family)}, {escape(split)}, meta-test tasks</text></svg>"
    )
    return "\n".join(parts) + "\n"


def _normalised(rows: Sequence[FamilyRow]) -> list[FamilyRow]:
    """Return rows that say where each lies between the bounds in its own task."""
    found: dict[str, dict[Setting, list[float]]] = {}
    for row in rows:
        of_task = found.setdefault(row.task_id, {})
        of_task.setdefault(row.setting, []).append(row.environment_return)
    means = {
        task: {setting: fmean(returns) for setting, returns in settings.items()}
        for task, settings in found.items()
    }
    return [
        row._replace(normalised=_between(row.setting, row.environment_return, means[row.task_id]))
        for row in rows
    ]


def _between(
    setting: Setting, environment_return: float, means: Mapping[Setting, float]
) -> float | None:
    """Return where a return lies between the imitating policies that are told nothing and all of their task.

    They were trained by the same method where such were, else by BOUNDS. None where they are not both there, or knowing
    the task is of no use.
    """
    family, split, method, _ = setting
    settings_of_told = TOLD.get((family, split), "")
    for trained in (method.split("-")[0], BOUNDS):
        blind = means.get((family, split, f"{trained}-blind", 0))
        told = means.get((family, split, f"{trained}-told{settings_of_told}", 0))
        if blind is not None and told is not None:
            return (environment_return - blind) / (told - blind) if told > blind else None
    return None


def _row(entry: Mapping[str, str]) -> FamilyRow:
    def number(name: str) -> float | None:
        return float(entry[name]) if entry[name] else None

    value = number("return")
    if value is None:
        raise ValueError("return: expected a number, found nothing")
    row = FamilyRow(
        entry["family"],
        entry["split"],
        entry["method"],
        int(entry["context"]),
        entry["task_id"],
        int(entry["seed"]),
        value,
        entry["metric"],
        number("expert_return"),
        number("normalised"),
        entry["command"],
        entry["commit"],
    )
    row.metrics  # noqa: B018 - raises ValueError where the column holds something else
    return row


def _two(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
