"""Write the reference pages of recipes and commands from what --help shows.

Start it by `python -m docs.reference.generate`. The pages are committed. With --check nothing is written, and
the exit code is 1 if a page would change.
"""

import argparse
import inspect
import io
import re
import sys
import textwrap
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from tyro.conf import Positional

from fastpsl.cli import Fastpsl
from fastpsl.commands.train import Eval, Train
from fastpsl.engine.help_screen import Option, described, in_boxes
from fastpsl.engine.options import PretrainOptions, RunOptions, SGDOptions, TrainingOptions, flag
from fastpsl.engine.presets import small_values
from fastpsl.engine.recipe import Evaluation, Recipe
from fastpsl.engine.recipe_files import find_recipe, recipe_path
from fastpsl.evaluation.options import EvaluationOptions

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "reference"
MANY = 12  # choices; so many stand below the table
SMALL_IMAGES = 5000  # the data set whose values of --preset small are shown
NOTICE = "<!-- Generated from the code by `python -m docs.reference.generate`. Do not edit. -->"
COMMON = ("output and resume", "monitoring", "speed and machine")  # boxes that most recipes share
# The classes of shared options, from the most general to the most special, and who has them.
SHARED: dict[type[RunOptions], str] = {
    RunOptions: "all",
    TrainingOptions: "those that train",
    PretrainOptions: "`fastpsl train`",
    SGDOptions: "those of `fastpsl train` that learn by SGD",
    EvaluationOptions: "`fastpsl eval`",
}
PAPERS = {"PSL": "psl", "UIC": "uic", "SSL++": "ssl"}
# Further reading, by the words behind `fastpsl`, and how it is called.
KINDS = {
    "explanation": "Explanation",
    "get_started": "Get started",
    "how_to": "How-to",
    "how_to/evaluate": "How-to",
    "reference": "Reference",
    "reference/protocols": "Protocol",
}
TITLES = {
    "psl": "PSL", "uic": "UIC", "sslpp": "SSL++", "knn": "nearest neighbours", "svm": "SVMs",
    "bottleneck": "find the bottleneck", "others_weights": "use others' weights", "few_shot": "few-shot",
    "pack_imagenet": "pack ImageNet",
}  # fmt: skip
PSL = ("explanation/psl.md", "reference/pretext_tasks.md", "reference/backbones.md")
UIC = ("explanation/uic.md", "reference/backbones.md")
SSLPP = ("explanation/sslpp.md", "reference/backbones.md")
FEATURES = ("how_to/evaluate/index.md",)
SEE: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("train jigsaw", "train rotation", "train simclr", "train mocov2"), PSL),
    **dict.fromkeys(("train uic", "train uic-alexnet", "train uic-cifar10", "train deepcluster"), UIC),
    **dict.fromkeys([f"train {name}" for name in Train.names if name.startswith("sslpp")], SSLPP),
    "train iic": SSLPP,
    "train supervised": ("how_to/evaluate/supervised.md",),
    **{
        f"eval {name}": (f"how_to/evaluate/{page}.md", f"reference/protocols/{page}.md")
        for name, page in zip(
            Eval.names,
            (
                "linear",
                "blocks",
                "few_labels",
                "knn",
                "svm",
                "few_shot",
                "detection",
                "segmentation",
                "multilabel",
            ),
            strict=True,
        )
    },
    "train": ("get_started/choosing_a_recipe.md", "how_to/several_gpus.md"),
    "eval": FEATURES,
    "recipes copy": ("how_to/add_a_task.md",),
    "data write": ("how_to/pack_a_dataset.md", "how_to/pack_imagenet.md", "reference/file_formats.md"),
    "data append": ("how_to/pack_a_dataset.md",),
    "data verify": ("how_to/broken_images.md",),
    "data info": ("reference/file_formats.md",),
    "features": ("how_to/evaluate/knn.md",),
    "retrieve": ("how_to/evaluate/retrieval.md",),
    "tsne": ("how_to/evaluate/retrieval.md",),
    "clusters": ("how_to/evaluate/clusters.md",),
    "labels": ("how_to/evaluate/clusters.md", "explanation/sslpp.md"),
    "export": ("how_to/export.md", "how_to/others_weights.md"),
    "table": ("how_to/reproduce_a_table.md", "reference/tables.md"),
    "doctor": ("how_to/bottleneck.md",),
    "permutations": ("reference/pretext_tasks.md",),
}
EXAMPLES = {
    "train": "fastpsl train jigsaw --data photos/train --val photos/val --gpus 8 --out runs/jigsaw",
    "eval": "fastpsl eval knn --checkpoint runs/jigsaw --data photos/train --val photos/val",
    "recipes": "fastpsl recipes",
    "recipes list": "fastpsl recipes",
    "recipes copy": "fastpsl recipes copy jigsaw my_jigsaw.py",
    "data": "fastpsl data write photos/train train.beton --max-side 500",
    "data write": "fastpsl data write photos/train train.beton --max-side 500",
    "data append": "fastpsl data append new_photos train.beton",
    "data verify": "fastpsl data verify 'train*.beton'",
    "data info": "fastpsl data info train.beton",
    "data show": "fastpsl data show train.beton --task jigsaw --level 3 --out jigsaw.png",
    "show": "fastpsl show train.beton --task jigsaw --level 3 --out jigsaw.png",
    "features": "fastpsl features runs/jigsaw train.beton --out train.npy --block B4",
    "retrieve": "fastpsl retrieve runs/jigsaw --gallery train.beton --queries val.beton --out retrieval",
    "tsne": "fastpsl tsne runs/jigsaw --data val.beton --out tsne",
    "clusters": "fastpsl clusters runs/uic --data train.beton",
    "labels": "fastpsl labels k-means --data train.beton --num-clusters 70 --out labels.npz",
    "export": "fastpsl export runs/jigsaw resnet50.pth --to torchvision",
    "table": "fastpsl table psl/5 --runs runs --out tables",
    "doctor": "fastpsl doctor recipes/jigsaw_r50.py --data train.beton",
    "permutations": "fastpsl permutations --out permutations.npy --counts 500 1000 2000",
}


def pages() -> dict[Path, str]:
    """Return the text of each generated page by its path."""
    names = [("train", short, stem) for short, stem in Train.names.items()]
    names += [("eval", short, stem) for short, stem in Eval.names.items()]
    out = {
        FOLDER / "recipes" / f"{stem}.md": recipe_page(command, short, stem) for command, short, stem in names
    }
    out[FOLDER / "recipes" / "common_options.md"] = common_page()
    out[FOLDER / "recipes" / "index.md"] = recipes_index(names)
    commands = dict(all_commands())
    for words, kind in commands.items():
        out[FOLDER / "commands" / f"{words.replace(' ', '_')}.md"] = command_page(words, kind)
    out[FOLDER / "commands" / "index.md"] = commands_index(commands)
    return {path: f"{NOTICE}\n\n{text.strip()}\n" for path, text in out.items()}


def all_commands(kind: type = Fastpsl, before: str = "") -> Iterator[tuple[str, type]]:
    """Yield each command and sub-command: its words behind `fastpsl`, and its class."""
    for name, each in getattr(kind, "commands", {}).items():
        yield before + name, each
        yield from all_commands(each, f"{before}{name} ")


# Text

FILES = "beton|bin|csv|html|jsonl?|md|np[yz]|onnx|pkl|png|pth|py|safetensors|tar|txt"  # endings of files


def in_code(text: str) -> str:
    """Return plain text with its options, globs and names of files in backticks."""
    parts = re.split(r"(`[^`]*`)", text)
    token = re.compile(
        r"https?://[^\s,;()]+[\w/]|(?<!\w)fastpsl [a-z]+(?: [A-Z]+(?![a-z])| \[[^]]*\]| --[a-z-]+)+"
        r"|(?<![\w-])--(?:\[no-\])?[a-z][\w-]*|'[^' ]*\*[^' ]*'|[\w./*-]*\.(?:" + FILES + r")\b"
    )
    for i in range(0, len(parts), 2):
        parts[i] = token.sub(lambda m: f"<{m[0]}>" if m[0].startswith("http") else f"`{m[0]}`", parts[i])
    return "".join(parts)


def prose(text: str) -> str:
    """Return plain text as Markdown: options in backticks, and characters that have a meaning escaped."""
    parts = re.split(r"(`[^`]*`|<https?:[^>]*>)", in_code(text))
    parts[::2] = [re.sub(r"([<*\[\]])", r"\\\1", part) for part in parts[::2]]
    return "".join(parts)


def cell(text: str) -> str:
    """Return Markdown for a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|") or "–"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell(each) for each in line)} |" for line in lines)


def wrapped(text: str) -> str:
    return textwrap.fill(text, 138, break_long_words=False, break_on_hyphens=False)


def described_in_markdown(docstring: str, depth: str) -> tuple[str, str]:
    """Return a docstring's first paragraph, and the rest with its indented commands as code.

    Args:
        docstring: The docstring.
        depth: The path from the page to docs/reference/, such as "../".
    """
    linked = set[str]()

    def with_links(text: str) -> str:
        for paper, anchor in PAPERS.items():
            cited = re.compile(rf"(?<![\w+]){re.escape(paper)}(?=,? \(?(?:Table|section|Fig))")
            if paper not in linked and cited.search(text):
                text = cited.sub(f"[{paper}]({depth}papers.md#{anchor})", text, count=1)
                linked.add(paper)
        return text

    blocks = list[str]()
    for paragraph in inspect.cleandoc(docstring).split("\n\n"):
        for is_command, lines in _alike(paragraph.split("\n")):
            if is_command:
                blocks.append("```bash\n" + "\n".join(_commands(lines)) + "\n```")
                continue
            for part in re.split(r"\n(?=Paper[ ,:(])", "\n".join(lines)):
                blocks.append(wrapped(with_links(prose(" ".join(part.split())))))
    joined = re.sub(r"\n```\n\n```bash\n", "\n\n", "\n\n".join(blocks[1:]))
    return blocks[0], joined


def _alike(lines: Sequence[str]) -> Iterator[tuple[bool, list[str]]]:
    """Yield runs of lines that are indented, or are not."""
    run = list[str]()
    for line in lines:
        if run and run[0].startswith("    ") != line.startswith("    "):
            yield run[0].startswith("    "), run
            run = []
        run.append(line)
    yield run[0].startswith("    "), run


def _commands(lines: Sequence[str]) -> Iterator[str]:
    """Yield the lines of commands, with each comment above its command."""
    command = list[str]()
    for line in lines:
        text, _, comment = line[4:].rstrip().partition("  # ")
        command.append(text.rstrip())
        if comment:
            command.insert(0, f"# {comment.strip()}")
        if not text.endswith("\\"):
            yield from command
            command = []
    yield from command


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


# Options


@dataclass(frozen=True)
class Row:
    """An option as the tables show it.

    Attributes:
        name: The field's name.
        usage: The flag, or an argument's name.
        values: Its type or choices.
        default: The default with --data.
        text: What it does.
        choices: Its choices, if they are too many for the table.
    """

    name: str
    usage: str
    values: str
    default: str
    text: str
    choices: tuple[str, ...] = ()

    def cells(self) -> tuple[str, ...]:
        return f"`{self.usage}`", self.values, self.default, self.text


HEADER = ("option", "type or choices", "default", "meaning")


def rows_of(options: type, defaults: Mapping[str, Any], sample: Mapping[str, Any]) -> dict[str, Row]:
    """Return the options of a dataclass by name, from what --help is made of."""
    own = {each.name: each.default for each in fields(options)}
    hints = get_type_hints(options, include_extras=True)
    texts = {option.name: option.text for option in described(options, dict.fromkeys(own))}
    rows = dict[str, Row]()
    for option in described(options, defaults):
        usage, _, metavar = option.usage.partition(" ")
        text, default = texts[option.name], words_of(defaults.get(option.name, own[option.name]))
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
            option.name, usage, values, default, prose(text), choices if len(choices) >= MANY else ()
        )
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
    parts = []
    for title, rows in boxes.items():
        parts += [f"{level} {title.capitalize()}", table(HEADER, [row.cells() for row in rows])]
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


# Pages


def recipe_page(command: str, short: str, stem: str) -> str:
    """Return the page of a recipe."""
    recipe = find_recipe(stem)
    about, rest = described_in_markdown(recipe.description or "", "../")
    rows = rows_of(recipe.options, recipe.paper, recipe.sample)
    shared, boxes, common = shared_rows(), dict[str, list[Row]](), dict[str, list[Row]]()
    for title, members in in_boxes(list(described(recipe.options, recipe.paper))).items():
        for option in members:
            row = rows[option.name]
            is_common = title in COMMON and shared.get(row.name, (None,))[0] == row
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
                f"- [{title.capitalize()}](common_options.md#{title.replace(' ', '-')}): "
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
    boxes = in_boxes([Option(name, "", "", False) for name in shared_rows()])
    parts = [COMMON_START.strip(), table((*HEADER, "recipes"), COMMON_ROWS)]
    for title in COMMON:
        rows = [shared_rows()[option.name] for option in boxes[title]]
        lines = [(*row.cells(), takers) for row, takers in rows]
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
    ("`--help`", "switch", "off", "Show the options, except those of speed and machine.", "all"),
    ("`--help-all`", "switch", "off", "Show all options.", "all"),
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

- **Paper.** With `--data`, the defaults are the paper's. The first line of the output lists every value in
  which your command differs.
- **Sample.** Without `--data`, the recipe runs on a small sample that the package generates. The values are
  small, so that a CPU needs minutes.
- **Small.** `--preset small` is for your own data if you have few images. The batch becomes a power of two of
  at most a tenth of the images, and the learning rate shrinks in proportion. Each stage becomes as long as
  2,000 steps need. The pages show the result for {SMALL_IMAGES:,} images.
"""


def command_page(words: str, kind: type) -> str:
    """Return the page of a command."""
    about, rest = described_in_markdown(kind.__doc__ or "", "../")
    parts = [f"# fastpsl {words}", about, f"```bash\n{EXAMPLES[words]}\n```", rest]
    subcommands = getattr(kind, "commands", {})
    if subcommands:
        rows = [
            (f"[`fastpsl {words} {name}`]({words}_{name}.md)", " ".join(first_paragraph(each).split()))
            for name, each in subcommands.items()
        ]
        parts += ["## Commands", table(("command", "what it does"), rows)]
    else:
        parts.append(option_tables(boxes_of_command(kind), "##"))
    if kind in (Train, Eval):
        rows = [(f"`{name}`", f"[{stem}](../recipes/{stem}.md)") for name, stem in kind.names.items()]  # type: ignore[attr-defined]
        parts += ["## Names", table(("NAME", "page of its options"), rows)]
    parts += ["## See also", links([*SEE.get(words, ()), "reference/exit_codes.md"])]
    return "\n\n".join(part for part in parts if part)


def first_paragraph(kind: type) -> str:
    return described_in_markdown(kind.__doc__ or "", "../")[0]


def boxes_of_command(kind: type) -> dict[str, list[Row]]:
    """Return a command's arguments and options in the groups of its --help."""
    if not is_dataclass(kind):
        return {}
    hints, boxes = get_type_hints(kind, include_extras=True), dict[str, list[Row]]()
    for name, row in rows_of(kind, {}, {}).items():
        is_argument = Positional in getattr(hints[name], "__metadata__", ())
        boxes.setdefault("arguments" if is_argument else "options", []).append(row)
    for name, hint in hints.items():
        if isinstance(hint, type) and is_dataclass(hint):
            boxes[name.replace("_", " ")] = [*rows_of(hint, {}, {}).values()]
    return boxes


def commands_index(commands: Mapping[str, type]) -> str:
    """Return the list of commands."""
    rows = [
        (f"[`fastpsl {words}`]({words.replace(' ', '_')}.md)", " ".join(first_paragraph(kind).split()))
        for words, kind in commands.items()
    ]
    about, rest = described_in_markdown(Fastpsl.__doc__ or "", "../")
    stems = [words.replace(" ", "_") for words in commands]
    parts = ["# Commands", about, rest, COMMANDS_START.strip(), table(("command", "what it does"), rows)]
    return "\n\n".join([*parts, toctree(stems)])


COMMANDS_START = """
`fastpsl --version` prints the version. `--help` behind any command shows its options. An error is one line on
stderr. The [exit codes](../exit_codes.md) tell how a command ended.

## All commands
"""


def toctree(stems: Sequence[str]) -> str:
    return "\n".join(["```{toctree}", ":hidden:", "", *stems, "```"])


def links(paths: Sequence[str]) -> str:
    """Return links to pages, by their paths in docs/, from a page that is two folders below docs/."""
    lines = []
    for path in paths:
        *folder, page = path.removesuffix(".md").removesuffix("/index").split("/")
        kind = KINDS["/".join(folder)]
        lines.append(f"- {kind}: [{TITLES.get(page, page.replace('_', ' '))}](../../{path})")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the pages, or check them; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page would change")
    check = parser.parse_args(arguments).check
    wanted = pages()
    present = {path for name in ("recipes", "commands") for path in (FOLDER / name).glob("*.md")}
    changed = [path for path, text in wanted.items() if path not in present or path.read_text() != text]
    surplus = sorted(present - wanted.keys())
    for path in [*changed, *surplus]:
        print(path.relative_to(ROOT))
    if check:
        return int(bool(changed or surplus))
    for path in changed:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(wanted[path])
    for path in surplus:
        path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
