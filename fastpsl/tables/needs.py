"""Describe what a number of a table is measured on: weights, an evaluation, and a name in result.json."""

from dataclasses import dataclass
from typing import Literal

SUPERVISED = "supervised"
# Sources of pseudo-labels that no file holds.
COUPLED, NO_LABELS = "coupled", "none"


@dataclass(frozen=True)
class Weights:
    """The weights that a training leaves, or random ones.

    Attributes:
        backbone: The backbone's name.
        recipe: The recipe that trains them; None for random weights.
        plan: The plan of the training.
        variant: The name of the values that replace some of the recipe's (see `scales`).
        base: The training that this one fine-tunes.
        labels: The source of the pseudo-labels that it learns: another training of the same seed, a source of
            `fastpsl labels` (true, k-means, random), or "coupled" if it makes them itself. None for none.
        channels: The channels that random weights see. For others the recipe decides.
    """

    backbone: str
    recipe: str | None = None
    plan: str | None = None
    variant: str | None = None
    base: "Weights | None" = None
    labels: "Weights | str | None" = None
    channels: str = "RGB"

    @property
    def before(self) -> "Weights | None":
        """The training that must have finished before this one begins."""
        return self.labels if isinstance(self.labels, Weights) else self.base

    @property
    def label_file(self) -> str | None:
        """The source that `fastpsl labels` must have written labels of; None if it need not."""
        return self.labels if isinstance(self.labels, str) and self.labels != COUPLED else None

    @property
    def label_source(self) -> str:
        """The name of the pseudo-labels' source in the science of a run."""
        return self.labels.kind if isinstance(self.labels, Weights) else self.labels or NO_LABELS

    @property
    def with_labels(self) -> bool:
        """Whether it learns from the annotated labels."""
        return self.recipe == SUPERVISED

    @property
    def kind(self) -> str:
        """The recipe's first word: jigsaw, rotation, uic, random…"""
        return self.recipe.removeprefix("sslpp_").split("_")[0] if self.recipe else "random"

    @property
    def name(self) -> str:
        """The name in the names of folders."""
        labels = self.labels
        words = (
            self.kind,
            self.plan,
            self.variant,
            "_".join(word for word in (labels.kind, labels.variant) if word)
            if isinstance(labels, Weights)
            else labels,
            self.channels if self.channels != "RGB" else None,
            self.backbone,
        )
        return "-".join(word for word in words if word)


@dataclass(frozen=True)
class Evaluation:
    """An evaluation of weights by a protocol.

    Attributes:
        name: The key of its values in a scale.
        recipe: The name of its script, or of the command of `fastpsl`.
        protocol: The protocol in result.json.
        command: Whether it is a command of `fastpsl`.
        reads: The names (see `other_data`) of the data that it reads instead of its table's.
    """

    name: str
    recipe: str
    protocol: str
    command: bool = False
    reads: tuple[str, ...] = ()

    @property
    def folder_name(self) -> str:
        """The name in the names of folders."""
        return self.name.replace("/", "-")


@dataclass(frozen=True)
class Measure:
    """The number of one cell.

    Attributes:
        weights: The weights that it is measured on.
        evaluation: The evaluation that measures it.
        numbers: Its name in result.json, or the names of several numbers.
        of: "best" takes the number with the best mean over the seeds (the best block), "mean" the mean of
            all numbers.
        minus: The weights to subtract the number of, which is the mean over their seeds.
    """

    weights: Weights
    evaluation: Evaluation
    numbers: tuple[str, ...]
    of: Literal["best", "mean"] = "best"
    minus: Weights | None = None
