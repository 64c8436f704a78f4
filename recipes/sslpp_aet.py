"""SSL++ with AET (SSL++, Tables II, III, XI, XII): a transformation of the image, and its IIC cluster.

The network learns by which transformation two images differ, and beside it the image's IIC cluster.
Paper, CIFAR-10, NIN-block classifiers on B2 / B3 / B4 of a NIN: AET alone has 90.7 / 86.2 / 59.4 %, with 70
IIC clusters (lambda 0.05) 90.9 / 86.8 / 75.7 %, coupled (k-means before each epoch) 85.2 / 81.5 / 67.7 %.
Here: not yet run at this size.

    fastpsl train sslpp-aet --data cifar-train.beton --val cifar-test.beton \\
        --pseudo-labels runs/iic/labels.npz
    fastpsl train sslpp-aet --data cifar-train.beton --val cifar-test.beton --pseudo-labels coupled
    fastpsl train sslpp-aet    # the embedded sample, small values, no pseudo-labels, a minute

The folder runs/iic is a run of sslpp_iic. Table II prints 500 epochs, but drops of the rate up to epoch 1000.
AET's code has 1500 epochs, and so has this recipe. In AET's code the rate falls linearly from epoch 1000 on;
here it is divided by 5 once more, as Table II states. Nesterov momentum is as in AET's code.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from fastpsl import engine, tasks
from fastpsl.engine.options import at_end
from fastpsl.scripts.launch import launch
from fastpsl.scripts.recipe import Recipe
from fastpsl.tasks.sslpp.options import SSLPlusPlusSGDOptions

PAPER = {
    "backbone": "nin4", "plan": "end_to_end", "epochs": (1500,), "batch_size": 512, "lr": 0.1,
    "intervals": (240, 240, 160, 160, 200, 500), "weight_decay": 5e-4, "semantic_weight": 0.05,
    "transform": "projective", "size_px": 32,
}  # fmt: skip
SAMPLE = {"epochs": (4,), "batch_size": 32, "lr": 0.05}
FACTOR = 0.2


@dataclass(frozen=True, kw_only=True)
class Options(SSLPlusPlusSGDOptions):
    transform: Literal["projective", "affine"]
    """Kind of transformations; the paper states none, and projective ones are the more general."""


def build(options: Options) -> engine.Experiment:
    optimiser = partial(options.sgd(), weight_decay=options.weight_decay, nesterov=True, decay_biases=True)
    return tasks.build_sslpp(
        options, tasks.AET(options.transform, at_end(options.size_px), options.crop), optimiser, FACTOR
    )


RECIPE = Recipe("sslpp_aet", __doc__, Options, PAPER, SAMPLE, build)

if __name__ == "__main__":
    launch(RECIPE)
