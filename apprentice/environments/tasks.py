"""Tasks by name: every `domain-task` of the DeepMind Control Suite, a few of our own, and those of families."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from typing import Any

# dm_control tries to open a graphics library while it is imported, and refuses to be imported where
# MUJOCO_GL names one that is missing. We render through a context of our own (gl.py), so neither
# dm_control nor mujoco need to see the variable.
_requested = os.environ.get("MUJOCO_GL")
os.environ["MUJOCO_GL"] = "disabled"
from dm_control import suite  # noqa: E402

from apprentice.config_family import FamilySettings  # noqa: E402
from apprentice.environments.families import (  # noqa: E402
    FamilyError,
    Task,
    find_family_task,
    load_family,
    task_split,
)
from apprentice.environments.hopping import load_hop_until_fall  # noqa: E402
from apprentice.suite_tasks import FAMILIES, family_of  # noqa: E402

REQUESTED_BACKEND = None if _requested in (None, "", "disabled", "disable", "off") else _requested
"""What the user set MUJOCO_GL to: `egl`, `osmesa` or nothing."""
if _requested is None:
    del os.environ["MUJOCO_GL"]
else:
    os.environ["MUJOCO_GL"] = _requested


class UnknownTask(ValueError):
    """No task has this name."""


OWN_TASKS: Mapping[str, Callable[[int], Any]] = {"hopper-hop_until_fall": load_hop_until_fall}
"""Tasks that the suite does not have, and what builds each from a seed."""


@cache
def suite_tasks() -> tuple[str, ...]:
    """Return all task names, as `domain-task`."""
    ours = OWN_TASKS.keys()
    return tuple(sorted({f"{domain}-{name}" for domain, name in suite.ALL_TASKS} | ours))


def find_task(task: str, family: FamilySettings | None = None) -> Task:
    """Return the task of this name or id, or raise UnknownTask with the nearest names.

    `family` says how a family's tasks are divided, where the name is one of theirs.
    """
    if family_of(task) is not None:
        return _find_in_family(task, family or FamilySettings())
    if task not in suite_tasks():
        near = difflib.get_close_matches(task, [*suite_tasks(), *FAMILIES], n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(repr(name) for name in near)}?" if near else ""
        raise UnknownTask(
            f"expected a task of the DeepMind Control Suite as 'domain-task', found {task!r}{hint} "
            f"(all {len(suite_tasks())}: {', '.join(suite_tasks())}; families: {', '.join(FAMILIES)})"
        )
    domain, _, name = task.partition("-")
    return Task(domain, name)


def _find_in_family(task: str, settings: FamilySettings) -> Task:
    """Return a task of the division, or of a fixed one of its family: a policy may be looked at in any of them."""
    family = task.partition("-")[0]
    try:
        first = task_split(family, settings).train[0].task_id
    except FamilyError as error:
        raise UnknownTask(str(error)) from error
    if task in FAMILIES:
        raise UnknownTask(f"expected one task, found the family {task!r}; name one, like {first!r}")
    try:
        return find_family_task(task, settings)
    except FamilyError as error:
        for name in sorted(load_family(family).fixed_splits):
            with suppress(FamilyError):
                return find_family_task(task, FamilySettings(split=name))
        raise UnknownTask(str(error)) from error


def experiment_tasks(task: str, family: FamilySettings) -> tuple[Task, ...]:
    """Return the tasks an experiment trains on: a family's train tasks, or the one. Raises UnknownTask."""
    if task not in FAMILIES:
        return (find_task(task, family),)
    try:
        return task_split(task, family).train
    except FamilyError as error:
        raise UnknownTask(str(error)) from error


def load_task(task: Task, seed: int, family: FamilySettings) -> Any:
    """Build dm_control's environment of a task, with its random state seeded."""
    # The suite's models use an attribute that MuJoCo warns about at every load.
    logging.getLogger("absl").setLevel(logging.ERROR)
    if task.domain in FAMILIES:
        return load_family(task.domain).load(task, seed, family)
    ours = OWN_TASKS.get(task.task_id)
    if ours is not None:
        return ours(seed)
    return suite.load(task.domain, task.name, task_kwargs={"random": seed})
