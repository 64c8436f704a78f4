"""The first batch of a stage: loaded by one rank before the others, and drawn as a contact sheet."""

import torch

from fastpsl.console.progress import operation
from fastpsl.engine.distributed import wait_for_all
from fastpsl.engine.plan import Stage
from fastpsl.engine.run import Run
from fastpsl.engine.run_data import BatchSource
from fastpsl.engine.task import Task
from fastpsl.plots.contact_sheet import NUM_IMAGES, captions, save_contact_sheet


def look_at_first_batch(run: Run, task: Task, stage: Stage, loader: BatchSource) -> None:
    """Load a batch on one rank per machine, so that numba compiles the loader once instead of on every rank.

    Rank 0 draws the batch as contact-sheet-G<level>.png, unless the task draws none or the stage is resumed.
    """
    run.reporter.log_choice("decoder", f"{loader.decoder_name}: {loader.decoder_reason}")
    batch = None
    with operation("") as progress:
        progress.rename(f"{stage.name}: reading the first batch, for which numba may compile", early=True)
        if run.world.local_rank == 0:
            batches = loader.epoch(run.position.first_epoch)
            batch = next(batches)
            batches.close()
        progress.rename(f"{stage.name}: waiting for the first batch of the other ranks", early=True)
        wait_for_all(run.world)
    if batch is None or run.world.rank != 0 or run.position.step > 0:
        return
    batch = batch.first(NUM_IMAGES)
    images = task.contact_sheet(batch.inputs(loader.views, torch.float32), batch)
    if images is not None:
        texts = captions(batch, run.data.train.class_names, task.captions(batch))
        save_contact_sheet(images, run.folder / f"contact-sheet-G{stage.level}.png", texts)
