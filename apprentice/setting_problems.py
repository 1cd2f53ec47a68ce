"""Says what is wrong with settings: the key's path, what was found, what is allowed, what was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import BaseModel, ValidationError

from apprentice.plain_yaml import show

Schema = dict[str, Any]
Location = tuple[int | str, ...]


def describe_problems(model: type[BaseModel], error: ValidationError) -> tuple[str, ...]:
    """Return one line for each thing that `model` found wrong."""
    schema = model.model_json_schema()
    return tuple(_describe(schema, problem) for problem in error.errors(include_url=False))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the nearest known word, or nothing."""
    near = difflib.get_close_matches(word, tuple(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def _describe(schema: Schema, problem: Any) -> str:
    location: Location = problem["loc"]
    kind, found = problem["type"], show(problem["input"])
    key = _join(location)
    if kind == "value_error":
        # A validator over several settings, whose message names them itself.
        return str(problem["ctx"]["error"])
    if kind == "extra_forbidden":
        return f"{key}: unknown setting, found {found}{_suggest_key(schema, location)}"
    expected = _expected(schema, _find(schema, location))
    if kind == "missing":
        return f"{key}: missing; expected {expected}"
    if expected is None:
        return f"{key or 'settings'}: {problem['msg']}, found {found}"
    choices = _choices(_find(schema, location))
    hint = did_you_mean(str(problem["input"]), choices) if choices else ""
    return f"{key or 'settings'}: expected {expected}, found {found}{hint}"


def _join(location: Location) -> str:
    """Write a location as a key path; what stands in a file is shown in ASCII."""
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return path.removeprefix(".").encode("ascii", "backslashreplace").decode()


def _suggest_key(schema: Schema, location: Location) -> str:
    """Suggest a key of the same section, then the same key in another section, then list them."""
    word = str(location[-1])
    section = _find(schema, location[:-1]) or {}
    known = list(section.get("properties", {}))
    hint = did_you_mean(word, known)
    if not hint:
        elsewhere = [path for path in _paths(schema, schema) if path.endswith(f".{word}")]
        hint = f"; did you mean {elsewhere[0]!r}?" if elsewhere else ""
    return hint or f"; allowed here: {', '.join(known)}"


def _paths(root: Schema, section: Schema, prefix: str = "") -> Iterator[str]:
    for name, child in section.get("properties", {}).items():
        yield f"{prefix}{name}"
        yield from _paths(root, _resolve(root, child), f"{prefix}{name}.")


def _resolve(root: Schema, schema: Schema) -> Schema:
    reference = schema.get("$ref")
    return root["$defs"][reference.rpartition("/")[2]] if reference else schema


def _find(root: Schema, location: Location) -> Schema | None:
    """Return the schema at a location, or None where the model has nothing there."""
    found: Schema | None = root
    for part in location:
        if found is None:
            return None
        if isinstance(part, int):
            prefix = found.get("prefixItems", [])
            found = prefix[part] if part < len(prefix) else found.get("items")
        else:
            found = found.get("properties", {}).get(part)
        found = _resolve(root, found) if isinstance(found, dict) else None
    return found


def _choices(schema: Schema | None) -> list[str]:
    return [str(value) for value in (schema or {}).get("enum", ())]


def _expected(root: Schema, schema: Schema | None) -> str | None:
    """Say in words what a schema allows; None where there is nothing to say."""
    if schema is None:
        return None
    schema = _resolve(root, schema)
    if "anyOf" in schema:
        return " or ".join(filter(None, (_expected(root, one) for one in schema["anyOf"])))
    if "enum" in schema:
        return "one of " + ", ".join(repr(value) for value in schema["enum"])
    match schema.get("type"):
        case "integer":
            return "a whole number" + _range(schema)
        case "number":
            return "a number" + _range(schema)
        case "string":
            return _text(schema)
        case "boolean":
            return "true or false"
        case "null":
            return "null"
        case "array" if "prefixItems" in schema:
            parts = (_expected(root, part) or "anything" for part in schema["prefixItems"])
            return f"a list of {len(schema['prefixItems'])} ({', '.join(parts)})"
        case "array":
            return f"a list, each entry {_expected(root, schema.get('items')) or 'anything'}"
        case "object":
            return "a section of settings"
    return None


def _text(schema: Schema) -> str:
    if "pattern" not in schema:
        return "text"
    meaning = schema.get("description", "").partition("\n")[0].rstrip(".")
    return f"text matching {schema['pattern']}" + (f" ({meaning})" if meaning else "")


def _range(schema: Schema) -> str:
    if "minimum" in schema and "maximum" in schema:
        return f" from {_number(schema['minimum'])} to {_number(schema['maximum'])}"
    bounds = {
        "minimum": "at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "exclusiveMaximum": "below",
    }
    words = [f"{word} {_number(schema[key])}" for key, word in bounds.items() if key in schema]
    return " " + " and ".join(words) if words else ""


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)
