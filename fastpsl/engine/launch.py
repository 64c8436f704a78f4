"""The start of a recipe's process. --help is answered here, because torch takes seconds to import."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from fastpsl.engine.recipe import HELP, Evaluation, Recipe
from fastpsl.engine.terminal import safe_output


def launch(
    script: Recipe[Any] | Evaluation[Any], arguments: Sequence[str] | None = None, prog: str | None = None
) -> NoReturn:
    """Run a script and exit: 0 finished, 2 user error, 75 preempted (resume it), 1 crashed.

    Args:
        script: The recipe or evaluation.
        arguments: Its arguments, or None for those of this process.
        prog: The command's name in --help and errors; None for the name by which it was started.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    if HELP.intersection(given):
        with safe_output(lambda name, error: None):
            script.parse(given, prog=prog)
    from fastpsl.engine.recipe_process import run

    run(script, given, prog)
