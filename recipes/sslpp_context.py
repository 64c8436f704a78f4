"""SSL++ with Context (SSL++, Tables II and III): the hidden middle of an image, and its IIC cluster.

Paper, CIFAR-10, NIN-block classifiers on B2 / B3 / B4 of a NIN: Context alone has 78.8 / 70.7 / 63.9 %,
with 70 IIC clusters (lambda 1) 86.6 / 82.9 / 74.7 %. Here: not yet run at this size.

    fastpsl train sslpp-context --data cifar-train.beton --val cifar-test.beton \\
        --pseudo-labels runs/iic/labels.npz
    fastpsl train sslpp-context    # the embedded sample, small values, no pseudo-labels, a minute

The folder runs/iic is a run of sslpp_iic. Section V.A states SGD with a momentum of 0.9.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from fastpsl import engine, models, tasks
from fastpsl.engine.options import at_end
from fastpsl.scripts.launch import launch
from fastpsl.scripts.recipe import Recipe
from fastpsl.tasks.sslpp.options import SSLPlusPlusSGDOptions

PAPER = {
    "backbone": "nin4", "plan": "end_to_end", "epochs": (200,), "batch_size": 512, "lr": 0.01,
    "intervals": (100, 50, 50), "weight_decay": 5e-4, "semantic_weight": 1.0, "hole_share": 0.5,
    "size_px": 32,
}  # fmt: skip
SAMPLE = {"epochs": (4,), "batch_size": 32, "lr": 0.05}


@dataclass(frozen=True, kw_only=True)
class Options(SSLPlusPlusSGDOptions):
    hole_share: float
    """Side of the hidden middle, as a share of the image's: not in the paper; Context-Encoder has half."""


def build(options: Options) -> engine.Experiment:
    optimiser = partial(options.sgd(), weight_decay=options.weight_decay, decay_biases=True)
    of_vectors = options.backbone in models.OF_VECTORS
    proxy = tasks.Context(options.hole_share, at_end(options.size_px), options.crop, of_vectors)
    return tasks.build_sslpp(options, proxy, optimiser)


RECIPE = Recipe("sslpp_context", __doc__, Options, PAPER, SAMPLE, build)

if __name__ == "__main__":
    launch(RECIPE)
