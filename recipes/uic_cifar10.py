"""Unsupervised image classification on CIFAR-10, which fits on the device and trains in a short time.

The paper has ImageNet alone, so all values here are our choice: a ResNet-18 with a 3x3 stem, Sobel gradients
and strong augmentation (UIC, section 5.1), and more classes than CIFAR has. Here: not yet run on the
whole of it. On a fifth it is compared with fixed random labels in docs/methods/uic.md.

    fastpsl data write cifar-10-python.tar.gz cifar-train.beton --split train
    fastpsl train uic-cifar10 --data cifar-train.beton --val cifar-test.beton --decoder resident \\
        --out runs/uic-cifar10
    fastpsl train uic-cifar10       # the embedded sample, small values, a minute or two on two cores
"""

from __future__ import annotations

from fastpsl import engine, tasks
from fastpsl.scripts.launch import launch
from fastpsl.scripts.recipe import Recipe
from fastpsl.tasks.pseudo_labels.options import UICOptions, fine_tuning

USUAL = {
    "backbone": "resnet18_cifar", "plan": "end_to_end", "epochs": (200,), "batch_size": 256, "lr": 0.1,
    "weight_decay": 5e-4, "num_clusters": 128, "input_channels": "SobelXY", "augment": "strong",
    "label_view": "train", "size_px": 32,
}  # fmt: skip
SAMPLE = {"epochs": (6,), "batch_size": 32, "lr": 0.03, "num_clusters": 16}


def build(options: UICOptions) -> engine.Experiment:
    return tasks.build_uic(options)


RECIPE = Recipe(
    "uic_cifar10",
    __doc__,
    UICOptions,
    USUAL,
    SAMPLE,
    build,
    source="default",
    variant=fine_tuning,
    at_most={"num_clusters": 0.1},
)

if __name__ == "__main__":
    launch(RECIPE)
