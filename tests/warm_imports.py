"""What the server of `tests.warm` has imported before it forks: nothing here may start a thread or choose a device."""

import contextlib

import pytest  # noqa: F401
import torchvision.transforms.v2  # noqa: F401

import fastpsl.cli
import fastpsl.evaluation.features
import fastpsl.k_means
import fastpsl.launch
import fastpsl.pipelines.loader
import fastpsl.show
import fastpsl.tasks.jigsaw
import fastpsl.tasks.moco
import fastpsl.tasks.uic  # noqa: F401

with contextlib.suppress(ImportError):
    import nvidia.dali.fn  # noqa: F401
