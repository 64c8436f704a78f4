"""What the rows of psl.json are measured on."""

from fastpsl.tables.evaluations import (
    BLOCKS,
    DETECTION,
    FEW_LABELS,
    INAT18,
    MOCO,
    MORE_LABELS,
    PLACES205,
    SVM,
    VISSL,
    Columns,
    best,
    each,
    side_by_side,
)
from fastpsl.tables.needs import Measure, Weights

_TASKS = {
    "jigsaw": ("resnet50", "jigsaw_r50"),
    "rotation": ("resnet50", "rotation_rv50"),
    "rotation rv50": ("revnet50", "rotation_rv50"),
    "simclr": ("resnet50", "simclr_r50"),
    "mocov2": ("resnet50", "mocov2_r50"),
}
_ABLATIONS = ("reversed", "soon_hard", "rising", "two_stages", "no_overlap")
SUPERVISED = Weights("resnet50", "supervised", "end_to_end")
WEIGHTS = {
    "random": Weights("resnet50"),
    "supervised": SUPERVISED,
    "supervised rv50": Weights("revnet50", "supervised", "end_to_end"),
    **{
        f"{task} {plan}": Weights(backbone, recipe, plan)
        for task, (backbone, recipe) in _TASKS.items()
        for plan in ("end_to_end", "sl", "psl", "psl_f")
    },
    **{f"jigsaw psl {name}": Weights("resnet50", "jigsaw_r50", "psl", name) for name in _ABLATIONS},
}


def _below_supervised(weights: Weights) -> tuple[Measure, ...]:
    return (Measure(weights, DETECTION, ("AP75",), minus=SUPERVISED),)


_TOP1 = [f"top1_{block}" for block in BLOCKS]
COLUMNS: dict[str, Columns] = {
    "each block": each(VISSL, *_TOP1),
    "best block": best(VISSL, *_TOP1),
    "final features": each(MOCO, "top1_final"),
    "few labels": side_by_side(each(FEW_LABELS, "top5"), each(MORE_LABELS, "top5")),
    "detection": side_by_side(each(DETECTION, "AP", "AP50", "AP75"), _below_supervised),
    "best block of other data": side_by_side(
        best(SVM, *(f"mAP_{block}" for block in BLOCKS)), best(PLACES205, *_TOP1), best(INAT18, *_TOP1)
    ),
}
