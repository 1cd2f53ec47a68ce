"""Results of learning: one row per seed in a CSV, interquartile means with intervals, a table, a plot.

Aggregates follow Agarwal et al. 2021 (arXiv 2108.13264): the interquartile mean over seeds, with a
percentile bootstrap that draws seeds within each task.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import numpy as np

Row = TypeVar("Row")
NUM_RESAMPLES: Final = 5000
COVERAGE: Final = 0.95


Setting = tuple[str, str, int, int, int]
"""Task, method, demonstrations, rows of each, and the budget in environment frames."""


class LearningRow(NamedTuple):
    """The final policy of one seed; the names are the columns of the file."""

    task: str
    method: str
    demonstrations: int  # expert episodes given; 0 for reinforcement learning
    rows: int  # expert transitions kept of each
    seed: int
    frames: int  # environment frames, action repeat counted
    environment_return: float
    expert_return: float | None
    random_return: float | None
    normalised: float | None
    command: str
    commit: str

    @property
    def key(self) -> tuple[object, ...]:
        """What makes two rows the same measurement."""
        return self[:6]

    @property
    def setting(self) -> tuple[str, str, int, int, int]:
        """What seeds are taken together over: the same budget, too."""
        return self.task, self.method, self.demonstrations, self.rows, self.frames


class Summary(NamedTuple):
    """All seeds of one setting."""

    mean: float
    interquartile_mean: float
    low: float
    high: float
    seeds: tuple[float, ...]
    normalised: bool
    """Whether these are normalised returns, or plain ones because there is no expert or no random policy."""


_COLUMNS = tuple(
    "return" if field == "environment_return" else field for field in LearningRow._fields
)


class ResultsError(Exception):
    """A file of results cannot be used; the message says why."""


def read_results(path: Path) -> tuple[LearningRow, ...]:
    """Return a file's rows; none where there is no file yet. Raises ResultsError."""
    return read_rows(path, _COLUMNS, _row)


def write_results(path: Path, rows: Sequence[LearningRow]) -> None:
    """Write rows in the order of task, method, demonstrations, rows and seed."""
    ordered: list[LearningRow] = sorted(rows, key=lambda row: row.key)
    write_rows(path, _COLUMNS, ordered)


def read_rows(
    path: Path, columns: Sequence[str], parse: Callable[[Mapping[str, str]], Row]
) -> tuple[Row, ...]:
    """Return what `parse` makes of each line of a CSV of these columns; none where there is no file.

    Raises ResultsError, also where `parse` raises ValueError.
    """
    if not path.exists():
        return ()
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != tuple(columns):
            raise ResultsError(
                f"{path}: expected the columns {', '.join(columns)}; found {reader.fieldnames}"
            )
        try:
            return tuple(parse(entry) for entry in reader)
        except ValueError as error:
            raise ResultsError(f"{path}: line {reader.line_num}: {error}") from None


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV that appears whole; None is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow(["" if value is None else _shown(value) for value in row])
    stage = path.with_name(f".{path.name}.stage")
    stage.write_text(text.getvalue(), encoding="utf-8")
    stage.replace(path)


def interquartile_mean(values: np.ndarray) -> np.ndarray:
    """Return the mean of the middle half of the last axis; quarters that cut a value take a part of it."""
    ordered = np.sort(values, axis=-1)
    num = ordered.shape[-1]
    edges = np.arange(num + 1) / num
    weight = np.clip(np.minimum(edges[1:], 0.75) - np.maximum(edges[:-1], 0.25), 0.0, None)
    mean: np.ndarray = (ordered * weight).sum(-1) / weight.sum()
    return mean


def bootstrap_interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Return the 95 % percentile interval of the interquartile mean over seeds."""
    drawn = np.random.default_rng(seed).choice(np.array(values), (NUM_RESAMPLES, len(values)))
    tail = 0.5 * (1.0 - COVERAGE)
    low, high = np.quantile(interquartile_mean(drawn), [tail, 1.0 - tail])
    return float(low), float(high)


def interval_text(low: float, high: float, num_seeds: int, decimals: int) -> str:
    """Return an interval as tables show it: "" of one seed, which tells nothing about others."""
    return f" [{low:.{decimals}f}, {high:.{decimals}f}]" if num_seeds > 1 else ""


def summarise(rows: Sequence[LearningRow]) -> dict[Setting, Summary]:
    """Return normalised returns by setting, or plain ones where a seed of it has no other."""
    seeds_of: dict[Setting, list[LearningRow]] = {}
    for row in sorted(rows, key=lambda row: row.seed):
        seeds_of.setdefault(row.setting, []).append(row)
    return {setting: _summary(found) for setting, found in seeds_of.items()}


def _summary(rows: Sequence[LearningRow]) -> Summary:
    known = [row.normalised for row in rows if row.normalised is not None]
    normalised = len(known) == len(rows)
    seeds = known if normalised else [row.environment_return for row in rows]
    low, high = bootstrap_interval(seeds)
    middle = float(interquartile_mean(np.array(seeds)))
    return Summary(float(np.mean(seeds)), middle, low, high, tuple(seeds), normalised)


def difference_interval(
    ours: Mapping[str, Sequence[float]], others: Mapping[str, Sequence[float]], seed: int = 0
) -> tuple[float, float, float]:
    """Return mean over tasks of (ours - others) and its 95 % interval; seeds are drawn within each task."""
    random = np.random.default_rng(seed)
    tail = 0.5 * (1.0 - COVERAGE)
    tasks = sorted(set(ours) & set(others))
    drawn = np.zeros(NUM_RESAMPLES)
    for task in tasks:
        for sign, side in ((1.0, ours), (-1.0, others)):
            chosen = random.choice(np.array(side[task]), (NUM_RESAMPLES, len(side[task])))
            drawn += sign * chosen.mean(1) / len(tasks)
    middle = float(np.mean([np.mean(ours[task]) - np.mean(others[task]) for task in tasks]))
    low, high = np.quantile(drawn, [tail, 1.0 - tail])
    return middle, float(low), float(high)


def differences(rows: Sequence[LearningRow], against: str) -> str:
    """Return a Markdown table of every method's mean less that of `against`, on the same task, rows and budget.

    Raises ResultsError where no row is of that method.
    """
    found: dict[tuple[object, ...], dict[str, tuple[float, ...]]] = {}
    for (task, method, *rest), summary in summarise(rows).items():
        found.setdefault((task, *rest), {})[method] = summary.seeds
    if not any(against in methods for methods in found.values()):
        known = sorted({row.method for row in rows})
        raise ResultsError(f"--against: expected one of {known}, found {against!r}")
    lines = [f"| task | method | less {against} | 95 % interval |", "|---|---|---|---|"]
    for place, methods in sorted(found.items(), key=lambda entry: str(entry[0])):
        if against not in methods:
            continue
        base = {"": methods.pop(against)}
        for method, seeds in sorted(methods.items()):
            middle, low, high = difference_interval({"": seeds}, base)
            lines.append(f"| {place[0]} | {method} | {middle:+.2f} | [{low:+.2f}, {high:+.2f}] |")
    return "\n".join(lines) + "\n"


def table(rows: Sequence[LearningRow]) -> str:
    """Return the results as a Markdown table, one line per setting."""
    experts = {row.setting: row.expert_return for row in rows}
    lines = [
        "| task | method | demonstrations × rows | frames | expert's return | normalised return: mean | "
        "IQM [95 % interval] | each seed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for setting, summary in sorted(summarise(rows).items()):
        task, method, num, kept, frames = setting
        expert = experts[setting]
        note = "" if summary.normalised else " (plain return)"
        lines.append(
            f"| {task} | {method} | {num} × {kept} | {frames:,} | "
            f"{'' if expert is None else f'{expert:.0f}'} | {summary.mean:.2f}{note} | "
            f"{summary.interquartile_mean:.2f}"
            f"{interval_text(summary.low, summary.high, len(summary.seeds), 2)} | "
            f"{', '.join(f'{value:.2f}' for value in summary.seeds)} |"
        )
    return "\n".join(lines) + "\n"


def plot(rows: Sequence[LearningRow]) -> str:
    """Return an SVG: each seed a dot, each setting's interquartile mean a bar with its interval.

    Plain returns are drawn where there are no others: the two have no axis in common.
    """
    summaries = sorted(summarise(rows).items())
    normalised = [entry for entry in summaries if entry[1].normalised]
    summaries, axis = (
        (normalised, "normalised return of the final policy: 0 is random, 1 is the expert")
        if normalised
        else (summaries, "return of the final policy")
    )
    left, width, height, top = 360, 420, 22, 30
    largest = max(1.1, *(max(summary.seeds) for _, summary in summaries)) if summaries else 1.1

    def x(value: float) -> float:
        return left + width * min(max(value, 0.0), largest) / largest

    bottom = top + height * len(summaries)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 40} {bottom + 40}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for tick in np.arange(0.0, largest + 1e-9, 0.25):
        parts.append(
            f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{top - 6}" y2="{bottom}" stroke="#ddd"/>'
            f'<text x="{x(tick):.1f}" y="{bottom + 16}" text-anchor="middle">{tick:.2f}</text>'
        )
    for number, (setting, summary) in enumerate(summaries):
        y = top + height * (number + 0.5)
        task, method, num, kept, frames = setting
        label = escape(f"{task}, {method}, {num} × {kept}, {frames // 1000}k")
        colour = "#c0504d" if method.startswith("bc") else "#2f6f9f"
        parts.append(
            f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
            f'<line x1="{x(summary.low):.1f}" x2="{x(summary.high):.1f}" y1="{y:.1f}" y2="{y:.1f}" '
            f'stroke="{colour}" stroke-width="5" stroke-opacity="0.35"/>'
            f'<rect x="{x(summary.interquartile_mean) - 1.5:.1f}" y="{y - 7:.1f}" width="3" height="14" '
            f'fill="{colour}"/>'
        )
        parts += [
            f'<circle cx="{x(value):.1f}" cy="{y:.1f}" r="3" fill="none" stroke="{colour}"/>'
            for value in summary.seeds
        ]
    parts.append(
        f'<text x="{left + width / 2}" y="{bottom + 34}" text-anchor="middle">{axis}</text></svg>'
    )
    return "\n".join(parts) + "\n"


def _row(entry: Mapping[str, str]) -> LearningRow:
    def number(name: str) -> float | None:
        return float(entry[name]) if entry[name] else None

    value = number("return")
    if value is None:
        raise ValueError("return: expected a number, found nothing")
    return LearningRow(
        entry["task"],
        entry["method"],
        int(entry["demonstrations"]),
        int(entry["rows"]),
        int(entry["seed"]),
        int(entry["frames"]),
        value,
        number("expert_return"),
        number("random_return"),
        number("normalised"),
        entry["command"],
        entry["commit"],
    )


def _shown(value: object) -> object:
    return round(value, 4) if isinstance(value, float) else value
