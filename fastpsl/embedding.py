"""`fastpsl.embed`: the features and labels of all images of a data set, as arrays."""

import os
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch

from fastpsl.console.offered import named_arguments
from fastpsl.console.progress import operation
from fastpsl.console.terminal import number_in
from fastpsl.engine.distributed import World, choose_device
from fastpsl.evaluation.features import Extraction, feature_batches
from fastpsl.evaluation.protocols import block_number
from fastpsl.evaluation.trained_run import TrainedRun
from fastpsl.model import Model, load
from fastpsl.models.backbone import check_size
from fastpsl.pipelines.datasets.open import OF_WEIGHTS, open_data
from fastpsl.pipelines.embedded.draw_sample import sample_paths
from fastpsl.pipelines.interface.dataset import Dataset
from fastpsl.scripts.call import require_data, tensors_on_cpu, user_errors

Precision = Literal["auto", "fp32", "bf16", "fp16"]


@named_arguments()
@user_errors()
@tensors_on_cpu()
def embed(
    model: Model | str | os.PathLike[str],
    data: str | os.PathLike[str] | Dataset | None = None,
    *,
    block: str = "final",
    size_px: int | None = None,
    whole: bool = False,
    batch_size: int = 256,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: Precision = "auto",
    on_bad_sample: Literal["raise", "skip"] = "raise",
) -> tuple[np.ndarray, np.ndarray]:
    """Return the features and labels of all images, in the order of the data.

    The model stays as it is, because the call computes on a copy. Under torchrun, each process computes all
    images.

    Args:
        model: A model, or whatever `fastpsl.load` takes.
        data: The path of a folder of images, a list of images, a dataset file (.beton) or a glob of such
            files. Or an open data set, such as `fastpsl.Beton`. None means the images that the model's run
            learned from; for a model that belongs to no run, the training part of the generated sample.
        block: "final" (the last block), "B1", "B2", …, or the network's own name, such as "conv5".
        size_px: Side of the images, in pixels. By default, that of the model's `transform`.
        whole: Whether to show the whole middle square of an image, instead of the middle 224/256 of it.
        batch_size: Images per pass.
        device: "auto" (CUDA if there is a GPU), "cpu" or "cuda".
        precision: "auto" (fp16 on CUDA, fp32 on the CPU), "fp32", "bf16" or "fp16".
        on_bad_sample: For images that cannot be decoded: "raise", or "skip" to give them rows of NaN.

    Returns:
        The features and the labels. The features are a float32 array [N, C], averaged over all positions of
        the block's maps. The labels are an int64 array [N], -1 for images without a label.

    Raises:
        ValueError: The model, the data or an option is wrong. The message is one line.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"unknown precision {precision!r}: allowed are {', '.join(get_args(Precision))}")
    if not isinstance(model, Model):
        model = load(model)
    if data is None:
        data = training_images(model, "give data")
    if not hasattr(data, "image_sizes"):  # no open data set
        require_data("data", data)
    weights, backbone = model.pretrained(), model.backbone
    world = World(0, 1, 0, 1, choose_device(device, number_in("LOCAL_RANK", 0)))
    if precision == "auto":
        precision = "fp16" if world.device.type == "cuda" else "fp32"
    side_px = model.transform.size_px if size_px is None else size_px
    check_size(side_px, backbone.min_px)
    number = block_number(block, backbone.num_blocks, backbone.block_names)
    with ExitStack() as stack:
        if isinstance(data, str | os.PathLike):
            data = stack.enter_context(closing(open_for(model, data)))
        work = Extraction(
            weights, data, number, side_px, batch_size, precision, "float32", whole,
            {"on_bad_sample": on_bad_sample},
        )  # fmt: skip
        features = np.full((data.num_samples, work.width), np.nan, np.float32)
        first = 0
        with (
            torch.no_grad(),
            operation("features", "images", data.num_samples) as progress,
            work.open_loader(world) as loader,
        ):
            for (rows,), _ in feature_batches([work], loader, 0, world.device):
                rows = rows[: len(features) - first]  # the rest is padding
                features[first : first + len(rows)] = rows
                first += len(rows)
                progress.update(first)
        return features, data.labels().astype(np.int64)


def open_for(model: Model, data: str | os.PathLike[str]) -> Dataset:
    """Open data by the range and the bands of the model's training images."""
    return open_data(os.fspath(data), reading=model.input.reading, reading_of=OF_WEIGHTS)


def training_images(model: Model, remedy: str) -> str:
    """Return the images of the model's run; without a run, and of a run without data, the generated sample's.

    Raises:
        ValueError: They are no longer there; the message ends with the remedy.
    """
    path = model.record["path"]
    run = None if path is None else TrainedRun.of(Path(path))
    return (run and run.train_images(remedy)) or os.fspath(sample_paths().train)
