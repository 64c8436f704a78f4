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

    The variant names the values that replace some of the recipe's (see `scales`). The base is the training
    that this one fine-tunes. Pseudo-labels come from another training of the same seed, or from a source of
    `fastpsl labels`: true, k-means, random. They are "coupled" if the training makes them itself.
    """

    backbone: str
    recipe: str | None = None  # None for random weights
    plan: str | None = None
    variant: str | None = None
    base: "Weights | None" = None
    labels: "Weights | str | None" = None
    channels: str = "RGB"  # of random weights; for others the recipe decides

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


@dataclass(frozen=True)
class Evaluation:
    """An evaluation of weights by a protocol."""

    name: str  # the key of its values in a scale
    recipe: str  # the name of its script, or of the command of `fastpsl`
    protocol: str  # as in result.json
    command: bool = False  # whether it is a command of `fastpsl`
    reads: tuple[str, ...] = ()  # names of OTHER_DATA that it reads instead of its table's data


@dataclass(frozen=True)
class Measure:
    """The number of one cell: what an evaluation of weights has in result.json under a name.

    Of several numbers "best" takes the one with the best mean over the seeds (the best block), and "mean" the
    mean of all. The mean over the seeds of the weights `minus` is subtracted.
    """

    weights: Weights
    evaluation: Evaluation
    numbers: tuple[str, ...]
    of: Literal["best", "mean"] = "best"
    minus: Weights | None = None


@dataclass(frozen=True)
class PaperImages:
    """The images that a paper's table is measured on, and those that trainings without labels learn from.

    Classifiers learn from the training images, too. `num_pretrain` is None if all trainings learn from the
    training images.
    """

    name: str
    num_train: int
    num_val: int
    num_pretrain: int | None = None


@dataclass(frozen=True)
class Row:
    """A row of a table, with the paper's number and our measure for each column.

    All numbers are None in a row that the paper does not have; a dash is None, too. There are no measures of
    a method that is not implemented here. The baseline is the method of the row that this one improves.
    """

    method: str
    arch: str
    numbers: tuple[float | None, ...]
    measures: tuple[Measure, ...] = ()
    million_parameters: int | None = None  # if the table has such a column
    baseline: str | None = None
    note: str = ""  # beside the method

    @property
    def printed(self) -> bool:
        """Whether the paper has the row."""
        return any(number is not None for number in self.numbers)


@dataclass(frozen=True)
class Table:
    """A table of a paper. Every number is a percentage."""

    name: str  # psl/5
    title: str
    number: str  # what the numbers are: top-1 accuracy, %
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]  # below the table
    gains: str  # the headline over what rows add to their baselines
    unmeasured: str  # why a row has the paper's numbers alone
    unprinted: str  # the mark of rows that the paper does not have
    images: PaperImages
    curves: bool = False  # drawn as lines over the columns, in a panel for each row that has a baseline

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
    def measures(self) -> list[Measure]:
        """The measures of all rows."""
        return [measure for row in self.rows for measure in row.measures]

    @property
    def reads(self) -> tuple[str, ...]:
        """The names of OTHER_DATA that evaluations read instead of the table's own."""
        return tuple(dict.fromkeys(name for each in self.measures for name in each.evaluation.reads))

    def row(self, method: str) -> Row:
        """Return the row of a method."""
        return next(row for row in self.rows if row.method == method)


BLOCKS = ("B1", "B2", "B3", "B4", "B5")


def _by(recipe: str, name: str, *reads: str) -> Evaluation:
    """Return an evaluation that is called as its protocol."""
    return Evaluation(name, recipe, name, reads=reads)


VISSL = _by("linear_probe", "linear/vissl")
MOCO = _by("linear_probe", "linear/moco")
UIC = _by("linear_probe", "linear/uic")
SSLPP = _by("linear_probe", "linear/sslpp")
PLACES205 = _by("linear_probe", "linear/vissl_places205", "places205")
INAT18 = _by("linear_probe", "linear/vissl_inat18", "inat18")
FEW_LABELS = Evaluation("semi_supervised/1", "semi_supervised", "semi_supervised")
MORE_LABELS = Evaluation("semi_supervised/10", "semi_supervised", "semi_supervised")
CLUSTERS = Evaluation("clusters", "clusters", "clusters", command=True)
BLOCK_PROBE = Evaluation("blocks", "block_probe", "block_probe")
STL_BLOCK_PROBE = Evaluation("blocks/stl", "block_probe", "block_probe")
KNN = Evaluation("knn/blocks", "knn", "knn/majority")
RETRIEVAL = Evaluation("retrieval", "retrieve", "retrieval", command=True)
TSNE = Evaluation("tsne", "tsne", "tsne", command=True)
SVM = _by("voc_svm", "svm/vissl", "voc")
DETECTION = _by("voc_detection", "detection/pirl", "voc")
FAST_RCNN = _by("voc_detection", "detection/fast_rcnn", "voc", "proposals")
SSLPP_DETECTION = _by("voc_detection", "detection/sslpp", "voc")
FCN_ALEXNET = _by("voc_segmentation", "segmentation/fcn_alexnet", "voc", "sbd")
SSLPP_SEGMENTATION = _by("voc_segmentation", "segmentation/sslpp", "voc")
FEW_SHOT = "few_shot"  # this protocol learns nothing from the images that it reads
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
