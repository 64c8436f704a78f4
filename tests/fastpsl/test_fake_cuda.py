"""Steps of all recipes on fake CUDA: no two devices in one operation, no look at a value, no copy that blocks."""

from typing import Any

import pytest
import torch

from fastpsl.kernels.ab_bins import ab_bins
from fastpsl.tasks.colorization import Colorization
from tests.fake_cuda import DEVICE, fake_cuda
from tests.fastpsl.fake_steps import one_step, recipe_learner

# What each of a step's parts is by: each recipe stands in each of its stages, in each precision, and by both ways of
# augmentation where there are two; what it can otherwise be asked for stands once. Backbones are small but for one row of each:
# the step of a task does not depend on how many blocks are alike.
SMALL = {"backbone": "resnet18"}
PSL = ("jigsaw", "rotation", "simclr", "moco")
ROWS: list[tuple[str, str, str, str, dict[str, Any]]] = [
    (recipe, stage, precision, augment, SMALL)
    for recipe in PSL
    for stage, precision, augment in (
        ("S1", "fp16", "fused"),
        ("S2", "bf16", "kornia"),
        ("S3", "fp32", "fused"),
        ("E", "fp16", "kornia"),
    )
]
ROWS += [
    (recipe, "E", precision, augment, {})
    for recipe in ("uic", "deepcluster", "sslpp_iic", "sslpp_rotation", "sslpp_aet", "sslpp_context", "sslpp_colorization")
    for precision, augment in (("fp16", "auto"), ("bf16", "kornia"), ("fp32", "auto"))
]
ROWS += [
    ("jigsaw", "S2", "fp16", "fused", {"accumulate": 2, "frozen_batchnorm": "train"}),
    ("rotation", "S2", "fp16", "fused", {"rotations_per_image": "one"}),
    ("rotation", "E", "fp16", "kornia", {"rotations_per_image": "one", "accumulate": 2}),
    ("simclr", "S2", "fp16", "fused", {"backbone": "resnet50", "frozen_batchnorm": "train"}),
    ("simclr", "S3", "fp16", "kornia", SMALL),
    ("moco", "S3", "fp16", "kornia", {"backbone": "resnet50_mlp", "frozen_batchnorm": "train", "accumulate": 2,"queue_size":32, "key_group": 8}),
    ("uic_r50", "E", "fp16", "fused", {"backbone": "resnet50"}),
    ("uic_cifar10", "E", "fp16", "fused", {}),
    ("uic", "E", "fp16", "kornia", {"backbone": "vgg16", "label_view": "center", "augmentation": "strong"}),
    ("deepcluster", "E", "fp16", "kornia", {"channels": "RGB"}),
    ("sslpp_iic", "E", "fp16", "kornia", {"heads": "two", "transforms": "grey"}),
    ("sslpp_aet", "E", "fp16", "kornia", {"transform": "affine", "pseudo_labels": "coupled"}),
    ("sslpp_rotation", "E", "fp16", "kornia", {"proxy": False, "pseudo_labels": "coupled", "crop": "random_resized"}),
    ("sslpp_context", "E", "fp16", "kornia", {"backbone": "alexnet", "pseudo_labels": "coupled", "size_px":64}),
    ("supervised", "E", "fp16", "fused", {}),
    ("supervised", "E", "bf16", "kornia", {"crop": "padded"}),
]
