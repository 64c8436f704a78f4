"""What a task says of its epochs (`Task.start_epoch`, `Task.end_of_epoch`): epochs.jsonl, TensorBoard, a line on the screen."""

from collections.abc import Mapping

from fastpsl.plan import Stage
from fastpsl.reporter import MetricsFile
from fastpsl.run import Run

NAME = "epochs.jsonl"
Figures = Mapping[str, float | None]


class EpochFigures:
    """A line a report in epochs.jsonl, kept in step with the checkpoints as metrics.jsonl is; rank 0 writes."""

    def __init__(self, run: Run, stage: Stage):
        self.run, self.stage = run, stage
        self._file: MetricsFile | None = None

    def report(self, figures: Figures | None, epochs: float, run_step: int) -> None:
        """epochs: done so far, over all stages. run_step: the step that was made last, or, of what an epoch begins with, its first step.

        Every rank calls it with its own answer; rank 0's is told. Nothing where there is nothing to tell.
        """
        if not figures or self.run.world.rank != 0:
            return
        if self._file is None:
            self._file = MetricsFile(self.run.folder / NAME, self.run.position.run_step)
        self._file.append(
            [{"run_step": run_step, "stage": self.stage.name, "epoch": round(epochs, 3)} | dict(figures)]
        )
        self._file.sync()
        told = {name: value for name, value in figures.items() if value is not None}
        reporter = self.run.reporter
        reporter.say(
            f"after epoch {epochs:g}: " + ", ".join(f"{name} {value:.4g}" for name, value in told.items())
        )
        if reporter.board:
            for name, value in told.items():
                reporter.board.add_scalar(f"epoch/{name}", value, run_step)
        if reporter.wandb:
            reporter.wandb.log({f"epoch/{name}": value for name, value in told.items()}, step=run_step)
