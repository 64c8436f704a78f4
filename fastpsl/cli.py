"""The `fastpsl` command: its subcommands and exit codes."""

import contextlib
import sys
import warnings
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Annotated, Any, NoReturn, get_args, get_type_hints

import tyro

from fastpsl.commands import doctor, train
from fastpsl.commands.clusters import Clusters
from fastpsl.commands.data import Data
from fastpsl.commands.doctor import Doctor
from fastpsl.commands.export import Export
from fastpsl.commands.features import Features
from fastpsl.commands.labels import MakeLabels
from fastpsl.commands.permutations import Permutations
from fastpsl.commands.recipes import Recipes
from fastpsl.commands.retrieve import Retrieve
from fastpsl.commands.show import Show
from fastpsl.commands.table import Table
from fastpsl.commands.train import Eval, Train
from fastpsl.commands.tsne import TSNE
from fastpsl.engine.address_space import require_address_space
from fastpsl.engine.command_line import parse
from fastpsl.engine.distribution import REMEDY, stranger, version_line
from fastpsl.engine.exit_codes import EXIT_INTERRUPTED, EXIT_USER_ERROR
from fastpsl.engine.help_screen import show_command_help
from fastpsl.engine.launch import goes_on
from fastpsl.engine.nearest_word import hint
from fastpsl.engine.old_names import current_arguments
from fastpsl.engine.recipe import HELP
from fastpsl.engine.terminal import safe_output
from fastpsl.pipelines.doing import doing

Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Eval, tyro.conf.subcommand("eval")]
    | Annotated[Recipes, tyro.conf.subcommand("recipes")]
    | Annotated[Data, tyro.conf.subcommand("data")]
    | Annotated[Show, tyro.conf.subcommand("show")]
    | Annotated[Features, tyro.conf.subcommand("features")]
    | Annotated[Retrieve, tyro.conf.subcommand("retrieve")]
    | Annotated[TSNE, tyro.conf.subcommand("tsne")]
    | Annotated[Clusters, tyro.conf.subcommand("clusters")]
    | Annotated[MakeLabels, tyro.conf.subcommand("labels")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Table, tyro.conf.subcommand("table")]
    | Annotated[Doctor, tyro.conf.subcommand("doctor")]
    | Annotated[Permutations, tyro.conf.subcommand("permutations")]
)
# The names of the commands.
NAMES = (
    "train", "eval", "recipes", "data", "show", "features", "retrieve", "tsne", "clusters", "labels",
    "export", "table", "doctor", "permutations",
)  # fmt: skip


class Fastpsl:
    """A toolbox for self-supervised pre-training of vision backbones.

        fastpsl train jigsaw --data photos/train --val photos/val --gpus 8 --out runs/jigsaw
        fastpsl eval knn --checkpoint runs/jigsaw --data photos/train --val photos/val

    Without --data, `fastpsl train jigsaw` trains on a small sample that the package generates.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; return if it succeeds, else exit.

    The exit code is 1 if doctor finds a step that waits, 2 for a user error, and 130 if interrupted. An error
    is one line on stderr.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    with safe_output(goes_on("fastpsl") if given[:1] in (["train"], ["eval"]) else _lose):
        _main(given)


def _lose(name: str, error: OSError) -> None:
    """Stop the work when stdout can no longer be written; a lost stderr does not matter."""
    if name == "stdout":
        raise (
            error
            if isinstance(error, BrokenPipeError)
            else ValueError(f"stdout cannot be written ({error.strerror})")
        )


def _main(arguments: list[str]) -> None:
    try:
        require_address_space()
        if arguments[:1] == ["--version"]:
            print(version_line())
            if other := stranger():
                _exit(EXIT_USER_ERROR, f"{other}: {REMEDY}")
            return
        arguments, recipe_options = _split(arguments)
        if not recipe_options and HELP.intersection(arguments):
            _show_help(arguments)
            return
        arguments, notes = current_arguments(arguments, ("gpus", "workers", "short_side", "num_clusters"))
        for note in notes:
            print(f"fastpsl: {note}", file=sys.stderr)
        config = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)
        command = parse(Command, arguments, prog="fastpsl", config=config)
        if isinstance(command, (Train, Eval)):  # a recipe reports by itself
            sys.exit(command.run(*recipe_options))
        with _one_line_warnings(), doing(" ".join(["fastpsl", *takewhile(str.isalpha, arguments)])):
            exit_code = command.run(*recipe_options)  # recipe_options is empty except for doctor
        sys.stdout.flush()
        if exit_code:
            sys.exit(exit_code)
    except BrokenPipeError:  # `fastpsl data info x | head`
        sys.exit(0)
    except (ValueError, OSError) as error:
        _exit(EXIT_USER_ERROR, str(error))
    except MemoryError as error:
        cause = f" ({str(error).strip()})" if str(error).strip() else ""
        _exit(EXIT_USER_ERROR, f"out of memory{cause}: free some, or give fewer --workers or a smaller batch")
    except KeyboardInterrupt:
        _exit(EXIT_INTERRUPTED, "interrupted; nothing was left under the final name")


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return `fastpsl`'s own arguments, and those that a recipe gets.

    Raises:
        ValueError: There is no such command.
    """
    if not arguments:
        return ["--help"], []
    name = arguments[0]
    if name in ("train", "eval"):
        return train.split(arguments)
    if name == "doctor":
        return doctor.split(arguments)
    if name == "beton":  # the former name
        return ["data", *arguments[1:]], []
    if not name.startswith("-") and name not in NAMES:
        raise ValueError(f"there is no command {name}; {hint(name, NAMES)}allowed are {', '.join(NAMES)}")
    return list(arguments), []


def _show_help(arguments: Sequence[str]) -> None:
    """Print the help of `fastpsl`, of a command, or of a command's own command."""
    words = list(takewhile(lambda word: not word.startswith("-"), arguments))
    prog, subcommands = "fastpsl", _named(Command)
    command: type = Fastpsl
    while words and words[0] in subcommands:
        name = words.pop(0)
        prog, command = f"{prog} {name}", subcommands[name]
        subcommands = _named(get_type_hints(command, include_extras=True).get("command"))
    show_command_help(prog, command, subcommands)


def _named(union: Any) -> dict[str, type]:
    """Return the classes of a union of commands, by name."""
    pairs = [(each.__metadata__[0].name, get_args(each)[0]) for each in get_args(union)]
    return dict(pairs)


def _exit(code: int, message: str) -> NoReturn:
    print(f"fastpsl: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


@contextlib.contextmanager
def _one_line_warnings() -> Iterator[None]:
    """Print each warning as one line on stderr."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        print(f"fastpsl: warning: {' '.join(str(message).split())}", file=sys.stderr)

    with warnings.catch_warnings():
        # PIL warns about single images, which are judged by their pixels.
        warnings.filterwarnings("ignore", module="PIL")
        warnings.showwarning = show
        yield


if __name__ == "__main__":
    main()
