"""Tables with evaluations that read other data: which results count, and what commands name."""

import contextlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastpsl.pipelines.datasets.open import open_data
from fastpsl.pipelines.datasets.voc.dataset import VOC
from fastpsl.pipelines.embedded.draw_voc import draw_voc
from fastpsl.tables import psl, rows, uic
from fastpsl.tables.data_sets import digests_of_other_data
from fastpsl.tables.page import markdown
from fastpsl.tables.paper_file import TABLES
from tests.cli import Cli, Outcome, refused
from tests.tables.table_results import (
    DIGESTS,
    TINY,
    missing_of,
    ours,
    put,
    put_run,
    report,
    science_of,
)

SUPERVISED, JIGSAW, PSL = (psl.WEIGHTS[name] for name in ("supervised", "jigsaw end_to_end", "jigsaw psl"))
UIC, DEEPCLUSTER = uic.WEIGHTS["uic"], uic.WEIGHTS["deepcluster"]
IIC = rows.Weights("resnet34", "sslpp_iic", "end_to_end", "yfcc")
FC6_8, ALL = (rows.classification("deepcluster", layers) for layers in ("fc6_8", "all"))
VOC_DIGESTS = {"train": "1" * 32, "val": "2" * 32, "own": DIGESTS["train"]}
AP = {"AP": 30.0, "AP50": 60.0, "AP75": 25.0}


def put_detection(runs: Path, weights: rows.Weights = PSL, ap75: float = 25.0, **changes: Any) -> Path:
    return put(runs, weights, rows.DETECTION, AP | {"AP75": ap75}, **{"data": VOC_DIGESTS, **changes})


def test_the_distance_from_the_supervised_row(tmp_path: Path) -> None:
    for seed, ap75 in enumerate((30.0, 34.0)):
        put_detection(tmp_path, SUPERVISED, ap75, seed=seed)
    assert ours(report(tmp_path, "psl/8"), "Jigsaw+PSL") == ["None"] * 4
    for seed, ap75 in enumerate((25.0, 27.0, 32.0)):
        put_detection(tmp_path, PSL, ap75, seed=seed)
    put_detection(tmp_path, JIGSAW, 20.0)
    made = report(tmp_path, "psl/8")
    # 28 less the supervised mean of 32; squares 9 + 1 + 16 over two degrees of freedom
    cells = ["30.0 ± 0.0 (3)", "60.0 ± 0.0 (3)", "28.0 ± 3.6 (3)", "−4.0 ± 3.6 (3)"]
    assert ours(made, "Jigsaw+PSL") == cells
    assert ours(made, "Supervised")[3] == "0.0 ± 2.8 (2)" and ours(made, "Jigsaw [38]")[3] == "−12.0"
    gain = next(gain for gain in made.gains if gain.row.method == "Jigsaw+PSL")
    assert gain.ours[2:] == (8.0, 8.0) and gain.paper[3] == pytest.approx(2.4)
    page = markdown(made)
    assert "| **Jigsaw \\[38\\]** | R50 | paper | 48.9 | 75.1 | 52.9 | −4.5 |" in page
    assert "pre-trained on images of digest aaaaaaaa" in page
    assert "detection/pirl: 480 training and 160 validation images (digests 11111111/22222222)" in page
    assert "The paper's numbers are of VOC07+12" in page


def test_nothing_is_taken_off_where_the_supervised_row_is_missing(tmp_path: Path) -> None:
    put_detection(tmp_path)
    assert ours(report(tmp_path, "psl/8"), "Jigsaw+PSL") == ["30.0", "60.0", "25.0", "None"]


def test_other_folders_of_voc_are_not_mixed(tmp_path: Path) -> None:
    one = put_detection(tmp_path, SUPERVISED)
    two = put_detection(tmp_path, data=VOC_DIGESTS | {"val": "9" * 32})
    with pytest.raises(
        ValueError, match="results of 2 data sets must not be mixed.*voc detection/pirl val.*: give --voc of"
    ):
        report(tmp_path, "psl/8")
    made = report(tmp_path, "psl/8", asked={"voc detection/pirl val": "9" * 32})
    assert [result.path for _, _, result in made.used] == [two]
    assert "of other images" in made.matches.unused[one]
    assert "detection/pirl val 22222222" in made.matches.unused[one]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"settings": {"steps": 7}}, "evaluated with steps 7, here 40"),
        ({"science": {"plan": "other"}}, "plan other"),
        ({"data": VOC_DIGESTS | {"own": "1" * 32}}, "pre-trained on the images that it was evaluated on"),
        ({"data": VOC_DIGESTS | {"val": "1" * 32}}, "scored on the images that it learned from"),
        ({"numbers": {"AP": 1.0}}, "it has no AP50, AP75"),
        ({"cut": True}, "cut short"),
    ],
)
def test_what_does_not_fit_is_not_used(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    path = put(tmp_path, PSL, rows.DETECTION, **{"numbers": AP, "data": VOC_DIGESTS, **change})
    made = report(tmp_path, "psl/8")
    assert not made.used and why in made.matches.unused[path]


def test_what_was_pre_trained_on_is_of_one_data_set(tmp_path: Path) -> None:
    put_detection(tmp_path, SUPERVISED)
    put_detection(tmp_path, data=VOC_DIGESTS | {"own": "f" * 32})
    with pytest.raises(ValueError, match="2 data sets must not be mixed .digests of train.*--data"):
        report(tmp_path, "psl/8")
    (used,) = report(tmp_path, "psl/8", asked={"train": "f" * 32}).used
    assert used[0] == "Jigsaw+PSL"


def test_three_data_sets_in_one_table(tmp_path: Path) -> None:
    blocks = {f"B{block}": float(block) for block in (1, 2, 3, 5)} | {"B4": 50.0}
    for digit, (evaluation, number) in enumerate(
        ((rows.SVM, "mAP"), (rows.PLACES205, "top1"), (rows.INAT18, "top1"))
    ):
        data = {"train": f"{digit}" * 32, "val": f"{digit + 4}" * 32, "own": DIGESTS["train"]}
        numbers = {f"{number}_{block}": value + digit for block, value in blocks.items()}
        put(tmp_path, PSL, evaluation, numbers, data=data)
    made = report(tmp_path, "psl/9")
    assert ours(made, "Jigsaw+PSL") == ["50.0", "51.0", "52.0"] and not made.matches.unused
    page = markdown(made)
    assert "| ours | 50.0 B4 | 51.0 B4 | 52.0 B4 |" in page
    assert "svm/vissl: 480 training" in page and "(digests 22222222/66666666)" in page
    assert report(tmp_path, "psl/5").matches.num_other == 3  # ImageNet's table has none of them


def test_what_has_no_validation_images_and_two_sizes(tmp_path: Path) -> None:
    of_blocks = {"B3": 30.0, "B4": 40.0, "B5": 50.0, "B5_max_pool": 55.0}
    numbers = {f"accuracy_{block}": value for block, value in of_blocks.items()}
    for weights, size_px, more in ((UIC, 224, 2.0), (DEEPCLUSTER, 224, 1.0), (UIC, 84, 0.0)):
        mine = {name: value + more for name, value in numbers.items()}
        put(tmp_path, weights, rows.FEW_SHOTS[size_px], mine, data=VOC_DIGESTS)
    made = report(tmp_path, "uic/6")
    assert ours(made, "UIC 3k, 224 px") == ["32.0", "42.0", "52.0", "57.0"] and not made.matches.unused
    assert ours(made, "UIC 3k, 84 px")[3] == "55.0" and ours(made, "DeepCluster, 84 px") == ["None"] * 4
    page = markdown(made)
    assert "| paper | 48.79 | 53.03 | 62.46 | 65.05 |" in page  # the digits that the paper prints
    assert "few_shot: 160 validation images (digests 22222222)" in page


def test_random_weights_tell_nothing_of_what_was_pre_trained_on(tmp_path: Path) -> None:
    for weights in (rows.Weights("alexnet"), rows.Weights("alexnet", channels="SobelXY"), DEEPCLUSTER):
        for evaluation in (FC6_8, ALL):
            put(tmp_path, weights, evaluation, {"mAP": 40.0}, data=VOC_DIGESTS)
    put(tmp_path, DEEPCLUSTER, rows.FCN_ALEXNET, {"mIoU": 30.0}, data=VOC_DIGESTS | {"train": "7" * 32})
    made = report(tmp_path, "uic/5")
    assert ours(made, "Random-Sobel") == ours(made, "Random-RGB") == ["40.0", "40.0", "None", "None"]
    assert ours(made, "DeepCluster [2]") == ["40.0", "40.0", "None", "30.0"] and not made.matches.unused


def test_a_run_of_other_images_is_not_evaluated(tmp_path: Path) -> None:
    put_detection(tmp_path, SUPERVISED)
    put_run(tmp_path, "other", **science_of(PSL, TINY, 0, "f" * 32))
    assert len(missing_of(tmp_path, PSL, "psl/8")[0].commands) == 2
    put_run(tmp_path, "mine", **science_of(PSL, TINY, 0, DIGESTS["train"]))
    (command,) = missing_of(tmp_path, PSL, "psl/8")[0].commands
    assert f"fastpsl eval detect {tmp_path}/mine --data VOCdevkit " in command


def table(cli: Cli, name: str, runs: Path, *words: object) -> Outcome:
    return cli("table", name, "--runs", runs, "--out", runs / "out", *words)


def test_commands_name_the_data_that_is_given(tmp_path: Path, cli: Cli) -> None:
    given = ("--voc", "my VOC", "--proposals", "a.mat", "b.mat", "--data", "T", "--val", "V")
    _, said, warned = table(cli, "uic/5", tmp_path, *given)
    lines = [
        line for line in said.splitlines() if re.match("fastpsl eval (multilabel|detect|segment) ", line)
    ]
    assert len(lines) == 5 * 4 and all("--data 'my VOC'" in line and "--val" not in line for line in lines)
    assert sum("--proposals a.mat b.mat" in line for line in lines) == 5
    assert sum("--sbd SBD" in line for line in lines) == 5  # not given
    assert "--voc my VOC" in warned and "not here, so results are not compared" in warned
    gpus = {(line.split()[2], (re.findall("--gpus (.)", line) or [1])[0]) for line in lines}
    # Batches are of 16, of 2, and of 20 that are 20 times one.
    assert gpus == {("multilabel", "8"), ("detect", "2"), ("segment", 1)}
    others = "--places205 p.csv q.csv --inat18 i.json j.json"
    said = table(cli, "psl/9", tmp_path, *others.split()).out
    assert said.count("--data p.csv --val q.csv") == said.count("--data i.json --val j.json") == 5
    said = table(cli, "uic/6", tmp_path, "--mini-imagenet", "test.csv").out
    assert len(re.findall("^fastpsl eval few-shot .*--data test.csv ", said, re.MULTILINE)) == 4


@pytest.mark.parametrize(
    ("name", "flag", "words"),
    [
        ("psl/5", "--voc", "--voc x: the evaluations of psl/5 do not read Pascal VOC"),
        ("psl/8", "--sbd", "--sbd x: the evaluations of psl/8 do not read SBD"),
        ("sslpp/7", "--mini-imagenet", "do not read miniImageNet; leave it out"),
    ],
)
def test_data_that_a_table_does_not_read_is_refused(
    name: str, flag: str, words: str, tmp_path: Path, cli: Cli
) -> None:
    refused(table(cli, name, tmp_path, flag, "x"), words)


def test_the_voc_that_is_named_decides(tmp_path: Path, cli: Cli) -> None:
    """Its digests are of each protocol's own image sets, as the recipes open them."""
    draw_voc(tmp_path / "VOCdevkit", 6, 4, num_train_masks=5, num_test_masks=3)
    root, runs = tmp_path / "VOCdevkit", tmp_path / "runs"

    def of(train: tuple[str, ...], test: tuple[str, ...], needs: Any) -> dict[str, str]:
        found = {"train": VOC(root, train, needs).digest(), "val": VOC(root, test, needs).digest()}
        return found | {"pretrain": "e" * 32}

    boxes = of(("2007_train",), ("2007_test",), "boxes")
    masks = of(("2012_train",), ("2012_val",), "masks")
    measures = TABLES["sslpp/fig3"].row("Rotation [8]").measures
    for measure, data in zip(measures, (boxes, boxes, boxes, masks), strict=True):
        number = {measure.numbers[0]: 40.0}
        put(runs, measure.weights, measure.evaluation, number, data=data)
        put(runs, measure.weights, measure.evaluation, number, data=data | {"val": "9" * 32}, seed=1)
    words = ("--scale", "tiny", "--voc", str(root))
    said = table(cli, "sslpp/fig3", runs, *words).out
    assert "4 of 108 results" in said and said.count("of other images") == 4
    broken = next((root / "VOC2012" / "SegmentationClass").glob("*.png"))
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(broken)
    outcome = table(cli, "sslpp/fig3", runs, *words)  # it also tells that it checks the masks
    assert outcome.code == 2 and broken.name in outcome.err


def test_the_sets_of_each_protocol(tmp_path: Path) -> None:
    root = tmp_path / "VOCdevkit"
    draw_voc(root, 6, 4, num_train_masks=5, num_test_masks=3)
    there = {"voc": (str(root),)}
    train, both, test = (
        VOC(root, sets, "boxes").digest()
        for sets in (("2007_trainval",), ("2007_trainval", "2012_trainval"), ("2007_test",))
    )
    masks = VOC(root, ("2012_val",), "masks").digest()
    of = {name: digests_of_other_data(TABLES[name], there) for name in ("psl/8", "psl/9", "uic/5", "uic/6")}
    assert of["psl/8"] == {"voc detection/pirl train": both, "voc detection/pirl val": test}
    assert of["psl/9"] == {"voc svm/vissl train": train, "voc svm/vissl val": test} and not of["uic/6"]
    named = ("classification/deepcluster", "detection/fast_rcnn")
    assert of["uic/5"] == {
        **{
            f"voc {name} {part}": digest
            for name in named
            for part, digest in (("train", train), ("val", test))
        },
        "voc segmentation/fcn_alexnet val": masks,  # what is learned has SBD's masks too
    }
    folder = tmp_path / "mini"
    (folder / "class").mkdir(parents=True)
    Image.fromarray(np.zeros((84, 84, 3), np.uint8)).save(folder / "class" / "a.png")
    known = digests_of_other_data(TABLES["uic/6"], {"mini_imagenet": (str(folder),)})
    with contextlib.closing(open_data(folder)) as data:
        assert known == {"mini_imagenet few_shot val": data.digest()}


def test_layers_on_stl_10_after_tiny_yfcc100m(tmp_path: Path) -> None:
    data = DIGESTS | {"pretrain": "e" * 32}
    numbers = {f"top1_B{block}": 10.0 * block for block in (1, 2, 3, 4, 5, 6, 7)}
    rotation = rows.Weights("alexnet_rotnet", "sslpp_rotation", "end_to_end", "yfcc")
    for weights in (rotation, replace(rotation, labels=IIC), rows.Weights("alexnet_rotnet")):
        put(tmp_path, weights, rows.SSLPP, numbers, data=data)
    wanted = ["10.0", "20.0", "30.0", "40.0", "50.0", "70.0", "36.7"]  # the mean of B1 to B5 and B7
    for table, method in (("7", "Rotation [8]"), ("7", "Ours+Rot."), ("10", "Rotation: Ours")):
        made = report(tmp_path, f"sslpp/{table}")
        assert ours(made, method) == wanted, made.matches.unused
    assert ours(report(tmp_path, "sslpp/fig1"), "Ours+Rot.")[-1] == "70.0"
    assert "digests aaaaaaaa/bbbbbbbb/eeeeeeee" in made.data_words()
