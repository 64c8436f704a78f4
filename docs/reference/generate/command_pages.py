"""Describe the commands, their arguments and options, for the page on commands."""

from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import get_type_hints

from tyro.conf import Positional

from docs.reference.generate.markdown import described_in_markdown, table
from docs.reference.generate.options import Row, option_table, rows_of
from fastpsl.cli import Fastpsl

EXAMPLES = {
    "train": "fastpsl train jigsaw --data photos/train --val photos/val --gpus 8 --out runs/jigsaw",
    "eval": "fastpsl eval knn runs/jigsaw --data photos/train --val photos/val",
    "launch": "fastpsl launch slurm jigsaw --nodes 2 --gpus 8 --data 'train-*.beton' --out runs/jigsaw",
    "launch slurm": "fastpsl launch slurm jigsaw --data 'train-*.beton' --out runs/jigsaw",
    "recipes": "fastpsl recipes",
    "recipes list": "fastpsl recipes",
    "recipes copy": "fastpsl recipes copy jigsaw my_jigsaw.py",
    "runs": "fastpsl runs",
    "compare": "fastpsl compare runs/simclr runs/low-lr",
    "data": "fastpsl data write photos/train train.beton --max-side 500",
    "data write": "fastpsl data write photos/train train.beton --max-side 500",
    "data append": "fastpsl data append new_photos train.beton",
    "data verify": "fastpsl data verify 'train*.beton'",
    "data info": "fastpsl data info train.beton",
    "data show": "fastpsl data show train.beton --task jigsaw --level 3 --out jigsaw.png",
    "show": "fastpsl show train.beton --task jigsaw --level 3 --out jigsaw.png",
    "replay": "fastpsl replay runs/jigsaw --step 1200 --around 20",
    "features": "fastpsl features runs/jigsaw --data train.beton --out train.npy --block B4",
    "retrieve": "fastpsl retrieve runs/jigsaw --gallery train.beton --queries val.beton --out retrieval",
    "tsne": "fastpsl tsne runs/jigsaw --data val.beton --out tsne",
    "clusters": "fastpsl clusters runs/uic --data train.beton",
    "labels": "fastpsl labels k-means --data train.beton --num-clusters 70 --out labels.npz",
    "export": "fastpsl export runs/jigsaw --to torchvision",
    "table": "fastpsl table psl/5",
    "doctor": "fastpsl doctor jigsaw --data train.beton",
    "permutations": "fastpsl permutations --out permutations.npy --counts 500 1000 2000",
}


def all_commands(kind: type = Fastpsl, before: str = "") -> Iterator[tuple[str, type]]:
    """Yield each command and sub-command: its words behind `fastpsl`, and its class."""
    for name, each in getattr(kind, "commands", {}).items():
        yield before + name, each
        yield from all_commands(each, f"{before}{name} ")


def commands_part() -> str:
    """Return a list of the commands, and a section for each of them."""
    commands = dict(all_commands())
    about = {words: described_in_markdown(kind.__doc__ or "", "") for words, kind in commands.items()}
    rows = [
        (f"[`fastpsl {words}`](#fastpsl-{words.replace(' ', '-')})", " ".join(first.split()))
        for words, (first, _) in about.items()
    ]
    parts = [table(("command", "what it does"), rows)]
    for words, kind in commands.items():
        parts += [f"## fastpsl {words}", about[words][0], f"```bash\n{EXAMPLES[words]}\n```", about[words][1]]
        for title, options in boxes_of_command(kind).items():
            parts.append(f"**{title.capitalize()}**\n\n{option_table(options)}")
    return "\n\n".join(part for part in parts if part)


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
