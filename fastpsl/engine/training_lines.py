"""The text of the training screen: a progress bar and two lines that fit the width, or one plain line.

No number and no name is ever cut. What does not fit is left out, the least important first:

- the place: step, stage, epoch;
- the pace: percent, time left in the stage and in the run, images per second, data wait, GPU memory;
- the learning: loss, the task's first other metric, learning rate, the task's other metrics in its order.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from fastpsl.engine.fitted_line import GAP, Part, bar_line, fitted, text_line
from fastpsl.engine.gpu_memory import gibibytes
from fastpsl.engine.metric_words import metric_words
from fastpsl.pipelines.doing import clock


@dataclass(frozen=True)
class Numbers:
    """The numbers of a training after a step. None stands for what is not measured, or not there.

    Attributes:
        stage: The stage's name.
        level: The task's level.
        number: The number of the stage, from 1.
        num_stages: The number of stages of the run.
        steps_per_epoch: The number of steps of an epoch.
        step: The number of steps made in the stage.
        num_steps: The number of steps of the stage.
        metrics: The task's metrics, the loss first.
        lr: The learning rate.
        images_per_s: The images of all ranks per second.
        data_wait_percent: The share of time that rank 0 waited for batches.
        eta_s: The seconds left in the stage.
        run_eta_s: The seconds left in the run; None in its last stage.
        gpu_bytes: The bytes in use on rank 0's GPU; None on the CPU.
    """

    stage: str
    level: int
    number: int
    num_stages: int
    steps_per_epoch: int
    step: int
    num_steps: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    lr: float | None = None
    images_per_s: float | None = None
    data_wait_percent: float | None = None
    eta_s: float | None = None
    run_eta_s: float | None = None
    gpu_bytes: int | None = None

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
        yield text_line(fitted(_place(numbers), width))
        yield bar_line(numbers.step, numbers.num_steps, _pace(numbers), width)
        if learning := list(_learning(numbers)):
            yield text_line(fitted(learning, width))
        if self.caption is not None:
            yield Text(self.caption, overflow="fold", style="dim")


def _place(n: Numbers) -> list[Part]:
    place = f"{n.stage} G{n.level}", f"{n.stage}, level G{n.level}"
    if n.num_stages > 1:
        place = (
            f"stage {n.number}/{n.num_stages} {place[0]}",
            f"stage {n.number} of {n.num_stages} ({place[1]})",
        )
    return [
        Part(1, *place),
        Part(2, f"epoch {n.epoch:,}/{n.num_epochs:,}", f"epoch {n.epoch:,} of {n.num_epochs:,}"),
        Part(0, f"step {n.step:,}/{n.num_steps:,}", f"step {n.step:,} of {n.num_steps:,}"),
    ]


def _pace(n: Numbers) -> list[Part]:
    done = f"{100 * n.step // max(n.num_steps, 1):3} %"
    texts: list[tuple[str, str] | None] = [(done, done)]
    if n.eta_s is not None:
        stage = "ETA" if n.run_eta_s is None else "stage ETA"
        texts.append((f"ETA {clock(n.eta_s)}", f"{stage} {clock(n.eta_s)}"))
    if n.run_eta_s is not None:
        texts.append((f"run {clock(n.run_eta_s)}", f"run ETA {clock(n.run_eta_s)}"))
    if n.images_per_s is not None:
        speed = f"{n.images_per_s:{',.0f' if n.images_per_s >= 10 else '.2g'}}"
        texts.append((f"{speed} img/s", f"{speed} images/s"))
    if n.data_wait_percent is not None:
        texts.append((f"wait {n.data_wait_percent:.0f} %", f"data wait {n.data_wait_percent:.0f} %"))
    if n.gpu_bytes is not None:
        texts.append((f"GPU {gibibytes(n.gpu_bytes)}", f"GPU memory {gibibytes(n.gpu_bytes)}"))
    return [Part(i, *text) for i, text in enumerate(texts) if text is not None]


def _learning(n: Numbers) -> Iterator[Part]:
    """Yield the metrics in the task's order, and last the learning rate, which comes third by importance."""
    for i, (name, value) in enumerate(n.metrics.items()):
        text = f"{name} {metric_words(name, value, '#.4g')}"
        yield Part(i if i < 2 else i + 1, text, text)
    if n.lr is not None:
        yield Part(2, f"lr {n.lr:.3g}", f"learning rate {n.lr:.3g}")
