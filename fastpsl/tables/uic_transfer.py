"""Tables 5 and 6 of uic.txt, on other data, number by number as they are printed."""

from fastpsl.tables.needs import FEW_SHOT, Evaluation, Measure, Weights
from fastpsl.tables.rows import Row, Table
from fastpsl.tables.uic import DEEPCLUSTER, RANDOM, RANDOM_SOBEL, SUPERVISED, TUNED, UIC

_CLASSIFICATION = ("voc_classification", "classification/deepcluster")
FC6_8 = Evaluation("classification/deepcluster_fc6_8", *_CLASSIFICATION, reads=("voc",))
ALL = Evaluation("classification/deepcluster_all", *_CLASSIFICATION, reads=("voc",))
DETECTION = Evaluation(
    "detection/fast_rcnn", "voc_detection", "detection/fast_rcnn", reads=("voc", "proposals")
)
SEGMENTATION = Evaluation(
    "segmentation/fcn_alexnet", "voc_segmentation", "segmentation/fcn_alexnet", reads=("voc", "sbd")
)
FEW_SHOTS = {
    size_px: Evaluation(f"few_shot/{size_px}", "few_shot", FEW_SHOT, reads=("mini_imagenet",))
    for size_px in (224, 84)
}


def _table_5() -> Table:
    def row(
        method: str,
        numbers: tuple[float | None, ...],
        weights: Weights | None = None,
        baseline: str | None = None,
        note: str = "",
    ) -> Row:
        measures: tuple[Measure, ...] = ()
        if weights is not None:
            measures = (
                Measure(weights, FC6_8, ("mAP",)),
                Measure(weights, ALL, ("mAP",)),
                Measure(weights, DETECTION, ("AP50",)),
                Measure(weights, SEGMENTATION, ("mIoU",)),
            )
        return Row(method, "AlexNet", numbers, measures, baseline=baseline, note=note)

    return Table(
        "uic/5",
        "Fine-tuned on PASCAL VOC, AlexNet (UIC, Table 5)",
        "mean AP, mean IoU, %",
        ("Class. FC6-8", "Class. ALL", "Detection ALL", "Segm. ALL"),
        (
            row("ImageNet Labels", (78.9, 79.9, 56.8, 48.0), SUPERVISED, note="ours sees RGB"),
            row("Random-RGB", (33.2, 57.0, 44.5, 30.1), RANDOM),
            row(
                "Random-Sobel",
                (29.0, 61.9, 47.9, 32.0),
                RANDOM_SOBEL,
                note="what the rows below begin with",
            ),
            row("DeepCluster [2]", (72.0, 73.7, 55.4, 45.1), DEEPCLUSTER),
            row("SelfLabeling 3k × 10 [1]", (None, 75.3, 55.9, 43.7)),
            row(
                "Ours",
                (76.2, 75.9, 54.9, 45.9),
                TUNED,
                baseline="DeepCluster [2]",
                note="UIC 3k, fine-tuned on fixed labels as in Table 4: the paper does not say it",
            ),
            row("Inpainting [32]", (34.6, 56.5, 44.5, 29.7)),
            row("BiGan [9]", (52.5, 60.3, 46.9, 35.2)),
            row("Contenxt [8]", (55.1, 63.1, 51.1, None)),
            row("Colorization [41]", (61.5, 65.9, 46.9, 35.6)),
            row("Split-brain [42]", (63.0, 67.1, 46.7, 36.0)),
            row("Jigsaw puzzle [29]", (None, 67.6, 53.2, 37.6)),
            row("Counting [30]", (None, 67.7, 51.4, 36.6)),
            row("RotNet [14]", (70.87, 72.97, 54.4, 39.1)),
            row("RotNet+retrieval [13]", (None, 74.7, 58.0, 45.9)),
        ),
        (
            'From Inpainting on: under the paper\'s line "Take a look at other kinds of self-supervised methods".',
            ("The paper names Fast R-CNN and FCN, and gives no schedule of the three. Ours: DeepCluster's classification (80,000 steps), Fast "
            "R-CNN and FCN-AlexNet as docs/transfer.md has them. Detection: AP50 on VOC07 test; segmentation: VOC12 val."),
        ),
        gains="What rows add",
        unmeasured="not measured here",
    )  # fmt: skip


def _table_6() -> Table:
    numbers = ("accuracy_B3", "accuracy_B4", "accuracy_B5", "accuracy_B5_max_pool")

    def row(method: str, size_px: int, weights: Weights, printed: tuple[float, ...]) -> Row:
        cells = tuple(Measure(weights, FEW_SHOTS[size_px], (number,)) for number in numbers)
        name = f"{method}, {size_px} px"
        baseline = f"DeepCluster, {size_px} px" if weights == UIC else None
        return Row(name, "AlexNet", printed, cells, baseline=baseline)

    return Table(
        "uic/6",
        "Few-shot classification on miniImageNet's test classes (UIC, Table 6)",
        "5-way 5-shot accuracy, %",
        ("conv3", "conv4", "conv5", "conv5+MP"),
        (
            row("UIC 3k", 224, UIC, (48.79, 53.03, 62.46, 65.05)),
            row("DeepCluster", 224, DEEPCLUSTER, (51.33, 54.42, 60.32, 65.04)),
            row("UIC 3k", 84, UIC, (52.43, 54.76, 54.40, 52.85)),
            row("DeepCluster", 84, DEEPCLUSTER, (53.46, 54.87, 49.81, 50.18)),
        ),
        (
            "224 px: the middle of 256 px, to which the 84-px pictures are enlarged. MP: max-pooling.",
            "For reference, from the table's caption: prototypical networks learned with labels have 68.2 %.",
            (
                "Which UIC it is the paper does not say; ours is UIC 3k as Table 1 calls it, without further fine-tuning. Nor how many episodes and "
                "queries: ours 10,000 of 15 queries a class."
            ),
        ),
        gains="What UIC adds to DeepCluster",
    )


TABLES = (_table_5(), _table_6())
