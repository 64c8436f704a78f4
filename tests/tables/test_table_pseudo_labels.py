"""Which results a table of SSL++ uses, by pseudo-labels and images, and the commands of what is missing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastpsl.cli import main
from fastpsl.tables.matching import training_differences
from fastpsl.tables.page import markdown
from fastpsl.tables.report import Report
from fastpsl.tables.rows import BLOCK_PROBE, CLUSTERS, KNN, RETRIEVAL, TSNE, Evaluation, Weights
from tests.tables.table_results import DIGESTS, PAPER, TINY, ours, put, put_run, report, science_of

IIC = Weights("resnet34_iic", "sslpp_iic", "end_to_end")
ROTATION = Weights("nin4", "sslpp_rotation", "end_to_end")
OURS = replace(ROTATION, labels=IIC)
HEADS = {
    "top1_conv_B2": 80.0, "top1_conv_B3": 70.0, "top1_conv_B4": 61.0,
    "top1_fc1_B4": 50.0, "top1_fc2_B4": 51.0, "top1_fc3_B4": 52.0,
}  # fmt: skip
NEIGHBOURS = {
    f"top1_k{k}_majority_{block}": 10.0 * int(block[1]) + k
    for k in (1, 3, 5, 10, 15, 20)
    for block in ("B2", "B3", "B4")
}
STL = DIGESTS | {"pretrain": "e" * 32}


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
    by_k = ["41.0", "43.0", "45.0", "50.0", "55.0", "60.0", "49.0"]
    assert ours(report(tmp_path, "sslpp/6"), "Ours+Rot.") == by_k
    assert ours(report(tmp_path, "sslpp/13"), "70 clusters")[0] == "54.0"
    assert ours(report(tmp_path, "sslpp/fig4"), "Ours+Rot.") == ["33.0"]
    made = report(tmp_path, "sslpp/fig5")
    assert ours(made, "Ours+Rot.") == ["44.0"] and ours(made, "Random") == ["22.0"]
    assert "Ours: 160 validation images (digests aaaaaaaa/bbbbbbbb)" in made.data_words()
    assert "paper shows images and prints no number" in markdown(made)


def refused(runs: Path, table: str, path: Path, why: str) -> bool:
    made = report(runs, table)
    return not made.used and why in made.matches.unused[path]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"source": "none"}, "pre-trained with pseudo-labels none, here iic"),
        ({"source": "k-means"}, "pre-trained with pseudo-labels k-means, here iic"),
        ({"source": "coupled"}, "pre-trained with pseudo-labels coupled, here iic"),
        ({"num_clusters": 8}, "its pseudo-labels made with num_clusters 8, here 16"),
        ({"augment": "grey"}, "its pseudo-labels made with augment grey, here sobel"),
        ({"epochs": [99]}, "its pseudo-labels made with epochs 99, here 4"),
        ({"backbone": "resnet18"}, "its pseudo-labels made with backbone resnet18, here resnet34_iic"),
        ({"seed": 1}, "its pseudo-labels of seed 1, its own is 0"),
        ({"data_digest": "f" * 32}, "its pseudo-labels made from other images"),
        ({"cut": True}, "its pseudo-labels made by a run that --max-steps-per-stage cut short"),
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
    """Return why a run with other science has not made these weights."""
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
        ({"num_clusters": 9}, "its pseudo-labels made with num_clusters 9, here 16"),
        ({"pca_width": 2}, "its pseudo-labels made with pca_width 2, here 64"),
        ({"size_px": 16}, "its pseudo-labels made with size_px 16, here 32"),
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
    return [
        command
        for missing in made.missing
        if made.method_of(missing.weights) == method and missing.seed == seed
        for command in missing.commands
    ]


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
    assert first[0] == f"fastpsl labels k-means --data T.beton --out {path} --seed 0 --num-clusters 70"
    assert f"--pseudo-labels {path} " in first[1] and len(first) == 3
    second = commands_of(made, "AET [9]: K-means")
    assert f"--pseudo-labels {path} " in second[0] and len(second) == 2
    path.write_bytes(b"")
    assert len(commands_of(report(tmp_path, "sslpp/9", PAPER), "Rotation [8]: K-means")) == 2


def test_stl_10_learns_from_other_images_than_it_is_evaluated_on(tmp_path: Path) -> None:
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
        "pre-trained on the images that it was evaluated on"
        in report(tmp_path, "sslpp/5-stl").matches.unused[path]
    )


def test_two_sets_to_pre_train_on_are_not_mixed(tmp_path: Path) -> None:
    put(tmp_path, ROTATION, KNN, NEIGHBOURS, data=STL)
    put(tmp_path, ROTATION, KNN, NEIGHBOURS, data=STL | {"pretrain": "9" * 32}, seed=1)
    with pytest.raises(ValueError, match="2 data sets"):
        report(tmp_path, "sslpp/5-stl")
    made = report(tmp_path, "sslpp/5-stl", asked={"pretrain": "9" * 32})
    assert [result.seed for _, _, result in made.used] == [1]
    assert "train/val/pre-training" in next(iter(made.matches.unused.values()))


def test_commands_of_stl_10_name_both_sets(tmp_path: Path) -> None:
    put_run(tmp_path, "cifar", **science_of(ROTATION, TINY, 0, DIGESTS["train"]))
    asked = {"train": "a" * 32, "val": "b" * 32, "pretrain": "e" * 32}
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
