"""`fastpsl doctor`: the parts of a recipe that slow it down on this machine."""

import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fastpsl.commands.train import Train
from fastpsl.console.terminal import EXIT_INTERRUPTED
from fastpsl.files.system_errors import raise_of_the_system


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return `fastpsl`'s own arguments, and those behind a recipe in `doctor`, which the recipe gets.

    The recipe moves to the front, because an option before it could take it for one of its values.
    """
    own_arguments = list(arguments)
    if own_arguments[:1] == ["doctor"]:
        for i, argument in enumerate(own_arguments[1:], start=1):
            is_first = i == 1 and not argument.startswith("-")
            if is_first or argument.endswith(".py") or Train.knows(argument):
                return ["doctor", argument, *own_arguments[1:i]], own_arguments[i + 1 :]
    return own_arguments, []


@dataclass(frozen=True)
class Doctor:
    """Time a recipe's parts on this machine, name the bottleneck, and say what to change and what that gains.

    fastpsl doctor [its own options] [NAME OPTIONS]: OPTIONS are given as to `fastpsl train NAME`. Reads,
    decodes, copies, augments and steps, each alone and all together; looks at driver, libraries, limits, disk
    and data. Trains nothing and makes no run. Exit 0: no stage waits (both/synthetic >= .95); 1: one does, or
    noise hides it; 2: something is broken. See https://fastpsl.github.io/fastpsl/how_to/bottleneck.html.
    """

    recipe: tyro.conf.Positional[Annotated[str | None, tyro.conf.arg(metavar="NAME")]] = None
    """A name of `fastpsl recipes`, or the path of a script; its options follow. [jigsaw, with a ResNet-18]"""
    json: bool = False
    """One JSON object on stdout instead of the screen."""
    stages: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="NAME...")] = None
    """Of the recipe's plan, such as S1 S3. [all]"""
    seconds: Annotated[float | None, tyro.conf.arg(metavar="NUM")] = None
    """Length of a timed region, of which there are many; one step at least. [3 on CUDA, else 1; 0.3 without
    --data]"""
    gpus: Annotated[int | None, tyro.conf.arg(metavar="NUM")] = None
    """Ranks of this machine, as for torchrun: one rank is measured, with its share of batch and cores. [its
    GPUs, or 1]"""

    def run(self, *recipe_options: str) -> int:
        """Measure and print the report; return the exit code as above, or 130 if interrupted."""
        try:
            from fastpsl.scripts.recipe_files import named_path

            path = None
            if self.recipe is not None:
                is_path = not Train.knows(self.recipe) and Path(self.recipe).exists()
                path = Path(self.recipe) if is_path else named_path(self.recipe, Train.names)
            from fastpsl.doctor.examination import examine

            return examine(
                path,
                recipe_options,
                as_json=self.json,
                stages=self.stages,
                seconds=self.seconds,
                num_ranks=self.gpus,
            )
        except KeyboardInterrupt:
            print("fastpsl doctor: interrupted; nothing was changed", file=sys.stderr)
            return EXIT_INTERRUPTED
        except (ValueError, BrokenPipeError):
            raise
        except Exception as error:
            raise_of_the_system(self.recipe, error)
            # This is an error of doctor, or of a task outside recipes/; a bug report needs its place.
            place = traceback.extract_tb(error.__traceback__)[-1]
            location = f"{Path(place.filename).name}, line {place.lineno}"
            fault = f"{type(error).__name__} in {location}: {str(error)[:300]}"
            raise ValueError(
                f"doctor itself fails ({fault}); start the recipe to see whether it trains"
            ) from error
