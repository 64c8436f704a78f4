"""Tables whose trainings need others: fine-tuned weights, pseudo-labels, and other images to learn from."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastpsl.scripts.recipe_files import EVAL, TRAIN
from fastpsl.tables.matching import training_differences
from fastpsl.tables.page import markdown
from fastpsl.tables.paper_file import TABLES
from fastpsl.tables.rows import BLOCK_PROBE, CLUSTERS, KNN, RETRIEVAL, TSNE, UIC, Evaluation, Weights
from tests.cli import Cli, refused
from tests.tables.table_results import (
    DIGESTS,
    IIC,
    PAPER,
    RAW,
    ROTATION,
    TINY,
    TUNED,
    commands_of,
    ours,
    put,
    put_run,
    report,
    science_of,
)

CONV = {f"top1_B{number}": 10.0 * number for number in range(1, 8)}


def test_nmi_and_probes_are_of_one_data_set(tmp_path: Path) -> None:
    """A result of labels alone has no validation images: any data set of its training images agrees."""
    for seed in TINY.seeds:
        put(tmp_path, RAW, UIC, CONV, seed=seed)
        put(tmp_path, RAW, CLUSTERS, {"nmi_true": 40.0 + seed}, seed=seed)
    made = report(tmp_path, "uic/1")
    assert ours(made, "UIC 3k") == ["30.0 ± 0.0 (3)", "40.0 ± 0.0 (3)", "50.0 ± 0.0 (3)", "41.0 ± 1.0 (3)"]
    assert "480 training and 160 validation images" in made.data_words()
    assert not [one for one in made.missing if one.weights == RAW]
    put(tmp_path, replace(RAW, variant="5k"), CLUSTERS, {"nmi_true": 1.0}, data=DIGESTS | {"train": "e" * 32})
    with pytest.raises(ValueError, match="2 data sets"):
        report(tmp_path, "uic/1")


def test_nmi_alone_needs_no_validation_images(tmp_path: Path) -> None:
    put(tmp_path, RAW, CLUSTERS, {"nmi_true": 38.0})
    made = report(tmp_path, "uic/1")
    assert ours(made, "UIC 3k")[3] == "38.0" and "Ours: 480 training images (digests" in made.data_words()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"settings": {"labels": "elsewhere/labels.npz"}}, "of other labels than its run left"),
        ({"settings": {"nmi_average": "geometric"}}, "evaluated with nmi_average geometric, here arithmetic"),
        ({"numbers": {"biggest": 3.0}}, "it has no nmi_true"),
        ({"science": {"fine_tune": "d" * 64}}, "fine-tuned"),
        ({"science": {"labels": "d" * 64}}, "pre-trained on labels of a file"),
        ({"science": {"num_clusters": 9}}, "num_clusters 9, here 16"),
        ({"checkpoint": {"input": {"channels": "RGB"}}}, "its network sees RGB, here SobelXY"),
    ],
)
def test_nmi_of_something_else_does_not_count(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    path = put(tmp_path, RAW, CLUSTERS, **({"numbers": {"nmi_true": 1.0}} | change))
    made = report(tmp_path, "uic/1")
    assert why in made.matches.unused[path] and not made.used


def test_of_the_random_rows_each_has_its_channels(tmp_path: Path) -> None:
    put(tmp_path, Weights("alexnet"), UIC, CONV)
    put(tmp_path, Weights("alexnet", channels="SobelXY"), UIC, CONV | {"top1_B1": 5.0})
    made = report(tmp_path, "uic/4")
    assert ours(made, "Random")[0] == "10.0" and ours(made, "Random-Sobel")[0] == "5.0"
    assert "ours alone: not in the paper" in made.mark(TABLES["uic/4"].row("Random-Sobel"))
    name = "**SelfLabel 3k × 1 \\[1\\]** (the paper's alone: not measured here)"
    assert f"| {name} | AlexNet | paper | – | – | 43.0 |" in markdown(made)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, ""),
        ({"augment": "strong"}, "before it was fine-tuned: pre-trained with augment strong"),
        ({"epochs": [3]}, "before it was fine-tuned: pre-trained with epochs 3, here 12"),
        ({"data_digest": "f" * 32}, "fine-tuned on other images"),
        ({"fine_tune": "e" * 64}, "before it was fine-tuned: fine-tuned"),
        (None, "without saying what it fine-tunes"),
    ],
)
def test_fine_tuned_weights_count_where_their_base_does(
    tmp_path: Path, change: dict[str, Any] | None, why: str
) -> None:
    base = science_of(RAW, TINY, 0, DIGESTS["train"])
    fine_tuned = None if change is None else base | change
    path = put(tmp_path, TUNED, UIC, CONV, science={"fine_tuned": fine_tuned})
    made = report(tmp_path, "uic/2")
    if not why:
        assert ours(made, "UIC 3k √") == ["30.0", "40.0", "50.0"] and ours(made, "UIC 3k ×") == ["None"] * 3
    else:
        assert not made.used and why in made.matches.unused[path]


def command_names(runs: Path, table: str) -> list[str]:
    """Return the recipe and the name of the folder of each command that seed 0 needs."""
    lines = [line for one in report(runs, table).missing if one.seed == 0 for line in one.commands]
    names = {**TRAIN, **EVAL}
    return [f"{names.get(line.split()[2], 'clusters')} {Path(line.split()[-1]).name}" for line in lines]


def test_what_is_fine_tuned_is_trained_first(tmp_path: Path) -> None:
    raw, tuned = "uic-alexnet", "uic-alexnet-tuned"
    said = command_names(tmp_path, "uic/4")
    place = said.index(f"uic_alexnet {raw}")  # no row is measured on it
    assert said[place + 1 :] == [f"uic_alexnet {tuned}", f"linear_probe {tuned}-linear-uic"]
    assert command_names(tmp_path, "uic/2") == [
        f"uic_alexnet {raw}", f"linear_probe {raw}-linear-uic",
        f"uic_alexnet {tuned}", f"linear_probe {tuned}-linear-uic",
    ]  # fmt: skip
    said = command_names(tmp_path, "uic/7")
    assert said[3:8] == [
        f"uic_alexnet {raw}", f"clusters {raw}", f"linear_probe {raw}-linear-uic",
        f"uic_alexnet {tuned}", f"linear_probe {tuned}-linear-uic",
    ]  # fmt: skip


def test_a_finished_base_is_fine_tuned_where_it_lies(tmp_path: Path) -> None:
    science = science_of(RAW, TINY, 5, DIGESTS["train"])
    folder = put_run(tmp_path, "deep/base", **science)
    first, *_ = [one for one in report(tmp_path, "uic/2").missing if one.weights == TUNED and one.seed == 5]
    assert len(first.commands) == 2 and f"--fine-tune {folder} " in first.commands[0]
    made = report(tmp_path, "uic/4")
    assert [one.seed for one in made.missing if one.weights == RAW] == [0, 1]  # two more seeds, in order
    assert [one.seed for one in made.missing if one.weights == TUNED] == [0, 1, 5]


def test_a_base_is_not_trained_again_for_a_network_that_is_fine_tuned_already(tmp_path: Path) -> None:
    put_run(tmp_path, "tuned", **science_of(TUNED, TINY, 0, DIGESTS["train"]))
    made = report(tmp_path, "uic/4")
    assert [one.seed for one in made.missing if one.weights == RAW] == [1, 2]
    (first,) = [one for one in made.missing if one.weights == TUNED and one.seed == 0]
    assert len(first.commands) == 1 and first.commands[0].startswith("fastpsl eval linear ")


def test_a_begun_base_is_finished_first(tmp_path: Path) -> None:
    folder = put_run(tmp_path, "begun", state="preempted", **science_of(RAW, TINY, 0, DIGESTS["train"]))
    made = report(tmp_path, "uic/4")
    (base,) = [one for one in made.missing if one.weights == RAW and one.seed == 0]
    assert base.evaluations == () and len(base.commands) == 1 and base.commands[0].endswith(f"--out {folder}")
    assert f"# Ours, seed 0: to be fine-tuned (its pre-training was begun: {folder})" in markdown(made)
    (tuned,) = [one for one in made.missing if one.weights == TUNED and one.seed == 0]
    assert f"--fine-tune {folder} " in tuned.commands[0]


def test_weights_are_called_by_the_row_that_is_theirs_alone(tmp_path: Path) -> None:
    assert report(tmp_path, "uic/7").method_of(RAW) == "UIC, not tuned"
    assert report(tmp_path, "uic/7").method_of(TUNED) == "UIC (Ours)"
    assert report(tmp_path, "uic/4").method_of(RAW) == "Ours"


def test_num_needed_counts_results_and_no_trainings(tmp_path: Path) -> None:
    # five rows of ours, each one evaluation a seed; the base of "Ours" is trained and not evaluated
    assert report(tmp_path, "uic/4").num_needed == 5 * len(TINY.seeds)
    assert report(tmp_path, "uic/4", PAPER).num_needed == 5


def test_gains_are_told_where_the_paper_has_them(tmp_path: Path) -> None:
    made = report(tmp_path, "uic/7")
    gains = {gain.row.method: gain.paper for gain in made.gains}
    assert gains["UIC + strong aug (Ours)"] == pytest.approx((2.3, 4.6, 6.2, 1.5))
    assert gains["UIC (Ours)"][:3] == pytest.approx((0.6, 1.9, 0.8)) and gains["UIC (Ours)"][3] is None
    written = markdown(made)
    assert "## What rows add" in written and "Top-1 accuracy and NMI, %." in written


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


def is_unused(runs: Path, table: str, path: Path, why: str) -> bool:
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
        assert is_unused(tmp_path, "sslpp/fig6", path, "semantic_weight 0.06, here 0.0")
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
    assert is_unused(tmp_path, "sslpp/13", path, "num_clusters 9, here")
    put(tmp_path, replace(IIC, variant="10"), CLUSTERS, accuracy)
    assert ours(report(tmp_path, "sslpp/13"), "10 clusters")[0] == "40.0"
    path = put(tmp_path, replace(IIC, variant="10"), CLUSTERS, {"nmi_true": 1.0}, seed=1)
    assert "it has no many_to_one_accuracy" in report(tmp_path, "sslpp/13").matches.unused[path]


def test_what_makes_labels_is_run_first_and_once(tmp_path: Path) -> None:
    made = report(tmp_path, "sslpp/3")
    order = [(one.weights.kind, one.weights.labels is not None) for one in made.missing if one.seed == 0]
    assert order.count(("iic", False)) == 1
    assert order.index(("iic", False)) + 1 == order.index(("colorization", True))
    page = markdown(made)
    assert "# Ours+Color., seed 0: the pseudo-labels that it learns\nfastpsl train iic" in page
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
    assert f"fastpsl eval blocks {folder} " in evaluate
    trained = [one for one in report(tmp_path, "sslpp/14").missing if one.weights == OURS and one.seed == 0]
    assert len(trained[0].commands) == 1


def test_labels_of_no_network_are_written_first_and_once(tmp_path: Path) -> None:
    made = report(tmp_path, "sslpp/9", PAPER)
    first = commands_of(made, "Rotation [8]: K-means")
    path = tmp_path / "sslpp-labels-k-means.npz"
    assert first[0] == f"fastpsl labels k-means --data T.beton --out {path}"
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


def test_pretrain_data_is_for_tables_that_have_such(tmp_path: Path, cli: Cli) -> None:
    rest = ("--runs", tmp_path, "--out", tmp_path / "out", "--pretrain-data", "more.beton")
    refused(cli("table", "sslpp/5", *rest), "the trainings of sslpp/5 learn from --data")
    _, said, error = cli("table", "sslpp/5-stl", *rest)
    assert "--data more.beton --val VAL " in said and "more.beton: not here" in error


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
    assert is_unused(tmp_path, table, path, f"evaluated with {name}")
