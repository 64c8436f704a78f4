"""What the rows of uic.json are measured on."""

from dataclasses import replace

from fastpsl.tables.evaluations import (
    CLUSTERS,
    FAST_RCNN,
    FCN_ALEXNET,
    FEW_SHOTS,
    UIC,
    Columns,
    classification,
    each,
    side_by_side,
)
from fastpsl.tables.needs import Weights

_UIC = Weights("alexnet", "uic_alexnet", "end_to_end")
WEIGHTS = {
    "random": Weights("alexnet"),
    "random sobel": Weights("alexnet", channels="SobelXY"),
    "supervised": Weights("alexnet", "supervised", "end_to_end", "alexnet"),
    "deepcluster": Weights("alexnet", "deepcluster_alexnet", "end_to_end"),
    "uic": _UIC,
    **{f"uic {name}": replace(_UIC, variant=name) for name in ("5k", "10k", "center", "strong")},
    "uic tuned": replace(_UIC, variant="tuned", base=_UIC),
    **{
        f"uic {backbone}": Weights(backbone, "uic_r50", "end_to_end")
        for backbone in ("vgg16", "resnet50", "resnet50_mlp")
    },
}

_LAYERS = [f"top1_B{layer}" for layer in range(1, 6)]
# NMI t/labels: of the training's last pseudo-labels and the annotated ones.
_NMI = each(CLUSTERS, "nmi_true")
_BLOCKS = ("accuracy_B3", "accuracy_B4", "accuracy_B5", "accuracy_B5_max_pool")
COLUMNS: dict[str, Columns] = {
    "conv1 to conv5": each(UIC, *_LAYERS),
    "conv3 to conv5": each(UIC, *_LAYERS[2:]),
    "conv3 to conv5, NMI": side_by_side(each(UIC, *_LAYERS[2:]), _NMI),
    "final features, NMI": side_by_side(each(UIC, "top1_final"), _NMI),
    "VOC": side_by_side(
        each(classification("deepcluster", "fc6_8"), "mAP"),
        each(classification("deepcluster", "all"), "mAP"),
        each(FAST_RCNN, "AP50"),
        each(FCN_ALEXNET, "mIoU"),
    ),
    **{f"few-shot, {size_px} px": each(one, *_BLOCKS) for size_px, one in FEW_SHOTS.items()},
}
