"""Build SSL++'s experiment from the options of a recipe and its proxy task."""

import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastpsl.console.terminal import own_rank
from fastpsl.engine.experiment import Experiment
from fastpsl.engine.optim.schedules import step_drops
from fastpsl.models.factory import make_backbone
from fastpsl.pipelines.views import Input, center_view, train_view
from fastpsl.tasks.pseudo_labels.figures import collapse, label_figures
from fastpsl.tasks.pseudo_labels.file import Labels, labels_of
from fastpsl.tasks.sslpp.options import COUPLED, NONE, SSLPlusPlusOptions
from fastpsl.tasks.sslpp.sslpp import Proxy, SSLPlusPlus

Optimiser = Callable[[Iterable[tuple[str, nn.Parameter]]], torch.optim.Optimizer]


def build_sslpp(
    options: SSLPlusPlusOptions, proxy: Proxy, optimiser: Optimiser, factor: float = 0.1
) -> Experiment:
    """Build the experiment of a proxy task; `factor` multiplies the rate at each drop.

    Raises:
        ValueError: The pseudo-labels do not fit the data.
    """
    rgb = Input.usual("RGB", options.size_px)
    network_input = proxy.view().input() if options.proxy else rgb
    labels, record = None, dict[str, Any](source=options.pseudo_labels)
    if options.pseudo_labels == COUPLED:
        record["num_classes"] = options.num_clusters
    elif options.pseudo_labels != NONE:
        file = _labels(Path(options.pseudo_labels), options)
        labels = file.labels
        # The digest is recorded, too, because the same settings may give other labels, as in a run that was
        # cut.
        record = dict(file.configuration) | {"num_classes": file.num_classes, "digest": file.digest()}
    coupled = options.pseudo_labels == COUPLED
    task = SSLPlusPlus(
        proxy,
        train_view(rgb, options.size_px, options.crop),
        learn_proxy=options.proxy,
        weight=options.semantic_weight,
        num_classes=record.get("num_classes", 0),
        labels=labels,
        center=center_view(network_input, options.size_px, whole=True) if coupled else None,
        seed=options.seed,
    )
    backbone = make_backbone(options.backbone, num_channels=network_input.num_channels)
    return Experiment(
        task=task,
        backbone=backbone,
        stages=options.stages(task.num_levels, backbone.num_blocks),
        schedule=step_drops(options.lr, options.intervals, factor),
        optimiser=optimiser,
        science={"pseudo_labels": record},
        frozen_batchnorm=options.frozen_batchnorm,
    )


def _labels(path: Path, options: SSLPlusPlusOptions) -> Labels:
    """Return the labels in the file; rank 0 reports their sizes and warns of a collapse or a cut run."""
    if not path.exists():
        raise ValueError(
            f"--pseudo-labels {path}: there is no such file; allowed are {NONE}, {COUPLED}, "
            "and a file of labels"
        )
    file = labels_of(path, options)
    if own_rank() == 0:
        figures = label_figures(file.labels, None, None, file.num_classes, options.seed)
        print(
            f"pseudo-labels: {path}, by {file.made_by}: {figures['non_empty']:,.0f} of {file.num_classes:,} "
            f"classes have images, the biggest {figures['biggest']:.1%} of them",
            flush=True,
        )
        if file.configuration.get("cut"):
            warnings.warn(f"{path} was made by a run that --max-steps-per-stage cut short", stacklevel=2)
        if (crowded := collapse(figures, file.num_classes)) is not None:
            warnings.warn(f"{path}: {crowded}", stacklevel=2)
    return file
