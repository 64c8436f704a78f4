"""Ctrl-C within an import waits for its end, and elsewhere for nothing."""

import importlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastpsl.console import interrupts
from fastpsl.console.interrupts import imports_undisturbed
from tests.programs import interpreted

# Its end is far from the interrupt, so that a handler would have come in between.
MODULE = """
import os, signal, time
os.kill(os.getpid(), signal.SIGINT)
time.sleep(0.02)
import json
WHOLE = True
"""


@pytest.fixture(autouse=True)
def default_handler() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a module that gets Ctrl-C while it is imported."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / f"interrupted_{tmp_path.name}.py").write_text(MODULE)
    return f"interrupted_{tmp_path.name}"


@pytest.mark.parametrize("goes_on", [False, True])
def test_ctrl_c_waits_for_the_end_of_an_import(module: str, goes_on: bool) -> None:
    imported = list[object]()
    with pytest.raises(KeyboardInterrupt), imports_undisturbed():
        imported.append(importlib.import_module(module))
        if goes_on:  # it comes within the block, too
            threading.Event().wait(60)
            imported.append(None)
    assert imported == [sys.modules[module]] and sys.modules[module].WHOLE
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_outside_of_an_import_comes_at_once() -> None:
    come_to = []
    with pytest.raises(KeyboardInterrupt), imports_undisturbed():
        os.kill(os.getpid(), signal.SIGINT)
        come_to.append("the end")
    assert not come_to


def test_a_repetition_that_is_under_way_comes_within_the_block(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C is repeated until the import ends; neither is one lost then nor is a second one delivered."""
    come: list[int] = []
    repeat = signal.pthread_kill

    def repeat_late(thread: int, number: int) -> None:
        time.sleep(0.1)
        repeat(thread, number)

    monkeypatch.setattr(signal, "pthread_kill", repeat_late)
    monkeypatch.setattr(interrupts, "_AGAIN_S", 1e-6)
    signal.signal(signal.SIGINT, lambda number, _: come.append(number))
    with imports_undisturbed():
        importlib.import_module(module)
    assert come == [signal.SIGINT]
    time.sleep(0.2)
    assert come == [signal.SIGINT]


def test_an_import_around_the_block_counts_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a program whose main module is imported."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "program_of_a_user.py").write_text(
        "import os, signal\nfrom fastpsl.console.interrupts import imports_undisturbed\n"
        "with imports_undisturbed():\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n    open(__file__ + 'x', 'w')\n"
    )
    with pytest.raises(KeyboardInterrupt):
        importlib.import_module("program_of_a_user")
    assert not (tmp_path / "program_of_a_user.pyx").exists()


def test_a_signal_that_is_ignored_and_other_threads_stay_as_they_are() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as of jobs in the background
    with imports_undisturbed():
        os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    errors = []

    def in_a_thread() -> None:
        try:
            with imports_undisturbed():
                pass
        except ValueError as error:  # Python's, for a handler that is set elsewhere than in the main thread
            errors.append(error)

    thread = threading.Thread(target=in_a_thread)
    thread.start()
    thread.join()
    assert not errors


FIRST_IMPORTS = """if True:
    import os, signal, sys
    import fastpsl

    class Interrupt:
        def find_spec(self, name, path=None, target=None):
            if name == within:
                sys.meta_path.remove(self)
                os.kill(os.getpid(), signal.SIGINT)

    for code, within in (
        ("import fastpsl.commands.table", "fastpsl.tables.paper_file"),
        ("from fastpsl.commands import Export", "fastpsl.models.names"),
        ("fastpsl.pretrain", "torch.nn.modules"),
    ):
        sys.meta_path.insert(0, Interrupt())
        try:
            exec(code)
            raise SystemExit("not interrupted")
        except KeyboardInterrupt:
            print(within, within in sys.modules)
        exec(code)
    print(fastpsl.pretrain.__name__, fastpsl.load.__name__)
"""


@pytest.mark.slow
def test_a_program_goes_on_after_ctrl_c_in_its_first_imports() -> None:
    """Half of torch would be imported otherwise, and torch refuses to be imported again."""
    done = interpreted(FIRST_IMPORTS)
    first = ("fastpsl.tables.paper_file", "fastpsl.models.names", "torch.nn.modules")
    expected = [*(f"{name} True" for name in first), "pretrain load"]
    assert (done.stdout.splitlines(), done.returncode) == (expected, 0), done.stderr
