"""What a table has: rows of a method, the weights and evaluations that they need, and the paper's numbers."""

from collections.abc import Callable
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


@dataclass(frozen=True)
class PaperImages:
    """The images that a paper's table is measured on.

    Attributes:
        name: The name of the data set.
        num_train: The number of training images, of classifiers too.
        num_val: The number of validation images.
        num_pretrain: The number of images that trainings without labels learn from, if these are others.
    """

    name: str
    num_train: int
    num_val: int
    num_pretrain: int | None = None


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        method: The name of the row.
        arch: The network, as printed.
        numbers: The paper's numbers; None for a dash. All are None in a row that the paper does not have.
        measures: One per column; empty if the method is not implemented here.
        million_parameters: As printed; None if the table has no such column.
        baseline: The method of the row that this one improves.
        note: A remark beside the method.
    """

    method: str
    arch: str
    numbers: tuple[float | None, ...]
    measures: tuple[Measure, ...] = ()
    million_parameters: int | None = None
    baseline: str | None = None
    note: str = ""

    @property
    def printed(self) -> bool:
        """Whether the paper has the row."""
        return any(number is not None for number in self.numbers)


@dataclass(frozen=True)
class Table:
    """A table of a paper. Every number is a percentage.

    Attributes:
        name: The paper and the table, such as psl/5.
        title: The title of the page.
        number: What the numbers are, such as "top-1 accuracy, %".
        columns: The titles of the columns.
        rows: The rows.
        notes: The notes below the table.
        gains: The headline over what rows add to their baselines.
        unmeasured: Why a row has the paper's numbers alone.
        unprinted: The mark of rows that the paper does not have.
        images: The images of the paper's numbers.
        curves: Whether it is drawn as lines over the columns, in a panel for each row that has a baseline.
    """

    name: str
    title: str
    number: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    gains: str
    unmeasured: str
    unprinted: str
    images: PaperImages
    curves: bool = False

    @property
    def paper(self) -> str:
        """The paper: the word before the slash."""
        return self.name.partition("/")[0]

    @property
    def folder(self) -> str:
        """The folder of its runs: the paper, and the data set if the name has one, as in sslpp-stl."""
        paper, _, number = self.name.partition("/")
        return paper + "".join(number.partition("-")[1:])

    @property
    def pretrains_elsewhere(self) -> bool:
        """Whether trainings without labels learn from other images than evaluations do."""
        return self.images.num_pretrain is not None

    @property
    def reads(self) -> tuple[str, ...]:
        """The names of the data that evaluations read instead of the table's own (see `other_data`)."""
        evaluations = (measure.evaluation for row in self.rows for measure in row.measures)
        return tuple(dict.fromkeys(name for evaluation in evaluations for name in evaluation.reads))

    def row(self, method: str) -> Row:
        """Return the row of a method."""
        return next(row for row in self.rows if row.method == method)


BLOCKS = ("B1", "B2", "B3", "B4", "B5")

VISSL = Evaluation("linear/vissl", "linear_probe", "linear/vissl")
MOCO = Evaluation("linear/moco", "linear_probe", "linear/moco")
UIC = Evaluation("linear/uic", "linear_probe", "linear/uic")
SSLPP = Evaluation("linear/sslpp", "linear_probe", "linear/sslpp")
PLACES205 = Evaluation(
    "linear/vissl_places205", "linear_probe", "linear/vissl_places205", reads=("places205",)
)
INAT18 = Evaluation("linear/vissl_inat18", "linear_probe", "linear/vissl_inat18", reads=("inat18",))
FEW_LABELS = Evaluation("semi_supervised/1", "semi_supervised", "semi_supervised")
MORE_LABELS = Evaluation("semi_supervised/10", "semi_supervised", "semi_supervised")
CLUSTERS = Evaluation("clusters", "clusters", "clusters", command=True)
BLOCK_PROBE = Evaluation("blocks", "block_probe", "block_probe")
STL_BLOCK_PROBE = Evaluation("blocks/stl", "block_probe", "block_probe")
KNN = Evaluation("knn/blocks", "knn", "knn/majority")
RETRIEVAL = Evaluation("retrieval", "retrieve", "retrieval", command=True)
TSNE = Evaluation("tsne", "tsne", "tsne", command=True)
SVM = Evaluation("svm/vissl", "voc_svm", "svm/vissl", reads=("voc",))
DETECTION = Evaluation("detection/pirl", "voc_detection", "detection/pirl", reads=("voc",))
FAST_RCNN = Evaluation(
    "detection/fast_rcnn", "voc_detection", "detection/fast_rcnn", reads=("voc", "proposals")
)
SSLPP_DETECTION = Evaluation("detection/sslpp", "voc_detection", "detection/sslpp", reads=("voc",))
FCN_ALEXNET = Evaluation(
    "segmentation/fcn_alexnet", "voc_segmentation", "segmentation/fcn_alexnet", reads=("voc", "sbd")
)
SSLPP_SEGMENTATION = Evaluation(
    "segmentation/sslpp", "voc_segmentation", "segmentation/sslpp", reads=("voc",)
)
# This protocol learns nothing from the images that it reads.
FEW_SHOT = "few_shot"
FEW_SHOTS = {
    size_px: Evaluation(f"few_shot/{size_px}", "few_shot", FEW_SHOT, reads=("mini_imagenet",))
    for size_px in (224, 84)
}


def classification(protocol: str, layers: str) -> Evaluation:
    """Return the evaluation that learns VOC's classes with these layers: fc6_8 or all."""
    name = f"classification/{protocol}"
    return Evaluation(f"{name}_{layers}", "voc_classification", name, reads=("voc",))


# A function of a row's weights to the measures of the row's cells.
Columns = Callable[[Weights], tuple[Measure, ...]]


def each(evaluation: Evaluation, *numbers: str) -> Columns:
    """Return columns of one number each."""
    return lambda weights: tuple(Measure(weights, evaluation, (number,)) for number in numbers)


def best(evaluation: Evaluation, *numbers: str) -> Columns:
    """Return one column, the best of several numbers."""
    return lambda weights: (Measure(weights, evaluation, numbers),)


def mean(evaluation: Evaluation, *numbers: str) -> Columns:
    """Return one column, the mean of several numbers."""
    return lambda weights: (Measure(weights, evaluation, numbers, of="mean"),)


def side_by_side(*parts: Columns) -> Columns:
    """Return the columns of all parts, in order."""
    return lambda weights: tuple(measure for part in parts for measure in part(weights))


def with_mean(evaluation: Evaluation, *numbers: str) -> Columns:
    """Return columns of one number each, and their mean as the last."""
    return side_by_side(each(evaluation, *numbers), mean(evaluation, *numbers))
