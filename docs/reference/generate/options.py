"""Describe options in tables, from what --help is made of."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from docs.reference.generate.markdown import prose, table
from fastpsl.engine.options import PretrainOptions, RunOptions, SGDOptions, TrainingOptions
from fastpsl.evaluation.options import EvaluationOptions
from fastpsl.scripts.command_line import options_of

MANY = 12  # choices; so many stand below the table

# The classes of shared options, from the most general to the most special, and who has them.
SHARED: dict[type[RunOptions], str] = {
    RunOptions: "all",
    TrainingOptions: "those that train",
    PretrainOptions: "`fastpsl train`",
    SGDOptions: "those of `fastpsl train` that learn by SGD",
    EvaluationOptions: "`fastpsl eval`",
}


def words_of(value: Any) -> str:
    """Return a default as code; a dash for none."""
    if value is MISSING:
        return "required"
    if isinstance(value, bool):
        return "on" if value else "off"
    if value is None or value == ():
        return "–"
    if isinstance(value, tuple):
        return f"`{' '.join(map(str, value))}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


@dataclass(frozen=True)
class Row:
    """An option as the tables show it.

    Attributes:
        name: The field's name.
        usage: The flag, or an argument's name.
        values: Its type or choices.
        default: The default with --data.
        text: What it does.
        group: Its group in --help.
        choices: Its choices, if they are too many for the table.
    """

    name: str
    usage: str
    values: str
    default: str
    text: str
    group: str
    choices: tuple[str, ...] = ()

    def cells(self) -> tuple[str, ...]:
        return f"`{self.usage}`", self.values, self.default, self.text


HEADER = ("option", "type or choices", "default", "meaning")


def rows_of(options: type, defaults: Mapping[str, Any], sample: Mapping[str, Any]) -> dict[str, Row]:
    """Return the options of a dataclass by name, from what --help is made of."""
    own = {each.name for each in fields(options)}
    hints = get_type_hints(options, include_extras=True)
    rows = dict[str, Row]()
    for option in options_of(options, SimpleNamespace(**defaults)):
        if option.name not in own or option.name in getattr(options, "without", ()):
            continue
        usage, _, metavar = option.usage.partition(" ")
        text, default = option.text, words_of(option.default)
        if named := re.search(r" \[([^][]+)\]$", text):  # the text itself tells what happens without it
            reason = prose(named[1])
            text, default = text[: named.start()], reason if default == "–" else f"{default}: {reason}"
        if sample.get(option.name, defaults.get(option.name)) != defaults.get(option.name):
            default += f"; sample: {words_of(sample[option.name])}"
        if not usage.startswith("--") and "|" in usage:  # an argument's choices
            usage, metavar = option.name.upper(), usage
        if option.name == "data" and getattr(options, "forms", RunOptions.forms) != RunOptions.forms:
            text += f" Here it takes {options.forms}."  # type: ignore[attr-defined]
        values, choices = values_of(hints[option.name], metavar), tuple(metavar.split("|"))
        rows[option.name] = Row(
            option.name, usage, values, default, prose(text), option.group,
            choices if len(choices) >= MANY else (),
        )  # fmt: skip
    return rows


def values_of(hint: Any, metavar: str) -> str:
    """Return the type or the choices of an option in words."""
    kind = get_args(hint)[0] if hasattr(hint, "__metadata__") else hint
    parts = [part for part in get_args(kind) if part not in (type(None), ...)]
    is_tuple = get_origin(kind) is tuple or any(get_origin(part) is tuple for part in parts)
    while parts and get_origin(kind) is not Literal:
        kind = parts[0]
        parts = [part for part in get_args(kind) if part not in (type(None), ...)]
    if kind is bool:
        return "switch"
    if get_origin(kind) is Literal:
        metavar = "|".join(map(str, get_args(kind)))
    if "|" in metavar:
        choices = metavar.split("|")
        return f"`{'`, `'.join(choices)}`" if len(choices) < MANY else "text, see below"
    word = {int: "integer", float: "number", str: "text", Path: "path"}[kind]
    if re.search(r"[a-z.%]", metavar.removesuffix("...").strip()) or metavar in ("LIST", "INDEX..."):
        return f"`{metavar}`"
    return f"list of {word}s" if is_tuple else word


def option_tables(boxes: Mapping[str, Sequence[Row]], level: str = "###") -> str:
    return "\n\n".join(
        f"{level} {title.capitalize()}\n\n{option_table(rows)}" for title, rows in boxes.items()
    )


def option_table(rows: Sequence[Row]) -> str:
    """Return a table of options, and below it the choices that are too many for a cell."""
    parts = [table(HEADER, [row.cells() for row in rows])]
    for row in rows:
        if row.choices:
            parts += [f"Values of `{row.usage}`:", by_family(row.choices)]
    return "\n\n".join(parts)


def by_family(choices: Sequence[str]) -> str:
    """Return choices such as psl/4 as a list, a line for each word before the slash."""
    families = dict[str, list[str]]()
    for choice in choices:
        families.setdefault(choice.partition("/")[0], []).append(f"`{choice}`")
    return "\n".join(f"- {', '.join(members)}" for members in families.values())


@cache
def shared_rows() -> dict[str, tuple[Row, str]]:
    """Return the shared options by name, each as the class that defines it has it, and who takes it."""
    out = dict[str, tuple[Row, str]]()
    for kind, takers in SHARED.items():
        for name, row in rows_of(kind, {}, {}).items():
            out.setdefault(name, (row, takers))
    return out
