"""Families of tasks: one physics and one question, asked with many parameters.

A family is one module that defines FAMILY, and one line in `apprentice/suite_tasks.py`; `docs/families.md`
shows how. Its tasks are divided into meta-train, validation and meta-test. A policy never sees which task it
is in, but for privileged ones that read `task_parameters`.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import combinations
from typing import Any, ClassVar

import numpy as np

from apprentice.config_family import SPLITS, FamilySettings, SplitName
from apprentice.suite_tasks import FAMILIES

DRAWN_BY = ("split_seed", "num_train", "num_validation", "num_test")
"""Settings of a division that draws its tasks."""


class FamilyError(ValueError):
    """A family, a division of its tasks or a task's parameters are not what is needed."""


@dataclass(frozen=True)
class Parameter:
    """One number that tells the tasks of a family apart."""

    name: str
    low: float
    high: float
    unit: str


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


@dataclass(frozen=True)
class TaskSplit:
    """A division of a family's tasks, each in one part. Raises FamilyError where two parts share a task."""

    train: tuple[Task, ...]
    validation: tuple[Task, ...]
    test: tuple[Task, ...]

    def __post_init__(self) -> None:
        for one, other in combinations(SPLITS, 2):
            shared = {t.task_id for t in self.of(one)} & {t.task_id for t in self.of(other)}
            if shared:
                raise FamilyError(
                    f"expected {one} and {other} tasks without a task in common, found {sorted(shared)[:3]} in both; "
                    "take another environment.family.split_seed or fewer tasks"
                )
        for name in SPLITS:
            if len({task.task_id for task in self.of(name)}) < len(self.of(name)):
                raise FamilyError(f"expected different {name} tasks, found one twice")
        if not self.train:
            raise FamilyError("expected at least one train task, found none")

    def of(self, name: SplitName) -> tuple[Task, ...]:
        """Return the tasks of one division."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]

    @property
    def tasks(self) -> tuple[Task, ...]:
        """All tasks: train, validation, test."""
        return self.train + self.validation + self.test

    def digest(self) -> str:
        """First 16 hex digits of SHA-256 over the ids of each division, in order."""
        ids = {name: [task.task_id for task in self.of(name)] for name in SPLITS}
        canonical = json.dumps(ids, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


class Family(ABC):
    """What tells tasks apart, how they are divided, and how one is built."""

    name: str
    parameters: tuple[Parameter, ...]
    splits: ClassVar[dict[str, str]]
    """Names of the divisions, and a line on each; the first is `standard`."""
    fixed_splits: ClassVar[frozenset[str]] = frozenset()
    """Divisions that draw nothing: neither seed nor numbers of tasks make others."""

    @abstractmethod
    def divide(self, settings: FamilySettings) -> TaskSplit:
        """Return the tasks of each division; the same settings give the same ones."""

    @abstractmethod
    def load(self, task: Task, seed: int, settings: FamilySettings) -> Any:
        """Build dm_control's environment of a task, with its random state seeded."""

    def task(self, **parameters: float) -> Task:
        """Return the task of these parameters. Raises FamilyError where one is missing or out of range."""
        names = [parameter.name for parameter in self.parameters]
        if set(parameters) != set(names):
            raise FamilyError(f"{self.name}: expected {names}, found {sorted(parameters)}")
        for parameter in self.parameters:
            value = parameters[parameter.name]
            if not parameter.low <= value <= parameter.high:
                raise FamilyError(
                    f"{self.name}: expected {parameter.name} from {parameter.low} to {parameter.high} "
                    f"{parameter.unit}, found {value}"
                )
        exact = {name: float(parameters[name]) for name in names}
        canonical = json.dumps([self.name, exact], sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(canonical.encode()).hexdigest()[:8]
        readable = "_".join(f"{name}{value:.3f}" for name, value in exact.items())
        return Task(self.name, f"{readable}-{digest}", exact)

    def observed_parameters(self, task: Task) -> np.ndarray:
        """Return `task_parameters` [P] float32, each scaled from its range to [-1, 1]."""
        values = [
            2.0 * (task.parameters[p.name] - p.low) / (p.high - p.low) - 1.0
            for p in self.parameters
        ]
        return np.array(values, np.float32)

    def drawn(
        self, settings: FamilySettings, draw: Any, decimals: int = 4
    ) -> tuple[list[Task], list[Task], list[Task]]:
        """Draw the tasks of each division: `draw(random, name)` returns a task's parameters.

        Numbers are rounded, so that a task's id is the same on every machine.
        """
        random = np.random.default_rng([settings.split_seed, len(self.name)])
        counts = (settings.num_train, settings.num_validation, settings.num_test)
        seen: set[str] = set()
        divisions: list[list[Task]] = []
        for name, count in zip(SPLITS, counts, strict=True):
            tasks: list[Task] = []
            for _ in range(1000 * count):
                if len(tasks) == count:
                    break
                values = {k: round(float(v), decimals) for k, v in draw(random, name).items()}
                task = self.task(**values)
                if task.task_id not in seen:
                    seen.add(task.task_id)
                    tasks.append(task)
            if len(tasks) < count:
                raise FamilyError(f"{self.name}: expected {count} different {name} tasks to exist")
            divisions.append(tasks)
        return divisions[0], divisions[1], divisions[2]

    def check_split(self, settings: FamilySettings) -> None:
        """Raise FamilyError where the family has no division of this name."""
        if settings.split not in self.splits:
            raise FamilyError(
                f"environment.family.split: expected one of {sorted(self.splits)} for {self.name}, "
                f"found {settings.split!r}"
            )

    def idle_settings(self, settings: FamilySettings) -> Iterator[str]:
        """Say which settings are set, and change nothing since the division that they name is fixed."""
        if settings.split not in self.fixed_splits:
            return
        drawn = sorted(set(self.splits) - self.fixed_splits)
        advice = f"; drawn are those of {', '.join(drawn)}" if drawn else ""
        for name in DRAWN_BY:
            expected, found = FamilySettings.model_fields[name].default, getattr(settings, name)
            if found != expected:
                yield (
                    f"environment.family.{name}: expected {expected} with division {settings.split!r}, whose tasks are "
                    f"fixed, found {found}{advice}"
                )


def load_family(name: str) -> Family:
    """Return the family of this name. Raises FamilyError with the nearest names."""
    if name not in FAMILIES:
        near = difflib.get_close_matches(name, FAMILIES, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise FamilyError(f"expected a family out of {sorted(FAMILIES)}, found {name!r}{hint}")
    family: Family = importlib.import_module(FAMILIES[name]).FAMILY
    return family


@lru_cache(maxsize=64)
def task_split(family: str, settings: FamilySettings) -> TaskSplit:
    """Return a family's division that the settings name. Raises FamilyError."""
    found = load_family(family)
    found.check_split(settings)
    return found.divide(settings)


def find_family_task(task_id: str, settings: FamilySettings) -> Task:
    """Return the task of this id. Raises FamilyError where the division has none."""
    family = task_id.partition("-")[0]
    tasks = task_split(family, settings).tasks
    for task in tasks:
        if task.task_id == task_id:
            return task
    ids = [task.task_id for task in tasks]
    near = difflib.get_close_matches(task_id, ids, n=2, cutoff=0.3) or ids[:2]
    raise FamilyError(
        f"expected one of the {len(ids)} tasks of {family}'s division {settings.split!r}, found {task_id!r}; "
        f"did you mean {' or '.join(near)}?"
    )
