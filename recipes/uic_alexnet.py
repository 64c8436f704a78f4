"""Unsupervised image classification with AlexNet (UIC, Tables 1 to 4 and 7).

Paper, ImageNet top-1 of linear classifiers on conv3, conv4 and conv5, and NMI with the true labels,
in %: 3,000 classes have 41.2, 41.0, 38.1 and 38.5; 5,000 classes 40.6, 40.9, 38.2 and 40.8; 10,000
classes 40.6, 40.8, 37.9 and 42.6. Fine-tuning (3,000 classes) has 41.6, 41.5 and 39.0, strong
augmentation 43.5, 45.6, 44.3 and 40.0, labels by centre crops 39.5, 39.9 and 37.9. Here: not yet run on
ImageNet.

    fastpsl train uic-alexnet --gpus 8 --data 'imagenet/train-*.beton' --out runs/uic
    fastpsl train uic-alexnet --gpus 8 --data 'imagenet/train-*.beton' \\
        --fine-tune runs/uic --out runs/uic-tuned
    fastpsl train uic-alexnet       # the embedded sample, small values, a minute or two on two cores

The paper's single stage is the plan end_to_end; the plans of PSL work, too.
"""

from __future__ import annotations

from fastpsl import engine, tasks
from fastpsl.scripts.launch import launch
from fastpsl.scripts.recipe import Recipe
from fastpsl.tasks.pseudo_labels.options import UICOptions, fine_tuning

PAPER = {  # section 4.2
    "backbone": "alexnet",  # with its dropout of 0.5
    "plan": "end_to_end",
    "epochs": (500,),
    "batch_size": 256,
    "lr": 0.1,
    "weight_decay": 1e-4,
    "num_clusters": 3000,
    "input_channels": "SobelXY",
    "augment": "standard",
    "label_view": "train",
    "size_px": 224,
}
SAMPLE = {"epochs": (12,), "batch_size": 32, "lr": 0.02, "num_clusters": 16, "size_px": 64}


def build(options: UICOptions) -> engine.Experiment:
    return tasks.build_uic(options)


RECIPE = Recipe(
    "uic_alexnet",
    __doc__,
    UICOptions,
    PAPER,
    SAMPLE,
    build,
    variant=fine_tuning,
    at_most={"num_clusters": 0.1},
)

if __name__ == "__main__":
    launch(RECIPE)
