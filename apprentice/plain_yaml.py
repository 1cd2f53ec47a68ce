"""YAML as experiment files use it: mappings, lists, text, numbers, true, false and null.

Narrower than YAML 1.1 on purpose. `on` and `yes` are text, `1e-3` is a number, dates are text; a key
stands once in its mapping; there are no aliases, so a small file cannot stand for a huge one; there are
no tags that build objects.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, ClassVar

import yaml

MAX_CHARACTERS = 65_536
MAX_DEPTH = 16
MAX_INTEGER = 2**63 - 1

_TAG = "tag:yaml.org,2002:"
_KINDS = {
    "null": (r"~|null|Null|NULL|", "~nN\0"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+", "-+0123456789"),
    "float": (
        r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
}
"""What a plain scalar must look like to be something other than text, and its first characters."""


class PlainYamlError(ValueError):
    """The text is not YAML of this kind; says where and what to do."""


def read_yaml(text: str) -> Any:
    """Parse one document into dict, list, str, int, float, bool and None; raise PlainYamlError."""
    if len(text) > MAX_CHARACTERS:
        raise PlainYamlError(
            f"expected at most {MAX_CHARACTERS:,} characters of YAML, found {len(text):,}"
        )
    try:
        loader = _Loader(text)
        try:
            value = loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        raise PlainYamlError(_describe(error)) from None
    except yaml.YAMLError as error:
        raise PlainYamlError(f"expected YAML, found {str(error).splitlines()[0]}") from None
    return value


def write_yaml(value: Any) -> str:
    """Write what `read_yaml` reads back equal, keys in their order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=False, width=100)


def show(value: Any, limit: int = 60) -> str:
    """Return a value as it may be shown in a message: one line, ASCII, not too long."""
    shown = json.dumps(value, default=repr)
    return shown if len(shown) <= limit else shown[: limit - 4] + " ..."


def _implicit_resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """Return PyYAML's table: first character of a plain scalar to the tags it may have."""
    table: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    for kind, (pattern, first_characters) in _KINDS.items():
        entry = (f"{_TAG}{kind}", re.compile(rf"(?:{pattern})\Z"))
        for character in first_characters:
            table.setdefault(character.strip("\0"), []).append(entry)
    return table


class _Resolver:
    """Decides which plain scalars are more than text."""

    yaml_implicit_resolvers = _implicit_resolvers()


class _Loader(_Resolver, yaml.SafeLoader):
    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise _error(
                "anchors and aliases are not supported; share settings by `extends`", event
            )
        if self._depth >= MAX_DEPTH:
            raise _error(f"nested more than {MAX_DEPTH} levels deep", event)
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        if not isinstance(node, yaml.MappingNode):
            raise _error("expected a mapping", node)
        mapping: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise _error(f"expected text as key, found {show(key)}; put it in quotes", key_node)
            if key in mapping:
                raise _error(f"key {show(key)} stands twice; keep one of them", key_node)
            mapping[key] = self.construct_object(value_node, deep=True)
        return mapping

    def construct_list(self, node: Any) -> list[Any]:
        return list(self.construct_sequence(node, deep=True))

    def construct_text(self, node: Any) -> str:
        return str(self.construct_scalar(node))

    def construct_nothing(self, node: Any) -> None:
        self._matched(node, "null")

    def construct_truth(self, node: Any) -> bool:
        return self._matched(node, "bool").lower() == "true"

    def construct_integer(self, node: Any) -> int:
        text = self._matched(node, "int")
        if len(text) > 20 or abs(int(text)) > MAX_INTEGER:
            raise _error("expected a whole number of at most 64 bits", node)
        return int(text)

    def construct_number(self, node: Any) -> float:
        text = self._matched(node, "float")
        value = float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        if not math.isfinite(value):
            raise _error(f"expected a finite number, found {text}", node)
        return value

    def construct_unknown(self, node: Any) -> Any:
        raise _error(f"the tag {node.tag} is not supported; leave it out", node)

    def _matched(self, node: Any, kind: str) -> str:
        text = str(self.construct_scalar(node))
        if not re.fullmatch(_KINDS[kind][0], text):
            raise _error(f"expected {kind}, found {show(text)}", node)
        return text

    yaml_constructors: ClassVar = {
        f"{_TAG}null": construct_nothing,
        f"{_TAG}bool": construct_truth,
        f"{_TAG}int": construct_integer,
        f"{_TAG}float": construct_number,
        f"{_TAG}str": construct_text,
        f"{_TAG}seq": construct_list,
        f"{_TAG}map": construct_mapping,
        None: construct_unknown,
    }


class _Dumper(_Resolver, yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _error(problem: str, place: Any) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, place.start_mark)


def _describe(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
    problem = ", ".join(filter(None, (error.context, error.problem)))
    return f"{place}{problem}".encode("ascii", "backslashreplace").decode()
