"""PSL's tables: the weights of every row of ours, and the evaluations and numbers that measure it."""

import pytest

from fastpsl.tables.paper_file import TABLES
from fastpsl.tables.rows import Weights
from tests.tables.table_results import PAPER

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
def test_what_the_rows_are_measured_on(name: str) -> None:
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
