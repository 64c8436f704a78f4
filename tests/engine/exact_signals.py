"""Signals to a run in this process that arrive at an exact place, however fast the machine is."""

from collections.abc import Callable
from contextlib import closing

from fastpsl.engine.distributed import Decision
from fastpsl.engine.experiment import Experiment
from fastpsl.engine.run import Run
from fastpsl.engine.trainer import pretrain


def train_until(step: int | None, experiment: Experiment, run: Run) -> bool:
    """Train until a signal after a step of the run, None for none, and close the run."""
    with closing(run):
        signal_at_step(run, step)
        return pretrain(experiment, run)


def signal_at_step(run: Run, step: int | None) -> None:
    """Send the run a signal after step `step`, or at the first place after it that asks; None for none."""
    if step is not None:
        signal_when(run, lambda: run.position.run_step >= step)


def signal_at_question(run: Run, number: int | None) -> None:
    """Send the run a signal before it asks for the `number`th time whether to stop; None for none."""
    asked = 0

    def is_due() -> bool:
        nonlocal asked
        asked += 1
        return asked == number

    signal_when(run, is_due)


def before_asking(run: Run, do: Callable[[], object]) -> None:
    """Call `do` each time before the run asks whether to stop."""
    ask = run.stop_signal.after_step

    def after_step() -> Decision:
        do()
        return ask()

    run.stop_signal.after_step = after_step  # type: ignore[method-assign]


def signal_when(run: Run, is_due: Callable[[], bool]) -> None:
    """Send the run a signal at the first place that asks and finds it due."""

    def request() -> None:
        run.stop_signal.stop_requested = is_due()

    before_asking(run, request)
