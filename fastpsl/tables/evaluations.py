"""List the evaluations of the tables, and build the columns that they fill."""

from collections.abc import Callable

from fastpsl.tables.rows import Evaluation, Measure, Weights

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
