"""What a person sees of long work: on a terminal or in a notebook drawn in place, elsewhere as plain lines.

No number and no name is ever cut. In a narrow window, lines go on below each other.
The plain lines of `Progress` and `status` come from `operation`, which prints after ten seconds of silence.
"""

import contextlib
import io
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.highlighter import RegexHighlighter
from rich.jupyter import JupyterRenderable
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from typing_extensions import override

from fastpsl.console.progress import clock, note_output, operation, redraw_with, report_to
from fastpsl.console.terminal import escaped, plain
from fastpsl.console.words import gibibytes, metric_words, worded

_PAGE = '<pre style="white-space:pre;overflow-x:auto;line-height:normal">{code}</pre>'


def make_console(quiet: bool = False) -> Console:
    """Return a console on stderr, or in the notebook that runs this process.

    Only a terminal gets escape sequences, whatever FORCE_COLOR says, because a log file cannot be redrawn.
    Lines of a file are never wrapped, so that `grep` finds them whole. A `quiet` one shows nothing.
    """
    stream = plain(sys.stderr)
    if quiet:
        return Console(file=stream, quiet=True, force_terminal=False, force_jupyter=False)
    console = Console(file=stream, force_terminal=stream.isatty(), highlight=False)
    console.soft_wrap = not draws_in_place(console)
    return console


def draws_in_place(console: Console) -> bool:
    """Return whether a console can draw again what it shows. A file and a dumb terminal cannot."""
    return console.is_jupyter or (console.is_terminal and not console.is_dumb_terminal)


def make_display(console: Console, render: Callable[[], RenderableType]) -> "Live | NotebookDisplay":
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


GAP = "  "
_MIN_BAR, _MAX_BAR = 6, 40


def text_lines(parts: Sequence[str], width: int) -> Text:
    """Return parts of a line with bright numbers; what does not fit goes on below, and no part is broken."""
    line = GAP.join(part.replace(" ", "\0") for part in parts)
    lines = textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False)
    return _Digits()(Text("\n".join(lines).replace("\0", " ")))


def bar_line(done: int, total: int, parts: Sequence[str], width: int) -> Table:
    """Return a bar of `done` of `total` and the parts beside it."""
    room = width - len(GAP)
    text_width = min(len(GAP.join(parts)), room - _MIN_BAR)
    # The terminal's own colours can be seen on white and on black.
    bar = ProgressBar(
        total,
        done,
        width=min(_MAX_BAR, room - text_width),
        style="bright_black",
        complete_style="cyan",
        finished_style="green",
    )
    line = Table.grid(padding=(0, len(GAP), 0, 0), pad_edge=False)
    line.add_row(bar, text_lines(parts, text_width))
    return line


class _Digits(RegexHighlighter):
    """A highlighter of numbers, with their separators and exponents."""

    base_style = "repr."
    highlights = (r"(?<![\w.])(?P<number>\d[\d.,:/]*(e[+-]\d+)?)",)


@dataclass(frozen=True)
class Numbers:
    """The numbers of a training after a step. None stands for what is not measured, or not there."""

    stage: str
    level: int
    number: int  # of the stage, from 1
    num_stages: int
    steps_per_epoch: int
    step: int  # steps made in the stage
    num_steps: int  # of the stage
    metrics: Mapping[str, float] = field(default_factory=dict)  # the loss first
    lr: float | None = None
    images_per_s: float | None = None  # of all ranks
    data_wait_percent: float | None = None  # of rank 0's time
    eta_s: float | None = None  # of the stage
    run_eta_s: float | None = None  # None in the last stage
    gpu_bytes: int | None = None  # in use on rank 0's GPU

    @property
    def epoch(self) -> int:
        """The number of the last step's epoch within the stage, from 1."""
        return max(self.step - 1, 0) // self.steps_per_epoch + 1

    @property
    def num_epochs(self) -> int:
        """The number of epochs of the stage, of which the last may be cut short."""
        return -(-self.num_steps // self.steps_per_epoch)


def plain_line(numbers: Numbers) -> str:
    """Return all numbers in one line, for a log file."""
    cells = {
        "stage": f"{numbers.stage} level G{numbers.level}",
        "step": f"{numbers.step}/{numbers.num_steps}",
        **{name: metric_words(name, value) for name, value in numbers.metrics.items()},
        "lr": None if numbers.lr is None else f"{numbers.lr:.3g}",
        "img/s": None if numbers.images_per_s is None else f"{numbers.images_per_s:.0f}",
        "data wait": None if numbers.data_wait_percent is None else f"{numbers.data_wait_percent:.0f} %",
        "ETA": None if numbers.eta_s is None else clock(numbers.eta_s),
        "run ETA": None if numbers.run_eta_s is None else clock(numbers.run_eta_s),
        "GPU memory": None if numbers.gpu_bytes is None else gibibytes(numbers.gpu_bytes),
        "epoch": f"{numbers.epoch}/{numbers.num_epochs}",
    }
    return GAP.join(f"{name} {value}" for name, value in cells.items() if value is not None)


class TrainingLines:
    """A rich renderable: the numbers of a training, and below them what is being done if that takes long."""

    def __init__(self, numbers: Numbers, caption: str | None = None):
        self.numbers, self.caption = numbers, caption

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the lines for the console's present width."""
        numbers, width = self.numbers, options.max_width
        yield text_lines(_place(numbers), width)
        pace = _pace(numbers)
        if len(GAP.join(pace)) > width - len(GAP) - _MIN_BAR:
            pace = _pace(numbers, "ETA", "run", "wait", "GPU")
        yield bar_line(numbers.step, numbers.num_steps, pace, width)
        if learning := _learning(numbers):
            yield text_lines(learning, width)
        if self.caption is not None:
            yield Text(self.caption, overflow="fold", style="dim")


def _place(n: Numbers) -> list[str]:
    stage = f"{n.stage}, level G{n.level}"
    return [
        f"stage {n.number} of {n.num_stages} ({stage})" if n.num_stages > 1 else stage,
        f"epoch {n.epoch:,} of {n.num_epochs:,}",
        f"step {n.step:,} of {n.num_steps:,}",
    ]


def _pace(
    n: Numbers,
    stage: str = "stage ETA",
    run: str = "run ETA",
    wait: str = "data wait",
    gpu: str = "GPU memory",
) -> list[str]:
    texts = [f"{100 * n.step // max(n.num_steps, 1):3} %"]
    if n.eta_s is not None:
        texts.append(f"{'ETA' if n.run_eta_s is None else stage} {clock(n.eta_s)}")
    if n.run_eta_s is not None:
        texts.append(f"{run} {clock(n.run_eta_s)}")
    if n.images_per_s is not None:
        texts.append(f"{n.images_per_s:{',.0f' if n.images_per_s >= 10 else '.2g'}} images/s")
    if n.data_wait_percent is not None:
        texts.append(f"{wait} {n.data_wait_percent:.0f} %")
    if n.gpu_bytes is not None:
        texts.append(f"{gpu} {gibibytes(n.gpu_bytes)}")
    return texts


def _learning(n: Numbers) -> list[str]:
    metrics = [f"{name} {metric_words(name, value, '#.4g')}" for name, value in n.metrics.items()]
    return metrics if n.lr is None else [*metrics, f"learning rate {n.lr:.3g}"]


PLAIN_LINE_EVERY_S = 9.0  # less than the ten seconds after which `operation` prints


class Screen:
    """A screen of a stage after the other, on a terminal, in a notebook or in a file.

    On a terminal and in a notebook, the numbers are drawn in place. Below them stands what is being done,
    once that has lasted five seconds. In a file, the numbers are a line, at most every nine seconds.
    """

    def __init__(self, console: Console | None = None):
        self.console = console or make_console()
        self._display: Live | NotebookDisplay | None = None
        self._numbers: Numbers | None = None
        self._caption: str | None = None
        self._drawn: object = None
        self._last_line = 0.0

    def begin(self, numbers: Numbers) -> None:
        """Show a stage before its first step. A file gets no line."""
        if draws_in_place(self.console):
            self.show(numbers)

    def show(self, numbers: Numbers) -> None:
        """Show the numbers of a log step."""
        self._numbers, self._caption = numbers, None
        if draws_in_place(self.console):
            self._draw()
            note_output()
            return
        now = time.monotonic()
        if now - self._last_line >= PLAIN_LINE_EVERY_S or numbers.step == numbers.num_steps:
            self._last_line = now
            self.console.print(plain_line(numbers))
            note_output()

    def reach(self, step: int) -> None:
        """Note a step whose numbers have not arrived. It is drawn within a second."""
        if self._numbers is not None:
            self._numbers = replace(self._numbers, step=step)

    def expect(self, eta_s: float | None, run_eta_s: float | None) -> None:
        """Note the time that is left while no step is made. It is drawn within a second."""
        if self._numbers is not None:
            self._numbers = replace(self._numbers, eta_s=eta_s, run_eta_s=run_eta_s)

    def log(self, text: str) -> None:
        """Print a line that stays."""
        self._caption = None  # the work that it reported is over
        self.console.print(escaped(worded(text)), markup=False)
        note_output()

    def close(self) -> None:
        """End the display. The last numbers of a stage that has not ended stay."""
        self._stop(transient=False)

    def end_stage(self) -> None:
        """Remove the numbers of a stage that has ended, because its summary has them."""
        self._stop(transient=True)
        self._numbers = None

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Remove the numbers for as long as something else is drawn there."""
        self._stop(transient=True)
        try:
            yield
        finally:
            if self._numbers is not None and draws_in_place(self.console):
                self._draw()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the present numbers, also where a line above them draws them again."""
        if self._numbers is not None:
            yield TrainingLines(self._numbers, self._caption)

    def _draw(self) -> None:
        if self._display is None:
            self._display = make_display(self.console, lambda: self)
            self._display.start(refresh=True)
            redraw_with(self._tick)
        else:
            self._display.refresh()

    def _tick(self, caption: str | None) -> None:
        """Show what is being done and the present step, and fit a window that was resized.

        The thread of `operation` calls this every second.
        """
        display, state = self._display, (caption, self.console.size, self._numbers)
        if display is not None and state != self._drawn:
            self._caption, self._drawn = caption, state
            display.refresh()

    def _stop(self, transient: bool) -> None:
        display, self._display, self._caption = self._display, None, None
        if display is not None:
            redraw_with(None)
            display.transient = transient
            display.stop()


_DRAW_EVERY_S = 0.1


class Progress(operation):
    """An operation that is shown as a bar, with counts of done and bad items, the speed and the time left.

    Example: `with Progress("training on features", "images", total) as progress: progress.update(num_done,
    num_bad)`
    """

    def __init__(self, what: str, unit: str, total: int = 0):
        console = make_console()
        draws = draws_in_place(console)
        super().__init__(what, unit, total, quiet=draws)
        self._display = make_display(console, lambda: self) if draws else None
        self._caption: str | None = None
        self._last_drawn = 0.0

    @override
    def __enter__(self) -> "Progress":  # noqa: PYI034  (typing.Self is 3.11's)
        super().__enter__()
        if self._display is not None:
            self._display.transient = True
            self._display.start(refresh=True)
            self._redrawn_before = redraw_with(self._tick)
        return self

    @override
    def __exit__(self, *error: object) -> None:
        if self._display is not None:
            redraw_with(self._redrawn_before)
            self._display.stop()
        super().__exit__(*error)

    @override
    def update(self, num_done: int, num_bad: int = 0, note: str = "") -> None:
        """Set how many items are done, how many of these are bad, and a text after the pace."""
        super().update(num_done, num_bad, note)
        if self._display is not None and time.monotonic() - self._last_drawn >= _DRAW_EVERY_S:
            self._tick(None)

    def _tick(self, caption: str | None) -> None:
        """Draw it again, with a part of the work that takes long below it."""
        self._caption, self._last_drawn = caption, time.monotonic()
        if self._display is not None:
            self._display.refresh()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the bar for the console's present width."""
        of_total = f" of {self.total:,}" if self.total else ""
        parts = [
            f"{self.num_done:,}{of_total} {self.unit}",
            self.pace(time.monotonic() - self.started),
            self.what,
        ]
        yield bar_line(self.num_done, self.total, [part for part in parts if part], options.max_width)
        if self._caption is not None:
            yield Text(self._caption, overflow="fold", style="dim")


@contextmanager
def status(what: str) -> Iterator[Callable[[str], None]]:
    """Yield a function that shows `what: text` in a changing line; elsewhere, as `operation` does."""
    console = make_console()
    with operation(what) as current:
        if console.is_jupyter or not draws_in_place(console):
            yield lambda text: current.rename(f"{what}: {text}")
            return
        with console.status("") as line:

            def show(text: str) -> None:
                current.rename(f"{what}: {text}")
                line.update(escape(current.what))

            report_to(lambda text: line.update(escape(text)))
            try:
                yield show
            finally:
                report_to(None)
