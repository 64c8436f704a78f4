"""Unsupervised image classification with larger networks (UIC, Table 8 and section 5.2).

Paper, ImageNet top-1 of a linear classifier and NMI with the true labels, in %: VGG16 has 57.7 and 46.9,
ResNet-50 has 62.7 and 50.6, ResNet-50 with an MLP head that is kept has 64.4 and 53.3. All have strong
augmentation; ResNet-50 trains for 500 epochs. Here: not yet run on ImageNet.

    fastpsl train uic --gpus 8 --data 'imagenet/train-*.beton' --out runs/uic-r50
    fastpsl train uic --gpus 8 --backbone resnet50_mlp \\
        --data 'imagenet/train-*.beton' --out runs/uic-r50-mlp
    fastpsl train uic --gpus 8 --backbone vgg16 \\
        --data 'imagenet/train-*.beton' --out runs/uic-vgg16
    fastpsl train uic           # the embedded sample, small values, a minute or two on two cores

The paper does not state whether these networks see Sobel's gradients. Here they see colour, as SimCLR's do;
section 5.2 takes its augmentation from SimCLR.
"""

from __future__ import annotations

from fastpsl import engine, tasks
from fastpsl.scripts.launch import launch
from fastpsl.scripts.recipe import Recipe
from fastpsl.tasks.pseudo_labels.options import UICOptions, fine_tuning

PAPER = {
    "backbone": "resnet50",
    "plan": "end_to_end",
    "epochs": (500,),  # section 5.2
    "batch_size": 256,  # section 4.2, with what follows
    "lr": 0.1,
    "weight_decay": 1e-4,
    "num_clusters": 3000,
    "input_channels": "RGB",
    "augment": "strong",
    "label_view": "train",
    "size_px": 224,
}
SAMPLE = {
    "backbone": "resnet18", "epochs": (12,), "batch_size": 32, "lr": 0.03, "num_clusters": 16, "size_px": 64,
}  # fmt: skip


def build(options: UICOptions) -> engine.Experiment:
    return tasks.build_uic(options)


RECIPE = Recipe(
    "uic_r50", __doc__, UICOptions, PAPER, SAMPLE, build, variant=fine_tuning, at_most={"num_clusters": 0.1}
)

if __name__ == "__main__":
    launch(RECIPE)
