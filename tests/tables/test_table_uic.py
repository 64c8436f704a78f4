"""UIC's tables: what the rows are measured on, fine-tuned weights, NMI, networks that see gradients."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastpsl.tables.page import markdown
from fastpsl.tables.paper_file import TABLES
from fastpsl.tables.rows import CLUSTERS, UIC, Measure, Weights
from tests.tables.table_results import DIGESTS, PAPER, TINY, ours, put, put_run, report, science_of

RAW = Weights("alexnet", "uic_alexnet", "end_to_end")
TUNED = replace(RAW, variant="tuned", base=RAW)
CONV = {f"top1_B{number}": 10.0 * number for number in range(1, 8)}


def measured_on(table: str, method: str) -> list[tuple[Any, ...]]:
    def words(one: Measure) -> tuple[Any, ...]:
        weights = one.weights
        return weights.recipe, weights.variant, weights.backbone, one.evaluation.protocol, one.numbers

    return [words(one) for one in TABLES[table].row(method).measures]


def test_what_the_rows_are_measured_on() -> None:
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


def commands_of(runs: Path, table: str) -> list[str]:
    """Return the recipe and the name of the folder of each command that seed 0 needs."""
    lines = [line for one in report(runs, table).missing if one.seed == 0 for line in one.commands]
    return [
        f"{Path(line.split()[2]).stem if 'torchrun' in line else 'clusters'} {Path(line.split()[-1]).name}"
        for line in lines
    ]


def test_what_is_fine_tuned_is_trained_first(tmp_path: Path) -> None:
    raw, tuned = "uic-end_to_end-alexnet-s0", "uic-end_to_end-tuned-alexnet-s0"
    said = commands_of(tmp_path, "uic/4")
    place = said.index(f"uic_alexnet {raw}")  # no row is measured on it
    assert said[place + 1 :] == [f"uic_alexnet {tuned}", f"linear_probe {tuned}-linear-uic"]
    assert commands_of(tmp_path, "uic/2") == [
        f"uic_alexnet {raw}", f"linear_probe {raw}-linear-uic",
        f"uic_alexnet {tuned}", f"linear_probe {tuned}-linear-uic",
    ]  # fmt: skip
    said = commands_of(tmp_path, "uic/7")
    assert said[3:8] == [
        f"uic_alexnet {raw}", f"clusters {raw}-clusters", f"linear_probe {raw}-linear-uic",
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
    assert len(first.commands) == 1 and "linear_probe.py" in first.commands[0]


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
