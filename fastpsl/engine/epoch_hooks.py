"""Between epochs: what a task does with the data before one and after one, and the figures that it tells of them."""

import json
from collections.abc import Mapping

from fastpsl.engine.dataset_pass import Passes, PassStopped
from fastpsl.engine.metrics_file import MetricsFile
from fastpsl.engine.plan import Stage
from fastpsl.engine.run import Run
from fastpsl.engine.train_step import Learner
from fastpsl.engine.trunk import Task, call_if_there
from fastpsl.pipelines.files.atomic import write_atomically
from fastpsl.pipelines.files.json_lines import read_lines

NAME = "epochs.jsonl"
Figures = Mapping[str, float | None]


class Epochs:
    """A stage's epochs. Figures go to epochs.jsonl, each once whatever was resumed, to TensorBoard and the screen.

    first_unused: the first of numbers of epochs that no step has, for the draws of passes.
    """

    def __init__(self, run: Run, task: Task, stage: Stage, learner: Learner, first_unused: int):
        self.run, self.task, self.stage, self.learner, self.first_unused = (
            run,
            task,
            stage,
            learner,
            first_unused,
        )
        self.path = run.folder / NAME
        if run.world.rank == 0 and self.path.exists():
            MetricsFile(self.path, run.position.run_step)  # cuts off what comes after

    def start(self, epoch: int) -> bool:
        """Before the first step of epoch `epoch` of the stage. False when a signal stopped it."""
        position = self.run.position
        number = position.first_epoch + epoch
        passes = Passes(self.run, self.learner, number, epoch == 0, self.first_unused + epoch)
        try:
            figures: Figures | None = call_if_there(self.task, "start_epoch", passes)
        except PassStopped:
            return False
        # With the step that comes: a resume at this one finds its epoch not begun.
        self._report(figures, number, position.run_step + 1)
        return True

    def end(self, steps_per_epoch: int) -> None:
        """After an epoch's last step, or where it is cut."""
        position = self.run.position
        whole, rest = divmod(position.step, steps_per_epoch)
        if rest:  # it may have been resumed here, where no step is left that would ask for its order
            call_if_there(self.task, "epoch_order", position.first_epoch + whole)
        figures: Figures | None = call_if_there(self.task, "end_of_epoch")
        self._report(figures, position.first_epoch + position.step / steps_per_epoch, position.run_step)

    def end_stage(self) -> bool:
        """After the stage's last step. False when a signal stopped it."""
        position, epochs = self.run.position, self.stage.max_epochs
        passes = Passes(
            self.run, self.learner, position.first_epoch + epochs, False, self.first_unused + epochs
        )
        try:
            call_if_there(self.task, "end_stage", passes)
        except PassStopped:
            return False
        return True

    def _report(self, figures: Figures | None, epochs: float, run_step: int) -> None:
        """epochs: done so far, over all stages. Every rank comes with its own figures; rank 0's are told."""
        if not figures or self.run.world.rank != 0:
            return
        where = {"run_step": run_step, "epoch": round(epochs, 3)}
        lines = [line.row for line in read_lines(self.path) if "epoch" in line.row]
        # What a run that was killed had told already is told again.
        lines = [line for line in lines if (line["run_step"], line["epoch"]) < tuple(where.values())]
        lines.append(where | {"stage": self.stage.name} | dict(figures))
        write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in lines).encode())
        told = {name: value for name, value in figures.items() if value is not None}
        reporter = self.run.reporter
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in told.items())
        reporter.say(f"after epoch {round(epochs, 2):g}: {numbers}")
        if reporter.board:
            for name, value in told.items():
                reporter.board.add_scalar(f"epoch/{name}", value, run_step)
        if reporter.wandb:
            reporter.wandb.log({f"epoch/{name}": value for name, value in told.items()}, step=run_step)
