"""The tables of psl.txt that need one data set's images and labels, number by number as they are printed."""

from collections.abc import Mapping

from fastpsl.tables.needs import BLOCKS, Measure, Weights, best_block, each_block, final_features, fine_tuned
from fastpsl.tables.rows import Row, Table


def _pretrained(recipe: str, backbone: str, plan: str) -> Weights:
    return Weights(backbone, recipe, plan)


def _table_4() -> Table:
    def row(method: str, top1: float, *measures: Measure, baseline: str | None = None, note: str = "") -> Row:
        arch = "Rv50" if method.startswith("Rotation") else "R50"
        return Row(method, arch, (top1,), measures, 24, baseline, note)

    def best(recipe: str, backbone: str, plan: str) -> tuple[Measure, ...]:
        return best_block(_pretrained(recipe, backbone, plan))

    def final(recipe: str, plan: str) -> tuple[Measure, ...]:
        return final_features(_pretrained(recipe, "resnet50", plan))

    return Table(
        "psl/4",
        "Linear classifiers on frozen features (PSL, Table 4)",
        "top-1 accuracy, %",
        ("Top 1",),
        (
            row("Colorization [49]", 39.6),
            row("BigBiGAN [15]", 56.6),
            row("LA [51]", 58.8),
            row("NPID++ [37]", 59.0),
            row("MoCo [26]", 60.6),
            row("PIRL [37]", 63.6),
            row("CPC v2 [28]", 63.8),
            row("PCL [34]", 65.9),
            row("SwAV [9]", 75.3),
            row("Jigsaw [38]", 45.7, *best("jigsaw_r50", "resnet50", "end_to_end")),
            row("Jigsaw+PSL", 50.9, *best("jigsaw_r50", "resnet50", "psl"), baseline="Jigsaw [38]"),
            Row("Rotation [21]", "Rv50w4×", (47.3,), (), 86, note="four rotations, a network four times as wide"),
            row("Rotation*", 48.6, *best("rotation_rv50", "revnet50", "end_to_end"), note="eight rotations"),
            row("Rotation+PSL", 53.3, *best("rotation_rv50", "revnet50", "psl"), baseline="Rotation*"),
            row("SimCLR [10]", 61.9, *final("simclr_r50", "end_to_end")),
            row("SimCLR+PSL", 64.3, *final("simclr_r50", "psl"), baseline="SimCLR [10]"),
            row("MoCov2 [11]", 67.5, *final("mocov2_r50", "end_to_end")),
            row("MoCov2+PSL", 68.1, *final("mocov2_r50", "psl"), baseline="MoCov2 [11]"),
        ),
        (
            "Jigsaw, rotation: the block with the best mean over the seeds. The others: B5, average-pooled; the paper does not say.",
            "Ours end to end learns at G3 for as many epochs as the stages together; the paper quotes [10] and [11] for two rows.",
        ),
    )  # fmt: skip


def _blocks(
    name: str,
    title: str,
    arch: str,
    recipe: str,
    pretext: str,
    numbers: Mapping[str, tuple[float, ...]],
    note: str,
) -> Table:
    """Tables 5 and 6 have one form."""
    backbone = {"R50": "resnet50", "Rv50": "revnet50"}[arch]
    weights = {
        "Supervised": Weights(backbone, "supervised", "end_to_end"),
        pretext: Weights(backbone, recipe, "end_to_end"),
        "SL": Weights(backbone, recipe, "sl"),
        "PSL": Weights(backbone, recipe, "psl"),
        "PSL_f": Weights(backbone, recipe, "psl_f"),
    }
    assert weights.keys() == numbers.keys()
    rows = tuple(
        Row(
            method,
            "R50" if method == "PSL_f" else arch,  # as printed, in Table 6 too
            numbers[method],
            each_block(weights[method]),
            baseline=pretext if method in ("SL", "PSL", "PSL_f") else None,
            note={"Supervised": "with all labels, for reference", pretext: "end to end at G3"}.get(method, "")
            or (note if method == "PSL_f" else ""),
        )
        for method in numbers
    )
    return Table(name, title, "top-1 accuracy, %", BLOCKS, rows)


def _table_5() -> Table:
    numbers = {
        "Supervised": (11.6, 33.3, 48.7, 67.9, 75.5),
        "Jigsaw": (12.4, 28.0, 39.9, 45.7, 34.2),
        "SL": (10.8, 27.2, 39.6, 45.5, 34.7),
        "PSL": (10.9, 27.0, 43.2, 50.9, 38.5),
        "PSL_f": (10.8, 27.3, 43.1, 51.0, 38.2),
    }
    title = "Jigsaw puzzles, ResNet-50: linear classifiers on each block (PSL, Table 5)"
    return _blocks("psl/5", title, "R50", "jigsaw_r50", "Jigsaw", numbers, "")


def _table_6() -> Table:
    numbers = {
        "Supervised": (11.7, 32.6, 47.8, 66.6, 74.3),
        "Rotation": (10.9, 30.1, 40.2, 48.6, 46.5),
        "SL": (11.1, 29.1, 41.5, 50.7, 47.9),
        "PSL": (11.3, 30.8, 42.9, 53.3, 49.5),
        "PSL_f": (10.5, 31.1, 42.1, 52.9, 49.7),
    }
    title = "Image rotation, RevNet-50: linear classifiers on each block (PSL, Table 6)"
    note = 'the paper prints "R50" in this row; the table is of RevNet-50'
    return _blocks("psl/6", title, "Rv50", "rotation_rv50", "Rotation", numbers, note)


def _table_7() -> Table:
    def row(method: str, few: float, more: float, weights: Weights, baseline: str | None = None) -> Row:
        return Row(method, "R50", (few, more), fine_tuned(weights), baseline=baseline)

    def pretrained(recipe: str, plan: str) -> Weights:
        return _pretrained(recipe, "resnet50", plan)

    return Table(
        "psl/7",
        "Fine-tuned on few labels, ResNet-50 (PSL, Table 7)",
        "top-5 accuracy, %",
        ("1% labels", "10% labels"),
        (
            row("Supervised", 48.4, 80.4, Weights("resnet50")),
            row("Jigsaw [38]", 45.4, 79.6, pretrained("jigsaw_r50", "end_to_end")),
            row("Jigsaw+PSL", 48.7, 83.5, pretrained("jigsaw_r50", "psl"), "Jigsaw [38]"),
            row("Rotation [21]", 52.1, 82.5, pretrained("rotation_rv50", "end_to_end")),
            row("Rotation+PSL", 54.8, 83.7, pretrained("rotation_rv50", "psl"), "Rotation [21]"),
        ),
        (
            "Supervised: ours learns from random weights on those labels alone; the paper does not say how its row was made.",
        ),
    )


def _ablations() -> Table:
    """Not in the paper. As many epochs as PSL's in each row."""
    five, pretext = _table_5(), "Jigsaw"

    def row(method: str, variant: str, note: str) -> Row:
        weights = Weights("resnet50", "jigsaw_r50", "psl", variant)
        return Row(method, "R50", (None,) * len(BLOCKS), each_block(weights), baseline="PSL", note=note)

    return Table(
        "psl/ablations",
        "Jigsaw puzzles, ResNet-50: other orders, lengths and partitions (not in the paper)",
        "top-1 accuracy, %",
        BLOCKS,
        (
            five.row(pretext),
            five.row("PSL"),
            row("G3, G2, G1", "reversed", "from the hardest level to the easiest"),
            row("G1, G3, G3", "soon_hard", "without the middle level"),
            row("1 : 2 : 3", "rising", "longer and longer stages"),
            row("Two stages", "two_stages", "B1-B4 at G1, B2-B5 at G3, equally long"),
            row("No overlap", "no_overlap", "B1-B2, B3-B4, B5"),
        ),
    )


TABLES = (_table_4(), _table_5(), _table_6(), _table_7(), _ablations())
