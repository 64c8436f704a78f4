"""Say what the rows of uic.json are measured on, and with which values."""

from dataclasses import replace

from fastpsl.tables import rows

_UIC = rows.Weights("alexnet", "uic_alexnet", "end_to_end")
WEIGHTS = {
    "random": rows.Weights("alexnet"),
    "random sobel": rows.Weights("alexnet", channels="SobelXY"),
    "supervised": rows.Weights("alexnet", "supervised", "end_to_end", "alexnet"),
    "deepcluster": rows.Weights("alexnet", "deepcluster_alexnet", "end_to_end"),
    "uic": _UIC,
    **{f"uic {name}": replace(_UIC, variant=name) for name in ("5k", "10k", "center", "strong")},
    "uic tuned": replace(_UIC, variant="tuned", base=_UIC),
    **{
        f"uic {backbone}": rows.Weights(backbone, "uic_r50", "end_to_end")
        for backbone in ("vgg16", "resnet50", "resnet50_mlp")
    },
}

_LAYERS = [f"top1_B{layer}" for layer in range(1, 6)]
# NMI t/labels: between the last pseudo-labels of the training and the annotated labels.
_NMI = rows.each(rows.CLUSTERS, "nmi_true")
_BLOCKS = ("accuracy_B3", "accuracy_B4", "accuracy_B5", "accuracy_B5_max_pool")
COLUMNS: dict[str, rows.Columns] = {
    "conv1 to conv5": rows.each(rows.UIC, *_LAYERS),
    "conv3 to conv5": rows.each(rows.UIC, *_LAYERS[2:]),
    "conv3 to conv5, NMI": rows.side_by_side(rows.each(rows.UIC, *_LAYERS[2:]), _NMI),
    "final features, NMI": rows.side_by_side(rows.each(rows.UIC, "top1_final"), _NMI),
    "VOC": rows.side_by_side(
        rows.each(rows.classification("deepcluster", "fc6_8"), "mAP"),
        rows.each(rows.classification("deepcluster", "all"), "mAP"),
        rows.each(rows.FAST_RCNN, "AP50"),
        rows.each(rows.FCN_ALEXNET, "mIoU"),
    ),
    **{
        f"few-shot, {size_px} px": rows.each(few_shot, *_BLOCKS)
        for size_px, few_shot in rows.FEW_SHOTS.items()
    },
}

# The sizes of the tables, as in psl.
ABOUT = "The paper's sizes: crops of 224 px, batches of 256, 500 epochs."
ABOUT_TINY = (
    "Tiny sizes, for any folder of images of 64 px or more: crops of 64 or 96 px, batches of 32, networks "
    "are the paper's; 16, 24 and 32 pseudo-classes stand for 3,000, 5,000 and 10,000. "
    "It says nothing about ImageNet."
)
NUM_PROCESSES = 8
VALUES = {
    "uic_alexnet/5k": {"num_clusters": 5000}, "uic_alexnet/10k": {"num_clusters": 10_000},
    "uic_alexnet/center": {"label_view": "center"}, "uic_alexnet/strong": {"augment": "strong"},
    "classification/deepcluster_fc6_8": {"layers": "fc6_8"},
    "classification/deepcluster_all": {"layers": "all"}, "few_shot/224": {"size_px": 224},
    "few_shot/84": {"size_px": 84},
}  # fmt: skip
_CLASSIFICATION = {"size_px": 64, "steps": 150}  # AlexNet needs 63 px
TINY = {
    "uic_alexnet/5k": {"num_clusters": 24},
    "uic_alexnet/10k": {"num_clusters": 32},
    "uic_alexnet/tuned": {"epochs": (4,), "lr": 0.002},
    "deepcluster_alexnet": {"num_clusters": 32},
    "linear/uic": {"lr": None},  # the protocol's
    "classification/deepcluster_fc6_8": _CLASSIFICATION,
    "classification/deepcluster_all": _CLASSIFICATION,
    "detection/fast_rcnn": {
        "batch_size": 2, "steps": 100, "lr": 0.005, "short_side": (128,), "anchor_px": (16, 32, 64),
    },
    "segmentation/fcn_alexnet": {"accumulate": 1},
    "few_shot/224": {"size_px": 168, "source_px": 64},
    "few_shot/84": {"size_px": 64, "source_px": 64},
}  # fmt: skip
