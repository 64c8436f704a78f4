"""Build UIC's experiment from the options of a recipe, and write the labels that it leaves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from torch import Tensor
from tyro.conf import arg

from fastpsl.engine.experiment import Experiment
from fastpsl.engine.optim.schedules import linear_decay
from fastpsl.engine.options import MACHINE, PretrainOptions
from fastpsl.engine.run import Run
from fastpsl.models.checkpoint import read_checkpoint
from fastpsl.models.factory import make_backbone
from fastpsl.models.weight_files import sha256_of_file
from fastpsl.models.weights import newest_checkpoint
from fastpsl.pipelines.input_record import Input
from fastpsl.tasks.pseudo_labels.figures import draw_label_curves
from fastpsl.tasks.pseudo_labels.file import NAME, labels_of, write_labels
from fastpsl.tasks.pseudo_labels.pseudo_classify import PseudoClassify
from fastpsl.tasks.pseudo_labels.uic import UIC, Augmentation, LabelView

# Section 4.3, "Further Fine-Tuning": 30 epochs. The paper does not state the rate; here it is a tenth of the
# first one, because the network is trained already.
FINE_TUNE = {"stage_epochs": (30,), "lr": 0.01}


@dataclass(frozen=True, kw_only=True)
class Options(PretrainOptions):
    backbone: str
    """Any of fastpsl's (docs/backbones.md)."""
    num_classes: int
    """Of the classifier; none is ever empty."""
    channels: Literal["RGB", "SobelXY"]
    """What the network sees: the picture, or its grey value's two gradients."""
    augmentation: Augmentation
    """standard: crops and flip; strong: SimCLR's colour distortion and blur too."""
    label_view: Annotated[
        LabelView,
        arg(
            help="train: labels come from the training forward pass; "
            "center: from a pass over all images before each epoch."
        ),
    ]
    lr: float
    """Learning rate at the start; it falls to 0 in a straight line."""
    weight_decay: float
    """On weights, biases and BatchNorm."""
    dropout: float | None = None
    """Share of fc6's and fc7's inputs that are dropped; by default the backbone's own."""
    size_px: int
    """Side of the crops."""
    # The content of the file is science (see `build`), its path is not.
    fine_tune: Annotated[
        Path | None,
        arg(
            help="A finished run of this recipe, or a checkpoint: "
            "go on with its network, on the labels that it gives the centre crops."
        ),
    ] = field(default=None, metadata=MACHINE)
    labels: Path | None = field(default=None, metadata=MACHINE)
    """Learn from the labels in this file, and make none, also with --fine-tune (labels.npz of a run)."""


def fine_tuning(options: Options) -> Mapping[str, Any]:
    """Return the paper's values that differ with --fine-tune, as a recipe's `variant`."""
    return FINE_TUNE if options.fine_tune is not None else {}


def build(options: Options) -> Experiment:
    """Build the experiment.

    Raises:
        ValueError: A file in the options cannot serve.
    """
    input, science = Input.usual(options.channels, options.size_px), dict[str, Any]()
    backbone = make_backbone(options.backbone, num_channels=input.num_channels, dropout=options.dropout)
    classifier: dict[str, Tensor] | None = None
    labels: np.ndarray | None = None
    if options.fine_tune is not None:
        path, state = _trained(options.fine_tune, options)
        backbone.load_state_dict(state["backbone"])
        classifier = state["learner"]["head"]
        if (width := classifier["2.weight"].shape[1]) != backbone.channels[-1]:
            raise ValueError(
                f"--fine-tune {path}: its classifier reads {width} channels, "
                f"and the last block of {options.backbone} has {backbone.channels[-1]}: "
                "it was saved in an earlier stage; give a run that came to its end"
            )
        science["fine_tune"] = sha256_of_file(path)
        science["fine_tuned"] = state["science"]  # because tables of results need the training of the base
    if options.labels is not None:
        labels = _given(options)
        science["labels"] = sha256_of_file(options.labels)
    task = UIC(
        options.num_classes,
        input,
        options.size_px,
        seed=options.seed,
        augmentation=options.augmentation,
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
        frozen_batchnorm=options.frozen_batchnorm,
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
    curves = draw_label_curves(run.folder)
    return [f"labels {path}", *([f"label curves {curves}"] if curves else [])]


def _trained(path: Path, options: Options) -> tuple[Path, dict[str, Any]]:
    """Return the checkpoint to continue, or raise ValueError if its classifier does not fit the options."""
    path, state = newest_checkpoint(path) if path.is_dir() else (path, read_checkpoint(path))
    science = state["science"]
    if "num_classes" not in science or "learner" not in state:
        raise ValueError(
            f"--fine-tune {path}: a checkpoint of {science.get('recipe')}, which has no pseudo-labels; "
            "give one of UIC's"
        )
    if options.plan != "end_to_end":
        raise ValueError(
            "--fine-tune goes on with a classifier on the last block: give --plan end_to_end, "
            f"not {options.plan}"
        )
    for name in ("backbone", "num_classes", "channels"):
        if science[name] != getattr(options, name):
            raise ValueError(
                f"--fine-tune {path} has {name.replace('_', '-')} {science[name]}, "
                f"not {getattr(options, name)}: give --{name.replace('_', '-')} {science[name]}"
            )
    return path, state


def _given(options: Options) -> np.ndarray:
    """Return the labels of --labels, or raise ValueError if they do not fit --data or --num-classes."""
    assert options.labels is not None
    labels = labels_of(options.labels, options)
    if labels.num_classes != options.num_classes:
        raise ValueError(
            f"--labels {options.labels} has {labels.num_classes:,} classes, not {options.num_classes:,}: "
            f"give --num-classes {labels.num_classes}"
        )
    return labels.labels
