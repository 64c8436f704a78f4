"""Say what the rows of psl.json are measured on, and with which values."""

from fastpsl.tables import rows

_TASKS = {
    "jigsaw": ("resnet50", "jigsaw_r50"),
    "rotation": ("resnet50", "rotation_rv50"),
    "rotation rv50": ("revnet50", "rotation_rv50"),
    "simclr": ("resnet50", "simclr_r50"),
    "mocov2": ("resnet50", "mocov2_r50"),
}
_ABLATIONS = ("reversed", "soon_hard", "rising", "two_stages", "no_overlap")
SUPERVISED = rows.Weights("resnet50", "supervised", "end_to_end")
WEIGHTS = {
    "random": rows.Weights("resnet50"),
    "supervised": SUPERVISED,
    "supervised rv50": rows.Weights("revnet50", "supervised", "end_to_end"),
    **{
        f"{task} {plan}": rows.Weights(backbone, recipe, plan)
        for task, (backbone, recipe) in _TASKS.items()
        for plan in ("end_to_end", "sl", "psl", "psl_f")
    },
    "rotation four angles": rows.Weights("resnet50", "rotation_rv50", "end_to_end", "four_angles"),
    "simclr as published": rows.Weights("resnet50", "simclr_r50", "end_to_end", "as_published"),
    "mocov2 as published": rows.Weights("resnet50", "mocov2_r50", "end_to_end", "as_published"),
    **{f"jigsaw psl {name}": rows.Weights("resnet50", "jigsaw_r50", "psl", name) for name in _ABLATIONS},
}


def _below_supervised(weights: rows.Weights) -> tuple[rows.Measure, ...]:
    return (rows.Measure(weights, rows.DETECTION, ("AP75",), minus=SUPERVISED),)


_TOP1 = [f"top1_{block}" for block in rows.BLOCKS]
COLUMNS: dict[str, rows.Columns] = {
    "each block": rows.each(rows.VISSL, *_TOP1),
    "best block": rows.best(rows.VISSL, *_TOP1),
    "final features": rows.each(rows.MOCO, "top1_final"),
    "few labels": rows.side_by_side(rows.each(rows.FEW_LABELS, "top5"), rows.each(rows.MORE_LABELS, "top5")),
    "detection": rows.side_by_side(rows.each(rows.DETECTION, "AP", "AP50", "AP75"), _below_supervised),
    "best block of other data": rows.side_by_side(
        rows.best(rows.SVM, *(f"mAP_{block}" for block in rows.BLOCKS)),
        rows.best(rows.PLACES205, *_TOP1),
        rows.best(rows.INAT18, *_TOP1),
    ),
}

# The sizes of the tables. VALUES replace some of a recipe's PAPER in a variant of it or in an evaluation. At
# the tiny scale, TINY replaces some of these values and of SAMPLE.
ABOUT = "The paper's sizes: crops of 224 px (jigsaw: tiles of 64), batches of 256, 180 or 200 epochs."
ABOUT_TINY = (
    "Tiny sizes, for any folder of images of 64 px or more: crops of 48 to 96 px, batches of 32, networks "
    "are the paper's; 10 % and 50 % of the labels stand for 1 % and 10 %. It says nothing about ImageNet."
)
NUM_PROCESSES = 8
VALUES = {
    "jigsaw_r50/reversed": {"levels": (3, 2, 1)},
    "jigsaw_r50/soon_hard": {"levels": (1, 3, 3)},
    "jigsaw_r50/rising": {"epochs": (30, 60, 90)},
    "jigsaw_r50/two_stages": {"epochs": (90, 90)},
    "jigsaw_r50/no_overlap": {"partition": ("1-2", "3-4", "5")},
    # Levels differ in their angles alone; otherwise easy ones are also wider and sharper.
    "rotation_rv50": {"same_window": True},
    # Table 4's caption: "Rotation [21] uses R2".
    "rotation_rv50/four_angles": {"levels": (2, 2, 2)},
    "simclr_r50": {"sync_batchnorm": True},
    "simclr_r50/as_published": {"sobel_p": 0.0},
    "mocov2_r50/as_published": {"sobel_p": 0.0},
    "semi_supervised/1": {"protocol": "pirl", "percent": 1.0},
    "semi_supervised/10": {"protocol": "pirl", "percent": 10.0},
}
TINY = {
    "jigsaw_r50/rising": {"epochs": (2, 3, 4)},
    "jigsaw_r50/two_stages": {"epochs": (4, 5)},
    "simclr_r50": {"sync_batchnorm": False},  # CUDA's alone
    "linear/moco": {"lr": None},  # the protocol's
    "semi_supervised/1": {"percent": 10.0, "size_px": 64},
    "semi_supervised/10": {"percent": 50.0, "size_px": 64},
    "detection/pirl": {"batch_size": 2, "steps": 40, "lr": 0.05, "short_side": (64,), "anchor_px": (32,)},
}
