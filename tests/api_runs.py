"""A small run by `fastpsl.pretrain`, its model, images, and what a call must leave as it was."""

import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image

import fastpsl
from fastpsl.pipelines.sample.betons import sample_paths

TINY = {"backbone": "resnet18", "size_px": 32, "batch_size": 16, "max_steps_per_stage": 2}
TINY |= {"workers": 1, "tensorboard": False}


def pretrain(out: Path, **options: Any) -> fastpsl.Trained:
    paths = sample_paths()
    data = {"data": paths.train_32, "val": paths.test_32, "epochs": 1}
    return fastpsl.pretrain("simclr", out=out, **{**data, **TINY, **options})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> fastpsl.Trained:
    return pretrain(tmp_path_factory.mktemp("api") / "run")


@pytest.fixture(scope="module")
def model(run: fastpsl.Trained) -> fastpsl.Model:
    return fastpsl.load(run)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Write 2 classes of images, wide, high and square, of 40 px and more."""
    for number, size in enumerate([(48, 40), (40, 61), (40, 40), (73, 50)]):
        pixels = np.random.default_rng(number).integers(0, 256, (size[1] // 8, size[0] // 8, 3), np.uint8)
        path = tmp_path / "images" / f"class {number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(path)
    return tmp_path / "images"


def state() -> list[Any]:
    return [
        torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), torch.get_num_threads(),  # type: ignore[index]
        torch.get_default_dtype(), torch.is_grad_enabled(), torch.backends.cudnn.benchmark,
        torch.get_float32_matmul_precision(), signal.getsignal(signal.SIGINT),
        signal.getsignal(signal.SIGTERM), warnings.showwarning, [*warnings.filters], sys.stdout, sys.stderr,
        dist.is_initialized(), dict.__getitem__(matplotlib.rcParams, "backend"), os.getcwd(),
        signal.set_wakeup_fd(-1),
    ]  # fmt: skip
