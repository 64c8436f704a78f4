"""SSL++ with Rotation (SSL++, Tables II, III, IX): which of four rotations, and the image's IIC cluster.

Paper, CIFAR-10, NIN-block classifiers on B2 / B3 / B4 of a NIN: Rotation alone has 90.8 / 86.4 / 60.1 %,
with 70 IIC clusters (lambda 0.05) 90.1 / 86.5 / 75.9 %. Here: not yet run at this size.

    fastpsl data write cifar-10-python.tar.gz cifar-train.beton --split train     # and test
    fastpsl train iic --data cifar-train.beton --out runs/iic
    fastpsl train sslpp-rotation --data cifar-train.beton --val cifar-test.beton \\
        --pseudo-labels runs/iic/labels.npz
    fastpsl train sslpp-rotation    # the embedded sample, small values, no pseudo-labels, a minute

Section V.A states SGD with a momentum of 0.9 and a rate that is divided by 10. RotNet's code has Nesterov
momentum and divides by 5. Here the momentum is Nesterov's and the rate is divided by 10. A step has
512 network inputs: 128 images in four rotations, or 512 images with --no-proxy.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from fastpsl import engine, tasks
from fastpsl.engine.options import at_end
from fastpsl.scripts.launch import launch
from fastpsl.scripts.recipe import Recipe
from fastpsl.tasks.sslpp.options import SSLPlusPlusSGDOptions

PAPER = {
    "backbone": "nin4", "plan": "end_to_end", "epochs": (200,), "batch_size": 128, "lr": 0.1,
    "intervals": (60, 60, 40, 40), "weight_decay": 5e-4, "semantic_weight": 0.05, "size_px": 32,
}  # fmt: skip
SAMPLE = {"epochs": (4,), "batch_size": 32, "lr": 0.05}


def variant(options: SSLPlusPlusSGDOptions) -> Mapping[str, Any]:
    return {} if options.proxy else {"batch_size": 512}


def build(options: SSLPlusPlusSGDOptions) -> engine.Experiment:
    optimiser = partial(options.sgd(), weight_decay=options.weight_decay, nesterov=True, decay_biases=True)
    return tasks.build_sslpp(options, tasks.RotNet(at_end(options.size_px), options.crop), optimiser)


RECIPE = Recipe("sslpp_rotation", __doc__, SSLPlusPlusSGDOptions, PAPER, SAMPLE, build, variant=variant)

if __name__ == "__main__":
    launch(RECIPE)
