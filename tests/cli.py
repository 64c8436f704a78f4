"""`fastpsl` as a user types it, in this process."""

from collections.abc import Callable
from typing import NamedTuple

import pytest


class Outcome(NamedTuple):
    """The exit code of a command, and what it prints."""

    code: int
    out: str
    err: str


Cli = Callable[..., Outcome]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Return a function that runs `fastpsl`."""
    from fastpsl.cli import main

    def run(*arguments: object) -> Outcome:
        code = 0
        try:
            main([*map(str, arguments)])
        except SystemExit as end:
            code = int(end.code or 0)
        return Outcome(code, *capsys.readouterr())

    return run


def refused(outcome: Outcome, *words: str) -> str:
    """Check that a command has ended with exit code 2 and one line that has the words; return the line."""
    assert outcome.code == 2 and not outcome.out, outcome
    assert outcome.err.startswith("fastpsl") and outcome.err.count("\n") == 1, outcome.err
    assert all(word in outcome.err for word in words), outcome.err
    return outcome.err
