"""Unsupervised image classification (UIC): pseudo-labels from the network's own forward pass (uic.txt, section 3.2)."""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import numpy as np
from torch import Tensor, nn
from typing_extensions import override

from fastpsl.engine.dataset_pass import EpochContext
from fastpsl.engine.plan import Stage
from fastpsl.engine.reporter import Figures
from fastpsl.engine.trunk import Trunk
from fastpsl.kernels.grey import Grey
from fastpsl.pipelines.data.dataset import Dataset
from fastpsl.pipelines.input_record import Input
from fastpsl.pipelines.standard_views import center_view, train_view
from fastpsl.pipelines.views import ViewSpec
from fastpsl.tasks.contrastive.views import SIMCLR_COLOUR, simclr_blur
from fastpsl.tasks.pseudo_labels.pseudo_classify import PseudoClassify, gathered_labels

Augmentation = Literal["standard", "strong"]
LabelView = Literal["train", "center"]


class UIC(PseudoClassify):
    """Learn in epoch t what the network itself said of each image in epoch t-1, of other crops (equations 5 and 6).

    Label of epoch t+1 = arg max of the training forward pass of epoch t: no pass is made for it. An image that the balanced order
    did not draw keeps its label, of one that it drew several times the latest counts; the paper is silent on both.
    Paper: the labels of epoch 0 are not said. Here: one pass over all images, by draws of its own.
    Paper: whether dropout is at work where labels are made is not said. Here it is, as they come from the training forward pass.

    input: what the network sees (Sobel in the paper). augmentation: "standard", crops and flip; "strong", SimCLR's colour distortion
    and blur too (section 5.1), where Sobel comes last. label_view: "train", or "center" (Table 3): labels by a pass over all images
    before each epoch, of centre crops.
    fixed: labels are made once, before the first epoch, by centre crops in eval mode, and stay (section 4.3, "Further Fine-Tuning").
    given: labels int [N] to learn from instead, which stay. classifier: state_dict of the head to begin with.
    """

    def __init__(
        self,
        num_classes: int,
        input: Input,
        size_px: int = 224,
        *,
        seed: int,
        augmentation: Augmentation = "standard",
        label_view: LabelView = "train",
        fixed: bool = False,
        given: np.ndarray | None = None,
        classifier: Mapping[str, Tensor] | None = None,
    ):
        super().__init__(
            num_classes, uic_view(input, size_px, augmentation), center_view(input, size_px), seed=seed
        )
        self.label_view, self.fixed, self.given, self.classifier = label_view, fixed, given, classifier

    @property
    def from_training(self) -> bool:
        """Whether labels come from the training forward pass."""
        return self.label_view == "train" and not self.fixed and self.given is None

    @override
    def check_data(self, data: Dataset, batch_size: int) -> None:
        super().check_data(data, batch_size)
        assert self.given is None or len(self.given) == data.num_samples

    @override
    def start_stage(self, stage: Stage, trunk: Trunk, head: nn.Module) -> None:
        super().start_stage(stage, trunk, head)
        if self.classifier is not None:
            head.load_state_dict(dict(self.classifier))

    @override
    def start_epoch(self, context: EpochContext) -> Figures | None:
        """Labels of the first epoch; of every epoch by centre crops."""
        if self.given is not None:
            return self.relabel(self.given, 0) if context.first else None  # split alike in each stage
        if not context.first and (self.label_view == "train" or self.fixed):
            return None
        view = self.center if self.fixed or self.label_view == "center" else self.view
        # Running statistics of a network that has not learned yet hold nothing.
        untrained = context.first and not self.fixed
        labels = gathered_labels(context, context.forward_dataset(view, context.head, training=untrained))
        return self.relabel(labels, context.epoch)

    @override
    def see(self, indices: Tensor, logits: Tensor) -> None:
        """Labels of the next epoch."""
        if self.from_training:
            self.store.write(indices, logits)

    @override
    def end_epoch(self) -> Figures | None:
        """All ranks' new labels become those of the next epoch."""
        if not self.from_training:
            return None
        ended = self.store.end_epoch(self.epoch + 1)
        if ended.num_not_finite:
            warnings.warn(
                f"epoch {self.epoch}: outputs for {ended.num_not_finite:,} images were not finite; they keep their labels",
                stacklevel=2,
            )
        counts = {
            name: float(getattr(ended, name)) for name in ("num_not_drawn", "num_repeated", "num_split")
        }
        return {**self.figures(ended.made, ended.previous), **counts}


def uic_view(input: Input, size_px: int, augmentation: Augmentation) -> ViewSpec:
    """Random crop and flip, and with "strong" SimCLR's colour distortion at strength 1 and its blur; then what `input` says."""
    view = train_view(input, size_px)
    if augmentation == "standard":
        return view
    flip, *channels = view.ops
    return replace(view, ops=(flip, SIMCLR_COLOUR, Grey(0.2), simclr_blur(size_px), *channels))
