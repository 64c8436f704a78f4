"""Protocols of detection on PASCAL VOC: data, schedule and the detector's values as they were published, as data."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from fastpsl.engine.optim.schedules import Schedule, step_drops, warmed_up

TRAINVAL_0712 = ("2007_trainval", "2012_trainval")


@dataclass(frozen=True, kw_only=True)
class DetectionProtocol:
    """The length is `epochs` or `num_steps`; after each of `intervals`, shares of it, the rate is a tenth. lr: for a batch of `lr_batch`.

    boxes_from: "rpn", learned with the rest (Faster R-CNN), or "published" (Fast R-CNN). first_learning: the first block that learns.
    batchnorm: of those blocks, see `Experiment`. extra_norm: a BatchNorm behind the last block. with_difficult: whether what is annotated as
    difficult is learned. short_px: sides that a training picture's shorter side is drawn from; tests have the largest.

    anchor_px: roots of the anchors' areas. rpn_train, rpn_test: the RPN's boxes before and after non-maximum suppression. num_rois:
    boxes of a picture that the head learns from, at most a quarter of them objects. min_background_iou: background overlaps an object so
    much at least. roi_side: positions a side of a pooled RoI (ResNets and their like; AlexNet's and VGG's fc6 say it). nms: of detections.
    """

    train_sets: tuple[str, ...] = TRAINVAL_0712
    test_sets: tuple[str, ...] = ("2007_test",)
    boxes_from: Literal["rpn", "published"] = "rpn"
    first_learning: int = 3
    batchnorm: Literal["train", "fixed"] = "fixed"
    extra_norm: bool = False
    with_difficult: bool = True
    short_px: tuple[int, ...] = tuple(range(480, 801, 32))
    max_long_px: int = 1333
    lr_batch: int = 16
    lr: float
    epochs: int = 0
    num_steps: int | None = None
    intervals: tuple[int, ...]
    warmup_steps: int = 0
    weight_decay: float = 1e-4
    decay_biases: bool = True
    anchor_px: tuple[int, ...] = (32, 64, 128, 256, 512)
    rpn_train: tuple[int, int] = (12_000, 2000)
    rpn_test: tuple[int, int] = (6000, 1000)
    num_rois: int = 512
    min_background_iou: float = 0.0
    roi_side: int = 14
    nms: float = 0.5

    def schedule(self, batch_size: int) -> Schedule:
        """Rates for this batch, in proportion to it. ValueError for rates of 0 and less."""
        return warmed_up(step_drops(self.lr * batch_size / self.lr_batch, self.intervals), self.warmup_steps)

    def changed(
        self,
        *,
        num_steps: int | None,
        lr: float | None,
        short_px: tuple[int, ...],
        anchor_px: tuple[int, ...],
    ) -> "DetectionProtocol":
        """With these values in the place of its own, where they were given; another length warms up for the same share. ValueError for
        sizes and lengths below 1."""
        asked: dict[str, Any] = {"lr": lr, "short_px": short_px, "anchor_px": anchor_px}
        if num_steps is not None:
            warmup = self.warmup_steps * num_steps // self.num_steps if self.num_steps else self.warmup_steps
            asked |= {"num_steps": num_steps, "epochs": 0, "warmup_steps": warmup}
        asked = {name: value for name, value in asked.items() if value not in (None, ())}
        made = replace(self, **asked)
        for name, values in (
            ("num-steps", () if num_steps is None else (num_steps,)),
            ("short-px", short_px),
            ("anchor-px", anchor_px),
        ):
            if min(values, default=1) < 1:
                raise ValueError(f"--{name} {' '.join(map(str, values))}: it must be 1 or more")
        return made


PROTOCOLS: dict[str, DetectionProtocol] = {
    # PIRL's models in VISSL, object_detection/voc0712/pirl_npid: PSL's [37]. Detectron2's values where the file has none: a frozen
    # BatchNorm, and FREEZE_AT 2, conv1 and conv2_x.
    "pirl": DetectionProtocol(lr=0.002, num_steps=25_000, intervals=(17, 8), warmup_steps=1000),
    # VISSL, object_detection/voc0712/iccv19: that of PSL's [23].
    "vissl": DetectionProtocol(lr=0.02, num_steps=25_000, intervals=(17, 8), warmup_steps=100),
    # MoCo, detection/configs/pascal_voc_R_50_C4_24k: everything learns, with BatchNorm over all ranks (--sync-batchnorm). Differs: scales
    # and shifts of BatchNorm decay, too, of which Detectron2 has none (WEIGHT_DECAY_NORM 0).
    "moco": DetectionProtocol(
        first_learning=1, batchnorm="train", extra_norm=True,
        lr=0.02, num_steps=24_000, intervals=(18, 4, 2), warmup_steps=100,
    ),
    # UIC, section 4.4: "using fast-rcnn [15] framework", "ALL". Its schedule is not stated; this is [15]'s, for pictures of 600 px and
    # without its doubled rate of biases. The self-supervised AlexNets that it is compared with had 150,000 steps of many sizes.
    "fast_rcnn": DetectionProtocol(
        train_sets=("2007_trainval",), boxes_from="published", first_learning=1, with_difficult=False,
        short_px=(600,), max_long_px=1000, lr_batch=2, lr=0.001, num_steps=40_000, intervals=(3, 1),
        weight_decay=5e-4, decay_biases=False, num_rois=64, min_background_iou=0.1, nms=0.3,
    ),
    # SSL++, Table II and section V.E: train → test, 12 epochs of batches of 2, a rate of .001 throughout, the whole model. What it leaves
    # to Ren et al. ("the publicly available testing protocol") is theirs: sizes, anchors, numbers of boxes. BatchNorm: silent; batches
    # of 2 have no statistics.
    "sslpp": DetectionProtocol(
        train_sets=("2007_train",), first_learning=1, with_difficult=False,
        short_px=(600,), max_long_px=1000, lr_batch=2, lr=0.001, epochs=12, intervals=(1,),
        weight_decay=5e-4, decay_biases=False, anchor_px=(128, 256, 512), rpn_test=(6000, 300), num_rois=128, nms=0.3,
    ),
    # Ours, for drawn pictures of about 128 px and a CPU: it learns from random weights.
    "small": DetectionProtocol(
        train_sets=("2007_trainval",), first_learning=1, batchnorm="train", extra_norm=True,
        short_px=(112, 128), max_long_px=192, lr_batch=8, lr=0.02, num_steps=250, intervals=(4, 1), warmup_steps=20,
        anchor_px=(16, 32, 64), rpn_train=(200, 50), rpn_test=(200, 30), num_rois=16, roi_side=4,
    ),
}  # fmt: skip
