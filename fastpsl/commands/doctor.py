"""`fastpsl doctor`: the parts of a recipe that slow it down on this machine."""

import json
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import tyro

from fastpsl.commands.train import Train
from fastpsl.console.terminal import EXIT_INTERRUPTED, EXIT_USER_ERROR, plain
from fastpsl.files.system_errors import output_errors, raise_of_the_system
from fastpsl.scripts import distribution


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


FORMAT = 2  # of the JSON


@dataclass(frozen=True)
class Doctor:
    """Time a recipe's parts on this machine, name the bottleneck, and say what to change.

    fastpsl doctor [its own options] [NAME OPTIONS]: OPTIONS are given as to `fastpsl train NAME`. Reads,
    decodes, copies, augments and steps, each alone and all together; looks at driver, libraries, limits, disk
    and data. Trains nothing and makes no run. Exit 0: no stage waits (both/synthetic >= .95); 1: one does, or
    noise or the limit hides it; 2: something is broken. See
    https://fastpsl.github.io/fastpsl/how_to/bottleneck.html.
    """

    recipe: tyro.conf.Positional[Annotated[str | None, tyro.conf.arg(metavar="NAME")]] = None
    """A name of `fastpsl recipes`, or the path of a script; its options follow. [jigsaw, with a ResNet-18]"""
    json: bool = False
    """One JSON object on stdout instead of the screen."""
    stages: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="NAME...")] = None
    """Stages of the recipe's plan to measure, such as S1 S3. [all]"""
    seconds: Annotated[float | None, tyro.conf.arg(metavar="NUM")] = None
    """Length of a timed region, of which there are many; one step at least. [1; 0.3 without --data]"""
    gpus: Annotated[int | None, tyro.conf.arg(metavar="NUM")] = None
    """Ranks of this machine, as for torchrun: one rank is measured, with its share of batch and cores. [its
    GPUs, or 1]"""
    limit_s: Annotated[float | None, tyro.conf.arg(metavar="NUM")] = None
    """Seconds after which no further part begins; a line names what was left out. [40; for the
    card of a GPU 150]"""
    card: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Instead: compare this machine's kernels and steps with their definitions, and time them. FILE gets the
    card as JSON, and the screen its text, to be pasted into an issue."""

    def run(self, *recipe_options: str) -> int:
        """Measure and print the report; return the exit code as above, or 130 if interrupted."""
        if self.card is not None:
            return self._carded(self.card)
        if not self.json:
            return self._examined(recipe_options, {})
        found: dict[str, Any] = {
            "format": FORMAT, "fastpsl": distribution.version(), "setting": None, "checks": [],
            "measured": None, "bottleneck": None, "changes": [], "left_out": {"stages": [], "options": []},
            "error": None, "exit_code": EXIT_USER_ERROR,
        }  # fmt: skip
        # Whatever ends it, the object is whole.
        try:
            with _ended_by_sigterm():
                found["exit_code"] = code = self._examined(recipe_options, found)
                return code
        except SystemExit as end:
            found |= {"error": "ended", "exit_code": end.code}
            raise
        except ValueError as error:
            found["error"] = str(error)
            raise
        finally:
            print(json.dumps(found, indent=1))

    def _limit(self, default_s: float) -> float:
        limit_s = default_s if self.limit_s is None else self.limit_s
        if not limit_s > 0:
            raise ValueError(f"--limit-s {limit_s:g}: it must be above 0")
        return limit_s

    def _carded(self, path: Path) -> int:
        """Write and print the card; what was done before Ctrl-C is in the file."""
        began = time.monotonic()
        given = {"NAME": self.recipe, "--stages": self.stages, "--seconds": self.seconds, "--gpus": self.gpus}
        others = [name for name, value in given.items() if value is not None] + ["--json"] * self.json
        if others:
            raise ValueError(
                f"--card {path}: it takes no {' and no '.join(others)}; only --limit-s goes with it"
            )
        if path.is_dir() or not path.absolute().parent.is_dir():
            raise ValueError(f"--card {path}: give a file in a folder that is there, such as card.json")
        card = None
        try:
            from fastpsl.console.screen import status
            from fastpsl.doctor.card import make_card
            from fastpsl.doctor.report import Limit
            from fastpsl.engine.distributed import choose_device
            from fastpsl.files.atomic import write_atomically
            from fastpsl.pipelines.decoders.choose import card_file

            device = choose_device("auto", 0)
            limit = Limit(self._limit(150.0 if device.type == "cuda" else 40.0), began)
            with status("the card") as log, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a card has lines of its own
                for card in make_card(device, limit, log):
                    with output_errors(path):
                        write_atomically(path, json.dumps(card.as_dict(), indent=1).encode())
            assert card is not None, "a card has parts"
            if device.type == "cuda":
                kept = card_file(card.machine["name"])
                kept.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(kept, path.read_bytes())
            print(card.text())
            return card.exit_code
        except KeyboardInterrupt:
            there = f"{path} has the parts that were done" if card else "nothing was written"
            print(f"fastpsl doctor: interrupted; {there}", file=sys.stderr)
            return EXIT_INTERRUPTED

    def _examined(self, recipe_options: Sequence[str], found: dict[str, Any]) -> int:
        began = time.monotonic()
        try:
            limit_s = self._limit(40.0)
            from fastpsl.scripts.recipe_files import named_path

            path, is_path = None, False
            if self.recipe is not None:
                is_path = not Train.knows(self.recipe) and Path(self.recipe).exists()
                path = Path(self.recipe) if is_path else named_path(self.recipe, Train.names)
            from rich.console import Console

            from fastpsl.doctor.examination import examine
            from fastpsl.doctor.report import Limit, show

            report = examine(
                path,
                recipe_options,
                is_named=self.recipe is not None and not is_path,
                stages=self.stages,
                seconds=self.seconds,
                num_ranks=self.gpus,
                limit=Limit(limit_s, began),
                found=found,
            )
            if not self.json:
                show(report, Console(file=plain(sys.stdout), highlight=False))
            return report.exit_code
        except KeyboardInterrupt:
            found["error"] = "interrupted"
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


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block as sys.exit does, instead of killing the process at once."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        sys.exit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
