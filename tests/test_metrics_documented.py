"""`docs/metrics.md` names every metric that is written or exported, and no other."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest

from apprentice.exporter import metric_name
from tests.measured import Measured

PAGE = Path(__file__).resolve().parents[1] / "docs" / "metrics.md"
SERVICES = {
    "Learner": ("learner",),
    "Replay server": ("replay",),
    "Actor": ("actor",),
    "Evaluation server": ("evalserver",),
    "Runs": ("evalserver",),
    "Processes": ("learner", "actor", "replay", "evalserver"),
    "Where the time goes": ("learner", "actor", "replay", "evalserver"),
}
"""Section of the page and the services that it speaks of."""


class Documented(NamedTuple):
    """One row of the page."""

    key: str  # parts in <> stand for any text
    services: tuple[str, ...]
    where: frozenset[str]

    def pattern(self, prometheus: bool) -> re.Pattern[str]:
        """Return what matches the names that this row speaks of."""
        pieces = re.split(r"(<[^>]*>)", self.key)
        if prometheus and not self.key.startswith(("apprentice_", "process_")):
            pieces = [
                piece if piece.startswith("<") else metric_name(piece)[number and 11 :]
                for number, piece in enumerate(pieces)
            ]
        text = "".join(".+" if piece.startswith("<") else re.escape(piece) for piece in pieces)
        # A histogram is three names.
        return re.compile(text + ("(_bucket|_sum|_count)?" if prometheus else ""))


def tables() -> Iterable[tuple[str, list[str], list[str]]]:
    """Return section, header and cells of every row of every table of the page."""
    section, header = "", []
    for line in PAGE.read_text().splitlines():
        if line.startswith("## "):
            section = line[3:]
        if not line.startswith("|"):
            header = []
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not header:
            header = cells
        elif set(cells[0]) != {"-"}:
            assert len(cells) == len(header), line
            yield section, header, cells


def documented() -> list[Documented]:
    rows = []
    for section, header, cells in tables():
        if header[0] == "key":
            assert header == ["key", "unit", "meaning", "where", "when"]
            where = frozenset(cells[3].split(", "))
            assert where <= {"file", "port"}, cells
            rows.append(Documented(cells[0].strip("`"), SERVICES[section], where))
    return rows


def compare(names: Iterable[str], rows: Iterable[Documented], prometheus: bool) -> list[str]:
    """Say which names no row speaks of, and which rows speak of no name."""
    names, patterns = set(names), {row.key: row.pattern(prometheus) for row in rows}
    unknown = [
        f"written, not documented: {name}"
        for name in sorted(names)
        if not any(pattern.fullmatch(name) for pattern in patterns.values())
    ]
    unused = [
        f"documented, not written: {key}"
        for key, pattern in patterns.items()
        if not any(pattern.fullmatch(name) for name in names)
    ]
    return unknown + unused


def test_every_key_of_the_file_is_documented_and_none_besides(measured: Measured) -> None:
    rows = [row for row in documented() if "file" in row.where]
    assert compare(measured.written, rows, prometheus=False) == []


@pytest.mark.parametrize("service", ["learner", "actor", "replay", "evalserver"])
def test_every_name_at_a_port_is_documented_and_none_besides(
    measured: Measured, service: str
) -> None:
    rows = [row for row in documented() if "port" in row.where and service in row.services]
    assert compare(measured.exported[service], rows, prometheus=True) == []


def test_every_span_is_documented_and_none_besides(measured: Measured) -> None:
    rows = {
        (cells[0], cells[1].strip("`"))
        for _, header, cells in tables()
        if header[:2] == ["service", "span"]
    }
    found = {
        (service, name)
        for service, names in measured.spans.items()
        for name in names
        if name != "other"
    }
    found |= {("all but evalserver", "other")}
    assert "other" not in measured.spans["evalserver"]
    assert rows == found


def test_no_key_is_documented_twice() -> None:
    keys = [(row.key, row.services) for row in documented()]
    assert sorted(keys) == sorted(set(keys))
    assert len(keys) > 60


@pytest.mark.parametrize(
    ("names", "complaints"),
    [
        (["replay/segments/feed"], []),
        (["replay/segments/task/reacher-easy", "replay/segments/feed"], []),
        ([], ["documented, not written: replay/segments/<table>"]),
        (["replay/segments/feed", "replay/x"], ["written, not documented: replay/x"]),
        (
            ["xreplay/segments/feed", "replay/segments/feed"],
            ["written, not documented: xreplay/segments/feed"],
        ),
    ],
)
def test_the_comparison_finds_what_is_missing_on_either_side(
    names: list[str], complaints: list[str]
) -> None:
    row = Documented("replay/segments/<table>", ("replay",), frozenset({"port"}))
    assert compare(names, [row], prometheus=False) == complaints
    exported = [metric_name(name) for name in names]
    assert len(compare(exported, [row], prometheus=True)) == len(complaints)
