"""Where the wall time of each process went, as told by a run's folder.

The spans of learner and actors lie in the metrics as `profile/<process>/<span>/seconds` and
`.../units`, the replay server's in `replay-profile.json`. They count from each process's start.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPLAY_PROFILE = "replay-profile.json"
_UNATTRIBUTED = "other"
_ENOUGH = 0.95


@dataclass(frozen=True)
class SpanRow:
    """One kind of work of one process."""

    name: str
    seconds: float
    units: int
    share: float  # of the process's wall time

    @property
    def microseconds_per_unit(self) -> float | None:
        return 1e6 * self.seconds / self.units if self.units else None


@dataclass(frozen=True)
class ProcessProfile:
    """All spans of one process, the largest first."""

    process: str
    wall_seconds: float
    spans: tuple[SpanRow, ...]

    @property
    def named_share(self) -> float:
        """Share of the wall time that some span explains."""
        return sum(span.share for span in self.spans if span.name != _UNATTRIBUTED)


def read_profiles(run_folder: Path) -> tuple[ProcessProfile, ...]:
    """Return the newest spans of each process that a run folder tells of."""
    spans = spans_of_metrics(_metrics(run_folder / "metrics.jsonl"))
    replay = run_folder / REPLAY_PROFILE
    if replay.exists():
        spans["replay"] = {
            name: _span_of_json(value) for name, value in json.loads(replay.read_text()).items()
        }
    return tuple(process_profile(process, spans[process]) for process in sorted(spans))


def spans_of_metrics(
    rows: Iterable[Mapping[str, float | None]],
) -> dict[str, dict[str, tuple[float, int]]]:
    """Return seconds and units by process and span; later rows replace earlier ones.

    A process that restarted counts anew, and what it counted before is forgotten.
    """
    newest: dict[str, dict[str, dict[str, float]]] = {}
    for row in rows:
        seen: dict[str, dict[str, dict[str, float]]] = {}
        for key, value in row.items():
            parts = key.split("/")
            if len(parts) >= 4 and parts[0] == "profile" and parts[-1] in ("seconds", "units"):
                span = "/".join(parts[2:-1])
                seen.setdefault(parts[1], {}).setdefault(span, {})[parts[-1]] = value or 0.0
        newest |= seen
    return {
        process: {
            name: (span.get("seconds", 0.0), int(span.get("units", 0.0)))
            for name, span in spans.items()
        }
        for process, spans in newest.items()
    }


def to_json(experiment: str, seconds: float, profiles: Iterable[ProcessProfile]) -> dict[str, Any]:
    """Return the profiles as what `--json` prints."""
    return {
        "experiment": experiment,
        "seconds": seconds,
        "processes": {
            profile.process: {
                "wall_seconds": profile.wall_seconds,
                "named_share": profile.named_share,
                "spans": {
                    span.name: {
                        "seconds": span.seconds,
                        "units": span.units,
                        "microseconds_per_unit": span.microseconds_per_unit,
                        "share": span.share,
                    }
                    for span in profile.spans
                },
            }
            for profile in profiles
        },
    }


def describe_sum(profile: ProcessProfile) -> str:
    """Say how much of the process's time the table explains."""
    text = (
        f"the named spans explain {100 * profile.named_share:.1f} % "
        f"of {profile.wall_seconds:.1f} s of wall time"
    )
    if profile.named_share < _ENOUGH:
        text += f": less than {100 * _ENOUGH:.0f} %, something takes time that nobody measures"
    return text


def process_profile(process: str, spans: Mapping[str, tuple[float, int]]) -> ProcessProfile:
    """Put a process's spans, seconds and units of each, in the order of their size."""
    wall = sum(seconds for seconds, _ in spans.values())
    rows = [
        SpanRow(name, seconds, units, seconds / wall if wall > 0 else 0.0)
        for name, (seconds, units) in spans.items()
    ]
    rows.sort(key=lambda row: (row.name == _UNATTRIBUTED, -row.seconds))
    return ProcessProfile(process, wall, tuple(rows))


def _span_of_json(value: dict[str, float]) -> tuple[float, int]:
    return float(value["seconds"]), int(value["units"])


def _metrics(path: Path) -> Iterator[Mapping[str, float | None]]:
    from apprentice.metrics import read_metrics

    return (row.metrics for row in read_metrics(path).rows)
