"""Where a process shows its progress: a terminal or a notebook, drawn in place, or a file of lines."""

import io
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any, Protocol

from rich.console import Console, RenderableType
from rich.jupyter import JupyterRenderable
from rich.live import Live

from fastpsl.engine.terminal import plain

_PAGE = '<pre style="white-space:pre;overflow-x:auto;line-height:normal">{code}</pre>'


def make_console() -> Console:
    """Return a console on stderr, or in the notebook that runs this process.

    Only a terminal gets escape sequences, whatever FORCE_COLOR says, because a log file cannot be redrawn.
    Lines of a file are never wrapped, so that `grep` finds them whole.
    """
    stream = plain(sys.stderr)
    console = Console(file=stream, force_terminal=stream.isatty(), highlight=False)
    console.soft_wrap = not draws_in_place(console)
    return console


def draws_in_place(console: Console) -> bool:
    """Return whether a console can draw again what it shows. A file and a dumb terminal cannot."""
    return console.is_jupyter or (console.is_terminal and not console.is_dumb_terminal)


class Display(Protocol):
    """A display that is drawn in place: rich's `Live`, or `NotebookDisplay`."""

    transient: bool

    def start(self, refresh: bool = False) -> None:
        """Draw it for the first time."""

    def refresh(self) -> None:
        """Draw it again."""

    def stop(self) -> None:
        """End it. It is removed if it is transient."""


def make_display(console: Console, render: Callable[[], RenderableType]) -> Display:
    """Return a display on a console for which `draws_in_place` holds; `render` returns what it shows."""
    if console.is_jupyter:
        return NotebookDisplay(console, render)
    # Lines on stdout appear above the display only if they go to a terminal, too: a file gets its own.
    return Live(
        console=console,
        auto_refresh=False,
        get_renderable=render,
        redirect_stdout=plain(sys.stdout).isatty(),
        vertical_overflow="crop",
    )


class NotebookDisplay:
    """A display in the output of a notebook's cell, as HTML. It needs no widgets."""

    def __init__(self, console: Console, render: Callable[[], RenderableType]):
        self.transient = False
        self._console, self._render = console, render
        self._handle: Any = None

    def start(self, refresh: bool = False) -> None:
        """Draw it below the cell's output so far."""
        # IPython runs every notebook.
        self._handle = import_module("IPython.display").display(self._page(), display_id=True)

    def refresh(self) -> None:
        """Draw it again, at the same place."""
        if self._handle is not None:
            self._handle.update(self._page())

    def stop(self) -> None:
        """Draw it for the last time, or remove it if it is transient."""
        handle, self._handle = self._handle, None
        if handle is not None:
            handle.update(JupyterRenderable("", "") if self.transient else self._page())

    def _page(self) -> JupyterRenderable:
        paper = Console(
            file=io.StringIO(), record=True, width=self._console.width, force_terminal=True,
            force_jupyter=False, color_system="truecolor", highlight=False,
        )  # fmt: skip
        paper.print(self._render())
        return JupyterRenderable(
            paper.export_html(inline_styles=True, code_format=_PAGE, clear=False), paper.export_text()
        )
