"""SSL++ with Colorization (SSL++, Tables II and III): the colours of a grey image, and its IIC cluster.

Paper, CIFAR-10, NIN-block classifiers on B2 / B3 / B4 of a NIN that sees lightness alone: Colorization alone
has 78.4 / 71.2 / 66.5 %, with 70 IIC clusters (lambda 1) 81.1 / 76.0 / 74.2 %. Here: not yet run at this
size.

    fastpsl train sslpp-colorization --data cifar-train.beton --val cifar-test.beton \\
        --pseudo-labels runs/iic/labels.npz
    fastpsl train sslpp-colorization    # the embedded sample, small values, no pseudo-labels, a minute

The folder runs/iic is a run of sslpp_iic. Table II states Adam with a rate of 0.01. The next command trains
an AlexNet on Tiny-YFCC100M (Table VII). The other three tasks take the same options, and so does sslpp_iic
except for epochs and rate (docs/explanation/sslpp.md).

    fastpsl train sslpp-colorization --backbone alexnet_rotnet --size-px 224 --crop random_resized \\
        --epochs 120 --intervals 120 --data yfcc.beton --pseudo-labels runs/iic-yfcc/labels.npz
"""

from __future__ import annotations

from functools import partial

from fastpsl import engine, models, tasks
from fastpsl.engine import optim
from fastpsl.engine.options import at_end
from fastpsl.scripts.launch import launch
from fastpsl.scripts.recipe import Recipe
from fastpsl.tasks.sslpp.options import SSLPlusPlusOptions

PAPER = {
    "backbone": "nin4", "plan": "end_to_end", "epochs": (200,), "batch_size": 128, "lr": 0.01,
    "intervals": (100, 50, 50), "weight_decay": 5e-4, "semantic_weight": 1.0, "size_px": 32,
}  # fmt: skip
SAMPLE = {"epochs": (4,), "batch_size": 32, "lr": 0.001}


def build(options: SSLPlusPlusOptions) -> engine.Experiment:
    proxy = tasks.Colorization(at_end(options.size_px), options.crop, options.backbone in models.OF_VECTORS)
    return tasks.build_sslpp(options, proxy, partial(optim.adam, weight_decay=options.weight_decay))


RECIPE = Recipe("sslpp_colorization", __doc__, SSLPlusPlusOptions, PAPER, SAMPLE, build)

if __name__ == "__main__":
    launch(RECIPE)
