"""The sizes of sslpp's tables, by recipe or evaluation: see `scales`.

Not in the paper, and our choice: all of IIC but its 70 clusters and its transformations (IIC's own values), how the Supervised rows
learn (the schedule of Rotation), how many classes random and k-means labels have (IIC's 70), and k-means' PCA.
"""

from typing import Any

from fastpsl.tables.sizes import Sizes
from fastpsl.tables.sslpp import FEW, LAMBDAS, NUMS_CLUSTERS, TASKS, TRANSFORMS

HEADS = ("conv_B2", "conv_B3", "conv_B4", "fc1_B4", "fc2_B4", "fc3_B4")


def _same(num_clusters: int) -> dict[str, Any]:
    return {
        "weight_decay": 5e-4, "size_px": 32, "crop": "padded", "proxy": True, "num_clusters": num_clusters,
    }  # fmt: skip


def _variants(
    clusters: dict[int, int], few: tuple[int, ...], supervised: dict[str, Any], probe: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """clusters: the paper's number → ours. few: ours for each of FEW."""
    lambdas = {
        f"sslpp_{task}/lambda_{weight:g}": {"semantic_weight": weight} for task in TASKS for weight in LAMBDAS
    }
    numbers = {f"sslpp_iic/{number}": {"num_clusters": ours} for number, ours in clusters.items()}
    transforms = {f"sslpp_iic/{name}": {"transforms": name} for name in TRANSFORMS}
    supervised = supervised | {"size_px": 32, "crop": "padded", "weight_decay": 5e-4}
    learn = {"supervised/32px": supervised}
    score = {"blocks": probe}
    for number, ours in zip(FEW, few, strict=True):
        learn[f"supervised/{number}"] = supervised | {"labels_per_class": ours}
        score[f"blocks/{number}"] = probe | {"heads": HEADS[:3], "labels_per_class": ours}
    return lambdas | numbers | transforms | learn | score | {"sslpp_aet/labels_alone": {"proxy": False}}


def _from_yfcc(size_px: int, epochs: dict[str, tuple[int, ...]], **iic: Any) -> dict[str, dict[str, Any]]:
    """Trainings on Tiny-YFCC100M. epochs: of each task, between the drops of its rate. iic: its values, which are not in the paper."""
    of_size = {"size_px": size_px, "crop": "random_resized"}
    tasks = {
        f"sslpp_{task}/yfcc": {**of_size, "stage_epochs": (sum(parts),), "intervals": parts}
        for task, parts in epochs.items()
    }
    alone = {"sslpp_aet/yfcc_labels_alone": tasks["sslpp_aet/yfcc"] | {"proxy": False}}
    return tasks | alone | {"sslpp_iic/yfcc": {"size_px": size_px, **iic}}


_PROBE: dict[str, Any] = {
    "heads": HEADS, "epochs": 200, "intervals": (100, 50, 50), "batch_size": 128, "lr": 0.1, "weight_decay": 5e-4, "size_px": 32,
    "whole": True, "labels_per_class": None,
}  # fmt: skip
_TINY_PROBE = _PROBE | {"epochs": 8, "batch_size": 32}
_KNN: dict[str, Any] = {
    "block": ("B2", "B3", "B4"), "k": (1, 3, 5, 10, 15, 20), "temperature": 0.07, "vote": "majority", "size_px": 32, "whole": True,
    "batch_size": 256,
}  # fmt: skip

PAPER = Sizes(
    about="The paper's sizes: pictures of 32 px, a NIN of four blocks, 200 epochs (AET: 1500), 70 clusters; from Tiny-YFCC100M AlexNet, "
    "224 px, 50 to 200 epochs.",
    num_processes=1,
    values={
        "sslpp_colorization": {
            **_same(70), "stage_epochs": (200,), "batch_size": 128, "lr": 0.01, "intervals": (100, 50, 50), "semantic_weight": 1.0,
        },
        "sslpp_context": {
            **_same(70), "stage_epochs": (200,), "batch_size": 512, "lr": 0.01, "intervals": (100, 50, 50), "semantic_weight": 1.0,
            "hole_share": 0.5,
        },
        "sslpp_rotation": {
            **_same(70), "stage_epochs": (200,), "batch_size": 512, "lr": 0.1, "intervals": (60, 60, 40, 40), "semantic_weight": 0.05,
        },
        "sslpp_aet": {
            **_same(70), "stage_epochs": (1500,), "batch_size": 512, "lr": 0.1, "intervals": (240, 240, 160, 160, 200, 500),
            "semantic_weight": 0.05, "transform": "projective",
        },
        "sslpp_iic": {
            "stage_epochs": (2000,), "batch_size": 660, "lr": 1e-4, "num_clusters": 70, "heads": "one", "second_clusters": 10,
            "num_sub_heads": 5, "num_copies": 3, "transforms": "sobel", "crop_share": 0.625, "size_px": 32,
        },
        "sslpp_iic/stl": {"num_copies": 5, "batch_size": 700},
        **_variants(
            {number: number for number in NUMS_CLUSTERS}, FEW,
            {"stage_epochs": (200,), "batch_size": 128, "lr": 0.2, "intervals": (60, 60, 40, 40)}, _PROBE,
        ),
        **_from_yfcc(
            224,
            {"colorization": (120,), "context": (100, 50, 50), "rotation": (15, 20, 10, 5), "aet": (100, 50, 50)},
            batch_size=672,
            stage_epochs=(333,),  # as many pictures as its 2000 epochs of CIFAR-10 have
        ),
        "supervised/stl10": {
            "stage_epochs": (200,), "batch_size": 128, "lr": 0.2, "intervals": (60, 60, 40, 40), "weight_decay": 5e-4, "size_px": 224,
        },
        "linear/sslpp": {"protocol": "sslpp", "size_px": 224, "batch_size": 64, "epochs": 200, "lr": 0.1},
        "classification/sslpp_fc6_8": {
            "protocol": "sslpp", "layers": "fc6_8", "size_px": 224, "batch_size": 16, "num_steps": None, "lr": 0.003,
        },
        "classification/sslpp_all": {
            "protocol": "sslpp", "layers": "all", "size_px": 224, "batch_size": 16, "num_steps": None, "lr": 0.001,
        },
        "detection/sslpp": {
            "protocol": "sslpp", "batch_size": 2, "num_steps": None, "lr": 0.001, "short_px": (600,), "anchor_px": (128, 256, 512),
        },
        "segmentation/sslpp": {
            "protocol": "sslpp", "size_px": 512, "batch_size": 2, "accumulate": 1, "epochs": 50, "lr": 0.001, "batchnorm": "eval",
        },
        "labels/true": {},
        "labels/random": {"num_classes": 70},
        "labels/k-means": {"num_classes": 70, "pca_width": 64, "size_px": 32},
        "blocks/stl": _PROBE | {"batch_size": 64},
        "knn/blocks": _KNN,
        "retrieval": {"block": "B4", "k": 8, "size_px": 32, "whole": True},
        "tsne": {"block": "B4", "num": 1000, "perplexity": 30.0, "size_px": 32, "whole": True},
    },
    flags={
        "blocks": ("heads",),
        "blocks/stl": ("heads", "batch_size"),
        **{f"blocks/{number}": ("labels_per_class",) for number in FEW},
        "knn/blocks": ("block", "k", "vote", "size_px", "whole"),
        "linear/sslpp": ("protocol", "batch_size"),
        "classification/sslpp_fc6_8": ("protocol", "layers"),
        "classification/sslpp_all": ("protocol", "layers"),
        "detection/sslpp": ("protocol",),
        "segmentation/sslpp": ("protocol",),
        "labels/random": ("num_classes",),
        "labels/k-means": ("num_classes",),
        "retrieval": ("block", "size_px", "whole"),
        "tsne": ("block", "num", "size_px", "whole"),
    },
)  # fmt: skip
TINY = Sizes(
    about="Tiny sizes, for any folder of some hundred pictures: pictures of 32 px, the paper's networks, a few epochs; 2, 4, 6, 8 and 12 "
    "clusters stand for 10, 30, 50, 70 and 100; 2, 4, 6 and 8 labels a class for 20, 100, 400 and 1000. From Tiny-YFCC100M AlexNet and "
    "pictures of 64 px. It says nothing about CIFAR-10.",
    num_processes=1,
    values={
        "sslpp_colorization": {
            **_same(8), "stage_epochs": (4,), "batch_size": 32, "lr": 0.001, "intervals": (2, 1, 1), "semantic_weight": 1.0,
        },
        "sslpp_context": {
            **_same(8), "stage_epochs": (4,), "batch_size": 32, "lr": 0.01, "intervals": (2, 1, 1), "semantic_weight": 1.0,
            "hole_share": 0.5,
        },
        "sslpp_rotation": {
            **_same(8), "stage_epochs": (2,), "batch_size": 128, "lr": 0.05, "intervals": (2, 1, 1), "semantic_weight": 0.05,
        },
        "sslpp_aet": {
            **_same(8), "stage_epochs": (3,), "batch_size": 32, "lr": 0.05, "intervals": (2, 1, 1), "semantic_weight": 0.05,
            "transform": "projective",
        },
        "sslpp_iic": {
            "stage_epochs": (2,), "batch_size": 60, "lr": 1e-3, "num_clusters": 8, "heads": "one", "second_clusters": 10,
            "num_sub_heads": 2, "num_copies": 1, "transforms": "sobel", "crop_share": 0.625, "size_px": 32,
        },
        "sslpp_iic/stl": {"num_copies": 2},
        **_variants(
            {10: 2, 30: 4, 50: 6, 100: 12}, (2, 4, 6, 8),
            {"stage_epochs": (6,), "batch_size": 32, "lr": 0.2, "intervals": (2, 1, 1)}, _TINY_PROBE,
        ),
        **_from_yfcc(64, {"colorization": (4,), "context": (2, 1, 1), "rotation": (1, 1), "aet": (2, 1)}, stage_epochs=(2,)),
        "supervised/stl10": {
            "stage_epochs": (8,), "batch_size": 32, "lr": 0.2, "intervals": (2, 1, 1), "weight_decay": 5e-4, "size_px": 64,
        },
        "linear/sslpp": {"protocol": "sslpp", "size_px": 64, "batch_size": 32, "epochs": 16, "lr": 0.1},
        "classification/sslpp_fc6_8": {
            "protocol": "sslpp", "layers": "fc6_8", "size_px": 64, "batch_size": 16, "num_steps": 150, "lr": 0.01,
        },
        "classification/sslpp_all": {
            "protocol": "sslpp", "layers": "all", "size_px": 64, "batch_size": 16, "num_steps": 150, "lr": 0.01,
        },
        "detection/sslpp": {
            "protocol": "sslpp", "batch_size": 2, "num_steps": 100, "lr": 0.005, "short_px": (128,), "anchor_px": (16, 32, 64),
        },
        "segmentation/sslpp": {
            "protocol": "sslpp", "size_px": 128, "batch_size": 4, "accumulate": 1, "epochs": 3, "lr": 0.01, "batchnorm": "eval",
        },
        "labels/true": {},
        "labels/random": {"num_classes": 8},
        "labels/k-means": {"num_classes": 8, "pca_width": 16, "size_px": 32},
        "blocks/stl": _TINY_PROBE | {"batch_size": 16},
        "knn/blocks": _KNN,
        "retrieval": {"block": "B4", "k": 8, "size_px": 32, "whole": True},
        "tsne": {"block": "B4", "num": 100, "perplexity": 10.0, "size_px": 32, "whole": True},
    },
)  # fmt: skip
