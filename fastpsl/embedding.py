"""`fastpsl.embed`: the features and labels of all images of a data set, as arrays."""

import os
from contextlib import closing
from typing import Literal

import numpy as np
import torch

from fastpsl.engine.call import require_data, user_errors
from fastpsl.engine.distributed import World, choose_device
from fastpsl.evaluation.blocks import block_number
from fastpsl.evaluation.features import Extraction, feature_batches
from fastpsl.model import Model, load
from fastpsl.models.backbone import check_size
from fastpsl.pipelines.data.dataset import Dataset
from fastpsl.pipelines.data.open import open_data
from fastpsl.pipelines.doing import doing
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.sample.betons import sample_paths

Precision = Literal["auto", "fp32", "bf16", "fp16"]


@user_errors()
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
    """Return the features and labels of all images, in the data set's order.

    The model stays as it is, and computes on a copy. Under torchrun each process computes all images.

    Args:
        model: A model, or what `load` takes.
        data: A folder of images, a list of them, a beton, a glob of shards, or an open data set. None is the
            training part of the embedded sample.
        block: "final" (the last block), "B1", "B2", … or the network's own name, such as "conv5".
        size_px: Side of the images; by default that of the model's `transform`.
        whole: Whether to show an image's whole middle square, and not 224/256 of it.
        batch_size: Images per pass.
        device: "auto" is CUDA where there is one.
        precision: "auto" is fp16 on CUDA and fp32 on the CPU.
        on_bad_sample: "skip" gives images that cannot be decoded rows of NaN.

    Returns:
        The features, float32 [N, C], averages over all positions; the labels, int64 [N], -1 for none.

    Raises:
        ValueError: Model, data or an option is wrong; in one line.
    """
    if not isinstance(model, Model):
        model = load(model)
    if data is None:
        data = sample_paths().train
    options = (block, size_px, whole, batch_size, device, precision, on_bad_sample)
    if not hasattr(data, "image_sizes"):  # no open data set
        require_data("data", data)
    if not isinstance(data, str | os.PathLike):
        return _of_open_data(model, data, *options)
    with closing(open_data(os.fspath(data))) as opened:
        return _of_open_data(model, opened, *options)


def _of_open_data(
    model: Model, data: Dataset, block: str, size_px: int | None, whole: bool, batch_size: int, device: str,
    precision: str, on_bad_sample: str,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    weights, backbone = model.pretrained(), model.backbone
    world = World(0, 1, 0, 1, choose_device(device, int(os.environ.get("LOCAL_RANK", "0"))))
    if precision == "auto":
        precision = "fp16" if world.device.type == "cuda" else "fp32"
    side_px = model.transform.size_px if size_px is None else size_px
    check_size(side_px, backbone.min_px)
    number = block_number(block, backbone.num_blocks, backbone.block_names)
    work = Extraction(weights, data, number, side_px, precision=precision, dtype="float32", whole=whole)
    features = np.full((data.num_samples, work.width), np.nan, np.float32)
    first = 0
    with (
        torch.no_grad(),
        doing("features", "images", data.num_samples) as progress,
        Loader(
            data, [work.view], batch_size_per_rank=batch_size, train=False, device=world.device,
            on_bad_sample=on_bad_sample,
        ) as loader,
    ):  # fmt: skip
        for (rows,), _ in feature_batches([work], loader, 0, world.device):
            rows = rows[: len(features) - first]  # the rest is padding
            features[first : first + len(rows)] = rows
            first += len(rows)
            progress.update(first)
    return features, data.labels().astype(np.int64)
