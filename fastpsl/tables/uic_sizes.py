"""The sizes of uic's tables, by recipe or evaluation: see `scales`."""

from typing import Any

from fastpsl.tables.sizes import Sizes

_FEW_SHOT: dict[str, Any] = {
    "block": ("B3", "B4", "B5", "B5_max_pool"), "ways": 5, "shots": 5, "queries": 15, "episodes": 10_000, "source_px": 84,
}  # fmt: skip

PAPER = Sizes(
    about="The paper's sizes: crops of 224 px, batches of 256, 500 epochs.",
    num_processes=8,
    values={
        "supervised/alexnet": {},
        "uic_alexnet": {
            "stage_epochs": (500,), "batch_size": 256, "lr": 0.1, "weight_decay": 1e-4, "dropout": None, "num_classes": 3000,
            "channels": "SobelXY", "augmentation": "standard", "label_view": "train", "size_px": 224,
        },
        "uic_alexnet/5k": {"num_classes": 5000},
        "uic_alexnet/10k": {"num_classes": 10_000},
        "uic_alexnet/center": {"label_view": "center"},
        "uic_alexnet/strong": {"augmentation": "strong"},
        "uic_alexnet/tuned": {"stage_epochs": (30,), "lr": 0.01},
        "uic_r50": {
            "stage_epochs": (500,), "batch_size": 256, "lr": 0.1, "weight_decay": 1e-4, "dropout": None, "num_classes": 3000,
            "channels": "RGB", "augmentation": "strong", "label_view": "train", "size_px": 224,
        },
        "deepcluster_alexnet": {
            "stage_epochs": (500,), "batch_size": 256, "lr": 0.05, "weight_decay": 1e-5, "dropout": None,
            "num_classes": 10_000, "pca_width": 256, "k_means_iterations": 20, "channels": "SobelXY", "size_px": 224,
        },
        "linear/uic": {"protocol": "uic", "size_px": 224, "batch_size": 256, "epochs": 32, "lr": 0.1},
        "clusters": {"nmi_average": "arithmetic"},
        "classification/deepcluster_fc6_8": {
            "protocol": "deepcluster", "layers": "fc6_8", "size_px": 224, "batch_size": 16, "num_steps": 80_000, "lr": 0.003,
        },
        "classification/deepcluster_all": {
            "protocol": "deepcluster", "layers": "all", "size_px": 224, "batch_size": 16, "num_steps": 80_000, "lr": 0.001,
        },
        "detection/fast_rcnn": {
            "protocol": "fast_rcnn", "batch_size": 2, "num_steps": 40_000, "lr": 0.001, "short_px": (600,),
            "anchor_px": (32, 64, 128, 256, 512),
        },
        "segmentation/fcn_alexnet": {
            "protocol": "fcn_alexnet", "size_px": 512, "batch_size": 20, "accumulate": 20, "epochs": 0, "lr": 1e-4, "batchnorm": "eval",
        },
        "few_shot/224": _FEW_SHOT | {"size_px": 224, "batch_size": 256},
        "few_shot/84": _FEW_SHOT | {"size_px": 84, "batch_size": 256},
    },
    flags={
        "linear/uic": ("protocol",),
        "classification/deepcluster_fc6_8": ("protocol", "layers"),
        "classification/deepcluster_all": ("protocol", "layers"),
        "detection/fast_rcnn": ("protocol",),
        "segmentation/fcn_alexnet": ("protocol",),
        "few_shot/224": ("size_px",),
        "few_shot/84": ("size_px",),
    },
)  # fmt: skip
TINY = Sizes(
    about="Tiny sizes, for any folder of pictures of 64 px or more: crops of 64 px, batches of 32, networks are the paper's; 8, 12 "
    "and 16 pseudo-classes stand for 3,000, 5,000 and 10,000. It says nothing about ImageNet.",
    num_processes=1,
    values={
        "supervised/alexnet": {"size_px": 64},
        "uic_alexnet": {
            "stage_epochs": (12,), "batch_size": 32, "lr": 0.05, "weight_decay": 1e-4, "dropout": None, "num_classes": 8,
            "channels": "SobelXY", "augmentation": "standard", "label_view": "train", "size_px": 64,
        },
        "uic_alexnet/5k": {"num_classes": 12},
        "uic_alexnet/10k": {"num_classes": 16},
        "uic_alexnet/center": {"label_view": "center"},
        "uic_alexnet/strong": {"augmentation": "strong"},
        "uic_alexnet/tuned": {"stage_epochs": (4,), "lr": 0.005},
        "uic_r50": {
            "stage_epochs": (8,), "batch_size": 32, "lr": 0.03, "weight_decay": 1e-4, "dropout": None, "num_classes": 8,
            "channels": "RGB", "augmentation": "strong", "label_view": "train", "size_px": 64,
        },
        "deepcluster_alexnet": {
            "stage_epochs": (12,), "batch_size": 32, "lr": 0.05, "weight_decay": 1e-5, "dropout": None,
            "num_classes": 16, "pca_width": 32, "k_means_iterations": 20, "channels": "SobelXY", "size_px": 64,
        },
        "linear/uic": {"protocol": "uic", "size_px": 64, "batch_size": 32, "epochs": 16, "lr": 0.1},
        "clusters": {"nmi_average": "arithmetic"},
        "classification/deepcluster_fc6_8": {
            "protocol": "deepcluster", "layers": "fc6_8", "size_px": 64, "batch_size": 16, "num_steps": 150, "lr": 0.01,
        },
        "classification/deepcluster_all": {
            "protocol": "deepcluster", "layers": "all", "size_px": 64, "batch_size": 16, "num_steps": 150, "lr": 0.01,
        },
        "detection/fast_rcnn": {
            "protocol": "fast_rcnn", "batch_size": 2, "num_steps": 100, "lr": 0.005, "short_px": (128,), "anchor_px": (16, 32, 64),
        },
        "segmentation/fcn_alexnet": {
            "protocol": "fcn_alexnet", "size_px": 128, "batch_size": 8, "accumulate": 8, "epochs": 3, "lr": 0.01, "batchnorm": "eval",
        },
        "few_shot/224": _FEW_SHOT | {"size_px": 168, "source_px": 64, "episodes": 1000, "batch_size": 32},
        "few_shot/84": _FEW_SHOT | {"size_px": 64, "source_px": 64, "episodes": 1000, "batch_size": 32},
    },
)  # fmt: skip
