"""Settings of scenarios and agents on the command line: described from their code, parsed from text."""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from clgym.errors import NotRegisteredError, SettingError
from clgym.registry import SHARED, Room, choosable, find, settings


@dataclass(frozen=True, slots=True)
class Setting:
    """One keyword argument of a scenario or an agent.

    Attributes:
        name: Its name.
        default: Its default.
        description: What the class's docstring says of it, on one line; ``""`` if nothing.
    """

    name: str
    default: Any
    description: str


def described(room: Room, id: str) -> list[Setting]:
    """Return the settings of a scenario or an agent, in the order of its signature."""
    words = SHARED[room] | arguments(inspect.getdoc(find(room, id).load()) or "")
    return [Setting(name, default, words.get(name, "")) for name, default in settings(room, id).items()]


def arguments(docstring: str) -> dict[str, str]:
    """Return what the ``Args`` section of a Google-style docstring says, by name.

    >>> arguments(inspect.cleandoc('''Adapt.
    ...
    ... Args:
    ...     r: Rank of
    ...         the adapter.
    ...     lr: See ``r``.
    ...
    ... Raises:
    ...     SettingError: Out of range.'''))
    {'r': 'Rank of the adapter.', 'lr': 'See `r`.'}
    """
    section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)*)", docstring, re.MULTILINE)
    found = re.findall(r"^    (\w+): ((?:.*\n?)(?:^(?: {8}.*)?\n?)*)", section[1] if section else "", re.MULTILINE)
    return {name: _plain(" ".join(text.split())) for name, text in found}


def _plain(text: str) -> str:
    """Take the mark-up of docstrings out."""
    return re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text).replace("``", "`")


def chosen(room: Room, id: str, pairs: Sequence[str]) -> dict[str, Any]:
    """Return the settings that ``KEY=VALUE`` texts choose.

    A value is JSON, or else a Python literal, or else the text itself. Where the default is a truth value, a
    number or a tuple, the value must be one too.

    Raises:
        SettingError: A text has no ``=``, a name is unknown, or a value is of another type than the default.
    """
    texts = {name: _literal(text) for name, _, text in (pair.partition("=") for pair in pairs)}
    known = choosable(room, id, texts)
    out = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise SettingError(f"Expected KEY=VALUE; got {pair!r}. Write for example {next(iter(known), 'r')}=….")
        if name not in known:
            raise SettingError(str(NotRegisteredError.among(f"setting of {id}", name, known)))
        out[name] = parsed(name, text, known[name])
    return out


def parsed(name: str, text: str, default: Any) -> Any:
    """Return the value that a text stands for.

    >>> parsed("r", "8", 16), parsed("lr", "1", 0.1), parsed("order", "2", "I")
    (8, 1.0, '2')
    >>> parsed("betas", "[0.9, 1]", (0.9, 0.99))
    (0.9, 1.0)

    Raises:
        SettingError: The value is of another type than the default.
    """
    value = _literal(text)
    match default:
        case bool():
            return value if isinstance(value, bool) else _refuse(name, "true or false", text, default)
        case int():
            whole = isinstance(value, int) and not isinstance(value, bool)
            return value if whole else _refuse(name, "a whole number", text, default)
        case float():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            return float(value) if number else _refuse(name, "a number", text, default)
        case str():
            return value if isinstance(value, str) else text
        case tuple():
            return _tuple(name, text, value, default)
    return value


def alternatives(text: str) -> list[str]:
    """Return the values that commas part in a text.

    A value that begins with a bracket or a quote is JSON or a Python literal, and its own commas part nothing.

    >>> alternatives("1e-3, 2e-3"), alternatives('[0.9, 0.99],[0.5, 0.9]'), alternatives('"a, b",c')
    (['1e-3', '2e-3'], ['[0.9, 0.99]', '[0.5, 0.9]'], ['"a, b"', 'c'])

    Raises:
        SettingError: A value is empty though there are others, or a bracket or quote is not closed.
    """
    out = []
    pieces = iter(text.split(","))
    for piece in pieces:
        part = piece.strip()
        while part[:1] in ("[", "(", "{", '"', "'") and _literal(part) == part:
            more = next(pieces, None)
            if more is None:
                raise SettingError(
                    f"Expected values parted by commas; got {part!r}, which is not closed. "
                    "Write a list as [1, 2] and a text with a comma in double quotes."
                )
            part = f"{part},{more.rstrip()}"
        out.append(part)
    if "" in out and len(out) > 1:
        raise SettingError(f'Expected values parted by commas; got {text!r}. Write "" for an empty text.')
    return out


def differing(room: Room, id: str, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that differ from the defaults, as JSON gives them back: what a record states of them.

    Raises:
        SettingError: A value is not JSON.
    """
    defaults = choosable(room, find(room, id).spec.id, chosen)
    given = {name: _as_json(name, value) for name, value in sorted(chosen.items())}
    return {name: v for name, v in given.items() if name not in defaults or _as_json(name, defaults[name]) != v}


def _as_json(name: str, value: Any) -> Any:
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise SettingError(
            f"Expected {name} to be a JSON value; got {value!r}. Pass a finite number, text, truth value or list."
        ) from error


def _tuple(name: str, text: str, value: Any, default: tuple[Any, ...]) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        _refuse(name, "a list", text, default)
    if not default:
        return tuple(value)
    return tuple(parsed(name, part if isinstance(part, str) else json.dumps(part), default[0]) for part in value)


def _refuse(name: str, wanted: str, text: str, default: Any) -> NoReturn:
    example = json.dumps(default)
    raise SettingError(f"Expected {name} as {wanted}; got {text!r}. Write it like the default, {name}={example}.")


def _literal(text: str) -> Any:
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text)
            json.dumps(value, allow_nan=False)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
        return value
    return text
