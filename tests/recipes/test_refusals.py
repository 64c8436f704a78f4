"""What each recipe refuses: exit code 2, one line with the cause, and no run's folder.

Refusals that need files of their own are beside the other tests of their recipes.
"""

from pathlib import Path

import pytest

from fastpsl.pipelines.embedded.draw_sample import sample_paths
from fastpsl.pipelines.embedded.draw_voc import draw_voc
from tests.pipelines.written import photo_tree, write_labelled
from tests.recipes.in_process import refused, start

DATA = "--data {train} --val {val}"
VOC = "--data {voc} --workers 1"
RANDOM = "--random-weights --backbone resnet18"
ALEXNET = "--random-weights --backbone alexnet"
PROBE = "--size-px 16 --batch-size 16 --workers 1 --random-weights --backbone nin4"
LINEAR = "--size-px 32 --batch-size 96 --workers 1"
FEW_SHOT = "--data {three} --workers 1 --size-px 84 --episodes 50"
FIVE = "--ways 2 --shots 2 --queries 2"
MOCO = "--backbone resnet18 --size-px 32 --batch-size 8 --queue-size 24 --key-group 2 --workers 1"
CLUSTERED = (
    "--data {train} --backbone resnet18_cifar --size-px 32 --num-clusters 16 --batch-size 60 --workers 1"
)
# A recipe → its options in all rows, and rows: other options, and what the line says of them.
REFUSED: dict[str, tuple[str, list[tuple[str, ...]]]] = {
    "block_probe": (f"{PROBE} {DATA}", [
        ("--heads conv_B7", "conv_B7", "nin4 has the blocks B1 to B4"),
        ("--labels-per-class 61", "has 60 images", "give 60 or fewer"),
        ("--labels-per-class 9 --order quasi_random", "--order quasi_random", "labels"),
        ("--epochs 0", "--epochs 0"),
    ]),
    "deepcluster_alexnet": (CLUSTERED, [
        ("--num-clusters 481 --val none", "--num-clusters 481", "480 training images"),
        ("--pca-width 0", "--pca-width 0", "1 or more"), ("--k-means-iterations 0", "--k-means-iterations 0"),
        ("--dropout 0.5", "--dropout 0.5", "resnet18_cifar has no dropout"),
    ]),
    "few_shot": (FEW_SHOT, [
        (ALEXNET, "--ways 5", "3 classes"),
        (f"{ALEXNET} {FIVE} --queries 3", "5 images of a class", "class boat has 4"),
        (f"{ALEXNET} {FIVE} --size-px 70", "--size-px 70"),
        (f"{ALEXNET} {FIVE} --block B3 B9", "--block B9", "B1 to B7"),
        (f"{ALEXNET} {FIVE} --block B3 conv3", "each once"),
        (f"{ALEXNET} {FIVE} --val {{three}}", "--val", "nothing is learned"),
        (f"{ALEXNET} {FIVE} --whole", "--whole"), (f"{ALEXNET} --ways 1", "--ways 1: it must be 2 or more"),
        (f"{ALEXNET} --shots 0", "--shots 0"), (f"{ALEXNET} --queries 0", "--queries 0"),
        (f"{ALEXNET} --episodes 1", "--episodes 1: it must be 2 or more"),
    ]),
    "jigsaw_r50": ("", [
        ("--decoder jpegturbo", "jpegturbo", "ffcv", "pillow"),
        ("--decoder ffcv --data {photos} --batch-size 8", "'ffcv' cannot read a folder", "turbo"),
        ("--device cuda", "--device cuda", "--device cpu"),
        ("--batch-size 32 --accumulate 5", "does not divide", "multiple of 5"),
        ("--short-side 90 --size-px 96", "90", "96"),
        ("--size-px 100", "--size-px 100 for 3 cells on a side: give 99 or 102"),
        ("--size-px 2", "give 3 or 6"),
        ("--size-px 96 --cell-px 30", "--size-px 96 for 3 cells of 30 px on a side: give 90, or leave"),
        ("--grid 0", "--grid 0: it must be above 0"), ("--counts 9 8 7", "give --counts that rise"),
        ("--counts 8 9 --levels 1 2 3", "--levels 1 2 3", "1 to 2"),
        ("--epochs 1 1 1 1 1 1", "(1, 1, 1, 1, 1, 1)", "at most 5"), ("--partition 1-2 2-3 5", "hole", "B4"),
        ("--permutations absent.npy", "absent.npy"), ("--resume absent.pt", "absent.pt"),
        (f"--workers {10**15}", "at most 4,096"), ("--cell-px 0", "--cell-px 0: a side has 1 to 65,535 px"),
    ]),
    "knn": ("--size-px 32 --workers 1", [
        (f"{DATA} {RANDOM} --k 481", "--k 481", "480"),
        (f"--data {{photos}} --val {{photos}} {RANDOM} --k 5 --decoder ffcv", "'ffcv' cannot read"),
        (f"{DATA} {RANDOM} --k 0", "--k 0"),
        (f"{DATA} {RANDOM} --temperature nan", "--temperature nan: it must be a finite number"),
        (f"{DATA} {RANDOM} --k 5 --block B6", "B6", "B1 to B5"),
        (f"{DATA} {ALEXNET} --k 5 --block B8", "--block B8", "B1 to B7", "fc7"),
        (f"{DATA} {ALEXNET} --k 5", "--size-px 32", "63 px or more"),
        (f"absent.pt {DATA} --k 5", "absent.pt"), (f"--data {{train}} {RANDOM} --k 5", "--val"),
    ]),
    "linear_probe": (LINEAR, [
        (DATA, "either RUN", "--random-weights"), (f"--data {{train}} {RANDOM}", "give --val"),
        (f"{{empty}} {DATA}", "holds no checkpoint"),
        (f"{DATA} {RANDOM} --lr 0 --protocol deepcluster", "above 0"),
        (f"{DATA} {ALEXNET}", "32 px", "63 px and more"), (f"{DATA} {RANDOM} --epochs 0", "--epochs 0"),
       
        (f"{DATA} {RANDOM} --whole --protocol uic", "--whole", "--protocol uic", "ten crops"),
    ]),
    "mocov2_r50": (f"{MOCO} --data {{train}}", [
        ("--queue-size 20", "--queue-size 20", "--batch-size 8", "16"),
        ("--queue-size 488 --val none", "--queue-size 488", "480"), ("--queue-size 4", "give 8"),
        ("--key-group 3", "--key-group 3", "divisor of 8"),
        ("--key-group 4 --accumulate 4", "--key-group 4", "divisor of 2"), ("--key-group 1", "--key-group 1"),
        ("--batch-size 24 8 16 --epochs 1 1 1", "--queue-size 24", "--batch-size 16"),
        ("--momentum 1.5", "--momentum 1.5"), ("--momentum -0.1", "--momentum -0.1"),
        ("--temperature 0", "--temperature 0"), ("--temperature nan", "--temperature nan"),
    ]),
    "rotation_rv50": ("--batch-size 8 --workers 1 --short-side 36 --size-px 32 --backbone resnet18", [
        ("--levels 1 2", "one for each of --epochs"), ("--rotations-per-image two", "two"),
        ("--size-px 40", "window of 40 px", "36 px"),
        ("--size-px 24 32", "--size-px 24 32", "2 values, and --plan psl has 3 stages"),
        ("--crop-scale 0.2", "--crop-scale 0.2", "no random resized crops"),
        ("--backbone revnet18", "--backbone revnet18", "revnet50"),
    ]),
    "semi_supervised": (f"--size-px 32 --batch-size 16 --workers 1 --epochs 1 {RANDOM} --data {{train}}", [
        ("--val {val} --percent 1", "which has 60 images", "--percent 1.67 or more"),
        ("--val {val} --percent 2", "9 training images are fewer than one batch of 16", "--batch-size"),
        ("", "give --val"),
    ]),
    "simclr_r50": ("--workers 1", [
        ("--batch-size 1", "--batch-size 1", "2 or more"),
        ("--batch-size 32 --accumulate 2", "--accumulate 2", "negatives", "more GPUs"),
        ("--apex", "--apex: there is no such option"), ("--temperature 0", "--temperature 0"),
        ("--temperature nan", "--temperature nan"), ("--lr -1", "above 0"), ("--lr nan", "--lr nan"),
        ("--warmup-epochs inf", "--warmup-epochs inf"),
        ("--weight-decay -1", "--weight-decay -1", "0 or more"),
        ("--embedding-width 0", "--embedding-width 0"), ("--levels 1 2 4", "4"),
        ("--partition 1-2 4-5 3-5", "partition"), ("--backbone lenet", "lenet", "resnet50"),
        ("--batch-size 1000", "480", "1000"), ("--sync-batchnorm", "CUDA"),
        ("--size-px 32 --plan end_to_end --batch-size 32 16", "2 values, and --plan end_to_end has 1"),
        ("--batch-size 32 16 1", "--batch-size 1", "2 or more"), ("--size-px", "give whole numbers"),
        ("--crop-scale 0", "--crop-scale 0", "above 0 and up to 1"), ("--crop-scale", "without a value"),
        ("--size-px 32 0 32", "--size-px 32 0 32: a side has 1 to"),
        ("--batch-size 48 24 1000", "one batch of 1000"),
    ]),
    "sslpp_context": ("--workers 1 --plan psl --epochs 1 1", [
        ("--size-px 16 32", "--size-px with several values", "images of one size", "give one value"),
    ]),
    "sslpp_iic": ("--workers 1", [
        ("--num-copies 0", "--num-copies 0"), ("--num-clusters 1", "--num-clusters 1"),
        ("--num-clusters 481", "481 for 480 training images"),
        ("--num-heads 2 --second-clusters 1", "--second-clusters 1"),
        ("--num-sub-heads 0", "--num-sub-heads 0"), ("--crop-share 0", "--crop-share 0"),
        ("--crop-share 1.01", "--crop-share 1.01"), ("--augment blur", "--augment"),
        ("--accumulate 2", "--accumulate 2: each part"),
    ]),
    "sslpp_rotation": ("--backbone nin3 --workers 1 --size-px 16", [
        ("--lambda -1", "--semantic-weight -1", "0 or more"),
        ("--no-proxy", "leaves nothing to learn", "give --pseudo-labels"),
        ("--pseudo-labels nowhere.npz", "nowhere.npz"),
        ("--pseudo-labels coupled --num-clusters 481", "--num-clusters 481 for 480", "at most 480"),
        ("--pseudo-labels coupled --num-clusters 1", "--num-clusters 1", "2 or more"),
        ("--backbone nin7", "--backbone nin7", "nin5"),
    ]),
    "supervised": ("--data {train} --size-px 32 --batch-size 32 --workers 1 --backbone resnet18 --epochs 2", [
        ("--backbone vgg", "vgg"), ("--partition 1-2 4-5", "--partition"),
    ]),
    "uic_alexnet": ("--workers 1 --backbone resnet18 --size-px 32 --epochs 2", [
        ("--num-clusters 1", "--num-clusters 1"), ("--num-clusters 481", "481 for 480 training images"),
        ("--size-px 62 --backbone alexnet", "63 px and more"),
        ("--size-px 62 64 --backbone alexnet --plan psl --epochs 1 1", "S1: images of 62 px"),
        ("--order quasi_random", "--order quasi_random"), ("--dropout 0.5", "resnet18 has no dropout"),
        ("--backbone alexnet --dropout 1", "below 1"),
    ]),
    "voc_classification": ("--size-px 32 --batch-size 4 --workers 1 --decoder pillow --device cpu", [
        (f"{RANDOM} --data {{voc}} --val {{voc}}", "--val {voc}", "leave it out"),
        (f"{RANDOM} --data {{voc}} --whole", "--whole", "random crops"),
        (f"{RANDOM} --data {{voc}} --layers fc6_8", "resnet18 has no fc6", "--layers all"),
        (f"{RANDOM} --data {{voc}} --steps 0", "--steps 0"),
        (f"{RANDOM} --data {{voc}} --batch-size 21", "20 training images are fewer"),
        (f"{ALEXNET} --data {{voc}}", "32 px", "63 px and more"),
    ]),
    "voc_detection": ("--data {voc} --batch-size 4 --random-weights", [
        (f"{RANDOM} --protocol fast_rcnn", "--proposals", "2007_trainval 2007_test"),
        (f"{RANDOM} --protocol pirl --proposals {{a_file}}", "--proposals", "leave it out"),
        ("--backbone nin4", "--backbone nin4", "no B5"),
        (f"{RANDOM} --val elsewhere", "--val elsewhere", "leave it out"),
        (f"{RANDOM} --order quasi_random", "--order quasi_random", "leave it out"),
        (f"{RANDOM} --on-bad-sample skip", "--on-bad-sample skip", "leave it out"),
        (f"{RANDOM} --decoder ffcv", "--decoder ffcv", "pillow"),
        (f"{RANDOM} --size-px 32", "--size-px", "--short-side"), (f"{RANDOM} --steps 0", "--steps 0"),
        (f"{RANDOM} --short-side -3", "--short-side -3"),
        (f"{RANDOM} --batch-size 64 --protocol small", "20 training images are fewer", "64"),
        (f"{RANDOM} --compile on", "--compile on", "one size"),
    ]),
    "voc_segmentation": ("--workers 1", [
        (f"{RANDOM} --data {{voc}} --val {{voc}}", "--val", "leave it out"),
        (f"{RANDOM} --data {{voc}} --whole", "--whole", "leave it out"),
        (f"{RANDOM} --data {{voc}} --epochs 0", "--epochs 0", "1 or more"),
        (f"{RANDOM} --data {{voc}} --lr 0", "lr 0.0", "above 0"),
        (f"{RANDOM} --data {{voc}} --protocol mmseg", "--protocol mmseg", "--sbd benchmark_RELEASE"),
        (f"{RANDOM} --data {{voc}} --protocol fcn_alexnet", "--protocol fcn_alexnet", "--sbd"),
        (f"{RANDOM} --data {{voc}} --protocol mmseg --sbd {{empty}}", "{empty}", "SBD"),
        ("--random-weights --backbone nin4 --data {voc}", "nin4", "B5", "B1 to B4"),
        (f"{RANDOM} --data {{voc}} --compile on", "--compile on", "leave it out"),
        (f"{RANDOM} --data {{empty}}", "{empty}", "VOC"),
    ]),
    "voc_svm": (f"--size-px 48 --batch-size 16 {VOC} {RANDOM}", [
        ("--shots 0", "--shots 0"), ("--shots 2 2", "--shots 2 2", "each once"),
        ("--workers 0", "--workers 0"), ("--val {voc}", "--val", "leave it out"),
        ("--whole", "--whole", "leave it out"), ("--costs mine", "mine", "vissl", "fsb"),
        ("--backbone nin4", "nin4 has the blocks B1 to B4", "B1 to B5"),
    ]),
}  # fmt: skip
ROWS = [(recipe, *row) for recipe, (_, rows) in REFUSED.items() for row in rows]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return what the rows have in braces."""
    folder, sample = tmp_path_factory.mktemp("refused"), sample_paths()
    (folder / "a.mat").touch()
    return {
        "train": sample.train_32,
        "val": sample.test_32,
        "voc": draw_voc(folder / "VOCdevkit", 20, 39, side_px=48, num_train_masks=9, num_test_masks=5),
        "three": write_labelled(folder / "three.beton", [0, 1, 2] * 4, ["boat", "house", "tree"], side_px=84),
        "photos": photo_tree(folder / "photos"),
        "empty": tmp_path_factory.mktemp("empty"),
        "a_file": folder / "a.mat",
    }


@pytest.mark.parametrize("row", ROWS, ids=[f"{row[0]}: {row[1]}" for row in ROWS])
def test_a_request_is_refused(
    row: tuple[str, ...], paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, arguments, *texts = row
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.chdir(tmp_path)
    place = "" if "--resume" in arguments else "--out out"
    outcome = start(recipe, f"{REFUSED[recipe][0]} {place} {arguments}".format(**paths))
    refused(outcome, *(text.format(**paths) for text in texts))
    assert not (tmp_path / "out").exists()
