"""The sizes at which a table is measured: the paper's, and tiny ones for two cores. One table of values a scale.

A result counts only where it was made with exactly these values; the commands of `tiny` spell all of them, those of `paper` only
what a recipe does not do by itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from fastpsl.kernels.permutations import permutation_set
from fastpsl.options import PretrainOptions, RunOptions
from fastpsl.permutations import permutations_digest
from fastpsl.tables.needs import CLUSTERS, Evaluation, Weights

# May differ between results that are averaged: what a seed or a machine decides, and what changes no expected value.
FREE = frozenset({"seed", "data_digest", "precision", "order", "lanes", "apex"})


@dataclass(frozen=True)
class Scale:
    """values: recipe, or an evaluation's name → option → value; None, which commands leave out, is what the recipe does by itself.

    flags: those of them that commands spell; None for all.
    about: by paper. comparable: whether a difference to the paper's number means anything.
    """

    name: str
    about: Mapping[str, str]
    seeds: tuple[int, ...]
    num_processes: int
    comparable: bool
    values: Mapping[str, Mapping[str, Any]]
    flags: Mapping[str, tuple[str, ...]] | None = None

    def spelled(self, name: str) -> dict[str, Any]:
        """Option → value, as a command gives them for a recipe or an evaluation."""
        values = self.values[name]
        return dict(values) if self.flags is None else {key: values[key] for key in self.flags.get(name, ())}

    def training_science(self, weights: Weights) -> dict[str, Any]:
        """What must stand in the science of the run that made the weights."""
        assert weights.recipe
        ours = {"recipe": weights.recipe, "backbone": weights.backbone, "plan": weights.plan}
        values = {name: plain(value) for name, value in self.training_values(weights).items()}
        if weights.recipe == "jigsaw_r50":  # not those of a file
            values["permutations"] = _made_permutations(values["grid"] ** 2, tuple(values["counts"]))
        return {k: v for k, v in (PretrainOptions().science() | values | ours).items() if k not in FREE}

    def training_values(self, weights: Weights) -> dict[str, Any]:
        """Of the recipe, with those of the variant in their place."""
        assert weights.recipe
        return {**self.values[weights.recipe], **self._of_variant(weights)}

    def training_flags(self, weights: Weights) -> dict[str, Any]:
        """Option → value, as the command gives them."""
        assert weights.recipe
        return self.spelled(weights.recipe) | dict(self._of_variant(weights))

    def _of_variant(self, weights: Weights) -> Mapping[str, Any]:
        return self.values[f"{weights.recipe}/{weights.variant}"] if weights.variant else {}

    def channels(self, weights: Weights) -> str:
        """What the network must see."""
        return (
            str(self.training_values(weights).get("channels", "RGB")) if weights.recipe else weights.channels
        )

    def evaluation_settings(self, evaluation: Evaluation) -> dict[str, Any]:
        """What must stand in the settings of a result."""
        values = {name: plain(value) for name, value in self.values[evaluation.name].items()}
        options = {} if evaluation == CLUSTERS else RunOptions().science()
        return {k: v for k, v in (options | values).items() if k not in FREE}


@cache
def _made_permutations(num_pieces: int, counts: tuple[int, ...]) -> str:
    return permutations_digest(permutation_set(num_pieces, counts).permutations)


def plain(value: Any) -> Any:
    """As JSON gives it back."""
    return [plain(part) for part in value] if isinstance(value, tuple) else value


PAPER = Scale(
    name="paper",
    about={
        "psl": "The paper's sizes: crops of 224 px (jigsaw: tiles of 64), batches of 256, 180 or 200 epochs.",
        "uic": "The paper's sizes: crops of 224 px, batches of 256, 500 epochs.",
    },
    seeds=(0,),
    num_processes=8,
    comparable=True,
    values={
        "jigsaw_r50": {
            "stage_epochs": (60, 60, 60), "batch_size": 256, "lr": 0.01, "intervals": (20, 20, 10, 10),
            "counts": (500, 1000, 2000), "grid": 3, "shorter_px": 256, "cell_px": 75, "tile_px": 64,
            "permutations_per_image": 1, "embedding_width": 1000,
        },
        "jigsaw_r50/reversed": {"levels": (3, 2, 1)},
        "jigsaw_r50/soon_hard": {"levels": (1, 3, 3)},
        "jigsaw_r50/rising": {"stage_epochs": (30, 60, 90)},
        "jigsaw_r50/two_stages": {"stage_epochs": (90, 90)},
        "jigsaw_r50/no_overlap": {"partition": ("1-2", "3-4", "5")},
        "rotation_rv50": {
            "stage_epochs": (60, 60, 60), "batch_size": 256, "lr": 0.01, "intervals": (20, 20, 10, 10),
            "shorter_px": 256, "size_px": 224, "rotations_per_image": "one",
        },
        "simclr_r50": {
            "stage_epochs": (60, 70, 70), "batch_size": 256, "lr": 0.3, "warmup_epochs": 10.0, "trust": 0.001,
            "weight_decay": 1e-6, "temperature": 0.1, "size_px": 224, "embedding_width": 128, "sync_batchnorm": True,
        },
        "mocov2_r50": {
            "stage_epochs": (60, 70, 70), "batch_size": 256, "lr": 0.03, "queue_size": 65_536, "momentum": 0.999,
            "temperature": 0.2, "key_group": 32, "size_px": 224, "embedding_width": 128,
        },
        "supervised": {
            "stage_epochs": (90,), "batch_size": 256, "lr": 0.1, "intervals": (30, 30, 20, 10), "weight_decay": 1e-4,
            "size_px": 224,
        },
        "supervised/alexnet": {},
        "uic_alexnet": {
            "stage_epochs": (500,), "batch_size": 256, "lr": 0.1, "weight_decay": 1e-4, "dropout": None, "num_classes": 3000,
            "channels": "SobelXY", "augmentation": "standard", "label_view": "train", "size_px": 224,
        },
        "uic_alexnet/5k": {"num_classes": 5000},
        "uic_alexnet/10k": {"num_classes": 10_000},
        "uic_alexnet/center": {"label_view": "center"},
        "uic_alexnet/strong": {"augmentation": "strong"},
        "uic_alexnet/tuned": {"stage_epochs": (30,), "lr": 0.01},
        "uic_r50": {
            "stage_epochs": (500,), "batch_size": 256, "lr": 0.1, "weight_decay": 1e-4, "dropout": None, "num_classes": 3000,
            "channels": "RGB", "augmentation": "strong", "label_view": "train", "size_px": 224,
        },
        "deepcluster_alexnet": {
            "stage_epochs": (500,), "batch_size": 256, "lr": 0.05, "weight_decay": 1e-5, "dropout": None,
            "num_classes": 10_000, "pca_width": 256, "k_means_iterations": 20, "channels": "SobelXY", "size_px": 224,
        },
        "linear/vissl": {"protocol": "vissl", "size_px": 224, "batch_size": 256, "epochs": 28, "lr": 0.01},
        "linear/moco": {"protocol": "moco", "size_px": 224, "batch_size": 256, "epochs": 100, "lr": 30.0},
        "semi_supervised/1": {
            "protocol": "pirl", "percent": 1.0, "size_px": 224, "batch_size": 256, "epochs": 70, "lr": 0.01,
        },
        "semi_supervised/10": {
            "protocol": "pirl", "percent": 10.0, "size_px": 224, "batch_size": 256, "epochs": 70, "lr": 0.01,
        },
        "linear/uic": {"protocol": "uic", "size_px": 224, "batch_size": 256, "epochs": 32, "lr": 0.1},
        "clusters": {"nmi_average": "arithmetic"},
    },
    flags={
        "simclr_r50": ("sync_batchnorm",),
        "linear/vissl": ("protocol",),
        "linear/moco": ("protocol",),
        "linear/uic": ("protocol",),
        "semi_supervised/1": ("protocol", "percent"),
        "semi_supervised/10": ("protocol", "percent"),
    },
)  # fmt: skip

# Lengths in px are a quarter of the paper's, so that 64-px pictures serve; rates, epochs and levels suit some hundred pictures.
TINY = Scale(
    name="tiny",
    about={
        "psl": "Tiny sizes, for any folder of pictures of 64 px or more: lengths in pixels are a quarter of the paper's, batches are "
        "of 32, networks are the paper's; 10 % and 50 % of the labels stand for 1 % and 10 %. It says nothing about ImageNet.",
        "uic": "Tiny sizes, for any folder of pictures of 64 px or more: crops of 64 px, batches of 32, networks are the paper's; 8, 12 "
        "and 16 pseudo-classes stand for 3,000, 5,000 and 10,000. It says nothing about ImageNet.",
    },
    seeds=(0, 1, 2),
    num_processes=1,
    comparable=False,
    values={
        "jigsaw_r50": {
            "stage_epochs": (6, 6, 6), "batch_size": 32, "lr": 0.03, "intervals": (4, 1, 1),
            "counts": (16, 32, 64), "grid": 3, "shorter_px": 64, "cell_px": 19, "tile_px": 16,
            "permutations_per_image": 8, "embedding_width": 64,
        },
        "jigsaw_r50/reversed": {"levels": (3, 2, 1)},
        "jigsaw_r50/soon_hard": {"levels": (1, 3, 3)},
        "jigsaw_r50/rising": {"stage_epochs": (3, 6, 9)},
        "jigsaw_r50/two_stages": {"stage_epochs": (9, 9)},
        "jigsaw_r50/no_overlap": {"partition": ("1-2", "3-4", "5")},
        "rotation_rv50": {
            "stage_epochs": (6, 6, 6), "batch_size": 32, "lr": 0.03, "intervals": (4, 1, 1),
            "shorter_px": 64, "size_px": 56, "rotations_per_image": "one",
        },
        "simclr_r50": {
            "stage_epochs": (6, 7, 7), "batch_size": 32, "lr": 0.2, "warmup_epochs": 1.0, "trust": 0.01,
            "weight_decay": 1e-6, "temperature": 0.2, "size_px": 56, "embedding_width": 128,
        },
        "mocov2_r50": {
            "stage_epochs": (6, 7, 7), "batch_size": 32, "lr": 0.12, "queue_size": 64, "momentum": 0.99,
            "temperature": 0.2, "key_group": 16, "size_px": 56, "embedding_width": 128,
        },
        "supervised": {
            "stage_epochs": (18,), "batch_size": 32, "lr": 0.2, "intervals": (30, 30, 20, 10), "weight_decay": 1e-4,
            "size_px": 56,
        },
        "supervised/alexnet": {"size_px": 64},
        "uic_alexnet": {
            "stage_epochs": (12,), "batch_size": 32, "lr": 0.05, "weight_decay": 1e-4, "dropout": None, "num_classes": 8,
            "channels": "SobelXY", "augmentation": "standard", "label_view": "train", "size_px": 64,
        },
        "uic_alexnet/5k": {"num_classes": 12},
        "uic_alexnet/10k": {"num_classes": 16},
        "uic_alexnet/center": {"label_view": "center"},
        "uic_alexnet/strong": {"augmentation": "strong"},
        "uic_alexnet/tuned": {"stage_epochs": (4,), "lr": 0.005},
        "uic_r50": {
            "stage_epochs": (8,), "batch_size": 32, "lr": 0.03, "weight_decay": 1e-4, "dropout": None, "num_classes": 8,
            "channels": "RGB", "augmentation": "strong", "label_view": "train", "size_px": 64,
        },
        "deepcluster_alexnet": {
            "stage_epochs": (12,), "batch_size": 32, "lr": 0.05, "weight_decay": 1e-5, "dropout": None,
            "num_classes": 16, "pca_width": 32, "k_means_iterations": 20, "channels": "SobelXY", "size_px": 64,
        },
        "linear/vissl": {"protocol": "vissl", "size_px": 56, "batch_size": 32, "epochs": 14, "lr": 0.05},
        "linear/moco": {"protocol": "moco", "size_px": 56, "batch_size": 32, "epochs": 25, "lr": 30.0},
        "semi_supervised/1": {
            "protocol": "pirl", "percent": 10.0, "size_px": 56, "batch_size": 16, "epochs": 30, "lr": 0.4,
        },
        "semi_supervised/10": {
            "protocol": "pirl", "percent": 50.0, "size_px": 56, "batch_size": 16, "epochs": 30, "lr": 0.4,
        },
        "linear/uic": {"protocol": "uic", "size_px": 64, "batch_size": 32, "epochs": 16, "lr": 0.1},
        "clusters": {"nmi_average": "arithmetic"},
    },
)  # fmt: skip

SCALES = {scale.name: scale for scale in (PAPER, TINY)}
