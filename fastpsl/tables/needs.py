"""What a number of a table is measured on: which weights, by which evaluation, under which name in result.json."""

from dataclasses import dataclass
from typing import Literal

SUPERVISED = "supervised"
# Of pseudo-labels that no file holds.
COUPLED, NO_LABELS = "coupled", "none"


@dataclass(frozen=True)
class Weights:
    """Of a training by `recipe` with `plan`; without a recipe they are random. variant: its values replace some of the recipe's.

    base: the training that this one fine-tunes. labels: whose pseudo-labels it learns: those that another training of the same seed
    leaves, those of `fastpsl labels` (true, k-means, random), or "coupled", which it makes itself; None for none.
    channels: what random weights see; of others their recipe's values say it.
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
        """The training that must have come to its end before this one begins."""
        return self.labels if isinstance(self.labels, Weights) else self.base

    @property
    def label_file(self) -> str | None:
        """Which labels `fastpsl labels` must have written."""
        return self.labels if isinstance(self.labels, str) and self.labels != COUPLED else None

    @property
    def label_source(self) -> str:
        """As the science of a run calls it."""
        return self.labels.kind if isinstance(self.labels, Weights) else self.labels or NO_LABELS

    @property
    def with_labels(self) -> bool:
        """Whether it learns from what people have annotated, as a classifier does."""
        return self.recipe == SUPERVISED

    @property
    def kind(self) -> str:
        """The recipe's own word."""
        return self.recipe.removeprefix("sslpp_").split("_")[0] if self.recipe else "random"

    @property
    def name(self) -> str:
        """As it stands in names of folders."""
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
    """A protocol. `name` is the key of its settings in a scale. recipe: its script, or for a `command` that of `fastpsl`.

    reads: the data that it reads in the place of its table's, by their names in `other_data`; nothing for its table's.
    """

    name: str
    recipe: str
    protocol: str
    command: bool = False
    reads: tuple[str, ...] = ()

    @property
    def folder_name(self) -> str:
        return self.name.replace("/", "-")


@dataclass(frozen=True)
class Measure:
    """One cell's number. Of several `numbers` the one with the best mean over the seeds counts (the best block), or their mean.

    minus: the weights whose number, their seeds' mean, is taken off.
    """

    weights: Weights
    evaluation: Evaluation
    numbers: tuple[str, ...]
    of: Literal["best", "mean"] = "best"
    minus: Weights | None = None
