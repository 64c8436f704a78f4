"""Describe the options of recipes: their own for their pages, and the shared ones for one page."""

import io
import re
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from docs.reference.generate.markdown import prose, table
from docs.reference.generate.options import HEADER, Row, rows_of, shared_rows, words_of
from fastpsl.commands.train import Eval, Train
from fastpsl.engine.options import RunOptions, flag
from fastpsl.scripts.command_line import UNGROUPED
from fastpsl.scripts.recipe import Evaluation, Recipe
from fastpsl.scripts.recipe_files import find_recipe, recipe_path

DOCS = Path(__file__).resolve().parents[2]
NAMES = {**Train.names, **Eval.names}  # what one types -> the recipe's file
BACKBONE = "A name of [Backbones](../reference/backbones.md), `timm/NAME` or `FILE.py:CLASS`."


def pages_of_recipes() -> dict[str, Path]:
    """Return the page that has a recipe's options, by what one types."""
    found = dict[str, Path]()
    for path in sorted(DOCS.glob("*/*.md")):
        for names in re.findall("<!-- options of (.+?) -->", path.read_text()):
            found |= dict.fromkeys(names.split(), path)
    return found


def options_of_recipes(names: Sequence[str]) -> str:
    """Return the options of recipes that are not the shared ones: a column of defaults for each recipe."""
    recipes = [find_recipe(NAMES[name]) for name in names]
    found = [rows_of(recipe.options, recipe.paper, {}) for recipe in recipes]
    sources = [comments_of_values(NAMES[name]) for name in names]
    lines = []
    for key in dict.fromkeys(key for rows in found for key in rows if is_own(rows[key])):
        row = next(rows[key] for rows in found if key in rows and is_own(rows[key]))
        text = f"{row.values}: {row.text}" if "`" in row.values else row.text
        text = BACKBONE if key == "backbone" else text
        said = dict.fromkeys(comments[key] for _, comments in sources if key in comments)
        defaults = [rows[key].default if key in rows else "" for rows in found]
        lines.append((f"`{row.usage}`", *defaults, " ".join([text, *(f"({prose(one)})" for one in said)])))
    header = ["option", *(["default"] if len(names) == 1 else [f"`{name}`" for name in names]), "meaning"]
    said_of_all = [f"- Source of the values: {prose(whole)}." for whole, _ in sources if whole]
    rest = "\n".join(dict.fromkeys([*said_of_all, *(line for recipe in recipes for line in notes(recipe))]))
    return "\n\n".join(part for part in (table(header, lines), rest) if part)


def is_own(row: Row) -> bool:
    """Return whether an option differs from the shared one of its name, or there is none."""
    return row.name not in shared_rows() or shared_rows()[row.name][0] != row


def notes(recipe: Recipe[Any] | Evaluation[Any]) -> Iterator[str]:
    """Yield the defaults that another option changes, and the options that are refused."""
    usual = recipe.with_paper()
    before = {**recipe.paper, **recipe.variant(usual)}
    for name, value in _other_values(recipe.options, usual):
        try:
            changed = recipe.variant(recipe.with_paper(**{name: value}))
        except ValueError:  # the value needs another option, too
            continue
        new = [f"`{flag(key)}` {words_of(it)}" for key, it in changed.items() if it != before.get(key)]
        if new:
            given = flag(f"no_{name}" if value is False else name)
            yield f"- With `{given}{'' if isinstance(value, bool) else f' {value}'}`: {', '.join(new)}"
    refused = dict[str, list[str]]()
    for name, reason in recipe.options.without.items():
        refused.setdefault(reason, []).append(f"`{flag(name)}`")
    for reason, flags in refused.items():
        yield f"- Refused: {', '.join(flags)}. {reason[0].upper()}{prose(reason[1:])}."


def _other_values(options: type[RunOptions], usual: RunOptions) -> Iterator[tuple[str, Any]]:
    """Yield options with values that they do not usually have: other choices, a path, a turned switch."""
    for name, hint in get_type_hints(options).items():
        value = getattr(usual, name)
        if get_origin(hint) is Literal:
            yield from ((name, other) for other in get_args(hint) if other != value)
        elif hint is bool:
            yield name, not value
        elif hint == Path | None:
            yield name, Path("PATH")


def comments_of_values(stem: str) -> tuple[str, dict[str, str]]:
    """Return the comments on PAPER (or USUAL) in a recipe's script: on all of it, and by key."""
    script = recipe_path(stem)
    assert script is not None
    whole, reasons, key, depth = "", dict[str, str](), "", 0
    is_values = False
    for token in tokenize.generate_tokens(io.StringIO(script.read_text()).readline):
        if token.type == tokenize.NAME and token.start[1] == 0:
            is_values = token.string in ("PAPER", "USUAL")
        if not is_values:
            continue
        depth += {"{": 1, "(": 1, "}": -1, ")": -1}.get(token.string, 0)
        if token.type == tokenize.STRING and depth == 1:
            key = token.string.strip('"') if token.line.lstrip().startswith(token.string) else key
        if token.type == tokenize.COMMENT and token.string != "# fmt: skip":
            comment = token.string.lstrip("# ")
            if key:
                reasons[key] = comment
            else:
                whole = comment
    return whole, reasons


def common_part() -> str:
    """Return the options that recipes share, with a section for each group."""
    groups = dict[str, list[tuple[str, ...]]]()
    for row, takers in shared_rows().values():
        title = "weights and views" if row.group == UNGROUPED else row.group
        groups.setdefault(title, []).append((*row.cells(), takers))
    return "\n\n".join(
        f"## {title.capitalize()}\n\n{table((*HEADER, 'recipes'), rows)}" for title, rows in groups.items()
    )
