"""Settings and seeds as they are typed, by the type of their default."""

from __future__ import annotations

from typing import Any

import pytest

from clgym.errors import SettingError
from clgym.grid import seeds
from clgym.settings import arguments, parsed


@pytest.mark.parametrize(
    ("text", "default", "value"),
    [
        ("8", 16, 8),
        ("1", 0.5, 1.0),
        (".001", 0.5, 0.001),
        ("true", False, True),
        ("True", False, True),
        ("2", "I", "2"),
        ('"I"', "II", "I"),
        ("[1, 2]", (3, 4), (1, 2)),
        ("(0.9, 1)", (0.9, 0.99), (0.9, 1.0)),
        ('{"a": 1}', None, {"a": 1}),
        ("some words", None, "some words"),
    ],
)
def test_values_of_settings(text: str, default: Any, value: Any) -> None:
    found = parsed("x", text, default)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "default", "words"),
    [
        ("true", 16, "Expected x as a whole number; got 'true'. Write it like the default, x=16."),
        ("1.0", 16, "Expected x as a whole number; got '1.0'."),
        ("NaN", 0.5, "Expected x as a number; got 'NaN'."),
        ("1", True, "Expected x as true or false; got '1'. Write it like the default, x=true."),
        ("3", (1, 2), "Expected x as a list; got '3'. Write it like the default, x=[1, 2]."),
        ('["a"]', (1, 2), "Expected x as a whole number; got 'a'."),
    ],
)
def test_values_of_the_wrong_type_are_refused(text: str, default: Any, words: str) -> None:
    with pytest.raises(SettingError) as caught:
        parsed("x", text, default)
    assert str(caught.value).startswith(words)


def test_seeds() -> None:
    assert seeds("0-2") == (0, 1, 2)
    assert seeds("5, 0,1-2,1") == (5, 0, 1, 2)
    for text in ("", "-1", "1-", "a", "1,,2"):
        with pytest.raises(SettingError, match="Expected seeds as numbers and rising ranges"):
            seeds(text)


def test_arguments_of_a_docstring_without_any() -> None:
    assert arguments("Do it.") == {}
