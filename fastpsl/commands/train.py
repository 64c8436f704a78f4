"""`fastpsl train` and `fastpsl eval`: recipes by their short names."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from fastpsl.console.progress import operation
from fastpsl.console.words import pasted
from fastpsl.scripts.presets import CPU_PRESETS
from fastpsl.scripts.recipe_files import EVAL, TRAIN


@dataclass(frozen=True)
class Copy:
    """Copy a recipe's script: to read, to change, and to start by `python FILE` or `fastpsl train FILE`."""

    recipe: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="NAME")]]
    """A name of `fastpsl recipes`."""
    file: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="FILE")]]
    """The new file, such as my_jigsaw.py."""
    overwrite: bool = False
    """Replace FILE if it is there."""

    def run(self) -> None:
        """Write the copy."""
        from fastpsl.files.atomic import write_atomically
        from fastpsl.files.system_errors import output_errors
        from fastpsl.scripts.recipe_files import named_path

        source = named_path(self.recipe, Train.names | Eval.names)
        if self.file.suffix != ".py":
            raise ValueError(f"{self.file}: a recipe is a Python file; give a name that ends in .py")
        if self.file.exists() and not self.overwrite:
            raise ValueError(f"{self.file}: exists already; give --overwrite, or choose another name")
        with output_errors(self.file):
            write_atomically(self.file, source.read_bytes())
        print(f"{self.file}: a copy of {source.name}; start it by `fastpsl train {pasted(self.file)}`")


@dataclass(frozen=True)
class List:
    """List the recipes."""

    def run(self) -> None:
        """Print the names for `fastpsl train` and `fastpsl eval`, with a line about each."""
        from rich.console import Console
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        for command in (Train, Eval):
            for name, about in command.about_names().items():
                table.add_row(f"fastpsl {command.__name__.lower()} {name}", about)
        Console(highlight=False, markup=False).print(table)


class Recipes:
    """List the recipes, or copy one to change it: fastpsl recipes [copy NAME FILE]."""

    commands: ClassVar[dict[str, type]] = {"list": List, "copy": Copy}


Gpus = Annotated[
    int | None,
    tyro.conf.arg(metavar="N", help="GPUs of this machine to use, one process each; by default one."),
]


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return `fastpsl`'s own arguments, and those behind a recipe's name, which the recipe gets.

    --gpus is `fastpsl`'s wherever it stands.
    """
    own, rest = list(arguments[:1]), list(arguments[1:])
    for i, word in enumerate(rest):
        if word.partition("=")[0] in ("--gpu", "--num-gpus", "--ngpus", "--n-gpus"):
            raise ValueError(f"there is no option {word.partition('=')[0]}; perhaps you meant --gpus")
        if word == "--gpus" or word.startswith("--gpus="):
            end = i + (1 if "=" in word else 2)
            own, rest = own + rest[i:end], rest[:i] + rest[end:]
            break
    if rest and not rest[0].startswith("-"):
        own.insert(1, rest.pop(0))
        return own, rest
    return own + rest, []


@dataclass(frozen=True)
class _Start:
    """The start of a recipe."""

    names: ClassVar[dict[str, str]]

    recipe: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="NAME")]]
    """A name of `fastpsl recipes`, or the path of a script; its options follow."""
    gpus: Gpus = None

    @classmethod
    def knows(cls, name: str) -> bool:
        """Return whether this is a recipe's short name, or its script's name without .py."""
        return name in cls.names or name in cls.names.values()

    @classmethod
    def about_names(cls) -> dict[str, str]:
        """Return the first sentence of each recipe by its name, without what stands in brackets."""
        from fastpsl.scripts.recipe_files import find_recipe

        texts = {name: (find_recipe(stem).description or "").strip() for name, stem in cls.names.items()}
        firsts = {name: " ".join(text.split("\n\n")[0].split()) for name, text in texts.items()}
        return {name: re.sub(r" \([^)]*\)", "", first) for name, first in firsts.items()}

    def run(self, *options: str) -> int:
        """Run the recipe in this process, or in one for each of --gpus."""
        from fastpsl.scripts.command_line import HELP
        from fastpsl.scripts.launch import launch
        from fastpsl.scripts.local_ranks import run_ranks
        from fastpsl.scripts.recipe_files import load_recipe, named_path

        if self.gpus is not None and self.gpus < 1:
            raise ValueError(f"--gpus {self.gpus}: it must be 1 or more")
        command = type(self).__name__.lower()
        for other in (Train, Eval):
            if other.__name__.lower() != command and other.knows(self.recipe):
                hint = f"fastpsl {other.__name__.lower()} {self.recipe}"
                raise ValueError(f"there is no such recipe here; did you mean `{hint}`?")
        path = named_path(self.recipe, self.names, options)
        prog = f"fastpsl {command} {self.recipe}"
        if (self.gpus or 1) == 1 or HELP.intersection(options):
            with operation(f"{prog}: starting"):
                recipe = load_recipe(path)
            launch(recipe, options, prog)
        return run_ranks([str(path), *self._agreed(path, options, prog)], self.gpus or 1, prog)

    def _agreed(self, path: Path, options: Sequence[str], prog: str) -> Sequence[str]:
        """Return the options of several processes, which would each choose a preset by their own clock."""
        if isinstance(self, Eval):
            return options
        from fastpsl.scripts.launch import parsed
        from fastpsl.scripts.recipe_files import load_recipe

        with operation(f"{prog}: starting"):
            preset = getattr(parsed(load_recipe(path), options, prog), "preset", None)
        return [*options, "--preset", preset] if preset in CPU_PRESETS else options


@dataclass(frozen=True)
class Train(_Start):
    """Train a backbone: fastpsl train NAME [--gpus N] [the recipe's options].

    The options of a recipe: fastpsl train NAME --help. Without --data it trains on a small sample that the
    package generates.
    """

    names: ClassVar[dict[str, str]] = TRAIN


@dataclass(frozen=True)
class Eval(_Start):
    """Evaluate a backbone: fastpsl eval NAME RUN [--gpus N] [the recipe's options].

    RUN is a run's folder. Its data and the size of its images are used where the options give none.
    The options of an evaluation: fastpsl eval NAME --help.
    """

    names: ClassVar[dict[str, str]] = EVAL
