"""Write the pages of commands: their purpose, arguments and options."""

from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from typing import get_type_hints

from tyro.conf import Positional

from docs.reference.generate.markdown import described_in_markdown, table, toctree
from docs.reference.generate.options import Row, option_tables, rows_of
from docs.reference.generate.see_also import SEE, links
from fastpsl.cli import Fastpsl
from fastpsl.commands.train import Eval, Train

EXAMPLES = {
    "train": "fastpsl train jigsaw --data photos/train --val photos/val --gpus 8 --out runs/jigsaw",
    "eval": "fastpsl eval knn runs/jigsaw --data photos/train --val photos/val",
    "launch": "fastpsl launch slurm jigsaw --nodes 2 --gpus 8 --data 'train-*.beton' --out runs/jigsaw",
    "launch slurm": "fastpsl launch slurm jigsaw --data 'train-*.beton' --out runs/jigsaw --print",
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
    "features": "fastpsl features runs/jigsaw --data train.beton --out train.npy --block B4",
    "retrieve": "fastpsl retrieve runs/jigsaw --gallery train.beton --queries val.beton --out retrieval",
    "tsne": "fastpsl tsne runs/jigsaw --data val.beton --out tsne",
    "clusters": "fastpsl clusters runs/uic --data train.beton",
    "labels": "fastpsl labels k-means --data train.beton --num-clusters 70 --out labels.npz",
    "export": "fastpsl export runs/jigsaw resnet50.pth --to torchvision",
    "table": "fastpsl table psl/5 --runs runs --out tables",
    "doctor": "fastpsl doctor jigsaw --data train.beton",
    "permutations": "fastpsl permutations --out permutations.npy --counts 500 1000 2000",
}


def all_commands(kind: type = Fastpsl, before: str = "") -> Iterator[tuple[str, type]]:
    """Yield each command and sub-command: its words behind `fastpsl`, and its class."""
    for name, each in getattr(kind, "commands", {}).items():
        yield before + name, each
        yield from all_commands(each, f"{before}{name} ")


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
