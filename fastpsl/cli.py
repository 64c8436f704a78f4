"""The `fastpsl` command: its subcommands and exit codes."""

import sys
import warnings
from collections.abc import Sequence
from typing import ClassVar, NoReturn

from fastpsl.commands import doctor, launch, train
from fastpsl.commands.data import Data
from fastpsl.commands.doctor import Doctor
from fastpsl.commands.export import Export
from fastpsl.commands.features import TSNE, Features, Retrieve
from fastpsl.commands.labels import Clusters, MakeLabels, Permutations
from fastpsl.commands.launch import Launch
from fastpsl.commands.replay import Replay
from fastpsl.commands.runs import Compare, Runs
from fastpsl.commands.show import Show
from fastpsl.commands.table import Table
from fastpsl.commands.train import Eval, Recipes, Train
from fastpsl.console.progress import operation
from fastpsl.console.terminal import (
    EXIT_INTERRUPTED,
    EXIT_PREEMPTED,
    EXIT_USER_ERROR,
    INTERRUPTED,
    require_address_space,
    safe_output,
)
from fastpsl.console.words import hint
from fastpsl.scripts.command_line import HELP, parse, show_commands, show_list
from fastpsl.scripts.distribution import REMEDY, stranger, version_line
from fastpsl.scripts.launch import goes_on, print_warnings_once


class Fastpsl:
    """A toolbox for self-supervised pre-training of vision backbones.

        fastpsl train simclr --out runs/first       # on a small sample, in minutes
        fastpsl eval knn runs/first                 # what its features are worth
        fastpsl tsne runs/first                     # a map of the images

    With your own images: fastpsl train simclr --data photos --out runs/photos
    """

    commands: ClassVar[dict[str, type]] = {
        "train": Train, "eval": Eval, "launch": Launch, "recipes": Recipes, "runs": Runs,
        "compare": Compare, "replay": Replay, "data": Data, "show": Show,
        "features": Features, "retrieve": Retrieve, "tsne": TSNE, "clusters": Clusters, "labels": MakeLabels,
        "export": Export, "table": Table, "doctor": Doctor, "permutations": Permutations,
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; return if it succeeds, else exit.

    The exit code is 1 if doctor finds a step that waits, 2 for a user error, and 130 if interrupted. An error
    is one line on stderr.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    with safe_output(goes_on("fastpsl", given) if given[:1] in (["train"], ["eval"]) else _lose):
        _main(given)


def _lose(name: str, error: OSError) -> None:
    """Stop the work when stdout can no longer be written; a lost stderr does not matter."""
    if name == "stdout":
        is_pipe = isinstance(error, BrokenPipeError)
        raise error if is_pipe else ValueError(f"stdout cannot be written ({error.strerror})")


def _main(arguments: list[str]) -> None:
    prog = "fastpsl"
    try:
        require_address_space()
        if arguments[:1] == ["--version"]:
            print(version_line())
            if other := stranger():
                _exit(EXIT_USER_ERROR, prog, f"{other}: {REMEDY}")
            return
        if arguments[:1] == ["help"]:
            arguments = [*arguments[1:], "--help"]
        arguments, recipe_options = _split(arguments)
        prog, kind, rest = _named(arguments)
        commands = getattr(kind, "commands", {})
        wants_help = not HELP.isdisjoint(rest)
        if kind is Recipes and not wants_help:
            kind = commands["list"]
        elif commands:
            show_commands(prog, kind, commands)
            if not wants_help:
                unknown = f"{rest[0]}: there is no such option; " if rest else ""
                _exit(EXIT_USER_ERROR, prog, f"{unknown}name a command")
            return
        if kind in (Train, Eval) and not wants_help and (not rest or rest[0].startswith("-")):
            show_list("names", kind.about_names())
            _exit(EXIT_USER_ERROR, prog, "name one of these")
        try:
            command = parse(kind, rest, prog=prog)
        finally:
            if kind in (Train, Eval) and wants_help:
                show_list("names", kind.about_names())
        if isinstance(command, (Train, Eval)):  # a recipe reports by itself
            prog = f"{prog} {command.recipe}"
            sys.exit(command.run(*recipe_options))
        with warnings.catch_warnings(), operation(f"{prog}: at work"):
            # PIL warns about single images, which are judged by their pixels.
            warnings.filterwarnings("ignore", module="PIL")
            print_warnings_once(prog, kind=Warning)
            exit_code = command.run(*recipe_options)  # recipe_options is empty but for doctor and launch
        sys.stdout.flush()
        if exit_code:
            sys.exit(exit_code)
    except BrokenPipeError:  # `fastpsl data info x | head`
        sys.exit(0)
    except (ValueError, OSError) as error:
        _exit(EXIT_USER_ERROR, prog, str(error))
    except MemoryError as error:
        cause = f" ({str(error).strip()})" if str(error).strip() else ""
        remedy = "free some, or give fewer --workers or a smaller batch"
        _exit(EXIT_USER_ERROR, prog, f"out of memory{cause}: {remedy}")
    except KeyboardInterrupt as error:
        if arguments[:1] in (["train"], ["eval"]):  # before the recipe has begun
            _exit(EXIT_PREEMPTED, prog, INTERRUPTED)
        _exit(EXIT_INTERRUPTED, prog, str(error) or "interrupted")


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return `fastpsl`'s own arguments, and those that a recipe gets."""
    if not arguments:
        return ["--help"], []
    splits = {"train": train.split, "eval": train.split, "doctor": doctor.split, "launch": launch.split}
    split = splits.get(arguments[0])
    return split(arguments) if split else (list(arguments), [])


def _named(arguments: Sequence[str]) -> tuple[str, type, list[str]]:
    """Return the command that the first words name: what is typed for it, its class, and the other words."""
    names, words = ["fastpsl"], list(arguments)
    kind: type = Fastpsl
    while words and not words[0].startswith("-") and (commands := getattr(kind, "commands", None)):
        names.append(words.pop(0))
        if names[-1] not in commands:
            raise ValueError(
                f"there is no command {' '.join(names[1:])}; {hint(names[-1], commands)}"
                f"allowed are {', '.join(commands)}"
            )
        kind = commands[names[-1]]
    return " ".join(names), kind, words


def _exit(code: int, prog: str, message: str) -> NoReturn:
    sys.stdout.flush()
    print(f"{prog}: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
