"""`fastpsl recipes`: the recipes, and copies of them to change."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro


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
        """Write the copy.

        Raises:
            ValueError: There is no such recipe, FILE does not end in .py, or it is there already.
        """
        from fastpsl.commands.train import Eval, Train
        from fastpsl.files.atomic import output_errors, write_atomically
        from fastpsl.scripts.recipe_files import named_path

        source = named_path(self.recipe, Train.names | Eval.names)
        if self.file.suffix != ".py":
            raise ValueError(f"{self.file}: a recipe is a Python file; give a name that ends in .py")
        if self.file.exists() and not self.overwrite:
            raise ValueError(f"{self.file}: exists already; give --overwrite, or choose another name")
        with output_errors(self.file):
            write_atomically(self.file, source.read_bytes())
        print(f"{self.file}: a copy of {source.name}; start it by `fastpsl train {self.file}`")


@dataclass(frozen=True)
class List:
    """List the recipes."""

    def run(self) -> None:
        """Print the names for `fastpsl train` and `fastpsl eval`, with a line about each."""
        from rich.console import Console
        from rich.table import Table

        from fastpsl.commands.train import Eval, Train
        from fastpsl.scripts.recipe_files import find_recipe

        table = Table.grid(padding=(0, 2))
        for command in (Train, Eval):
            for name, stem in command.names.items():
                about = (find_recipe(stem).description or "").strip().split("\n\n")[0]
                table.add_row(f"fastpsl {command.__name__.lower()} {name}", " ".join(about.split()))
        Console(highlight=False, markup=False).print(table)


class Recipes:
    """List the recipes, or copy one to change it: fastpsl recipes [copy NAME FILE]."""

    commands: ClassVar[dict[str, type]] = {"list": List, "copy": Copy}
