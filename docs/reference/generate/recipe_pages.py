"""Write the pages of recipes: their purpose, values and options."""

import io
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from docs.reference.generate.markdown import described_in_markdown, prose, table, toctree, wrapped
from docs.reference.generate.options import HEADER, Row, option_tables, rows_of, shared_rows, words_of
from docs.reference.generate.see_also import SEE, links
from fastpsl.engine.options import PretrainOptions, RunOptions, flag
from fastpsl.scripts.command_line import UNGROUPED
from fastpsl.scripts.presets import small_values
from fastpsl.scripts.recipe import Evaluation, Recipe
from fastpsl.scripts.recipe_files import find_recipe, recipe_path

SMALL_IMAGES = 5000  # the data set whose values of --preset small are shown
COMMON = ("output", "monitoring", "speed")  # groups that most recipes share


def recipe_page(command: str, short: str, stem: str) -> str:
    """Return the page of a recipe."""
    recipe = find_recipe(stem)
    about, rest = described_in_markdown(recipe.description or "", "../")
    rows = rows_of(recipe.options, recipe.paper, recipe.sample)
    shared, common = shared_rows(), dict[str, list[Row]]()
    boxes: dict[str, list[Row]] = {"this recipe": []}
    for row in rows.values():
        is_common = row.group in COMMON and shared.get(row.name, (None,))[0] == row
        title = "this recipe" if row.group == UNGROUPED else row.group
        (common if is_common else boxes).setdefault(title, []).append(row)
    script = recipe_path(stem)
    assert script is not None
    parts = [
        f"# fastpsl {command} {short}",
        about,
        rest,
        values_section(recipe, script.resolve()),
        "## Options",
        wrapped(
            "The defaults are "
            + ("the paper's, which hold with `--data`" if recipe.source == "paper" else "those with `--data`")
            + ". The value after “sample:” holds without `--data`."
        ),
        option_tables(boxes),
        common_section(common, recipe.options),
        variant_section(recipe),
        "## See also",
        f"- Script: [recipes/{stem}.py](../../../recipes/{stem}.py)\n" + links(SEE[f"{command} {short}"]),
    ]
    return "\n\n".join(part for part in parts if part)


def values_section(recipe: Recipe[Any] | Evaluation[Any], script: Path) -> str:
    """Return the table of the values with and without --data, and where the former come from."""
    whole, reasons = comments_of_values(script)
    usual = "paper" if recipe.source == "paper" else "with `--data`"
    small = dict[str, Any]()
    if issubclass(recipe.options, PretrainOptions):
        small = small_values(recipe.paper, recipe.at_most, SMALL_IMAGES)
    header = ["option", usual, "without `--data`"]
    header += [f"`--preset small`, {SMALL_IMAGES:,} images"] if small else []
    header += ["source or reason"] if reasons else []
    own = {each.name: each.default for each in fields(recipe.options)}
    rows = []
    for name in dict.fromkeys([*recipe.paper, *recipe.sample]):
        value = recipe.paper.get(name, own[name])
        row = [f"`{flag(name)}`", words_of(value), words_of(recipe.sample.get(name, value))]
        row += [words_of(small.get(name, value))] if small else []
        rows.append(row + ([prose(reasons.get(name, ""))] if reasons else []))
    lines = ["## Values", table(header, rows)]
    if whole:
        lines.append(wrapped(f"Source of the first column: {prose(whole)}."))
    return "\n\n".join(lines)


def comments_of_values(script: Path) -> tuple[str, dict[str, str]]:
    """Return the comments on PAPER (or USUAL) in a recipe's script: on all of it, and by key."""
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


def common_section(common: Mapping[str, Sequence[Row]], options: type[RunOptions]) -> str:
    """Return links to the options that are described once for all recipes, and those that are refused."""
    lines = []
    if common:
        lines.append("### Common options")
        lines.append("These are the same in all recipes that have them.")
        lines.append(
            "\n".join(
                f"- [{title.capitalize()}](common_options.md#{title}): "
                + ", ".join(f"`{row.usage}`" for row in rows)
                for title, rows in common.items()
            )
        )
    if options.without:
        refused = dict[str, list[str]]()
        for name, reason in options.without.items():
            refused.setdefault(reason, []).append(f"`{flag(name)}`")
        lines.append("### Refused options")
        lines.append(
            table(("option", "message"), [(", ".join(n), prose(reason)) for reason, n in refused.items()])
        )
    return "\n\n".join(lines)


def variant_section(recipe: Recipe[Any] | Evaluation[Any]) -> str:
    """Return the defaults that another option changes."""
    usual, rows = recipe.with_paper(), []
    before = {**recipe.paper, **recipe.variant(usual)}
    for name, value in _other_values(recipe.options, usual):
        try:
            changed = recipe.variant(recipe.with_paper(**{name: value}))
        except ValueError:  # the value needs another option, too
            continue
        new = {key: other for key, other in changed.items() if other != before.get(key)}
        if new:
            given = flag(f"no_{name}" if value is False else name)
            given += "" if isinstance(value, bool) else f" {value}"
            rows.append(
                (f"`{given}`", ", ".join(f"`{flag(key)}` {words_of(other)}" for key, other in new.items()))
            )
    if not rows:
        return ""
    return "### Defaults that depend on another option\n\n" + table(("with", "default"), rows)


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


def common_page() -> str:
    """Return the page of the options that recipes share."""
    parts = [COMMON_START.strip(), table((*HEADER, "recipes"), COMMON_ROWS)]
    for title in COMMON:
        lines = [(*row.cells(), takers) for row, takers in shared_rows().values() if row.group == title]
        parts.append(f"## {title.capitalize()}\n\n{table((*HEADER, 'recipes'), lines)}")
    return "\n\n".join(parts)


COMMON_START = """
# Common options of recipes

The options on this page mean the same in every recipe that has them. Each recipe's own page lists its other
options.

```bash
fastpsl train jigsaw --data photos/train --gpus 8 --out runs/jigsaw --seed 1 --precision bf16
```

The last column tells which recipes have an option. An evaluation trains if it fits something on the features,
such as a linear classifier.

## Help and GPUs

`--gpus` may stand anywhere behind `fastpsl train` or `fastpsl eval`.
"""
COMMON_ROWS = (
    ("`--gpus`", "integer", "one GPU", "GPUs of this machine to use, with a process for each.", "all"),
    ("`--help`", "switch", "off", "Show the options.", "all"),
)


def recipes_index(names: Sequence[tuple[str, str, str]]) -> str:
    """Return the list of recipes."""
    parts = [RECIPES_START.strip()]
    for command, title in (("train", "Training"), ("eval", "Evaluation")):
        rows = []
        for each, short, stem in names:
            if each == command:
                recipe = find_recipe(stem)
                about, _ = described_in_markdown(recipe.description or "", "../")
                backbone = recipe.paper.get("backbone")
                row = [f"[`fastpsl {command} {short}`]({stem}.md)", " ".join(about.split())]
                rows.append([*row, words_of(backbone)] if command == "train" else row)
        header = ["command", "what it does"] + (["backbone by default"] if command == "train" else [])
        parts.append(f"## {title}\n\n{table(header, rows)}")
    stems = [stem for _, _, stem in names]
    parts.append(toctree(["common_options", *stems]))
    return "\n\n".join(parts)


RECIPES_START = f"""
# Recipes

A recipe is a command that trains or evaluates a backbone with the values of a paper. Each has a page with its
purpose, its values and all its options.

```bash
fastpsl train jigsaw --data photos/train --val photos/val --gpus 8
```

`fastpsl recipes` prints the same list. `fastpsl train NAME --help` shows a recipe's options in the terminal.
Each recipe is also a script of at most 120 lines in [recipes/](../../../recipes), which
`fastpsl recipes copy NAME FILE` copies for you to change. From Python, call
[`fastpsl.pretrain`](../api/pretrain.md) and [`fastpsl.evaluate`](../api/evaluate.md).

A recipe has up to three sets of values:

- **Paper.** The defaults with `--data` of 100,000 images or more, or with `--preset paper`. A run's
  `config.json` lists the `differences`: every value that is another one than the paper's.
- **Sample.** Without `--data`, the recipe runs on a small sample that the package generates. The values are
  small, so that a CPU needs minutes.
- **Small.** The defaults with `--data` of fewer images, or with `--preset small`. The batch becomes a power
  of two of at most a tenth of the images, and the learning rate shrinks in proportion. Each stage becomes as
  long as 2,000 steps need. The pages show the result for {SMALL_IMAGES:,} images.
"""
