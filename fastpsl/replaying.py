"""`fastpsl.replay`: a past step of a training, as the command `fastpsl replay` shows it."""

import os
from pathlib import Path
from typing import Literal

from fastpsl.console.offered import named_arguments
from fastpsl.engine.distributed import join_world
from fastpsl.engine.run import Run
from fastpsl.evaluation.replay import PastRun, Replayed, replay_step
from fastpsl.scripts.call import call, require_data


@named_arguments()
def replay(
    run: str | os.PathLike[str],
    step: int | str,
    *,
    rank: int | None = None,
    num: int = 16,
    most_steps: int = 1000,
    data: str | os.PathLike[str] | None = None,
    other_data: bool = False,
    backbone: str | None = None,
    teacher: str | None = None,
    teacher_backbone: str | None = None,
    recipe: str | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> Replayed:
    """Return the images of a past step of a training, as the network saw them, and the loss of each.

    The run's folder is only read. The process is left as `fastpsl.pretrain` leaves it.

    Args:
        run: The run's folder, or what `fastpsl.pretrain` returned.
        step: A step of the run over all its stages, as "run_step" in metrics.jsonl; or of a stage: "S2:120".
        rank: The images of this rank alone; None for all.
        num: The images whose pixels are kept, for the sheet.
        most_steps: Steps that are made again for the losses, at most; 0 for the images alone.
        data: Where the training images are now; None for where they were.
        other_data: Whether images whose digest is not that of the run's are shown, without losses.
        backbone: The run's backbone, if its name is of a Python file.
        teacher: A distillation's teacher, if it has moved or its name is of a Python file.
        teacher_backbone: What the teacher's weights are of, if the name is of a Python file.
        recipe: The run's recipe, if it is a Python file.
        device: "auto" (CUDA if there is a GPU), "cpu" or "cuda".

    Returns:
        The step. `images` has those of the largest loss first, and `save` writes the sheet and the table.

    Raises:
        ValueError: The run has no such step, or its images are not there. The message is one line that says
            what to do.
    """
    require_data("data", data)

    def work(opened: list[Run]) -> Replayed:
        source = None if data is None else os.fspath(data)
        past_run = PastRun.of(
            Path(run),
            data=source,
            backbone=backbone,
            teacher=teacher,
            teacher_backbone=teacher_backbone,
            recipe=recipe,
            device=device,
        )
        world = join_world(device, timeout_s=10 * past_run.options.timeout_s)
        return replay_step(
            past_run, str(step), world, rank=rank, num=num, most_steps=most_steps, other_data=other_data
        )

    return call("replay", work)
