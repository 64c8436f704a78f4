"""Build IIC's experiment from the options of a recipe, and write the labels that SSL++ reads."""

from collections.abc import Sequence
from functools import partial

import numpy as np

from fastpsl.console.words import percent
from fastpsl.engine.experiment import Experiment
from fastpsl.engine.optim.schedules import step_drops
from fastpsl.engine.optim.sgd_adam import adam
from fastpsl.engine.run import Run
from fastpsl.models.checkpoint import read_checkpoint
from fastpsl.models.factory import make_backbone
from fastpsl.models.weights import was_cut_short
from fastpsl.tasks.pseudo_labels.figures import draw_label_curves
from fastpsl.tasks.pseudo_labels.file import NAME, SECOND_NAME, write_labels
from fastpsl.tasks.pseudo_labels.iic import IIC, input_of
from fastpsl.tasks.pseudo_labels.options import IICOptions
from fastpsl.tasks.pseudo_labels.scores import hungarian_accuracy, many_to_one_accuracy, nmi


def build_iic(options: IICOptions) -> Experiment:
    task = IIC(
        options.num_clusters,
        size_px=options.size_px,
        crop_share=options.crop_share,
        transforms=options.augment,
        num_copies=options.num_copies,
        num_sub_heads=options.num_sub_heads,
        second_clusters=options.second_clusters if options.num_heads == 2 else None,
        seed=options.seed,
    )
    channels = input_of(options.augment, options.size_px).num_channels
    backbone = make_backbone(options.backbone, num_channels=channels)
    return Experiment(
        task=task,
        backbone=backbone,
        stages=options.stages(task.num_levels, backbone.num_blocks),
        schedule=step_drops(options.lr, (1,)),
        optimiser=partial(adam, weight_decay=0.0),
        frozen_batchnorm=options.frozen_batchnorm,
        finish=partial(leave_labels, task),
    )


def leave_labels(task: IIC, run: Run) -> Sequence[str]:
    """Write labels.npz, labels_b.npz of a second head, and labels.png to the run's folder.

    They are those of the last checkpoint. Return the lines to print.
    """
    state = read_checkpoint(run.last_checkpoint())
    state_of_task = state["task"]
    best, num_sub_heads = state_of_task["best_sub_head"] + 1, task.num_sub_heads
    labels, num_clusters = state_of_task["labels"].numpy(), task.num_clusters
    data, true = run.data.train, run.data.train.labels()
    recipe, cut = str(run.science["recipe"]), was_cut_short(state)
    path = write_labels(
        run.folder / NAME, labels, num_clusters, data, recipe, entropy=state_of_task["entropy"].numpy(),
        configuration={**run.science, "source": "iic", "cut": cut},
    )  # fmt: skip
    curves = draw_label_curves(run.folder)
    facts = [
        f"labels by sub-head {best} of {num_sub_heads}, which had the lowest loss",
        f"{len(np.unique(labels))} of {num_clusters} clusters are not empty",
    ]
    if (true >= 0).any():
        facts.append(
            f"with the true labels NMI {nmi(labels, true):.3f}, "
            f"accuracy {percent(hungarian_accuracy(labels, true))} matched one to one, "
            f"{percent(many_to_one_accuracy(labels, true))} each cluster as its commonest class"
        )
    if state_of_task.get("second_labels") is not None:
        second, num_second = state_of_task["second_labels"].numpy(), list(task.sizes.values())[1]
        write_labels(
            run.folder / SECOND_NAME, second, num_second, data, recipe,
            configuration={**run.science, "source": "iic_b", "cut": cut},
        )  # fmt: skip
        if (true >= 0).any():
            facts.append(
                f"the second head's {num_second} clusters: accuracy "
                f"{percent(hungarian_accuracy(second, true))} matched one to one"
            )
    return ["; ".join(facts), f"labels {path}", *([f"label curves {curves}"] if curves else [])]
