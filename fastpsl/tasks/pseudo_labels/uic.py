"""Train unsupervised image classification (UIC): pseudo-labels from forward passes (UIC, section 3.2)."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn
from typing_extensions import override

from fastpsl.engine.dataset_pass import EpochContext
from fastpsl.engine.experiment import Experiment
from fastpsl.engine.optim.schedules import linear_decay
from fastpsl.engine.options import at_end
from fastpsl.engine.plan import Stage
from fastpsl.engine.reporter import EpochMetrics
from fastpsl.engine.run import Run
from fastpsl.engine.stage_blocks import StageBlocks
from fastpsl.files.digest import sha256_of_file
from fastpsl.kernels.colour import Grey
from fastpsl.models.checkpoint import read_checkpoint
from fastpsl.models.factory import make_backbone
from fastpsl.models.weights import newest_checkpoint
from fastpsl.pipelines.interface.dataset import Dataset
from fastpsl.pipelines.views import Input, ViewSpec, center_view, train_view
from fastpsl.tasks.contrastive.simclr import SIMCLR_COLOUR, simclr_blur
from fastpsl.tasks.pseudo_labels.file import NAME, labels_of, write_labels
from fastpsl.tasks.pseudo_labels.options import Augmentation, LabelView, UICOptions
from fastpsl.tasks.pseudo_labels.pseudo_classify import PseudoClassify, gathered_labels
from fastpsl.tasks.pseudo_labels.scores import written_lines
from fastpsl.tasks.pseudo_labels.store import EpochOfLabels


class UIC(PseudoClassify):
    """A task that learns in epoch t the labels that the network gave to other crops in epoch t - 1.

    The label of epoch t + 1 is the arg max of the training forward pass of epoch t. So no pass is made for it
    (UIC, equations 5 and 6). Choices where the paper is silent:

    - An image that the balanced order did not draw keeps its label. Of several draws, the latest counts.
    - The labels of epoch 0 are those of one pass over all images, with augmentations of its own.
    - Dropout is active when labels are made, because they come from the training forward pass.

    Args:
        num_classes: Number of classes, 2 or more.
        input: The network's input (Sobel in the paper).
        size_px: Side of the crops, in pixels.
        seed: Seed of orders and splits.
        augmentation: "standard" has crops and flip; "strong" adds SimCLR's colour distortion and blur (UIC,
            section 5.1), before Sobel.
        label_view: "train", or "center" (UIC, Table 3) for labels by a pass over centre crops before each
            epoch.
        fixed: Whether labels are made once, by centre crops in eval mode (UIC, section 4.3, "Further
            Fine-Tuning").
        given: Labels to learn from instead, integers [N].
        classifier: State of the initial head.

    Raises:
        ValueError: There are fewer than two classes.
    """

    def __init__(
        self, num_classes: int, input: Input, size_px: int, *, seed: int, augmentation: Augmentation,
        label_view: LabelView, fixed: bool = False, given: np.ndarray | None = None,
        classifier: Mapping[str, Tensor] | None = None,
    ):  # fmt: skip
        view = uic_view(input, size_px, augmentation)
        super().__init__(num_classes, view, center_view(input, size_px), seed=seed)
        self.label_view, self.fixed, self.given, self.classifier = label_view, fixed, given, classifier
        self.ended: EpochOfLabels | None = None  # made, but not yet told by `end_epoch`

    @property
    def from_training(self) -> bool:
        """Whether labels come from the training forward pass."""
        return self.label_view == "train" and not self.fixed and self.given is None

    @override
    def check_data(self, data: Dataset, batch_size: int) -> None:
        super().check_data(data, batch_size)
        assert self.given is None or len(self.given) == data.num_samples

    @override
    def start_stage(self, stage: Stage, blocks: StageBlocks, head: nn.Module) -> None:
        super().start_stage(stage, blocks, head)
        if self.classifier is not None:
            head.load_state_dict(dict(self.classifier))

    @override
    def start_epoch(self, context: EpochContext) -> EpochMetrics | None:
        """Set the labels of the first epoch, or of every epoch if they come from centre crops."""
        if self.given is not None:
            # Epoch 0 gives the same splits in each stage.
            return self.relabel(self.given, 0) if context.first else None
        if not context.first and (self.label_view == "train" or self.fixed):
            return None
        view = self.center if self.fixed or self.label_view == "center" else self.view
        # An untrained network is run in training mode, because its running statistics mean nothing yet.
        untrained = context.first and not self.fixed
        labels = gathered_labels(context, context.forward_dataset(view, context.head, training=untrained))
        return self.relabel(labels, context.epoch)

    @override
    def see(self, indices: Tensor, logits: Tensor) -> None:
        """Store the labels of the next epoch."""
        if self.from_training:
            self.store.write(indices, logits)

    @override
    def next_order(self, epoch: int) -> np.ndarray | None:
        if self.label_view == "center" and not self.fixed and self.given is None:
            return None  # the next epoch begins with a pass
        if self.from_training:
            self._renew()
        self.begun = epoch, self.store.order(epoch)
        return self.begun[1]

    def _renew(self) -> None:
        """Make all ranks' new labels those of the next epoch, once."""
        self.ended = self.ended or self.store.end_epoch(self.epoch + 1)

    @override
    def end_epoch(self) -> EpochMetrics | None:
        """Make all ranks' new labels those of the next epoch."""
        if not self.from_training:
            return None
        self._renew()
        ended, self.ended = self.ended, None
        assert ended is not None
        if ended.num_not_finite:
            warnings.warn(
                f"epoch {self.epoch}: outputs for {ended.num_not_finite:,} images were not finite; "
                "they keep their labels",
                stacklevel=2,
            )
        names = ("num_not_drawn", "num_repeated", "num_split")
        counts = {name: float(getattr(ended, name)) for name in names}
        return {**self.figures(ended.made, ended.previous), **counts}


def uic_view(input: Input, size_px: int, augmentation: Augmentation) -> ViewSpec:
    """Return the training view: crop, flip, SimCLR's colours and blur for "strong", and `input`'s ops."""
    view = train_view(input, size_px)
    if augmentation == "standard":
        return view
    flip, *channels = view.ops
    return replace(view, ops=(flip, SIMCLR_COLOUR, Grey(0.2), simclr_blur(size_px), *channels))


def build_uic(options: UICOptions) -> Experiment:
    """Build the experiment.

    Raises:
        ValueError: A file in the options cannot serve.
    """
    input, science = Input.usual(options.input_channels, at_end(options.size_px)), dict[str, Any]()
    backbone = make_backbone(options.backbone, num_channels=input.num_channels, dropout=options.dropout)
    classifier: dict[str, Tensor] | None = None
    labels: np.ndarray | None = None
    if options.fine_tune is not None:
        path, state = _trained(options.fine_tune, options)
        backbone.load_state_dict(state["backbone"])
        classifier = state["train_step"]["head"]
        if "2.weight" not in classifier:
            raise ValueError(
                f"--fine-tune {path}: --plan blockwise gave it several heads; give a run of another plan"
            )
        if (width := classifier["2.weight"].shape[1]) != backbone.channels[-1]:
            raise ValueError(
                f"--fine-tune {path}: its classifier reads {width} channels, "
                f"and the last block of {options.backbone} has {backbone.channels[-1]}: "
                "it was saved in an earlier stage; give a run that came to its end"
            )
        science["fine_tune"] = sha256_of_file(path)
        science["fine_tuned"] = state["science"]  # because tables of results need the training of the base
    if options.pseudo_labels is not None:
        file = labels_of(options.pseudo_labels, options)
        if file.num_classes != options.num_clusters:
            raise ValueError(
                f"--pseudo-labels {options.pseudo_labels} has {file.num_classes:,} classes, not "
                f"{options.num_clusters:,}: give --num-clusters {file.num_classes}"
            )
        labels = file.labels
        science["labels"] = sha256_of_file(options.pseudo_labels)
    task = UIC(
        options.num_clusters,
        input,
        at_end(options.size_px),
        seed=options.seed,
        augmentation=options.augment,
        label_view=options.label_view,
        fixed=options.fine_tune is not None,
        given=labels,
        classifier=classifier,
    )
    return Experiment(
        task=task,
        backbone=backbone,
        stages=options.stages(task.num_levels, backbone.num_blocks),
        schedule=linear_decay(options.lr),
        optimiser=partial(options.sgd(), weight_decay=options.weight_decay, decay_biases=True),
        science=science,
        finish=partial(leave_labels, task),
    )


def leave_labels(task: PseudoClassify, run: Run) -> Sequence[str]:
    """Write labels.npz and labels.png of the last checkpoint to the run's folder; return lines to print."""
    state = read_checkpoint(run.last_checkpoint())
    store, made_by = state["task"]["store"], str(run.science["recipe"])
    path = write_labels(
        run.folder / NAME, store["current"].numpy(), task.num_classes, run.data.train, made_by,
        num_split=store["num_split"], configuration={**run.science, "source": made_by},
    )  # fmt: skip
    return written_lines(path)


def _trained(path: Path, options: UICOptions) -> tuple[Path, dict[str, Any]]:
    """Return the checkpoint to continue, or raise ValueError if its classifier does not fit the options."""
    path, state = newest_checkpoint(path) if path.is_dir() else (path, read_checkpoint(path))
    science = state["science"]
    if "num_clusters" not in science or "train_step" not in state:
        raise ValueError(
            f"--fine-tune {path}: a checkpoint of {science.get('recipe')}, which has no pseudo-labels; "
            "give one of UIC's"
        )
    if options.plan != "end_to_end":
        raise ValueError(
            "--fine-tune goes on with a classifier on the last block: give --plan end_to_end, "
            f"not {options.plan}"
        )
    for name in ("backbone", "num_clusters", "input_channels"):
        if science[name] != getattr(options, name):
            raise ValueError(
                f"--fine-tune {path} has {name.replace('_', '-')} {science[name]}, "
                f"not {getattr(options, name)}: give --{name.replace('_', '-')} {science[name]}"
            )
    return path, state
