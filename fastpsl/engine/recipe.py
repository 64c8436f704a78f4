"""What a recipe is: its options, its PAPER and SAMPLE values, and what it builds of them."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Generic, TypeVar

from fastpsl.engine.command_line import parse
from fastpsl.engine.distributed import own_rank
from fastpsl.engine.experiment import Experiment
from fastpsl.engine.options import RunOptions, plain_value

Options = TypeVar("Options", bound=RunOptions)
print_now = functools.partial(print, flush=True)


@dataclass(frozen=True)
class Script(Generic[Options]):
    """A script with options, whose values with data are others than on the embedded sample.

    Attributes:
        name: The file's name without .py; runs are called by it.
        description: The file's docstring, for --help.
        options: The class of its options.
        paper: Values that the command line leaves open, with --data.
        sample: Those without --data, in the place of `paper`'s.
        whose: What `paper` is called: "paper", or "default" where no paper states it.
        variant: Makes values in the place of `paper`'s that hold with the options that were given.
    """

    name: str
    description: str | None
    options: type[Options]
    paper: Mapping[str, Any]
    sample: Mapping[str, Any]
    whose: str = field(default="paper", kw_only=True)
    variant: Callable[[Options], Mapping[str, Any]] = field(default=lambda options: {}, kw_only=True)

    def with_paper(self, **values: Any) -> Options:
        """Return the options with `paper`'s values, and `values` in their place."""
        return self.options(**{**self.paper, **values})

    def parse(
        self,
        arguments: Sequence[str] | None = None,
        *,
        prog: str | None = None,
        log: Callable[[str], object] = print_now,
    ) -> Options:
        """Parse the command line.

        Args:
            arguments: Of the script; None for those of this process.
            prog: What --help calls the script; None for the name it was started by.
            log: Called on rank 0 with a line that says in which values the options differ from `paper` or from a default.

        Raises:
            ValueError: With one line, for what cannot be parsed.
            SystemExit: With code 0, after --help is printed.
        """
        speaks = own_rank() == 0
        small = " ".join(f"--{name.replace('_', '-')} {_words(value)}" for name, value in self.sample.items())
        usual = "are the paper's" if self.whose == "paper" else "hold with --data"
        description = (self.description or "").rstrip()
        description += f"\n\nDefaults below {usual}; without --data they are\n{small}"

        def parsed(values: Mapping[str, Any]) -> Options:
            options: Options = parse(
                self.options, arguments, default=self.options(**values), description=description,
                console_outputs=speaks, prog=prog,
            )  # fmt: skip
            return options

        options = parsed(self.paper)
        paper = {**self.paper, **self.variant(options)}
        options = parsed(paper if options.data is not None else {**paper, **self.sample})
        if speaks:
            log(describe_choice(options, paper, self.whose))
        return options.completed()


@dataclass(frozen=True)
class Recipe(Script[Options]):
    """A script that trains: `build` makes an experiment of its options."""

    build: Callable[[Options], Experiment]


@dataclass(frozen=True)
class Evaluation(Script[Options]):
    """A script that trains nothing: `run` does its work and returns the exit code."""

    run: Callable[[Options], int]


def describe_choice(options: RunOptions, paper: Mapping[str, Any], whose: str = "paper") -> str:
    """Return in which values of the experiment `options` differ from `paper`, or from a default, in one line."""
    ours = options.as_dict()
    usual = {name: (value, whose) for name, value in paper.items()}
    names = {*options.science(), "max_steps_per_stage"} - paper.keys()
    usual |= {f.name: (f.default, "default") for f in fields(options) if f.name in names}
    changed = [
        f"{name} {ours[name]} ({where} {plain_value(value)})"
        for name, (value, where) in usual.items()
        if ours[name] != plain_value(value)
    ]
    data = options.data or "the embedded sample"
    same = "all values as in the paper" if whose == "paper" else "all values are the defaults"
    return f"{data}: " + (", ".join(changed) if changed else same)


def _words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
