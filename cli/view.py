"""What the user sees of a run: one live picture on a terminal, plain lines elsewhere.

Both read nothing but the run's status file and the supervisor's states.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from cli.supervisor import ServiceState

if TYPE_CHECKING:
    from pydantic import JsonValue
    from rich.console import Console, RenderableType
    from rich.table import Table

    from apprentice.runs import RunStatus

_LIVE_PERIOD_SECONDS = 1.0
_PLAIN_PERIOD_SECONDS = 5.0
_BARS = "▁▂▃▄▅▆▇█"

ReadStatus = Callable[[], "RunStatus | None"]


class View(Protocol):
    """Shows a run while it is supervised."""

    def event(self, text: str) -> None:
        """Tell of something that happened once."""

    def tick(self, states: Sequence[ServiceState]) -> None:
        """Show how things are; called far more often than anything is redrawn."""

    def close(self) -> None:
        """Leave the terminal as it was."""


class PlainView:
    """A line every few seconds."""

    def __init__(self, read_status: ReadStatus) -> None:
        self._read_status = read_status
        self._next = 0.0
        self._last = ""

    def event(self, text: str) -> None:
        self.show(text)

    def tick(self, states: Sequence[ServiceState]) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _PLAIN_PERIOD_SECONDS
        line = status_line(self._read_status(), states)
        if line != self._last:
            self.show(line)
            self._last = line

    def show(self, text: str) -> None:
        """Print one line."""
        print(text, flush=True)

    def close(self) -> None:
        pass


class LiveView:
    """A picture that is redrawn in place, events above it."""

    def __init__(self, console: Console, title: str, footer: str, read_status: ReadStatus) -> None:
        from rich.live import Live

        self._title, self._footer = title, footer
        self._read_status = read_status
        self._next = 0.0
        # No thread of rich's own: a supervisor that forks has one thread only.
        self._live = Live(console=console, auto_refresh=False, redirect_stderr=False)
        self._live.start()

    def event(self, text: str) -> None:
        self._live.console.print(text, markup=False, highlight=False)

    def tick(self, states: Sequence[ServiceState]) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _LIVE_PERIOD_SECONDS
        picture = render(self._title, self._footer, self._read_status(), states)
        self._live.update(picture, refresh=True)

    def close(self) -> None:
        self._live.stop()


def status_line(status: RunStatus | None, states: Sequence[ServiceState]) -> str:
    """Return one line that says how the run is."""
    troubled = [f"{s.name} {s.state}" for s in states if s.state == "restarting"]
    trouble = f" · {', '.join(troubled)}" if troubled else ""
    if status is None:
        return "starting" + trouble
    share = 100.0 * status.steps / max(1, status.max_steps)
    parts = [f"{status.state} {status.steps:,}/{status.max_steps:,} steps ({share:.0f} %)"]
    parts += [f"{name} {value}" for name, value in _measures(status)]
    parts += [f"ETA {eta(status)}", f"{len(status.actors)} actors"]
    parts += [status.message] if status.message else []
    return " · ".join(parts) + trouble


def render(
    title: str, footer: str, status: RunStatus | None, states: Sequence[ServiceState]
) -> RenderableType:
    """Return the whole picture of a run."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    parts: list[RenderableType] = []
    if status is None:
        parts.append(Text("waiting for the learner's first report"))
    else:
        parts += [_progress(status), _measures_table(status)]
        if status.message:
            parts.append(Text(status.message, style="yellow"))
        if status.actors:
            parts.append(_actors_table(status))
    parts += [_services_table(states), Text(footer, style="dim")]
    return Panel(Group(*parts), title=Text(title), title_align="left")


def sparkline(values: Sequence[float], width: int = 20) -> str:
    """Draw the newest values as bars between the smallest and the largest of them."""
    shown = values[-width:]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    top = len(_BARS) - 1
    return "".join(
        _BARS[round(top * (value - low) / (high - low)) if high > low else top // 2]
        for value in shown
    )


def eta(status: RunStatus) -> str:
    """Return the time to the step budget at the current rate, as h:mm:ss, or "?"."""
    left = status.max_steps - status.steps
    if left <= 0:
        return "0:00"
    if not status.steps_per_second or status.steps_per_second <= 0:
        return "?"
    return clock(left / status.steps_per_second)


def clock(seconds: float) -> str:
    """Write a duration as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _measures(status: RunStatus) -> list[tuple[str, str]]:
    """Return name and value of what the learner has measured so far."""
    values = [
        ("return", _number(status.evaluation_returns[-1] if status.evaluation_returns else None)),
        ("best", _number(status.best_return)),
        ("training return", _number(status.training_return)),
        ("steps/s", _number(status.steps_per_second)),
        ("updates/s", _number(status.updates_per_second)),
        ("updates/step", _number(status.replay_ratio, "{:.3f}")),
        ("lag", _number(status.policy_lag_steps, "{:,.0f} steps")),
    ]
    return [(name, value) for name, value in values if value]


def _number(value: float | None, pattern: str = "{:,.0f}") -> str:
    if value is None:
        return ""
    precise = pattern == "{:,.0f}" and abs(value) < 100
    return ("{:.1f}" if precise else pattern).format(value)


def _progress(status: RunStatus) -> RenderableType:
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    row = Table.grid(padding=(0, 1))
    row.add_row(
        f"[bold]{status.state}[/bold]",
        ProgressBar(
            total=status.max_steps, completed=min(status.steps, status.max_steps), width=30
        ),
        f"{status.steps:,} of {status.max_steps:,} steps",
        f"ETA {eta(status)}",
    )
    return row


def _measures_table(status: RunStatus) -> Table:
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    if status.evaluation_returns:
        newest = "  ".join(f"{value:,.0f}" for value in status.evaluation_returns[-5:])
        grid.add_row(f"evaluations  {sparkline(status.evaluation_returns)}  {newest}")
    measures = [f"{name} [bold]{value}[/bold]" for name, value in _measures(status)]
    grid.add_row("   ".join(measures[:3]))
    grid.add_row("   ".join(measures[3:]))
    return grid


def _actors_table(status: RunStatus) -> Table:
    from rich.table import Table

    table = Table("actor", "host", "pid", "steps/s", "heard", "policy", box=None, pad_edge=False)
    for actor in status.actors[:16]:
        table.add_row(
            _text(actor, "slot"),
            _text(actor, "host"),
            _text(actor, "pid"),
            _text(actor, "steps_per_second"),
            _text(actor, "heartbeat_age_seconds", "{:.0f} s ago"),
            _text(actor, "policy_version"),
        )
    if len(status.actors) > 16:
        table.add_row(f"and {len(status.actors) - 16} more")
    return table


def _text(actor: Mapping[str, JsonValue], key: str, pattern: str = "{:,.0f}") -> str:
    """Return one thing that an actor's entry says, "" where it does not."""
    value = actor.get(key)
    if value is None:
        return ""
    if isinstance(value, float) or pattern != "{:,.0f}":
        return pattern.format(value)
    return str(value)


def _services_table(states: Sequence[ServiceState]) -> Table:
    from rich.table import Table

    table = Table("service", "state", "pid", "restarts", "up", box=None, pad_edge=False)
    for state in states:
        style = {"running": "green", "restarting": "red"}.get(state.state, "dim")
        table.add_row(
            state.name,
            f"[{style}]{state.state}[/{style}]",
            "" if state.pid is None else str(state.pid),
            str(state.restarts),
            f"in {clock(state.seconds)}" if state.state == "restarting" else clock(state.seconds),
        )
    return table
