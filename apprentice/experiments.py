"""Experiment files: YAML in, one `Experiment` for each variant out.

A file holds only what differs from the defaults. `extends: NAME` starts from another file, sections
merge key by key (what a method or a preset sets goes before what lies below it), and
`grid: {key.path: [values], ...}` makes one variant of each combination, numbered from 0 with the last
key changing fastest. `docs/experiments.md` is the user's page.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from apprentice.config import Experiment
from apprentice.config_family import FamilySettings
from apprentice.config_imitation import ARCHITECTURES, PRESETS
from apprentice.plain_yaml import (
    MAX_CHARACTERS,
    MAX_DEPTH,
    PlainYamlError,
    read_yaml,
    show,
    write_yaml,
)
from apprentice.setting_problems import describe_problems, did_you_mean
from apprentice.suite_tasks import FAMILIES, SUITE_TASKS, family_of

EXPERIMENTS: Final = Path(__file__).resolve().parents[1] / "experiments"
MAX_VARIANTS: Final = 1000

_Tree = dict[str, Any]


class ExperimentError(Exception):
    """An experiment cannot be used; the message lists everything that is wrong with it."""

    def __init__(self, source: str, problems: Sequence[str]) -> None:
        self.source = source
        self.problems = tuple(problems)
        message = "\n  ".join((f"{source}: cannot be used:", *self.problems))
        # Names in a file may hold what no terminal can show.
        super().__init__(message.encode("utf-8", "backslashreplace").decode())


def experiment_names() -> tuple[str, ...]:
    """Return the names of the experiments that come with the project."""
    return tuple(sorted(path.stem for path in EXPERIMENTS.glob("*.yaml")))


def load_experiment(
    name_or_path: str, variant: int | None = None, overrides: Sequence[str] = ()
) -> Experiment:
    """Return one variant of an experiment, the first unless a number is given.

    `overrides` are `key.path=value` with the value in YAML; they go over file and grid. Raises
    ExperimentError.
    """
    variants = expand(name_or_path, overrides)
    if variant is None:
        return variants[0]
    for experiment in variants:
        if experiment.variant == variant:
            return experiment
    first, last = variants[0].variant, variants[-1].variant
    raise ExperimentError(
        name_or_path, [f"variant: expected a number from {first} to {last}, found {variant}"]
    )


def expand(name_or_path: str, overrides: Sequence[str] = ()) -> tuple[Experiment, ...]:
    """Return all variants of an experiment; one without a grid has one. Raises ExperimentError."""
    path = _find(name_or_path)
    settings, grid = _merged(path)
    settings.setdefault("name", path.stem)
    changes = _parse_overrides(overrides)
    combinations = list(_combinations(grid, str(path)))
    experiments: list[Experiment] = []
    problems: list[str] = []
    for number, combination in enumerate(combinations):
        tree = _merge({}, settings)
        if len(combinations) > 1:
            tree["variant"] = number
        for layer in (combination.items(), changes):
            tree = _laid_over(tree, _tree_of(layer))
        try:
            experiments.append(_validate(tree))
        except ValidationError as error:
            problems += describe_problems(Experiment, error)
    if not problems:
        problems += _unknown_tasks(experiments)
    if problems:
        raise ExperimentError(str(path), tuple(dict.fromkeys(problems)))
    return tuple(experiments)


def load_resolved(path: Path) -> Experiment:
    """Read what `save_experiment` wrote: all settings, no `extends`, no `grid`. Raises ExperimentError."""
    try:
        return _validate(_read(path))
    except ValidationError as error:
        raise ExperimentError(str(path), describe_problems(Experiment, error)) from None


def save_experiment(experiment: Experiment, path: Path) -> None:
    """Write a resolved experiment; whoever reads meanwhile finds the old file or the new one."""
    stage = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        stage.write_text(write_yaml(experiment.model_dump(mode="json")), encoding="ascii")
        stage.replace(path)
    except OSError:
        stage.unlink(missing_ok=True)
        raise


def _find(reference: str, extending: Path | None = None) -> Path:
    """Return the file that a name or path means, also as seen from the file that extends it."""
    if reference.endswith((".yaml", ".yml")) or os.sep in reference:
        return Path(reference) if extending is None else extending.parent / reference
    folders = (EXPERIMENTS,) if extending is None else (extending.parent, EXPERIMENTS)
    for folder in folders:
        path = folder / f"{reference}.yaml"
        if os.path.isfile(path):  # noqa: PTH113 - Path.is_file raises where a name is too long
            return path
    names = list(experiment_names())
    hint = did_you_mean(reference, names) or f"; there are {', '.join(names)}"
    problem = f"expected an experiment's name or the path of a YAML file, found {show(reference)}"
    if extending is None:
        raise ExperimentError(reference, [problem + hint])
    raise ExperimentError(str(extending), [f"extends: {problem}{hint}"])


def _read(path: Path) -> _Tree:
    try:
        if not os.path.isfile(path):  # noqa: PTH113 - Path.is_file raises where a name is too long
            raise ExperimentError(str(path), ["expected a YAML file, found none"])
        with path.open("rb") as file:
            # One byte more than is allowed, so that a file that is too large is seen to be.
            text = file.read(4 * MAX_CHARACTERS + 1).decode("utf-8")
        document = read_yaml(text)
    except OSError as error:
        raise ExperimentError(str(path), [f"cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError as error:
        raise ExperimentError(
            str(path), [f"expected UTF-8 text, found other bytes at {error.start}"]
        ) from None
    except PlainYamlError as error:
        raise ExperimentError(str(path), [str(error)]) from None
    if not isinstance(document, dict):
        raise ExperimentError(
            str(path), [f"expected settings as `key: value`, found {show(document)}"]
        )
    return document


def _merged(path: Path, chain: tuple[Path, ...] = ()) -> tuple[_Tree, object]:
    """Return settings and grid of a file on top of those that it extends."""
    document = _read(path)
    here = path.resolve()
    if here in chain:
        circle = " -> ".join(one.stem for one in (*chain[chain.index(here) :], here))
        raise ExperimentError(str(path), [f"extends: expected no circle, found {circle}"])
    parent, grid = document.pop("extends", None), document.pop("grid", None)
    if parent is None:
        return document, grid
    if not isinstance(parent, str):
        raise ExperimentError(
            str(path), [f"extends: expected an experiment's name, found {show(parent)}"]
        )
    settings, inherited = _merged(_find(parent, extending=path), (*chain, here))
    settings.pop("name", None)
    settings.pop("variant", None)
    return _laid_over(settings, document), inherited if grid is None else grid


def _merge(below: _Tree, above: _Tree) -> _Tree:
    """Return both, where they differ the upper one; sections merge, lists are replaced."""
    merged = dict(below)
    for key, value in above.items():
        merged[key] = _merge_values(merged.get(key), value)
    return merged


def _merge_values(below: object, above: object) -> object:
    if not isinstance(above, dict):
        return above
    return _merge(below if isinstance(below, dict) else {}, above)


def _tree_of(layer: Iterable[tuple[str, object]]) -> _Tree:
    """Return a grid's combination, or what the command line says, as a file would."""
    tree: _Tree = {}
    for key, value in layer:
        _set(tree, key, value)
    return tree


def _laid_over(below: _Tree, above: _Tree) -> _Tree:
    """Return both, merged; what another method or preset that the upper one names sets is not taken from below."""
    found = _merge({}, below)
    own, named = _section(found, "imitation"), _section(above, "imitation")
    _remove(own, _preset_of(PRESETS, named.get("method"), own.get("method")))
    own, named = _section(own, "discriminator"), _section(named, "discriminator")
    _remove(own, _preset_of(ARCHITECTURES, named.get("preset"), own.get("preset")))
    return _merge(found, above)


def _section(tree: _Tree, key: str) -> _Tree:
    value = tree.get(key)
    return value if isinstance(value, dict) else {}


def _preset_of(
    presets: Mapping[Any, Mapping[str, Any]], name: object, before: object
) -> Mapping[str, Any]:
    return presets.get(name, {}) if isinstance(name, str) and name != before else {}


def _remove(tree: object, keys: Mapping[str, Any]) -> None:
    if not isinstance(tree, dict):
        return
    for key, value in keys.items():
        if isinstance(value, Mapping):
            _remove(tree.get(key), value)
        else:
            tree.pop(key, None)


def _set(tree: _Tree, key: str, value: object) -> None:
    *sections, name = key.split(".")
    for section in sections:
        if not isinstance(tree.get(section), dict):
            tree[section] = {}
        tree = tree[section]
    tree[name] = _merge_values(tree.get(name), value)


def _combinations(grid: object, source: str) -> Iterator[Mapping[str, object]]:
    """Yield the product of a grid's values in the order of the file."""
    if grid is None:
        yield {}
        return
    if not isinstance(grid, dict):
        raise ExperimentError(source, [f"grid: expected `key.path: [values]`, found {show(grid)}"])
    problems = [
        f"grid.{show(key)[1:-1]}: expected a list of one or more values, found {show(values)}"
        for key, values in grid.items()
        if not isinstance(values, list) or not values or key.count(".") >= MAX_DEPTH
    ]
    if problems:
        raise ExperimentError(source, problems)
    number = math.prod(len(values) for values in grid.values())
    if number > MAX_VARIANTS:
        raise ExperimentError(
            source, [f"grid: expected at most {MAX_VARIANTS} variants, found {number}"]
        )
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def _parse_overrides(overrides: Sequence[str]) -> list[tuple[str, object]]:
    changes: list[tuple[str, object]] = []
    problems: list[str] = []
    for override in overrides:
        key, separator, text = override.partition("=")
        if not key or not separator or key.count(".") >= MAX_DEPTH:
            problems.append(f"expected key.path=value, as in sac.tau=0.01, found {show(override)}")
            continue
        try:
            changes.append((key, read_yaml(text)))
        except PlainYamlError as error:
            problems.append(f"{show(override)}: {error}")
    if problems:
        raise ExperimentError("overrides", problems)
    return changes


def _validate(tree: _Tree) -> Experiment:
    # Strict JSON is what the types mean: no "256" for 256, but lists for tuples.
    return Experiment.model_validate_json(json.dumps(tree), strict=True)


def _unknown_tasks(experiments: Sequence[Experiment]) -> Iterator[str]:
    asked = dict.fromkeys((one.task, one.environment.family) for one in experiments)
    for task, settings in asked:
        family = family_of(task)
        if family is not None:
            yield from _unknown_in_family(task, family, settings)
        elif task not in SUITE_TASKS:
            hint = (
                did_you_mean(task, [*SUITE_TASKS, *FAMILIES])
                or f"; there are {', '.join(SUITE_TASKS)}"
            )
            yield (
                "task: expected a task of the DeepMind Control Suite as 'domain-task', "
                f"found {show(task)}{hint}"
            )


def _unknown_in_family(task: str, family: str, settings: FamilySettings) -> Iterator[str]:
    """Say what is wrong with a division of a family, or with the one task of it that is named."""
    # Families bring dm_control along, which takes more than a second to import.
    from apprentice.environments.families import (
        FamilyError,
        find_family_task,
        load_family,
        task_split,
    )

    try:
        task_split(family, settings)
    except FamilyError as error:
        yield str(error)
        return
    yield from load_family(family).idle_settings(settings)
    if task in FAMILIES:
        return
    try:
        find_family_task(task, settings)
    except FamilyError as error:
        yield f"task: {error}"
