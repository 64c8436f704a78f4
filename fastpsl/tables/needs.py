"""What a number of a table is measured on: which weights, by which evaluation, under which name in result.json."""

from dataclasses import dataclass

BLOCKS = ("B1", "B2", "B3", "B4", "B5")


@dataclass(frozen=True)
class Weights:
    """Of a training by `recipe` with `plan`; without a recipe they are random. variant: its values replace some of the recipe's.

    base: the training that this one fine-tunes. channels: what random weights see; of others their recipe's values say it.
    """

    backbone: str
    recipe: str | None = None
    plan: str | None = None
    variant: str | None = None
    base: "Weights | None" = None
    channels: str = "RGB"

    @property
    def name(self) -> str:
        """As it stands in names of folders."""
        words = (
            self.recipe.split("_")[0] if self.recipe else "random",
            self.plan,
            self.variant,
            self.channels if self.channels != "RGB" else None,
            self.backbone,
        )
        return "-".join(word for word in words if word)


@dataclass(frozen=True)
class Evaluation:
    """A script's protocol. `name` is the key of its settings in a scale. recipe: its script, or the command `fastpsl clusters`."""

    name: str
    recipe: str
    protocol: str

    @property
    def folder_name(self) -> str:
        return self.name.replace("/", "-")


@dataclass(frozen=True)
class Measure:
    """One cell's number. Of several `numbers` the one with the best mean over the seeds counts: the best block."""

    weights: Weights
    evaluation: Evaluation
    numbers: tuple[str, ...]


VISSL = Evaluation("linear/vissl", "linear_probe", "linear/vissl")
MOCO = Evaluation("linear/moco", "linear_probe", "linear/moco")
FEW_LABELS = Evaluation("semi_supervised/1", "semi_supervised", "semi_supervised")
MORE_LABELS = Evaluation("semi_supervised/10", "semi_supervised", "semi_supervised")
UIC = Evaluation("linear/uic", "linear_probe", "linear/uic")
CLUSTERS = Evaluation("clusters", "clusters", "clusters")


def each_block(weights: Weights) -> tuple[Measure, ...]:
    """Linear classifiers on B1 to B5, a column each."""
    return tuple(Measure(weights, VISSL, (f"top1_{block}",)) for block in BLOCKS)


def best_block(weights: Weights) -> tuple[Measure, ...]:
    """The best of the linear classifiers on B1 to B5."""
    return (Measure(weights, VISSL, tuple(f"top1_{block}" for block in BLOCKS)),)


def final_features(weights: Weights) -> tuple[Measure, ...]:
    """A linear classifier on the average-pooled output of B5."""
    return (Measure(weights, MOCO, ("top1_final",)),)


def fine_tuned(weights: Weights) -> tuple[Measure, ...]:
    """Top-5 after fine-tuning all layers on 1 % and on 10 % of the labels."""
    return tuple(Measure(weights, evaluation, ("top5",)) for evaluation in (FEW_LABELS, MORE_LABELS))


def conv_layers(weights: Weights, first: int = 1) -> tuple[Measure, ...]:
    """Linear classifiers on AlexNet's conv layers from `first` to conv5, a column each."""
    return tuple(Measure(weights, UIC, (f"top1_B{layer}",)) for layer in range(first, 6))


def last_features(weights: Weights) -> tuple[Measure, ...]:
    """A linear classifier on the last block's output, averaged over all positions."""
    return (Measure(weights, UIC, ("top1_final",)),)


def nmi(weights: Weights) -> tuple[Measure, ...]:
    """NMI t/labels: of the training's last pseudo-labels and the annotated ones, in percent."""
    return (Measure(weights, CLUSTERS, ("nmi_true",)),)
