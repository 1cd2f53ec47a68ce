"""Tasks by name: every `domain-task` of the DeepMind Control Suite, and a few of our own."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

# dm_control tries to open a graphics library while it is imported, and refuses to be imported where
# MUJOCO_GL names one that is missing. We render through a context of our own (gl.py), so neither
# dm_control nor mujoco need to see the variable.
_requested = os.environ.get("MUJOCO_GL")
os.environ["MUJOCO_GL"] = "disabled"
from dm_control import suite  # noqa: E402

from apprentice.environments.hopping import load_hop_until_fall  # noqa: E402

REQUESTED_BACKEND = None if _requested in (None, "", "disabled", "disable", "off") else _requested
"""What the user set MUJOCO_GL to: `egl`, `osmesa` or nothing."""
if _requested is None:
    del os.environ["MUJOCO_GL"]
else:
    os.environ["MUJOCO_GL"] = _requested


class UnknownTask(ValueError):
    """No task has this name."""


@dataclass(frozen=True)
class Task:
    """One task; `parameters` are those of a family, and empty for a task of the suite."""

    domain: str
    name: str
    parameters: Mapping[str, float] = field(default_factory=dict)

    @property
    def task_id(self) -> str:
        """Names the task in tables, files, URLs and labels; the same in every process and release."""
        return f"{self.domain}-{self.name}"


OWN_TASKS: Mapping[str, Callable[[int], Any]] = {"hopper-hop_until_fall": load_hop_until_fall}
"""Tasks that the suite does not have, and what builds each from a seed."""


@cache
def suite_tasks() -> tuple[str, ...]:
    """Return all task names, as `domain-task`."""
    ours = OWN_TASKS.keys()
    return tuple(sorted({f"{domain}-{name}" for domain, name in suite.ALL_TASKS} | ours))


def find_task(task: str) -> Task:
    """Return the task of this name, or raise UnknownTask with the nearest names."""
    if task not in suite_tasks():
        near = difflib.get_close_matches(task, suite_tasks(), n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(repr(name) for name in near)}?" if near else ""
        raise UnknownTask(
            f"expected a task of the DeepMind Control Suite as 'domain-task', found {task!r}{hint} "
            f"(all {len(suite_tasks())}: {', '.join(suite_tasks())})"
        )
    domain, _, name = task.partition("-")
    return Task(domain, name)


def load_suite_task(task: Task, seed: int) -> Any:
    """Build dm_control's environment of a task, with its random state seeded."""
    # The suite's models use an attribute that MuJoCo warns about at every load.
    logging.getLogger("absl").setLevel(logging.ERROR)
    ours = OWN_TASKS.get(task.task_id)
    if ours is not None:
        return ours(seed)
    return suite.load(task.domain, task.name, task_kwargs={"random": seed})
