"""Build UIC's experiment from the options of a recipe, and write the labels that it leaves."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fastpsl.engine.experiment import Experiment
from fastpsl.engine.optim.schedules import linear_decay
from fastpsl.engine.run import Run
from fastpsl.models.checkpoint import read_checkpoint
from fastpsl.models.factory import make_backbone
from fastpsl.models.weight_files import sha256_of_file
from fastpsl.models.weights import newest_checkpoint
from fastpsl.pipelines.views import Input
from fastpsl.tasks.pseudo_labels.figures import draw_label_curves
from fastpsl.tasks.pseudo_labels.file import NAME, labels_of, write_labels
from fastpsl.tasks.pseudo_labels.options import UICOptions
from fastpsl.tasks.pseudo_labels.pseudo_classify import PseudoClassify
from fastpsl.tasks.pseudo_labels.uic import UIC


def build_uic(options: UICOptions) -> Experiment:
    """Build the experiment.

    Raises:
        ValueError: A file in the options cannot serve.
    """
    input, science = Input.usual(options.input_channels, options.size_px), dict[str, Any]()
    backbone = make_backbone(options.backbone, num_channels=input.num_channels, dropout=options.dropout)
    classifier: dict[str, Tensor] | None = None
    labels: np.ndarray | None = None
    if options.fine_tune is not None:
        path, state = _trained(options.fine_tune, options)
        backbone.load_state_dict(state["backbone"])
        classifier = state["train_step"]["head"]
        if (width := classifier["2.weight"].shape[1]) != backbone.channels[-1]:
            raise ValueError(
                f"--fine-tune {path}: its classifier reads {width} channels, "
                f"and the last block of {options.backbone} has {backbone.channels[-1]}: "
                "it was saved in an earlier stage; give a run that came to its end"
            )
        science["fine_tune"] = sha256_of_file(path)
        science["fine_tuned"] = state["science"]  # because tables of results need the training of the base
    if options.pseudo_labels is not None:
        labels = _given(options)
        science["labels"] = sha256_of_file(options.pseudo_labels)
    task = UIC(
        options.num_clusters,
        input,
        options.size_px,
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


def _given(options: UICOptions) -> np.ndarray:
    """Return the labels of --pseudo-labels; ValueError if they do not fit --data or --num-clusters."""
    assert options.pseudo_labels is not None
    labels = labels_of(options.pseudo_labels, options)
    if labels.num_classes != options.num_clusters:
        raise ValueError(
            f"--pseudo-labels {options.pseudo_labels} has {labels.num_classes:,} classes, not "
            f"{options.num_clusters:,}: give --num-clusters {labels.num_classes}"
        )
    return labels.labels
