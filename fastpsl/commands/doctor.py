"""`fastpsl doctor` on the command line."""

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from fastpsl.doctor.options import Doctor

# What it does is imported when it does it: `fastpsl --help` shall not wait for torch.

EXIT_INTERRUPTED = 130


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """`fastpsl`'s arguments, and what stands behind a recipe's path in `doctor`: that is the recipe's.

    The path comes to stand first, where no option before it can take it for one of its values.
    """
    own = list(arguments)
    if own[:1] == ["doctor"]:
        for i, argument in enumerate(own):
            if argument.endswith(".py"):
                return ["doctor", argument, *own[1:i]], own[i + 1 :]
    return own, []


def run(command: Doctor, recipe_options: Sequence[str]) -> int:
    """Do it; the exit code. ValueError with one line where the user is wrong."""
    try:
        from fastpsl.doctor.examination import examine

        return examine(command, recipe_options)
    except KeyboardInterrupt:
        print("fastpsl: interrupted; nothing was changed", file=sys.stderr)
        return EXIT_INTERRUPTED
    except (ValueError, BrokenPipeError):
        raise
    except Exception as error:
        # Of our own, or of a task that stands in no recipe: a line, with the place that a report of it needs.
        place = traceback.extract_tb(error.__traceback__)[-1]
        what = (
            f"{type(error).__name__} in {Path(place.filename).name}, line {place.lineno}: {str(error)[:300]}"
        )
        raise ValueError(
            f"doctor itself fails ({what}); start the recipe to see whether it trains"
        ) from error
