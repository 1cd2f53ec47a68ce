from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apprentice.plain_yaml import MAX_CHARACTERS, PlainYamlError, read_yaml, write_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("-2.5E+2", -250.0),
        (".5", 0.5),
        ("010", 10),
        ("-0", 0),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("on", "on"),
        ("no", "no"),
        ("2026-01-01", "2026-01-01"),
        ("0x1f", "0x1f"),
        ("12:30:00", "12:30:00"),
        ("1_000", "1_000"),
        ("'1e-3'", "1e-3"),
        ("[1, x, [true]]", [1, "x", [True]]),
        ("{a: {b: 1}, c: }", {"a": {"b": 1}, "c": None}),
        ("a: |\n  two\n  lines\n", {"a": "two\nlines\n"}),
    ],
)
def test_scalars_mean_what_they_look_like(text: str, value: object) -> None:
    read = read_yaml(text)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", 'line 3, column 1: key "a" stands twice'),
        ("a: {b: 1, b: 1}", 'line 1, column 11: key "b" stands twice'),
        ("a: &x [1]\nb: *x", "line 1, column 4: anchors and aliases are not supported"),
        ("<<: *x", "anchors and aliases are not supported"),
        ("1: x", "expected text as key, found 1; put it in quotes"),
        ("true: x", "expected text as key, found true"),
        ("? [a]\n: x", 'expected text as key, found ["a"]'),
        ("a: .nan", "expected a finite number, found .nan"),
        ("a: -.inf", "expected a finite number, found -.inf"),
        ("a: 1e999", "expected a finite number, found 1e999"),
        ("a: 9223372036854775808", "expected a whole number of at most 64 bits"),
        ("a: " + "9" * 5000, "expected a whole number of at most 64 bits"),
        ("[" * 17, "nested more than 16 levels deep"),
        ("a: 1\n---\nb: 2", "expected a single document"),
        ("a: [1, 2", "line 1, column 9"),
        ("a: \x00", "special characters are not allowed"),
        ("x" * (MAX_CHARACTERS + 1), "expected at most 65,536 characters of YAML, found 65,537"),
        ("a: !!python/object/apply:os.getcwd []", "python/object/apply:os.getcwd is not supported"),
        ("a: !!binary aGk=", "is not supported; leave it out"),
        ("a: !!int x", 'expected int, found "x"'),
        ("a: !!bool 3", 'expected bool, found "3"'),
        ("a: !!map [1]", "expected a mapping"),
        ("a: !!str {b: 1}", "expected a scalar node"),
    ],
)
def test_what_is_not_plain_is_refused_with_its_place(text: str, message: str) -> None:
    with pytest.raises(PlainYamlError) as caught:
        read_yaml(text)
    assert message in str(caught.value)


def test_file_that_would_grow_through_aliases_is_refused_before_it_does() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    with pytest.raises(PlainYamlError, match="anchors and aliases"):
        read_yaml("\n".join(lines))


_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=20)
    | st.sampled_from(
        ["on", "1e-3", ".5", "null", "~", "", "-", "0x10", "2026-01-01", "<<", "a: b"]
    )
)
_KEYS = st.text(st.characters(codec="utf-8"), max_size=10)


@given(
    st.recursive(
        _SCALARS,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEYS, inner, max_size=4),
        max_leaves=12,
    )
)
def test_what_is_written_is_read_back_equal(value: object) -> None:
    assert read_yaml(write_yaml(value)) == value


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        read_yaml(text)
    except PlainYamlError as error:
        assert str(error)
