"""SSL++'s tables: the numbers as printed, means of cells, whose pseudo-labels were learned, pre-training on other pictures."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastpsl.cli import main
from fastpsl.tables.differences import training_differences
from fastpsl.tables.markdown import markdown
from fastpsl.tables.matching import DataSet, needs_of
from fastpsl.tables.needs import BLOCK_PROBE, CLUSTERS, COUPLED, KNN, RETRIEVAL, TSNE, Evaluation, Weights
from fastpsl.tables.papers import TABLES
from fastpsl.tables.report import Report
from fastpsl.tasks.iic import input_of
from tests.fastpsl.table_results import DIGESTS, PAPER, TINY, ours, put, put_run, recipe, report, science_of

# Whole rows of the paper's tables as they stand there, and of Table XIII and XIV a column.
PRINTED = {
    "sslpp/3": """
        Supervised 92.2 92.6 91.7 92.2
        Random 70.1 66.4 65.8 67.4
        Color. [6] 78.4 71.2 66.5 72.0
        Ours+Color. 81.1 76.0 74.2 77.1
        Context [7] 78.8 70.7 63.9 71.1
        Ours+Con. 86.6 82.9 74.7 81.4
        Rotation [8] 90.8 86.4 60.1 79.5
        Ours+Rot. 90.1 86.5 75.9 84.2
        AET [9] 90.7 86.2 59.4 78.8
        Ours+AET 90.9 86.8 75.7 84.5""",
    "sslpp/3-stl": """
        Supervised 80.2 80.3 79.2 79.9
        Context [7] 62.6 59.4 52.6 58.2
        Rotation [8] 86.4 82.7 58.7 75.1
        Ours+AET 87.7 84.6 75.0 82.4""",
    "sslpp/4": """
        Random 57.3 65.0 65.6 65.8
        Rotation [8] 53.1 52.0 53.2 60.1
        Ours+Color. 72.5 75.1 75.4 74.2""",
    "sslpp/5": """
        Supervised 75.5 89.9 89.2 84.9
        Color. [6] 58.2 56.5 49.1 54.6
        Ours+AET 72.1 75.9 66.4 71.5""",
    "sslpp/5-stl": """
        Ours+Color. 50.8 53.5 55.5 53.4
        AET [9] 50.5 48.1 18.1 38.9""",
    "sslpp/6": """
        Supervised 88.2 88.8 89.0 89.2 89.3 89.3 89.0
        Rotation [8] 15.6 15.6 16.9 18.2 18.8 19.0 17.4
        Ours+AET 60.4 62.6 64.9 66.4 67.2 67.5 64.8""",
    "sslpp/8": """
        Supervised 37.3 37.6 37.5 37.5 58.9 59.1 59.2 59.1 78.7 78.5 78.9 78.7 86.0 85.7 86.1 85.9
        Color. [6] 50.9 52.4 49.5 50.9 61.1 59.3 55.0 58.5 68.3 62.9 59.2 62.6 72.2 66.4 63.1 67.2
        Ours+AET 67.6 69.8 61.5 66.3 77.6 75.3 65.3 72.7 83.6 79.9 68.8 77.4 86.7 82.6 71.4 80.2""",
    "sslpp/9": """
        Rotation [8]: Labels 90.3 88.1 85.0 87.8
        Rotation [8]: Random 89.2 85.4 60.0 78.2
        Rotation [8]: K-means 89.7 86.0 63.7 79.8
        Rotation [8]: Ours 90.1 86.5 75.9 84.2
        Rotation [8]: Ours, 10 clusters 88.4 83.3 73.5 -
        AET [9]: Labels 92.6 91.9 91.4 92.0
        AET [9]: Random 90.2 85.4 58.7 78.1
        AET [9]: K-means 90.1 85.8 62.1 79.3
        AET [9]: Ours 90.9 86.8 75.7 84.5""",
    "sslpp/11": """
        Re-training: AET 90.7 86.2 59.4 78.8
        Re-training: SPL 84.1 78.7 71.1 78.0
        Re-training: Ours 90.9 86.8 75.7 84.5
        KNN: AET 70.4 68.3 25.1 54.6
        KNN: SPL 61.4 64.5 61.3 62.4
        KNN: Ours 72.1 75.9 66.4 71.5""",
    "sslpp/11-stl": """
        Re-training: AET 86.5 80.5 54.5 73.8
        Re-training: SPL 79.3 73.6 66.2 72.9
        Re-training: Ours 87.7 84.6 75.0 82.4
        KNN: AET 50.5 48.1 18.1 38.9
        KNN: SPL 45.7 44.3 45.4 45.1
        KNN: Ours 53.5 58.3 53.5 55.1""",
    "sslpp/12": """
        Coupled 85.2 81.5 67.7 78.1
        Ours 90.9 86.8 75.7 84.5""",
    "sslpp/13": """
        10 clusters 42.1 88.4 73.5
        30 clusters 46.1 89.0 74.2
        50 clusters 52.3 89.2 75.2
        70 clusters 54.4 90.1 75.9
        100 clusters 50.4 89.7 75.1""",
    "sslpp/14": """
        Cr / Cr 22.3 89.0 60.1
        Cr / Cr+F 23.1 89.1 61.0
        Cr / Cr+F+Co 30.3 89.5 66.4
        Cr+G / Cr+F+Co+G 50.1 89.6 74.4
        Cr+G+S / Cr+F+Co+G+S 54.4 90.1 75.9""",
}
WHOLE = {"sslpp/3", "sslpp/9", "sslpp/11", "sslpp/11-stl", "sslpp/12", "sslpp/13", "sslpp/14"}
IIC = Weights("resnet34_iic", "sslpp_iic", "end_to_end")
ROTATION = Weights("nin4", "sslpp_rotation", "end_to_end")
OURS = replace(ROTATION, labels=IIC)
HEADS = {f"top1_{head}": value for head, value in (
    ("conv_B2", 80.0), ("conv_B3", 70.0), ("conv_B4", 61.0), ("fc1_B4", 50.0), ("fc2_B4", 51.0), ("fc3_B4", 52.0),
)}  # fmt: skip
NEIGHBOURS = {
    f"top1_k{k}_majority_{block}": 10.0 * int(block[1]) + k
    for k in (1, 3, 5, 10, 15, 20)
    for block in ("B2", "B3", "B4")
}
STL = DIGESTS | {"pretrain": "e" * 32}


@pytest.mark.parametrize("name", PRINTED)
def test_numbers_as_printed(name: str) -> None:
    table = TABLES[name]
    lines = PRINTED[name].strip().splitlines()
    for line in lines:
        words, num = line.strip().split(" "), len(table.columns)
        numbers = tuple(None if number == "-" else float(number) for number in words[-num:])
        assert table.row(" ".join(words[:-num])).numbers == numbers, line
    assert name not in WHOLE or len(table.rows) == len(lines)


def test_the_forms_of_the_tables() -> None:
    for name, table in TABLES.items():
        if name.startswith("sslpp/"):
            for row in table.rows:  # nothing of SSL++'s tables is the paper's alone
                assert len(row.measures) == len(row.numbers) == len(table.columns)
            assert len({row.method for row in table.rows}) == len(table.rows)
    of_all = [TABLES[f"sslpp/{name}"] for name in ("3", "3-stl", "4", "5", "5-stl", "6", "8", "fig5")]
    assert {tuple(row.method for row in table.rows) for table in of_all} == {
        tuple(row.method for row in of_all[0].rows)
    }
    assert len(TABLES["sslpp/fig4"].rows) == 8 and len(TABLES["sslpp/fig6"].rows) == 10
    for name in ("fig4", "fig5", "fig6"):
        assert not any(row.printed for row in TABLES[f"sslpp/{name}"].rows)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("sslpp/3", "0.1: Rotation [8] 79.5, its cells' mean is 79.1."),
        ("sslpp/3-stl", "0.1: Rotation [8] 75.1, its cells' mean is 75.9."),
        ("sslpp/5", "ours of our cells."),
        ("sslpp/5-stl", "0.1: Ours+Color. 53.4, its cells' mean is 53.3."),
        ("sslpp/8", "0.1: Color. [6] 62.6, its cells' mean is 63.5."),
        ("sslpp/11-stl", "0.1: Re-training: SPL 72.9, its cells' mean is 73.0."),
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


def test_what_the_rows_are_measured_on() -> None:
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
        ("sslpp_colorization", "lambda_0.05", iic), ("sslpp_context", "lambda_0.05", iic), (rotation, None, iic),
        ("sslpp_aet", None, iic),
    ]  # fmt: skip
    assert [one[2] for one in words("sslpp/fig6", "λ = 0")] == [None] * 4
    evaluations = {need[1] for name in ("3", "4", "9", "11", "12", "13", "fig6") for need in needs_of(TABLES[f"sslpp/{name}"])}  # fmt: skip
    assert evaluations == {BLOCK_PROBE, KNN, CLUSTERS}  # one run of the classifiers serves all of them


def test_a_mean_is_of_each_seeds_cells(tmp_path: Path) -> None:
    for seed, b4 in enumerate((61.0, 64.0, 67.0)):
        put(tmp_path, OURS, BLOCK_PROBE, HEADS | {"top1_conv_B4": b4}, seed=seed)
    made = report(tmp_path, "sslpp/3")
    # means 211/3, 214/3, 217/3: 71.33 ± 1
    assert ours(made, "Ours+Rot.") == ["80.0 ± 0.0 (3)", "70.0 ± 0.0 (3)", "64.0 ± 3.0 (3)", "71.3 ± 1.0 (3)"]
    assert "| ours | 80.0 ± 0.0 (3) | 70.0 ± 0.0 (3) | 64.0 ± 3.0 (3) | 71.3 ± 1.0 (3) |" in markdown(made)
    assert ours(report(tmp_path, "sslpp/4"), "Ours+Rot.")[:2] == ["50.0 ± 0.0 (3)", "51.0 ± 0.0 (3)"]


def test_neighbours_clusters_and_figures(tmp_path: Path) -> None:
    put(tmp_path, OURS, KNN, NEIGHBOURS)
    put(tmp_path, IIC, CLUSTERS, {"many_to_one_accuracy": 54.0})
    put(tmp_path, OURS, RETRIEVAL, {"precision_top8": 33.0})
    put(tmp_path, OURS, TSNE, {"same_class_2d": 44.0})
    put(tmp_path, Weights("nin4"), TSNE, {"same_class_2d": 22.0})
    assert ours(report(tmp_path, "sslpp/5"), "Ours+Rot.") == ["30.0", "40.0", "50.0", "40.0"]
    assert ours(report(tmp_path, "sslpp/6"), "Ours+Rot.") == ["41.0", "43.0", "45.0", "50.0", "55.0", "60.0", "49.0"]  # fmt: skip
    assert ours(report(tmp_path, "sslpp/13"), "70 clusters")[0] == "54.0"
    assert ours(report(tmp_path, "sslpp/fig4"), "Ours+Rot.") == ["33.0"]
    made = report(tmp_path, "sslpp/fig5")
    assert ours(made, "Ours+Rot.") == ["44.0"] and ours(made, "Random") == ["22.0"]
    assert "Ours: 160 held-out pictures (digests aaaaaaaa/bbbbbbbb)" in made.data_words()
    assert "paper shows pictures and prints no number" in markdown(made)


def refused(runs: Path, table: str, path: Path, why: str) -> bool:
    made = report(runs, table)
    return not made.used and why in made.matches.unused[path]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"source": "none"}, "pre-trained with pseudo-labels none, here iic"),
        ({"source": "k-means"}, "pre-trained with pseudo-labels k-means, here iic"),
        ({"source": "coupled"}, "pre-trained with pseudo-labels coupled, here iic"),
        ({"num_clusters": 16}, "its pseudo-labels made with num_clusters 16, here 8"),
        ({"transforms": "grey"}, "its pseudo-labels made with transforms grey, here sobel"),
        ({"stage_epochs": [99]}, "its pseudo-labels made with stage_epochs 99, here 2"),
        ({"backbone": "resnet18"}, "its pseudo-labels made with backbone resnet18, here resnet34_iic"),
        ({"seed": 1}, "its pseudo-labels of seed 1, its own is 0"),
        ({"data_digest": "f" * 32}, "its pseudo-labels made from other pictures"),
    ],
)
def test_other_pseudo_labels_do_not_count(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    aet = replace(OURS, recipe="sslpp_aet")
    labels = science_of(aet, TINY, 0, DIGESTS["train"])["pseudo_labels"] | change
    put(tmp_path, aet, BLOCK_PROBE, HEADS, science={"pseudo_labels": labels})
    made = report(tmp_path, "sslpp/12")
    assert ours(made, "Ours") == ["None"] * 4
    assert refused_training(aet, {"pseudo_labels": labels}) == [why]


def refused_training(weights: Weights, change: dict[str, Any], seed: int = 0) -> list[str]:
    """Why a run of other science has not made these weights."""
    science = science_of(weights, TINY, seed, DIGESTS["train"])
    assert not training_differences(science, weights, TINY)
    return training_differences(science | change, weights, TINY)


def test_each_source_of_labels_is_a_row(tmp_path: Path) -> None:
    sources: list[Weights | str] = ["true", "random", "k-means", IIC, replace(IIC, variant="10")]
    for number, source in enumerate(sources):
        put(tmp_path, replace(ROTATION, labels=source), BLOCK_PROBE, HEADS | {"top1_conv_B2": number + 1.0})
    made = report(tmp_path, "sslpp/9")
    rows = ("Labels", "Random", "K-means", "Ours", "Ours, 10 clusters")
    assert [ours(made, f"Rotation [8]: {row}")[0] for row in rows] == ["1.0", "2.0", "3.0", "4.0", "5.0"]
    k_means = replace(ROTATION, labels="k-means")
    labels = science_of(k_means, TINY, 1, DIGESTS["train"])["pseudo_labels"]
    for change, why in (
        ({"num_classes": 9}, "its pseudo-labels made with num_classes 9, here 8"),
        ({"pca_width": 2}, "its pseudo-labels made with pca_width 2, here 16"),
        ({"seed": 3}, "its pseudo-labels of seed 3, its own is 1"),
    ):
        science = {"pseudo_labels": labels | change}
        assert refused_training(k_means, science, seed=1) == [why]
        path = put(tmp_path, k_means, BLOCK_PROBE, HEADS, seed=1, science=science)
        assert why in report(tmp_path, "sslpp/9").matches.unused[path]


@pytest.mark.parametrize("name", ["lambda", "labels alone"])
def test_other_weights_of_the_loss_do_not_count(tmp_path: Path, name: str) -> None:
    aet = replace(ROTATION, recipe="sslpp_aet", labels=IIC)
    if name == "lambda":
        path = put(tmp_path, OURS, BLOCK_PROBE, HEADS, science={"semantic_weight": 0.06})
        assert refused(tmp_path, "sslpp/fig6", path, "semantic_weight 0.06, here 0.0")
        for value in (0.01, 0.2, 5.0):
            variant = replace(OURS, variant=f"lambda_{value:g}")
            put(tmp_path, variant, BLOCK_PROBE, {**HEADS, "top1_conv_B2": 10 * value})
        put(tmp_path, OURS, BLOCK_PROBE, {**HEADS, "top1_conv_B2": 7.0})
        made = report(tmp_path, "sslpp/fig6")
        cells = {row: ours(made, row)[2] for row in ("λ = 0.01", "λ = 0.05", "λ = 0.2", "λ = 5")}
        assert cells == {"λ = 0.01": "43.7", "λ = 0.05": "46.0", "λ = 0.2": "44.3", "λ = 5": "60.3"}
    else:
        put(tmp_path, aet, BLOCK_PROBE, HEADS, science={"proxy": False})
        made = report(tmp_path, "sslpp/11")
        assert ours(made, "Re-training: SPL")[0] == "80.0" and ours(made, "Re-training: Ours")[0] == "None"
        assert refused_training(aet, {"proxy": False}) == ["pre-trained with proxy False, here True"]


def test_clusters_of_other_numbers_do_not_count(tmp_path: Path) -> None:
    accuracy = {"many_to_one_accuracy": 40.0}
    path = put(tmp_path, IIC, CLUSTERS, accuracy, science={"num_clusters": 9})
    assert refused(tmp_path, "sslpp/13", path, "num_clusters 9, here")
    put(tmp_path, replace(IIC, variant="10"), CLUSTERS, accuracy)
    assert ours(report(tmp_path, "sslpp/13"), "10 clusters")[0] == "40.0"
    path = put(tmp_path, replace(IIC, variant="10"), CLUSTERS, {"nmi_true": 1.0}, seed=1)
    assert "it has no many_to_one_accuracy" in report(tmp_path, "sslpp/13").matches.unused[path]


def commands_of(made: Report, method: str, seed: int = 0) -> list[str]:
    return [c for one in made.missing if made.method_of(one.weights) == method and one.seed == seed for c in one.commands]  # fmt: skip


def test_what_makes_labels_is_run_first_and_once(tmp_path: Path) -> None:
    made = report(tmp_path, "sslpp/3")
    order = [(one.weights.kind, one.weights.labels is not None) for one in made.missing if one.seed == 0]
    assert order.count(("iic", False)) == 1
    assert order.index(("iic", False)) + 1 == order.index(("colorization", True))
    page = markdown(made)
    assert "# Ours+Color., seed 0: the pseudo-labels that it learns\ntorchrun" in page
    (iic,) = [one for one in made.missing if one.weights == IIC and one.seed == 2]
    assert iic.evaluations == ()
    folder = iic.commands[0].rpartition(" ")[2]
    train, _ = commands_of(made, "Ours+AET", 2)
    assert f"--pseudo-labels {folder}/labels.npz " in train and "--seed 2 " in train


def test_labels_of_a_finished_run_are_learned_where_they_lie(tmp_path: Path) -> None:
    folder = put_run(tmp_path, "deep/iic", **science_of(IIC, TINY, 4, DIGESTS["train"]))
    made = report(tmp_path, "sslpp/3")
    assert not [one for one in made.missing if one.weights == IIC and one.seed == 4]
    train, _ = commands_of(made, "Ours+Rot.", 4)
    assert f"--pseudo-labels {folder}/labels.npz " in train
    put_run(tmp_path, "other", **(science_of(IIC, TINY, 5, DIGESTS["train"]) | {"num_clusters": 9}))
    assert not [one for one in report(tmp_path, "sslpp/3").missing if one.seed == 5]


def test_a_trained_network_needs_its_labels_no_more(tmp_path: Path) -> None:
    folder = put_run(tmp_path, "rotation", **science_of(OURS, TINY, 0, DIGESTS["train"]))
    (evaluate,) = commands_of(report(tmp_path, "sslpp/3"), "Ours+Rot.")
    assert f"--checkpoint {folder} " in evaluate and "block_probe.py" in evaluate
    trained = [one for one in report(tmp_path, "sslpp/14").missing if one.weights == OURS and one.seed == 0]
    assert len(trained[0].commands) == 1


def test_labels_of_no_network_are_written_first_and_once(tmp_path: Path) -> None:
    made = report(tmp_path, "sslpp/9", PAPER)
    first = commands_of(made, "Rotation [8]: K-means")
    path = tmp_path / "sslpp-paper-labels-k-means-s0.npz"
    assert first[0] == f"fastpsl labels k-means --data T.beton --out {path} --seed 0 --num-classes 70"
    assert f"--pseudo-labels {path} " in first[1] and len(first) == 3
    second = commands_of(made, "AET [9]: K-means")
    assert f"--pseudo-labels {path} " in second[0] and len(second) == 2
    path.write_bytes(b"")
    assert len(commands_of(report(tmp_path, "sslpp/9", PAPER), "Rotation [8]: K-means")) == 2


def test_stl_10_learns_from_other_pictures_than_it_is_evaluated_on(tmp_path: Path) -> None:
    labels = replace(IIC, variant="stl")
    stl = replace(BLOCK_PROBE, name="blocks/stl")
    for weights in (
        replace(ROTATION, labels=labels),
        ROTATION,
        Weights("nin4", "supervised", "end_to_end", "32px"),
    ):
        put(tmp_path, weights, stl, HEADS, data=STL)  # fmt: skip
    put(tmp_path, Weights("nin4"), stl, HEADS, data=STL)
    made = report(tmp_path, "sslpp/3-stl")
    for method in ("Rotation [8]", "Ours+Rot.", "Supervised", "Random"):
        assert ours(made, method)[0] == "80.0", made.matches.unused
    assert "digests aaaaaaaa/bbbbbbbb/eeeeeeee" in made.data_words() and not made.matches.unused
    # kNN is the same in both: what it was pre-trained on decides
    there = put(tmp_path, ROTATION, KNN, NEIGHBOURS, data=STL)
    here = put(tmp_path, ROTATION, KNN, NEIGHBOURS)
    for table, path in (("sslpp/5", here), ("sslpp/5-stl", there)):
        made = report(tmp_path, table)
        assert [result.path for _, _, result in made.used] == [path]
    learned = {"data_digest": STL["val"]}
    path = put(tmp_path, ROTATION, KNN, NEIGHBOURS, data=STL, science=learned, seed=2)
    assert (
        "pre-trained on the pictures that it was evaluated on"
        in report(tmp_path, "sslpp/5-stl").matches.unused[path]
    )


def test_two_sets_to_pre_train_on_are_not_mixed(tmp_path: Path) -> None:
    put(tmp_path, ROTATION, KNN, NEIGHBOURS, data=STL)
    put(tmp_path, ROTATION, KNN, NEIGHBOURS, data=STL | {"pretrain": "9" * 32}, seed=1)
    with pytest.raises(ValueError, match="2 data sets"):
        report(tmp_path, "sslpp/5-stl")
    made = report(tmp_path, "sslpp/5-stl", asked=DataSet(pretrain="9" * 32))
    assert [result.seed for _, _, result in made.used] == [1]
    assert "train/val/pre-training" in next(iter(made.matches.unused.values()))


def test_commands_of_stl_10_name_both_sets(tmp_path: Path) -> None:
    put_run(tmp_path, "cifar", **science_of(ROTATION, TINY, 0, DIGESTS["train"]))
    asked = DataSet("a" * 32, "b" * 32, "e" * 32)
    made = report(tmp_path, "sslpp/5-stl", asked=asked)
    train, evaluate = commands_of(made, "Rotation [8]")  # that of CIFAR-10 is another
    assert "--data P.beton --val V.beton" in train and "--data T.beton --val V.beton" in evaluate
    assert f"{tmp_path}/sslpp-stl-tiny/" in train
    supervised, _ = commands_of(made, "Supervised")
    assert "--data T.beton --val V.beton" in supervised
    put_run(tmp_path, "stl", **science_of(ROTATION, TINY, 0, "e" * 32))
    assert len(commands_of(report(tmp_path, "sslpp/5-stl", asked=asked), "Rotation [8]")) == 1


def test_pretrain_data_is_for_tables_that_have_such(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rest = ["--runs", str(tmp_path), "--out", str(tmp_path / "out"), "--pretrain-data", "more.beton"]
    with pytest.raises(SystemExit):
        main(["table", "sslpp/5", *rest])
    assert "the trainings of sslpp/5 learn from --data" in capsys.readouterr().err
    main(["table", "sslpp/5-stl", *rest])
    captured = capsys.readouterr()
    assert "--data more.beton --val VAL.beton" in captured.out and "more.beton: not here" in captured.err


@pytest.mark.parametrize("evaluation", [BLOCK_PROBE, KNN], ids=lambda one: one.name)
@pytest.mark.parametrize(
    "setting", [{"heads": ["conv_B2"]}, {"epochs": 3}, {"whole": False}, {"size_px": 64}, {"block": ["B2"]}]
)
def test_other_evaluations_do_not_count(
    tmp_path: Path, evaluation: Evaluation, setting: dict[str, Any]
) -> None:
    (name,) = setting
    if name not in TINY.evaluation_settings(evaluation):
        return
    path = put(tmp_path, OURS, evaluation, HEADS | NEIGHBOURS, settings=setting)
    table = "sslpp/3" if evaluation == BLOCK_PROBE else "sslpp/5"
    assert refused(tmp_path, table, path, f"evaluated with {name}")


def test_wide_tables_have_panels_in_lines(tmp_path: Path) -> None:
    from fastpsl.tables.picture import picture

    figure = picture(report(tmp_path, "sslpp/8", PAPER))
    panels = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_title() for axis in panels][:5] == ["20: B2", "20: B3", "20: B4", "20: Avg.", "100: B2"]
    assert len(panels) == 16 and figure.get_size_inches()[0] < 15
    figure = picture(report(tmp_path, "sslpp/6", PAPER))
    assert len([axis for axis in figure.axes if axis.get_visible()]) == 7


def test_the_papers_sizes() -> None:
    """Table II's evaluation, and what the recipe does by itself."""
    of = PAPER.values
    for name, value in recipe("block_probe")["PAPER"].items():
        assert name == "heads" or of["blocks"][name] == value
    assert (of["blocks"]["batch_size"], of["blocks/stl"]["batch_size"]) == (128, 64)
    assert {name for name, value in of["blocks/stl"].items() if value != of["blocks"][name]} == {"batch_size"}
    assert [of[f"blocks/{number}"]["labels_per_class"] for number in (20, 100, 400, 1000)] == [20, 100, 400, 1000]  # fmt: skip
    assert [of[f"supervised/{number}"]["labels_per_class"] for number in (20, 1000)] == [20, 1000]
    assert of["knn/blocks"]["k"] == (1, 3, 5, 10, 15, 20) and of["tsne"]["num"] == 1000
    assert [of[f"sslpp_iic/{number}"] for number in (10, 100)] == [{"num_clusters": 10}, {"num_clusters": 100}]  # fmt: skip
    usual = [
        of[f"sslpp_{task}"]["semantic_weight"] for task in ("colorization", "context", "rotation", "aet")
    ]
    assert usual == [1.0, 1.0, 0.05, 0.05]
    assert [of[f"sslpp_iic/{name}"]["transforms"] for name in ("crop", "grey")] == ["crop", "grey"]


def test_what_the_networks_see(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("crop", "grey", None):
        weights = replace(IIC, variant=name)
        assert TINY.channels(weights) == input_of(name or "sobel", 32).channels  # type: ignore[arg-type]
    for task in ("colorization", "context", "rotation", "aet"):
        monkeypatch.setattr(sys, "argv", [f"sslpp_{task}", "--backbone", "nin3"])
        parts = recipe(f"sslpp_{task}")
        (view,) = parts["build"](parts["parse"]()).task.views(1)
        assert PAPER.channels(replace(ROTATION, recipe=f"sslpp_{task}")) == view.input().channels
