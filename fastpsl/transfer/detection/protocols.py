"""Published protocols of detection on PASCAL VOC: data sets, schedules and detector values, as data."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from fastpsl.engine.optim.schedules import Schedule, step_drops, warmed_up

TRAINVAL_0712 = ("2007_trainval", "2012_trainval")


@dataclass(frozen=True, kw_only=True)
class DetectionProtocol:
    """A protocol of detection."""

    train_sets: tuple[str, ...] = TRAINVAL_0712  # image sets to learn from (`pipelines.voc.VOC`)
    test_sets: tuple[str, ...] = ("2007_test",)
    # "rpn", learned with the rest (Faster R-CNN), or "published" (Fast R-CNN).
    boxes_from: Literal["rpn", "published"] = "rpn"
    first_learning: int = 3  # the first block that learns
    batchnorm: Literal["train", "fixed"] = "fixed"  # mode of these blocks' BatchNorm, see `Experiment`
    extra_norm: bool = False  # whether a BatchNorm follows the last block
    with_difficult: bool = True  # whether difficult objects are learned
    # Sizes that a training image's shorter side is drawn from; test images have the largest.
    short_side: tuple[int, ...] = tuple(range(480, 801, 32))
    max_long_px: int = 1333  # upper limit of the longer side
    lr_batch: int = 16  # batch size that `lr` is for
    lr: float
    epochs: int = 0  # length in epochs, unless `steps` is set
    steps: int | None = None
    intervals: tuple[int, ...]  # shares of the training, each followed by a tenfold drop of the rate
    warmup_steps: int = 0  # steps in which the rate rises
    weight_decay: float = 1e-4
    decay_biases: bool = True
    anchor_px: tuple[int, ...] = (32, 64, 128, 256, 512)  # roots of the anchors' areas
    # Boxes of the RPN before and after non-maximum suppression, in training.
    rpn_train: tuple[int, int] = (12_000, 2000)
    rpn_test: tuple[int, int] = (6000, 1000)  # the same, in the test
    num_rois: int = 512  # boxes of an image that the head learns from; at most a quarter of them are objects
    min_background_iou: float = 0.0  # least overlap of a background box with an object
    # Positions on a side of a pooled RoI, for ResNets and the like; fc6 fixes it for AlexNet and VGG.
    roi_side: int = 14
    nms: float = 0.5  # overlap above which non-maximum suppression removes a detection

    def schedule(self, batch_size: int) -> Schedule:
        """Return the schedule, in proportion to the batch size."""
        return warmed_up(step_drops(self.lr * batch_size / self.lr_batch, self.intervals), self.warmup_steps)

    def changed(
        self, *, steps: int | None, lr: float | None, short_side: tuple[int, ...], anchor_px: tuple[int, ...]
    ) -> "DetectionProtocol":
        """Return the protocol with the given values in place of its own; the warm-up keeps its share."""
        lengths = () if steps is None else (steps,)
        for name, numbers in {"steps": lengths, "short-side": short_side, "anchor-px": anchor_px}.items():
            if min(numbers, default=1) < 1:
                raise ValueError(f"--{name} {' '.join(map(str, numbers))}: it must be 1 or more")
        values: dict[str, Any] = {"lr": lr, "short_side": short_side, "anchor_px": anchor_px}
        if steps is not None:
            warmup = self.warmup_steps * steps // self.steps if self.steps else self.warmup_steps
            values |= {"steps": steps, "epochs": 0, "warmup_steps": warmup}
        return replace(self, **{name: value for name, value in values.items() if value not in (None, ())})


PROTOCOLS: dict[str, DetectionProtocol] = {
    # PIRL's models in VISSL, object_detection/voc0712/pirl_npid: PSL's [37]. Where the file has no value it
    # is Detectron2's: a frozen BatchNorm and FREEZE_AT 2, which freezes conv1 and conv2_x.
    "pirl": DetectionProtocol(lr=0.002, steps=25_000, intervals=(17, 8), warmup_steps=1000),
    # VISSL, object_detection/voc0712/iccv19: the protocol of PSL's [23].
    "vissl": DetectionProtocol(lr=0.02, steps=25_000, intervals=(17, 8), warmup_steps=100),
    # MoCo, detection/configs/pascal_voc_R_50_C4_24k: everything learns, with BatchNorm over all ranks
    # (--sync-batchnorm). One difference: scales and shifts of BatchNorm decay here, too. Detectron2's do not
    # (WEIGHT_DECAY_NORM 0).
    "moco": DetectionProtocol(
        first_learning=1, batchnorm="train", extra_norm=True,
        lr=0.02, steps=24_000, intervals=(18, 4, 2), warmup_steps=100,
    ),
    # UIC, section 4.4: "using fast-rcnn [15] framework", "ALL". Its schedule is not stated. This is [15]'s,
    # for images of 600 px and without its doubled rate for biases. The self-supervised AlexNets that UIC is
    # compared with were trained for 150,000 steps on images of many sizes.
    "fast_rcnn": DetectionProtocol(
        train_sets=("2007_trainval",), boxes_from="published", first_learning=1, with_difficult=False,
        short_side=(600,), max_long_px=1000, lr_batch=2, lr=0.001, steps=40_000, intervals=(3, 1),
        weight_decay=5e-4, decay_biases=False, num_rois=64, min_background_iou=0.1, nms=0.3,
    ),
    # SSL++, Table II and section V.E: train → test, 12 epochs of batches of 2, a rate of .001 throughout, the
    # whole model. It leaves the rest to Ren et al. ("the publicly available testing protocol"): sizes,
    # anchors and numbers of boxes are theirs. It does not mention BatchNorm; batches of 2 have no useful
    # statistics.
    "sslpp": DetectionProtocol(
        train_sets=("2007_train",), first_learning=1, with_difficult=False,
        short_side=(600,), max_long_px=1000, lr_batch=2, lr=0.001, epochs=12, intervals=(1,),
        weight_decay=5e-4,
        decay_biases=False, anchor_px=(128, 256, 512), rpn_test=(6000, 300), num_rois=128, nms=0.3,
    ),
    # Our own, for synthetic images of about 128 px on a CPU; it learns from random weights.
    "small": DetectionProtocol(
        train_sets=("2007_trainval",), first_learning=1, batchnorm="train", extra_norm=True,
        short_side=(112, 128), max_long_px=192, lr_batch=8, lr=0.02, steps=250, intervals=(4, 1),
        warmup_steps=20, anchor_px=(16, 32, 64), rpn_train=(200, 50), rpn_test=(200, 30), num_rois=16,
        roi_side=4,
    ),
}  # fmt: skip
