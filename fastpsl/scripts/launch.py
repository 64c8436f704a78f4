"""The start of a script's process. Options are parsed here, before torch is imported, which takes seconds."""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from fastpsl.console.progress import operation
from fastpsl.console.terminal import (
    EXIT_PREEMPTED,
    EXIT_USER_ERROR,
    INTERRUPTED,
    escaped,
    own_rank,
    require_address_space,
    safe_output,
)
from fastpsl.scripts.command_line import COMMAND, HELP
from fastpsl.scripts.recipe import (
    Evaluation,
    Options,
    Recipe,
    Script,
    print_now,
    require_paths,
)


def launch(
    script: Recipe[Any] | Evaluation[Any], arguments: Sequence[str] | None = None, prog: str | None = None
) -> NoReturn:
    """Run a script and exit.

    The exit code is 0 (finished), 2 (user error), 75 (preempted; the same command resumes) or 1 (crashed).

    Args:
        script: The script.
        arguments: The words of its command line; None for those of the process.
        prog: What errors begin with; None for the command that was typed, or else the script's name.
    """
    given = sys.argv[1:] if arguments is None else arguments
    prog = prog or os.environ.get(COMMAND)
    name = prog or script.name
    with safe_output(goes_on(name, given)):
        try:
            require_address_space()
            print_warnings_once(name, own_rank())
            with operation(f"{name}: reading its options"):
                options = parsed(script, given, prog)
            with operation(f"{name}: starting"):
                from fastpsl.scripts.recipe_process import run
        except BrokenPipeError:  # `fastpsl train jigsaw --help | head`
            sys.exit(0)
        except (ValueError, OSError) as error:
            _end(EXIT_USER_ERROR, f"{name}: {' '.join(str(error).split())}")
        except KeyboardInterrupt:
            _end(EXIT_PREEMPTED, f"{name}: {INTERRUPTED}")
        run(script, options, name)


def parsed(script: Script[Options], given: Sequence[str], prog: str | None) -> Options:
    """Return the options of a command, and print lines about them, such as a preset that was chosen.

    Of `fastpsl train` the machine chooses the preset. A recipe started as a script has the same values
    on any machine. So have torchrun's processes, which must agree.
    """
    by_machine = (prog or "").startswith("fastpsl ") and "WORLD_SIZE" not in os.environ

    def options_of(preset: str | None, log: Callable[[str], object]) -> Options:
        words = [*given, *(["--preset", preset] if preset else [])]
        return script.parse(words, prog=prog, log=log, by_machine=by_machine)

    options, lines = for_machine(script, options_of, by_machine=by_machine)
    require_paths(options)
    for line in lines:
        print_now(line)
    return options


def for_machine(
    script: Script[Options],
    options_of: Callable[[str | None, Callable[[str], object]], Options],
    *,
    by_machine: bool,
) -> tuple[Options, list[str]]:
    """Return the options, with a preset for this machine where --preset is auto, and lines to print.

    Args:
        script: The script.
        options_of: Parses the options with a preset, None for the command's own, and calls a function with
            lines to print.
        by_machine: As it is given to `Script.parse`.

    Raises:
        ValueError: Something that the options name is not there, or the training cannot begin.
    """
    lines = list[str]()
    options = options_of(None, lines.append)
    if not by_machine or not isinstance(script, Recipe) or getattr(options, "preset", "") != "auto":
        return options, lines
    require_paths(options)
    from fastpsl.scripts.forecast import choose_preset  # imports torch

    options, line = choose_preset(script, lambda preset: options_of(preset, lambda _: None))
    return options, [line, *lines]


def goes_on(name: str, arguments: Sequence[str]) -> Callable[[str, OSError], None]:
    """Return a function for `safe_output` to call if a program that goes on loses its stdout."""

    def say(stream: str, error: OSError) -> None:
        if stream == "stdout" and not HELP.intersection(arguments):
            message = f"{name}: stdout cannot be written ({error.strerror}); the run goes on without it"
            print(message, file=sys.stderr)

    return say


def print_warnings_once(name: str, rank: int = 0, kind: type[Warning] = UserWarning) -> None:
    """Print each warning in one line and once, on rank 0, because all stages and ranks give the same ones."""
    show, lines = warnings.showwarning, set[str]()

    def show_once(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
        line = escaped(f"{name}: warning: {' '.join(str(message).split())}")
        if not issubclass(category, kind):
            show(message, category, *rest, **more)
        elif rank == 0 and line not in lines:
            lines.add(line)
            print(line, file=sys.stderr)

    warnings.showwarning = show_once


def _end(code: int, message: str) -> NoReturn:
    """Print the message and exit; other ranks wait, because all fail alike and torchrun reports the first."""
    rank = own_rank()
    if rank != 0:
        time.sleep(1.0)
        message = f"rank {rank}: {message}"
    if rank == 0 or code != EXIT_PREEMPTED:  # interrupted ranks end by themselves, and say the same
        print(message, file=sys.stderr, flush=True)
    sys.exit(code)
