"""What the rows of sslpp.json are measured on."""

from dataclasses import replace

from fastpsl.tables.evaluations import (
    BLOCK_PROBE,
    CLUSTERS,
    KNN,
    RETRIEVAL,
    SSLPP,
    SSLPP_DETECTION,
    SSLPP_SEGMENTATION,
    STL_BLOCK_PROBE,
    TSNE,
    Columns,
    classification,
    each,
    mean,
    side_by_side,
    with_mean,
)
from fastpsl.tables.needs import COUPLED, Evaluation, Measure, Weights

TASKS = ("colorization", "context", "rotation", "aet")
# Weights of the loss of figure 6; 0 is the task alone.
LAMBDAS = (0.01, 0.05, 0.2, 0.5, 1.0, 2.0, 5.0, 20.0, 100.0)
# Labels a class (Table VIII).
FEW = (20, 100, 400, 1000)
# Clusters (Table XIII), but for the 70 of all other tables.
NUMS_CLUSTERS = (10, 30, 50, 100)
# Of Table XIV, each with those before it; the recipe's own is the last, "sobel".
TRANSFORMS = ("crop", "flip", "colour", "grey")

_IIC = Weights("resnet34_iic", "sslpp_iic", "end_to_end")
_YFCC_IIC = Weights("resnet34", "sslpp_iic", "end_to_end", "yfcc")
_IIC_VARIANTS = {
    f"iic {name}": replace(_IIC, variant=str(name)) for name in ("stl", *NUMS_CLUSTERS, *TRANSFORMS)
}
_LABELS: dict[str, Weights | str] = {"iic": _IIC, **_IIC_VARIANTS}
_LABELS |= {source: source for source in ("true", "random", "k-means", COUPLED)}
_TASKS = {task: Weights("nin4", f"sslpp_{task}", "end_to_end") for task in TASKS}
_YFCC = {task: Weights("alexnet_rotnet", f"sslpp_{task}", "end_to_end", "yfcc") for task in TASKS}
WEIGHTS = {
    "random": Weights("nin4"),
    "supervised": Weights("nin4", "supervised", "end_to_end", "32px"),
    "iic": _IIC,
    **_IIC_VARIANTS,
    **_TASKS,
    **{
        f"{task} + {name}": replace(one, labels=of)
        for task, one in _TASKS.items()
        for name, of in _LABELS.items()
    },
    **{
        f"{task} + {weight:g} iic": replace(one, labels=_IIC, variant=f"lambda_{weight:g}")
        for task, one in _TASKS.items()
        for weight in LAMBDAS
    },
    **{
        f"{name} alone": replace(_TASKS["aet"], labels=_LABELS[name], variant="labels_alone")
        for name in ("iic", "iic stl")
    },
    "yfcc random": Weights("alexnet_rotnet"),
    "yfcc supervised": Weights("alexnet_rotnet", "supervised", "end_to_end", "stl10"),
    **{f"yfcc {task}": one for task, one in _YFCC.items()},
    **{f"yfcc {task} + iic": replace(one, labels=_YFCC_IIC) for task, one in _YFCC.items()},
    "yfcc iic alone": replace(_YFCC["aet"], labels=_YFCC_IIC, variant="yfcc_labels_alone"),
}


def _few_labels(weights: Weights) -> tuple[Measure, ...]:
    """Return what is measured with few labels; the supervised network learns from those labels alone."""
    parts: list[Measure] = []
    for number in FEW:
        own = replace(weights, variant=str(number)) if weights.with_labels else weights
        parts += with_mean(Evaluation(f"blocks/{number}", "block_probe", "block_probe"), *_CONVS)(own)
    return tuple(parts)


_BLOCKS = ("B2", "B3", "B4")
_CONVS = [f"top1_conv_{block}" for block in _BLOCKS]
COLUMNS: dict[str, Columns] = {
    "blocks": with_mean(BLOCK_PROBE, *_CONVS),
    "blocks, STL-10": with_mean(STL_BLOCK_PROBE, *_CONVS),
    "forms of classifiers": each(BLOCK_PROBE, "top1_fc1_B4", "top1_fc2_B4", "top1_fc3_B4", "top1_conv_B4"),
    "10 neighbours": with_mean(KNN, *(f"top1_k10_majority_{block}" for block in _BLOCKS)),
    "1 to 20 neighbours": with_mean(KNN, *(f"top1_k{k}_majority_B4" for k in (1, 3, 5, 10, 15, 20))),
    "few labels": _few_labels,
    "clusters, B2, B4": side_by_side(
        each(CLUSTERS, "many_to_one_accuracy"), each(BLOCK_PROBE, _CONVS[0], _CONVS[2])
    ),
    "mean of blocks, each task": side_by_side(*[mean(BLOCK_PROBE, *_CONVS)] * len(TASKS)),
    "retrieval": each(RETRIEVAL, "precision_top8"),
    "t-SNE": each(TSNE, "same_class_2d"),
    "layers, fc7": each(SSLPP, *(f"top1_B{block}" for block in (1, 2, 3, 4, 5, 7))),
    "layers, fc7, mean": with_mean(SSLPP, *(f"top1_B{block}" for block in (1, 2, 3, 4, 5, 7))),
    "VOC": side_by_side(
        each(classification("sslpp", "fc6_8"), "mAP"),
        each(classification("sslpp", "all"), "mAP"),
        each(SSLPP_DETECTION, "AP50"),
        each(SSLPP_SEGMENTATION, "mIoU"),
    ),
}
