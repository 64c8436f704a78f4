"""The tables' rows: what they are measured on, by which evaluations, and with which values."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastpsl.scripts.recipe_files import find_recipe
from fastpsl.tables.data_sets import OTHER_DATA, PAPER_IMAGES
from fastpsl.tables.matching import needs_of
from fastpsl.tables.paper_file import TABLES
from fastpsl.tables.rows import (
    BLOCK_PROBE,
    CLUSTERS,
    COUPLED,
    KNN,
    STL_BLOCK_PROBE,
    TSNE,
    Evaluation,
    Measure,
    Weights,
)
from fastpsl.tasks.pseudo_labels.iic import input_of
from tests.tables.table_results import IIC, PAPER, RAW, ROTATION, TINY, TUNED, report

# The rows that we measure: backbone, recipe, plan, variant; - is none. All other rows are the paper's alone.
TRANSFER = """
        Supervised     resnet50 supervised    end_to_end -
        Jigsaw [38]    resnet50 jigsaw_r50    end_to_end -
        Jigsaw+PSL     resnet50 jigsaw_r50    psl        -
        Rotation [21]  resnet50 rotation_rv50 end_to_end four_angles
        Rotation+PSL   resnet50 rotation_rv50 psl        -
    """
ROWS = {
    "psl/4": """
        Jigsaw [38]    resnet50 jigsaw_r50    end_to_end -
        Jigsaw+PSL     resnet50 jigsaw_r50    psl        -
        Rotation*      revnet50 rotation_rv50 end_to_end -
        Rotation+PSL   revnet50 rotation_rv50 psl        -
        SimCLR [10]    resnet50 simclr_r50    end_to_end as_published
        SimCLR at G3   resnet50 simclr_r50    end_to_end -
        SimCLR+PSL     resnet50 simclr_r50    psl        -
        MoCov2 [11]    resnet50 mocov2_r50    end_to_end as_published
        MoCov2 at G3   resnet50 mocov2_r50    end_to_end -
        MoCov2+PSL     resnet50 mocov2_r50    psl        -
    """,
    "psl/5": """
        Supervised     resnet50 supervised    end_to_end -
        Jigsaw         resnet50 jigsaw_r50    end_to_end -
        SL             resnet50 jigsaw_r50    sl         -
        PSL            resnet50 jigsaw_r50    psl        -
        PSL_f          resnet50 jigsaw_r50    psl_f      -
    """,
    "psl/6": """
        Supervised     revnet50 supervised    end_to_end -
        Rotation       revnet50 rotation_rv50 end_to_end -
        SL             revnet50 rotation_rv50 sl         -
        PSL            revnet50 rotation_rv50 psl        -
        PSL_f          revnet50 rotation_rv50 psl_f      -
    """,
    "psl/7": """
        Supervised     resnet50 -             -          -
        Jigsaw [38]    resnet50 jigsaw_r50    end_to_end -
        Jigsaw+PSL     resnet50 jigsaw_r50    psl        -
        Rotation [21]  resnet50 rotation_rv50 end_to_end four_angles
        Rotation+PSL   resnet50 rotation_rv50 psl        -
    """,
    "psl/8": TRANSFER,
    "psl/9": TRANSFER,
    "psl/ablations": """
        Jigsaw         resnet50 jigsaw_r50    end_to_end -
        PSL            resnet50 jigsaw_r50    psl        -
        G3, G2, G1     resnet50 jigsaw_r50    psl        reversed
        G1, G3, G3     resnet50 jigsaw_r50    psl        soon_hard
        1 : 2 : 3      resnet50 jigsaw_r50    psl        rising
        Two stages     resnet50 jigsaw_r50    psl        two_stages
        No overlap     resnet50 jigsaw_r50    psl        no_overlap
    """,
}
BLOCKS = ("B1", "B2", "B3", "B4", "B5")
# The columns: the recipe, the evaluation, and the number, or the numbers of which the best block's counts.
EACH_BLOCK = [f"linear_probe linear/vissl top1_{block}" for block in BLOCKS]
BEST_BLOCK = ["linear_probe linear/vissl " + " ".join(f"top1_{block}" for block in BLOCKS)]
FINAL = ["linear_probe linear/moco top1_final"]
COLUMNS = {
    "psl/4": BEST_BLOCK,
    "psl/5": EACH_BLOCK,
    "psl/6": EACH_BLOCK,
    "psl/7": ["semi_supervised semi_supervised/1 top5", "semi_supervised semi_supervised/10 top5"],
    "psl/8": [f"voc_detection detection/pirl {number}" for number in ("AP", "AP50", "AP75", "AP75")],
    "psl/9": [
        "voc_svm svm/vissl " + " ".join(f"mAP_{block}" for block in BLOCKS),
        *(BEST_BLOCK[0].replace("vissl", f"vissl_{data}") for data in ("places205", "inat18")),
    ],
    "psl/ablations": EACH_BLOCK,
}
# What a variant changes.
VARIANTS = {
    "jigsaw_r50 reversed": {"levels": (3, 2, 1)},
    "jigsaw_r50 soon_hard": {"levels": (1, 3, 3)},
    "jigsaw_r50 rising": {"epochs": (30, 60, 90)},
    "jigsaw_r50 two_stages": {"epochs": (90, 90)},
    "jigsaw_r50 no_overlap": {"partition": ("1-2", "3-4", "5")},
    "rotation_rv50 four_angles": {"levels": (2, 2, 2)},
    "simclr_r50 as_published": {"sobel_p": 0.0},
    "mocov2_r50 as_published": {"sobel_p": 0.0},
}


def weights_of(block: str) -> dict[str, Weights]:
    """Return the weights of the lines of a block, by the row."""
    weights = {}
    for line in block.strip().splitlines():
        method, backbone, *words = line.rsplit(maxsplit=4)
        recipe, plan, variant = (None if word == "-" else word for word in words)
        weights[method.strip()] = Weights(backbone, recipe, plan, variant)
    return weights


def test_all_tables_of_psl_are_here() -> None:
    names = {name for name in TABLES if name.startswith("psl/")}
    assert ROWS.keys() == COLUMNS.keys() == names
    used = {one for block in ROWS.values() for one in weights_of(block).values() if one.variant}
    assert {f"{one.recipe} {one.variant}" for one in used} == VARIANTS.keys()


@pytest.mark.parametrize("name", ROWS)
def test_what_the_rows_of_psl_are_measured_on(name: str) -> None:
    measured = {row.method: row.measures for row in TABLES[name].rows if row.measures}
    wanted = weights_of(ROWS[name])
    assert [*measured] == [*wanted]
    for method, measures in measured.items():
        assert {one.weights for one in measures} == {wanted[method]}, method
        contrastive = method.startswith(("SimCLR", "MoCov2"))
        words = [f"{one.evaluation.recipe} {one.evaluation.name} {' '.join(one.numbers)}" for one in measures]
        assert words == (FINAL if contrastive else COLUMNS[name]), method
        for evaluation in (one.evaluation for one in measures):
            assert evaluation.protocol == ("semi_supervised" if name == "psl/7" else evaluation.name)
        minus = [one.minus for one in measures]
        supervised = Weights("resnet50", "supervised", "end_to_end")
        assert minus == ([None] * 3 + [supervised] if name == "psl/8" else [None] * len(measures)), method
        assert all(one.of == "best" for one in measures)


def test_what_a_variant_changes() -> None:
    for name, changes in VARIANTS.items():
        recipe, variant = name.split()
        usual, changed = (
            PAPER.training_values(Weights("resnet50", recipe, "psl", one)) for one in (None, variant)
        )
        assert {key: value for key, value in changed.items() if value != usual.get(key)} == changes, name


def test_which_part_of_the_labels_is_learned_from() -> None:
    parts = [measure.evaluation for measure in TABLES["psl/7"].row("Jigsaw+PSL").measures]
    values = [PAPER.evaluation_values(part) for part in parts]
    assert [(one["protocol"], one["percent"]) for one in values] == [("pirl", 1.0), ("pirl", 10.0)]


def test_the_forms_of_the_tables() -> None:
    for name, table in TABLES.items():
        if name.startswith("sslpp/"):
            for row in table.rows:  # nothing of SSL++'s tables is the paper's alone, but for prior work
                if ": " in row.method and "[1" in row.method:
                    assert name == "sslpp/10" and not row.measures
                    continue
                assert len(row.measures) == len(row.numbers) == len(table.columns)
            assert len({row.method for row in table.rows}) == len(table.rows)
    of_all = [TABLES[f"sslpp/{name}"] for name in ("3", "3-stl", "4", "5", "5-stl", "6", "8", "fig5")]
    assert {tuple(row.method for row in table.rows) for table in of_all} == {
        tuple(row.method for row in of_all[0].rows)
    }
    assert len(TABLES["sslpp/fig4"].rows) == 8 and len(TABLES["sslpp/fig6"].rows) == 10


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("sslpp/3", "0.1: Rotation [8] 79.5, its cells' mean is 79.1."),
        ("sslpp/3-stl", "0.1: Rotation [8] 75.1, its cells' mean is 75.9."),
        ("sslpp/5", "ours of our cells."),
        ("sslpp/5-stl", "0.1: Ours+Color. 53.4, its cells' mean is 53.3."),
        ("sslpp/8", "0.1: Color. [6] 62.6, its cells' mean is 63.5."),
        ("sslpp/11-stl", "ours of our cells."),
    ],
)
def test_printed_means_that_are_none_are_told(name: str, told: str) -> None:
    assert TABLES[name].notes[0].endswith(told)


def words(table: str, method: str) -> list[tuple[Any, ...]]:
    def of(one: Weights | str | None) -> Any:
        return (one.recipe, one.variant) if isinstance(one, Weights) else one

    return [
        (
            one.weights.recipe,
            one.weights.variant,
            of(one.weights.labels),
            one.evaluation.name,
            one.numbers,
            one.of,
        )
        for one in TABLES[table].row(method).measures
    ]


def test_what_the_rows_of_sslpp_are_measured_on() -> None:
    convs = tuple(f"top1_conv_{block}" for block in ("B2", "B3", "B4"))
    rotation, iic = "sslpp_rotation", ("sslpp_iic", None)
    assert words("sslpp/3", "Ours+Rot.") == [
        *((rotation, None, iic, "blocks", (name,), "best") for name in convs),
        (rotation, None, iic, "blocks", convs, "mean"),
    ]
    assert words("sslpp/3-stl", "Ours+AET")[3] == (
        "sslpp_aet", None, ("sslpp_iic", "stl"), "blocks/stl", convs, "mean",
    )  # fmt: skip
    assert words("sslpp/4", "Rotation [8]")[1] == (rotation, None, None, "blocks", ("top1_fc2_B4",), "best")
    assert words("sslpp/6", "Supervised")[0][:5] == (
        "supervised", "32px", None, "knn/blocks", ("top1_k1_majority_B4",),
    )  # fmt: skip
    assert words("sslpp/8", "Supervised")[4][:4] == ("supervised", "100", None, "blocks/100")
    assert words("sslpp/8", "Random")[15] == (None, None, None, "blocks/1000", convs, "mean")
    assert words("sslpp/9", "AET [9]: K-means")[0][:3] == ("sslpp_aet", None, "k-means")
    assert words("sslpp/9", "Rotation [8]: Ours, 10 clusters")[0][2] == ("sslpp_iic", "10")
    assert words("sslpp/11", "KNN: SPL")[0][:4] == ("sslpp_aet", "labels_alone", iic, "knn/blocks")
    assert words("sslpp/12", "Coupled")[0][:3] == ("sslpp_aet", None, COUPLED)
    assert words("sslpp/14", "Cr / Cr+F")[0] == (
        "sslpp_iic", "flip", None, "clusters", ("many_to_one_accuracy",), "best",
    )  # fmt: skip
    assert [one[:3] for one in words("sslpp/fig6", "λ = 0.05")] == [
        ("sslpp_colorization", "lambda_0.05", iic), ("sslpp_context", "lambda_0.05", iic),
        (rotation, None, iic), ("sslpp_aet", None, iic),
    ]  # fmt: skip
    assert [one[2] for one in words("sslpp/fig6", "λ = 0")] == [None] * 4
    names = ("3", "4", "9", "11", "12", "13", "fig6")
    evaluations = {need[1] for name in names for need in needs_of(TABLES[f"sslpp/{name}"])}
    assert evaluations == {BLOCK_PROBE, KNN, CLUSTERS}  # one run of the classifiers serves all of them


def test_wide_tables_have_panels_in_lines(tmp_path: Path) -> None:
    from fastpsl.tables.chart import chart

    figure = chart(report(tmp_path, "sslpp/8", PAPER))
    panels = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_title() for axis in panels][:5] == ["20: B2", "20: B3", "20: B4", "20: Avg.", "100: B2"]
    assert len(panels) == 16 and figure.get_size_inches()[0] < 15
    figure = chart(report(tmp_path, "sslpp/6", PAPER))
    assert len([axis for axis in figure.axes if axis.get_visible()]) == 7


def test_the_papers_sizes() -> None:
    """The evaluation of Table II, and the recipes' own values."""
    blocks, stl, knn, tsne = map(PAPER.evaluation_values, (BLOCK_PROBE, STL_BLOCK_PROBE, KNN, TSNE))
    for name, value in find_recipe("block_probe").paper.items():
        assert name == "heads" or blocks[name] == value
    assert (blocks["batch_size"], stl["batch_size"]) == (128, 64)
    assert {name for name, value in stl.items() if value != blocks[name]} == {"batch_size"}
    few = [Evaluation(f"blocks/{number}", "block_probe", "block_probe") for number in (20, 100, 400, 1000)]
    assert [PAPER.evaluation_values(one)["labels_per_class"] for one in few] == [20, 100, 400, 1000]
    supervised = [Weights("nin4", "supervised", "end_to_end", str(number)) for number in (20, 1000)]
    assert [PAPER.training_values(one)["labels_per_class"] for one in supervised] == [20, 1000]
    assert knn["k"] == (1, 3, 5, 10, 15, 20) and tsne["num"] == 1000
    clusters = [PAPER.variant_values(replace(IIC, variant=number)) for number in ("10", "100")]
    assert clusters == [{"num_clusters": 10}, {"num_clusters": 100}]
    tasks = ("colorization", "context", "rotation", "aet")
    usual = [PAPER.recipe_values(f"sslpp_{task}")["semantic_weight"] for task in tasks]
    assert usual == [1.0, 1.0, 0.05, 0.05]
    for name in ("crop", "grey"):
        assert PAPER.variant_values(replace(IIC, variant=name))["augment"] == name


def test_what_the_networks_see(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("crop", "grey", None):
        weights = replace(IIC, variant=name)
        assert TINY.channels(weights) == input_of(name or "sobel", 32).channels  # type: ignore[arg-type]
    for task in ("colorization", "context", "rotation", "aet"):
        monkeypatch.setattr(sys, "argv", [f"sslpp_{task}", "--backbone", "nin3"])
        made: Any = find_recipe(f"sslpp_{task}")
        (view,) = made.build(made.parse()).task.views(1)
        assert PAPER.channels(replace(ROTATION, recipe=f"sslpp_{task}")) == view.input().channels


def measured_on(table: str, method: str) -> list[tuple[Any, ...]]:
    def words(one: Measure) -> tuple[Any, ...]:
        weights = one.weights
        return weights.recipe, weights.variant, weights.backbone, one.evaluation.protocol, one.numbers

    return [words(one) for one in TABLES[table].row(method).measures]


def test_what_the_rows_of_uic_are_measured_on() -> None:
    def probe(recipe: str | None, variant: str | None, layer: int) -> tuple[Any, ...]:
        return recipe, variant, "alexnet", "linear/uic", (f"top1_B{layer}",)

    def of_labels(recipe: str, variant: str | None, backbone: str = "alexnet") -> tuple[Any, ...]:
        return recipe, variant, backbone, "clusters", ("nmi_true",)

    uic, deepcluster = "uic_alexnet", "deepcluster_alexnet"
    assert measured_on("uic/1", "UIC 10k") == [
        *(probe(uic, "10k", layer) for layer in (3, 4, 5)), of_labels(uic, "10k"),
    ]  # fmt: skip
    assert measured_on("uic/2", "UIC 3k √") == [probe(uic, "tuned", layer) for layer in (3, 4, 5)]
    assert measured_on("uic/3", "UIC 3k ×") == [probe(uic, "center", layer) for layer in (3, 4, 5)]
    assert measured_on("uic/4", "Ours") == [probe(uic, "tuned", layer) for layer in range(1, 6)]
    assert measured_on("uic/4", "ImageNet labels")[0] == probe("supervised", "alexnet", 1)
    assert measured_on("uic/4", "Random") == measured_on("uic/4", "Random-Sobel")
    channels = [TABLES["uic/4"].row(m).measures[0].weights.channels for m in ("Random", "Random-Sobel")]
    assert channels == ["RGB", "SobelXY"]
    assert measured_on("uic/4", "DeepCluster [2]")[4] == probe(deepcluster, None, 5)
    assert not measured_on("uic/4", "RotNet [14]") and not measured_on("uic/4", "SelfLabel 3k × 1 [1]")
    assert measured_on("uic/7", "UIC (Ours)")[2:] == [probe(uic, "tuned", 5), of_labels(uic, None)]
    assert measured_on("uic/7", "UIC + strong aug (Ours)")[3] == of_labels(uic, "strong")
    assert measured_on("uic/8", "UIC + strong aug (Ours), Res50 + MLP-head") == [
        ("uic_r50", None, "resnet50_mlp", "linear/uic", ("top1_final",)),
        of_labels("uic_r50", None, "resnet50_mlp"),
    ]
    tuned = TABLES["uic/2"].row("UIC 3k √").measures[0].weights
    assert tuned.base == RAW and tuned == TUNED


def plan_words(table: str, method: str) -> list[tuple[Any, ...]]:
    return [
        (one.weights.kind, one.weights.plan, one.evaluation.name, one.numbers, one.of)
        for one in TABLES[table].row(method).measures
    ]


def test_what_is_measured_on_other_data() -> None:
    assert [one[2:4] for one in plan_words("uic/5", "Random-Sobel")] == [
        ("classification/deepcluster_fc6_8", ("mAP",)), ("classification/deepcluster_all", ("mAP",)),
        ("detection/fast_rcnn", ("AP50",)), ("segmentation/fcn_alexnet", ("mIoU",)),
    ]  # fmt: skip
    assert TABLES["uic/5"].row("Random-Sobel").measures[0].weights.channels == "SobelXY"
    assert TABLES["uic/5"].row("Ours").measures[0].weights.variant == "tuned"
    assert plan_words("uic/6", "UIC 3k, 84 px")[3][2:4] == ("few_shot/84", ("accuracy_B5_max_pool",))
    layers = tuple(f"top1_B{block}" for block in (1, 2, 3, 4, 5, 7))
    assert plan_words("sslpp/7", "Random")[5:] == [
        ("random", None, "linear/sslpp", ("top1_B7",), "best"),
        ("random", None, "linear/sslpp", layers, "mean"),
    ]  # fmt: skip
    spl = TABLES["sslpp/11-yfcc"].row("SPL").measures[0].weights
    assert (spl.recipe, spl.variant, spl.labels) == ("sslpp_aet", "yfcc_labels_alone", IIC)
    assert PAPER.training_values(spl)["proxy"] is False
    assert [len(TABLES[f"sslpp/{name}"].columns) for name in ("fig1", "fig3")] == [6, 4]


def test_the_schedules_of_tiny_yfcc100m() -> None:
    """Table II; the rates and batches are those of CIFAR-10."""
    schedules = {
        task: (values["epochs"], values["intervals"], values["batch_size"], values["lr"])
        for task in ("colorization", "context", "rotation", "aet")
        for values in [
            PAPER.training_values(Weights("alexnet_rotnet", f"sslpp_{task}", "end_to_end", "yfcc"))
        ]
    }
    assert schedules == {
        "colorization": ((120,), (120,), 128, 0.01),
        "context": ((200,), (100, 50, 50), 512, 0.01),
        "rotation": ((50,), (15, 20, 10, 5), 128, 0.1),
        "aet": ((200,), (100, 50, 50), 512, 0.1),
    }


def test_data_that_evaluations_read_is_known() -> None:
    evaluations = {need[1] for table in TABLES.values() for need in needs_of(table)}
    reading = [one for one in evaluations if one.reads]
    assert {one.protocol for one in reading} == set(PAPER_IMAGES)
    assert {name for one in reading for name in one.reads} == set(OTHER_DATA)
    assert not any(one.reads for one in evaluations if one.protocol in ("linear/vissl", "linear/sslpp"))


def test_evaluations_of_one_protocol_have_one_data_set() -> None:
    """Digests are compared by the protocol's name."""
    seen: dict[str, Evaluation] = {}
    for table in TABLES.values():
        for _, evaluation in needs_of(table):
            other = seen.setdefault(evaluation.protocol, evaluation)
            assert other.reads == evaluation.reads
