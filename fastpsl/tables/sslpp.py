"""Say what the rows of sslpp.json are measured on, and with which values."""

from dataclasses import replace

from fastpsl.tables import rows

TASKS = ("colorization", "context", "rotation", "aet")
# Weights of the pseudo-labels' loss in figure 6; 0 is the task alone.
LAMBDAS = (0.01, 0.05, 0.2, 0.5, 1.0, 2.0, 5.0, 20.0, 100.0)
# Labels per class (Table VIII).
FEW = (20, 100, 400, 1000)
# Numbers of clusters (Table XIII) besides the 70 of all other tables.
NUMS_CLUSTERS = (10, 30, 50, 100)
# Transformations of Table XIV, each with those before it; the last one, "sobel", is the recipe's own.
TRANSFORMS = ("crop", "flip", "colour", "grey")

_IIC = rows.Weights("resnet34_iic", "sslpp_iic", "end_to_end")
_YFCC_IIC = rows.Weights("resnet34", "sslpp_iic", "end_to_end", "yfcc")
_IIC_VARIANTS = {
    f"iic {name}": replace(_IIC, variant=str(name))
    for name in ("stl", "two_heads", *NUMS_CLUSTERS, *TRANSFORMS)
}
_LABELS: dict[str, rows.Weights | str] = {"iic": _IIC, **_IIC_VARIANTS}
_LABELS |= {source: source for source in ("true", "random", "k-means", rows.COUPLED)}
_TASKS = {task: rows.Weights("nin4", f"sslpp_{task}", "end_to_end") for task in TASKS}
_YFCC = {task: rows.Weights("alexnet_rotnet", f"sslpp_{task}", "end_to_end", "yfcc") for task in TASKS}
WEIGHTS = {
    "random": rows.Weights("nin4"),
    "supervised": rows.Weights("nin4", "supervised", "end_to_end", "32px"),
    "iic": _IIC,
    **_IIC_VARIANTS,
    **_TASKS,
    **{
        f"{task} + {name}": replace(weights, labels=labels)
        for task, weights in _TASKS.items()
        for name, labels in _LABELS.items()
    },
    **{
        f"{task} + {value:g} iic": replace(weights, labels=_IIC, variant=f"lambda_{value:g}")
        for task, weights in _TASKS.items()
        for value in LAMBDAS
    },
    **{
        f"{name} alone": replace(_TASKS["aet"], labels=_LABELS[name], variant="labels_alone")
        for name in ("iic", "iic stl")
    },
    "yfcc random": rows.Weights("alexnet_rotnet"),
    "yfcc supervised": rows.Weights("alexnet_rotnet", "supervised", "end_to_end", "stl10"),
    **{f"yfcc {task}": weights for task, weights in _YFCC.items()},
    **{f"yfcc {task} + iic": replace(weights, labels=_YFCC_IIC) for task, weights in _YFCC.items()},
    "yfcc iic alone": replace(_YFCC["aet"], labels=_YFCC_IIC, variant="yfcc_labels_alone"),
}


def _few_labels(weights: rows.Weights) -> tuple[rows.Measure, ...]:
    """Return the measures of few labels. The supervised network learns from those labels alone, too."""
    measures: list[rows.Measure] = []
    for number in FEW:
        learned = replace(weights, variant=str(number)) if weights.with_labels else weights
        evaluation = rows.Evaluation(f"blocks/{number}", "block_probe", "block_probe")
        measures += rows.with_mean(evaluation, *_CONVS)(learned)
    return tuple(measures)


_BLOCKS = ("B2", "B3", "B4")
_CONVS = [f"top1_conv_{block}" for block in _BLOCKS]
COLUMNS: dict[str, rows.Columns] = {
    "blocks": rows.with_mean(rows.BLOCK_PROBE, *_CONVS),
    "blocks, STL-10": rows.with_mean(rows.STL_BLOCK_PROBE, *_CONVS),
    "forms of classifiers": rows.each(
        rows.BLOCK_PROBE, "top1_fc1_B4", "top1_fc2_B4", "top1_fc3_B4", "top1_conv_B4"
    ),
    "10 neighbours": rows.with_mean(rows.KNN, *(f"top1_k10_majority_{block}" for block in _BLOCKS)),
    "1 to 20 neighbours": rows.with_mean(
        rows.KNN, *(f"top1_k{k}_majority_B4" for k in (1, 3, 5, 10, 15, 20))
    ),
    "few labels": _few_labels,
    "clusters, B2, B4": rows.side_by_side(
        rows.each(rows.CLUSTERS, "many_to_one_accuracy"), rows.each(rows.BLOCK_PROBE, _CONVS[0], _CONVS[2])
    ),
    "clusters of the second head, B2, B4": rows.side_by_side(
        rows.each(rows.CLUSTERS, "hungarian_accuracy_b"), rows.each(rows.BLOCK_PROBE, _CONVS[0], _CONVS[2])
    ),
    "mean of blocks, each task": rows.side_by_side(*[rows.mean(rows.BLOCK_PROBE, *_CONVS)] * len(TASKS)),
    "retrieval": rows.each(rows.RETRIEVAL, "precision_top8"),
    "t-SNE": rows.each(rows.TSNE, "same_class_2d"),
    "layers, fc7": rows.each(rows.SSLPP, *(f"top1_B{block}" for block in (1, 2, 3, 4, 5, 7))),
    "layers, fc7, mean": rows.with_mean(rows.SSLPP, *(f"top1_B{block}" for block in (1, 2, 3, 4, 5, 7))),
    "VOC": rows.side_by_side(
        rows.each(rows.classification("sslpp", "fc6_8"), "mAP"),
        rows.each(rows.classification("sslpp", "all"), "mAP"),
        rows.each(rows.SSLPP_DETECTION, "AP50"),
        rows.each(rows.SSLPP_SEGMENTATION, "mIoU"),
    ),
}

# The sizes of the tables, as in psl. Our choice, because the paper does not say it: all of IIC but its 70
# clusters and its transformations (IIC's own values), how the Supervised rows learn (the schedule of
# Rotation), how many classes random and k-means labels have (70, as IIC's), and k-means' PCA.
ABOUT = (
    "The paper's sizes: images of 32 px, a NIN of four blocks, 200 epochs (AET: 1500), 70 clusters; "
    "from Tiny-YFCC100M AlexNet, 224 px, 50 to 200 epochs."
)
ABOUT_TINY = (
    "Tiny sizes, for any folder of some hundred images: 32 px, the paper's networks, a few epochs; 2, 6, 12, "
    "16 and 24 clusters stand for 10, 30, 50, 70 and 100; 2, 4, 6 and 8 labels per class for 20, 100, 400 "
    "and 1000. From Tiny-YFCC100M AlexNet and images of 64 px. It says nothing about CIFAR-10."
)
NUM_PROCESSES = 1
_HEADS = ("conv_B2", "conv_B3", "conv_B4", "fc1_B4", "fc2_B4", "fc3_B4")
_SUPERVISED = {"epochs": (200,), "batch_size": 128, "lr": 0.2, "intervals": (60, 60, 40, 40)}
_SUPERVISED_32 = {**_SUPERVISED, "size_px": 32, "crop": "padded", "weight_decay": 5e-4}
_YFCC_SIZE = {"size_px": 224, "crop": "random_resized"}
# Shares of the epochs between the drops of the rate.
_YFCC_INTERVALS = {
    "colorization": (120,), "context": (100, 50, 50), "rotation": (15, 20, 10, 5), "aet": (100, 50, 50),
}  # fmt: skip
_FROM_YFCC = {
    task: {**_YFCC_SIZE, "epochs": (sum(parts),), "intervals": parts}
    for task, parts in _YFCC_INTERVALS.items()
}
_WHOLE_32 = {"size_px": 32, "whole": True}
VALUES = {
    **{
        f"sslpp_{task}/lambda_{weight:g}": {"semantic_weight": weight} for task in TASKS for weight in LAMBDAS
    },
    **{f"sslpp_{task}/yfcc": values for task, values in _FROM_YFCC.items()},
    "sslpp_aet/labels_alone": {"proxy": False},
    "sslpp_aet/yfcc_labels_alone": {**_FROM_YFCC["aet"], "proxy": False},
    **{f"sslpp_iic/{number}": {"num_clusters": number} for number in NUMS_CLUSTERS},
    **{f"sslpp_iic/{name}": {"augment": name} for name in TRANSFORMS},
    "sslpp_iic/stl": {"num_copies": 5, "batch_size": 140},
    "sslpp_iic/two_heads": {"num_heads": 2},
    # As many images as its 2000 epochs of CIFAR-10 have.
    "sslpp_iic/yfcc": {"size_px": 224, "batch_size": 224, "epochs": (333,)},
    "supervised/32px": _SUPERVISED_32,
    "supervised/stl10": {**_SUPERVISED, "weight_decay": 5e-4, "size_px": 224},
    **{f"supervised/{number}": {**_SUPERVISED_32, "labels_per_class": number} for number in FEW},
    "blocks": {"heads": _HEADS},
    "blocks/stl": {"heads": _HEADS, "batch_size": 64},
    **{f"blocks/{number}": {"labels_per_class": number} for number in FEW},
    "knn/blocks": {"block": _BLOCKS, "k": (1, 3, 5, 10, 15, 20), "vote": "majority", **_WHOLE_32},
    "linear/sslpp": {"batch_size": 64},
    "classification/sslpp_fc6_8": {"layers": "fc6_8"},
    "classification/sslpp_all": {"layers": "all"},
    "labels/random": {"num_clusters": 70},
    "labels/k-means": {"num_clusters": 70},
    "retrieval": {"block": "B4", **_WHOLE_32},
    "tsne": {"block": "B4", "num": 1000, **_WHOLE_32},
}
_TINY_SUPERVISED = {"epochs": (8,), "batch_size": 32}
_TINY_LABELS = dict(zip(FEW, (2, 4, 6, 8), strict=True))
_TINY_CLASSIFICATION = {"size_px": 64, "steps": 150}  # AlexNet needs 63 px
TINY = {
    **{f"sslpp_{task}": {"num_clusters": 16} for task in TASKS},
    **{f"sslpp_{task}/yfcc": {"size_px": 64, "epochs": (4,)} for task in TASKS},
    "sslpp_aet/yfcc_labels_alone": {"size_px": 64, "epochs": (4,)},
    "sslpp_iic": {"epochs": (4,), "batch_size": 20},
    **{
        f"sslpp_iic/{number}": {"num_clusters": fewer}
        for number, fewer in zip(NUMS_CLUSTERS, (2, 6, 12, 24), strict=True)
    },
    "sslpp_iic/stl": {"batch_size": 12},
    "sslpp_iic/yfcc": {"size_px": 64, "batch_size": 20, "epochs": (2,)},
    "supervised/32px": _TINY_SUPERVISED,
    "supervised/stl10": {**_TINY_SUPERVISED, "size_px": 64},
    **{
        f"supervised/{number}": {**_TINY_SUPERVISED, "labels_per_class": fewer}
        for number, fewer in _TINY_LABELS.items()
    },
    "blocks/stl": {"batch_size": 16},
    **{f"blocks/{number}": {"labels_per_class": fewer} for number, fewer in _TINY_LABELS.items()},
    "linear/sslpp": {"size_px": 64, "batch_size": 32, "lr": None},  # the protocol's
    "classification/sslpp_fc6_8": _TINY_CLASSIFICATION,
    "classification/sslpp_all": _TINY_CLASSIFICATION,
    "detection/sslpp": {
        "batch_size": 2, "steps": 100, "lr": 0.005, "short_side": (128,), "anchor_px": (16, 32, 64),
    },
    "labels/random": {"num_clusters": 16},
    "labels/k-means": {"num_clusters": 16},
    "tsne": {"num": 100},
}  # fmt: skip
