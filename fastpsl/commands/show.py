"""`fastpsl show`: a contact sheet of a data set as the network sees it."""

import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fastpsl.engine.options import DecoderName
from fastpsl.scripts.command_line import require_within

MAX_IMAGES = 400
# The recipe of each task, and the shorter side of the images that its lengths are meant for, in px.
RECIPES = {
    "jigsaw": ("jigsaw_r50", 256), "rotation": ("rotation_rv50", 256), "simclr": ("simclr_r50", 256),
    "moco": ("mocov2_r50", 256), "uic": ("uic_alexnet", 256), "iic": ("sslpp_iic", 32),
    "colorization": ("sslpp_colorization", 32), "context": ("sslpp_context", 32),
    "rotnet": ("sslpp_rotation", 32), "aet": ("sslpp_aet", 32),
}  # fmt: skip


@dataclass(frozen=True)
class Show:
    """Draw a contact sheet of what the network sees: a task's views at the paper's sizes, or the decoder's
    crops.

    Each image's caption tells the sample's number, its class, and what the task drew. For the forms of DATA,
    see https://fastpsl.github.io/fastpsl/how_to/pack_a_dataset.html.
    """

    data: tyro.conf.Positional[Annotated[str | None, tyro.conf.arg(metavar="DATA")]] = None
    """A dataset file, a quoted glob of shards, a folder of images or a list of them. [the embedded sample]"""
    task: Literal[
        "crops", "jigsaw", "rotation", "simclr", "moco", "uic", "iic", "colorization", "context", "rotnet",
        "aet",
    ] = "crops"  # fmt: skip
    """crops: two random resized crops of each sample, no task. From iic on: SSL++'s, whose images are of
    --short-side 32 in the paper."""
    level: Annotated[int, tyro.conf.arg(metavar="LEVEL")] = 1
    """The task's level, from 1."""
    num: Annotated[int, tyro.conf.arg(metavar="NUM")] = 16
    """Samples to draw."""
    seed: int = 0
    """Another seed shows other samples, other crops and other draws."""
    short_side: Annotated[int, tyro.conf.arg(metavar="PX")] = 256
    """Shorter side of the image that is cut from; the task's other sizes keep the paper's proportion to
    it."""
    decoder: DecoderName = "auto"
    """As in a recipe."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where images are decoded; auto is CUDA if there is a GPU."""
    range: Annotated[str | None, tyro.conf.arg(metavar="auto|LOW:HIGH")] = None
    """As in a recipe."""
    bands: Annotated[str | None, tyro.conf.arg(metavar="N,N,N")] = None
    """As in a recipe."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE.png")] = None
    """The PNG to write. [TASK-GLEVEL.png in this folder]"""

    def run(self) -> None:
        """Draw the first samples of epoch 0 and print a summary; list undecodable samples on stderr."""
        import torch

        from fastpsl.commands.show_tasks import Crops, task_of
        from fastpsl.engine.distributed import choose_device
        from fastpsl.engine.task import Task
        from fastpsl.files.system_errors import output_errors
        from fastpsl.pipelines.datasets.open import open_data
        from fastpsl.pipelines.embedded.draw_sample import sample_paths
        from fastpsl.pipelines.interface.reading import Reading
        from fastpsl.pipelines.loader.loader import Loader
        from fastpsl.plots.contact_sheet import captions, save_contact_sheet

        require_within(
            ("--num", self.num, 1, MAX_IMAGES),
            ("--short-side", self.short_side, 16, 4096),  # below 16, three cells of whole pixels may not fit
        )
        task: Task
        if self.task in RECIPES:
            recipe, usual_px = RECIPES[self.task]
            task = task_of(recipe, self.short_side / usual_px)
        else:
            task = Crops(round(224 * self.short_side / 256))
        if not 1 <= self.level <= task.num_levels:
            has = f"levels 1 to {task.num_levels}" if task.num_levels > 1 else "level 1 alone"
            raise ValueError(f"--level {self.level}: {self.task} has {has}")
        out = self.out or Path(f"{self.task}-G{self.level}.png")
        reading = Reading.of(self.range, self.bands)
        source = sample_paths().train if self.data is None else self.data
        with closing(open_data(source, reading=reading)) as data:
            views = task.views(self.level)
            with Loader(
                data, views, batch_size_per_rank=min(self.num, data.num_samples), seed=self.seed,
                decoder=self.decoder, device=choose_device(self.device, 0), prefetch_batches=1,
                on_bad_sample="skip",
            ) as loader, closing(loader.epoch(0)) as batches:  # fmt: skip
                batch = next(batches).first(self.num)
            for bad in batch.bad:
                print(f"left out {' '.join(str(bad).split())}", file=sys.stderr)
            images = task.contact_sheet(batch.inputs(views, torch.float32), batch)
            assert images is not None
            texts = captions(batch, data.class_names, task.captions(batch))
        good = batch.indices >= 0
        texts = [text for text, is_good in zip(texts, good.tolist(), strict=True) if is_good]
        with output_errors(out):
            save_contact_sheet(images[good], out, texts, self.num)
        source = self.data or "the embedded sample"
        decoder = f"decoder {loader.decoder_name} ({loader.decoder_reason})"
        print(f"{out}: {len(texts)} samples of {source}, {decoder}")
