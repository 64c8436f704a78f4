"""The tables of uic.txt that need one data set's images and labels, number by number as they are printed."""

from dataclasses import replace

from fastpsl.tables.needs import Measure, Weights, conv_layers, last_features, nmi
from fastpsl.tables.rows import Row, Table

CONV = ("conv1", "conv2", "conv3", "conv4", "conv5")
NMI = "NMI t/labels"
DEEPCLUSTER = Weights("alexnet", "deepcluster_alexnet", "end_to_end")
UIC = Weights("alexnet", "uic_alexnet", "end_to_end")
TUNED = replace(UIC, variant="tuned", base=UIC)
SUPERVISED = Weights("alexnet", "supervised", "end_to_end", "alexnet")
RANDOM, RANDOM_SOBEL = Weights("alexnet"), Weights("alexnet", channels="SobelXY")
RAW_NUMBERS, TUNED_NUMBERS = (41.2, 41.0, 38.1), (41.6, 41.5, 39.0)


def _table(number: int, title: str, columns: tuple[str, ...], rows: tuple[Row, ...], *notes: str) -> Table:
    return Table(
        f"uic/{number}",
        f"{title} (UIC, Table {number})",
        "top-1 accuracy and NMI, %" if NMI in columns else "top-1 accuracy, %",
        columns,
        rows,
        notes,
        gains="What rows add",
        unmeasured="not measured here",
    )


def _row(
    method: str,
    numbers: tuple[float | None, ...],
    *measures: Measure,
    baseline: str | None = None,
    note: str = "",
) -> Row:
    return Row(method, "AlexNet", numbers, measures, baseline=baseline, note=note)


def _table_1() -> Table:
    def row(method: str, variant: str | None, *numbers: float) -> Row:
        weights = replace(UIC, variant=variant)
        return _row(method, numbers, *conv_layers(weights, 3), *nmi(weights))

    return _table(
        1,
        "UIC: number of classes",
        (*CONV[2:], NMI),
        (
            row("UIC 3k", None, 41.2, 41.0, 38.1, 38.5),
            row("UIC 5k", "5k", 40.6, 40.9, 38.2, 40.8),
            row("UIC 10k", "10k", 40.6, 40.8, 37.9, 42.6),
        ),
        "NMI rises with the number of classes by itself: compare it between equal numbers alone.",
    )


def _table_2() -> Table:
    none = "UIC 3k ×"
    return _table(
        2,
        "UIC: further fine-tuning with fixed labels",
        CONV[2:],
        (
            _row(none, RAW_NUMBERS, *conv_layers(UIC, 3), note="without fine-tuning"),
            _row("UIC 3k √", TUNED_NUMBERS, *conv_layers(TUNED, 3), baseline=none, note="fine-tuned"),
        ),
        "The paper does not say the learning rate of the fine-tuning; ours is a tenth of the first.",
    )


def _table_3() -> Table:
    center, none = replace(UIC, variant="center"), "UIC 3k ×"
    return _table(
        3,
        "UIC: augmentation where labels are made",
        CONV[2:],
        (
            _row(none, (39.5, 39.9, 37.9), *conv_layers(center, 3), note="labels of centre crops"),
            _row(
                "UIC 3k √",
                TUNED_NUMBERS,
                *conv_layers(TUNED, 3),
                baseline=none,
                note="fine-tuned, as in Table 2",
            ),
            _row(
                "UIC 3k √, not tuned",
                RAW_NUMBERS,
                *conv_layers(UIC, 3),
                baseline=none,
                note="a row of Table 2",
            ),
        ),
        "The paper prints its fine-tuned numbers beside √, and does not say whether × is fine-tuned, too; ours is not. What "
        "augmentation alone adds is the row that is not tuned.",
    )


def _table_4() -> Table:
    def printed(method: str, *numbers: float | None, note: str = "") -> Row:
        return _row(method, numbers, note=note)

    return _table(
        4,
        "Linear classifiers on AlexNet's conv layers",
        CONV,
        (
            _row(
                "ImageNet labels",
                (19.3, 36.3, 44.2, 48.3, 50.5),
                *conv_layers(SUPERVISED),
                note="an earlier work's number; ours sees RGB and learns for as long as our other supervised rows",
            ),
            _row(
                "Random",
                (11.6, 17.1, 16.9, 16.3, 14.1),
                *conv_layers(RANDOM),
                note="an earlier work's number; ours is Random-RGB",
            ),
            _row("Random-Sobel", (None,) * 5, *conv_layers(RANDOM_SOBEL), note="what the rows below begin with"),
            _row("DeepCluster [2]", (13.4, 32.3, 41.0, 39.6, 38.2), *conv_layers(DEEPCLUSTER)),
            printed("SelfLabel 3k × 1 [1]", None, None, 43.0, 44.7, 40.9),
            printed("SelfLabel 3k × 10 [1]", 22.5, 37.4, 44.7, 47.1, 44.1),
            _row(
                "Ours",
                (12.8, 34.3, 41.6, 41.5, 39.0),
                *conv_layers(TUNED),
                baseline="DeepCluster [2]",
                note="UIC 3k, fine-tuned",
            ),
            printed("Inpainting [32]", 14.1, 20.7, 21.0, 19.8, 15.5),
            printed("Contenxt [8]", 16.2, 23.3, 30.2, 31.7, 29.6),
            printed("BiGan [9]", 17.7, 24.5, 31.0, 29.9, 28.0),
            printed("Colorization [41]", 12.5, 24.5, 30.4, 31.5, 30.3),
            printed("Split-brain [42]", 17.7, 29.3, 35.4, 35.2, 32.8),
            printed("Jigsaw puzzle [29]", 18.2, 28.8, 34.0, 33.9, 27.1),
            printed("Counting [30]", 18.0, 30.6, 34.3, 32.5, 25.7),
            printed("RotNet [14]", 18.8, 31.7, 38.7, 38.2, 36.5, note="our rotation recipe is another paper's"),
            printed("AND [21]", 15.6, 27.0, 35.9, 39.7, 37.9),
            printed("AET [40]", 19.3, 35.4, 44.0, 43.6, 42.4),
            printed("RotNet+retrieval [13]", 22.2, 38.2, 45.7, 48.7, 48.3),
        ),
        'From Inpainting on: under the paper\'s line "Take a look at other self-supervised learning methods".',
    )  # fmt: skip


def _table_7() -> Table:
    strong, raw = replace(UIC, variant="strong"), "UIC, not tuned"
    return _table(
        7,
        "UIC with more data augmentations",
        (*CONV[2:], NMI),
        (
            _row(
                "DeepCluster [2]", (41.0, 39.6, 38.2, None), *conv_layers(DEEPCLUSTER, 3), *nmi(DEEPCLUSTER)
            ),
            _row("SelfLabel 3k × 1 [1]", (43.0, 44.7, 40.9, None)),
            Row("SelfLabel 3k × 10 [1]", "AlexNet+10heads", (44.7, 47.1, 44.1, None)),
            _row(
                "UIC (Ours)",
                (*TUNED_NUMBERS, 38.5),
                *conv_layers(TUNED, 3),
                *nmi(UIC),
                baseline="DeepCluster [2]",
                note="fine-tuned, as in Table 2; NMI of the labels before",
            ),
            _row(raw, (*RAW_NUMBERS, 38.5), *conv_layers(UIC, 3), *nmi(UIC), note="a row of Table 1"),
            _row(
                "UIC + strong aug (Ours)",
                (43.5, 45.6, 44.3, 40.0),
                *conv_layers(strong, 3),
                *nmi(strong),
                baseline=raw,
            ),
        ),
        'Section 5.1 says that these results "do not use further fine-tuning", yet the accuracies beside UIC are those of the '
        "fine-tuned row of Table 2. Strong augmentation is compared with the row that is not tuned.",
    )


def _table_8() -> Table:
    def printed(method: str, arch: str, top1: float) -> Row:
        return Row(method, arch, (top1, None))

    def ours(arch: str, backbone: str, top1: float, of_labels: float, baseline: str | None = None) -> Row:
        weights = Weights(backbone, "uic_r50", "end_to_end")
        method = f"UIC + strong aug (Ours), {arch}"
        return Row(
            method, arch, (top1, of_labels), (*last_features(weights), *nmi(weights)), baseline=baseline
        )

    return _table(
        8,
        "UIC with more network architectures",
        ("Top-1", NMI),
        (
            printed("Jigsaw [22]", "Res50", 38.4),
            printed("Rotation [22]", "Res50", 43.8),
            printed("InstDisc [37]", "Res50", 54.0),
            printed("BigBiGAN [10]", "Res50", 56.6),
            printed("Local Agg. [43]", "Res50", 60.2),
            printed("Moco [16]", "Res50", 60.6),
            printed("PIRL [28]", "Res50", 63.6),
            printed("CPCv2 [18]", "Res50", 63.8),
            printed("SimCLR [4]", "Res50 + MLP-head", 69.3),
            printed("Mocov2 [6]", "Res50 + MLP-head", 71.1),
            printed("SelfLabel 3k × 1 [1]", "Res50", 51.8),
            printed("SelfLabel 3k × 10 [1]", "Res50+10heads", 55.7),
            ours("VGG16", "vgg16", 57.7, 46.9),
            ours("Res50", "resnet50", 62.7, 50.6),
            ours("Res50 + MLP-head", "resnet50_mlp", 64.4, 53.3, "UIC + strong aug (Ours), Res50"),
        ),
        "The paper states neither the schedule of these linear classifiers nor what they read. Ours: the schedule of section 4.3, on "
        "the last block's output, averaged: fc7 of VGG16, B5 of ResNet-50, the hidden layer of its MLP head, which is kept.",
        "SimCLR, MoCo v2, jigsaw and rotation are measured in the tables of psl.",
    )  # fmt: skip


TABLES = (_table_1(), _table_2(), _table_3(), _table_4(), _table_7(), _table_8())
