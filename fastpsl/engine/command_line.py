"""Parsing of command lines by tyro, with its errors as one line in our words."""

import ast
import contextlib
import io
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import tyro

from fastpsl.console.terminal import plain
from fastpsl.console.words import nearest
from fastpsl.engine.options import flag

_FRAME = "│|+╭╮╰╯─- "
_NUMBERS = {int: ("a whole number", "whole numbers"), float: ("a number", "numbers")}
_VALUES = re.compile(r"\[['\"].*\]|'.*'|\".*\"")  # in tyro's messages: one value, or a list of them


def parse(kind: Any, arguments: Sequence[str] | None = None, **settings: Any) -> Any:
    """Return `tyro.cli(kind, args=arguments, **settings)`; without arguments, for those of the process.

    Raises:
        ValueError: The arguments cannot be parsed. The message is one line.
        SystemExit: With code 0, after --help is printed.
    """
    box, events = io.StringIO(), list[Any]()
    # tyro's events are private. Where a version has none, its own words are shown.
    watch = getattr(getattr(tyro, "_errors", None), "on_parse_error", contextlib.nullcontext)
    try:
        with (
            watch(events.append),
            contextlib.redirect_stderr(box),
            contextlib.redirect_stdout(plain(sys.stdout)),
        ):
            return tyro.cli(kind, args=arguments, **settings)
    except SystemExit as end:
        if end.code in (0, None):
            raise
        see = " ".join(filter(None, ("see", settings.get("prog"), "--help")))
        line = error_line(events[-1], kind, see) if events else None
        raise ValueError(line or f"{_flat(box.getvalue())}; {see}") from None


def error_line(event: Any, kind: type, see: str) -> str | None:
    """Return one of tyro's events as one line: what was given, and what is allowed.

    Args:
        event: An event of `tyro._errors`.
        kind: The class of the options.
        see: Where more is said, such as "see fastpsl show --help".

    Returns:
        The line; None for an event that has no words here.
    """
    name, argument = type(event).__name__, getattr(event, "argument", None)
    if wrong := getattr(event, "tokens", None) or getattr(event, "unrecognized_tokens", None):
        return f"{_unknown(wrong, kind)}; {see}"
    if name == "MissingArgs":
        *others, last = [_called(each.arg) for each in event.missing_arguments]
        missing = f"{', '.join(others)} and {last} are" if others else f"{last} is"
        return f"{missing} missing; {see}"
    if argument is None:  # an error of our own __post_init__, which names the remedy
        return getattr(event, "message", None)
    called, wanted = _called(argument), _wanted(argument.field.type_stripped)
    if name == "BadValue":
        return f"{called} has no value: {wanted or 'give one'}; {see}"
    if name == "InvalidChoice":
        near = nearest(event.value, event.choices)
        return f"{called} {event.value}: {wanted}" + (f"; perhaps you meant {near}" if near else "")
    if name == "InstantiationFailure" and wanted and (found := _VALUES.search(event.message.split("\n")[0])):
        given = ast.literal_eval(found[0])
        return f"{called} {given if isinstance(given, str) else ' '.join(given)}: {wanted}"
    return None


def _unknown(words: Sequence[str], kind: type) -> str:
    """Return a line about the first word that is no option, or else the first that no option takes."""
    word = next((word for word in words if word.startswith("-")), words[0])
    if not word.startswith("-"):
        return f"{word}: there is no such argument"
    given = word.partition("=")[0]
    near = nearest(given, _flags(kind))
    return f"{given}: there is no such option" + (f"; perhaps you meant {near}" if near else "")


def _flags(kind: type) -> Iterator[str]:
    """Yield the flags of a dataclass of options, and of those in it."""
    hints = get_type_hints(kind)
    for field in fields(kind):
        if is_dataclass(hints[field.name]):
            yield from _flags(hints[field.name])
        else:
            yield flag(field.name)
            if hints[field.name] is bool:
                yield flag(f"no_{field.name}")


def _called(argument: Any) -> str:
    """Return an option's flag; of an argument without one, its name in --help, which may list its values."""
    if not argument.is_positional():
        return str(argument.lowered.name_or_flags[-1])
    name = str(argument.lowered.metavar)
    return str(argument.field.intern_name).upper() if "|" in name else name


def _wanted(hint: Any) -> str:
    """Return which values an option takes; nothing where it takes any."""
    parts = [part for part in get_args(hint) if part not in (NoneType, ...)]
    if get_origin(hint) is Literal:
        return f"allowed are {', '.join(map(str, parts))}"
    if get_origin(hint) is tuple:
        return f"give {_NUMBERS[parts[0]][1]}" if parts[0] in _NUMBERS else _wanted(parts[0])
    if parts:
        return _wanted(parts[0])
    return f"give {_NUMBERS[hint][0]}" if hint in _NUMBERS else ""


def _flat(box: str) -> str:
    """Return the text in a box as one line, without the title."""
    return " ".join(" ".join(line.strip(_FRAME) for line in box.splitlines()[1:]).split())
