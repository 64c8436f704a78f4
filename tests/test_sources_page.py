"""Each `fastpsl data` of two pages of docs/how_to/ runs as printed, on small sources with the same names."""

import json
import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from fastpsl.cli import main
from fastpsl.pipelines.beton.reader import Beton
from tests.pipelines import published_files as published
from tests.pipelines.folders import photo_tree, tree
from tests.pipelines.photos import jpeg, photo
from tests.pipelines.tars import make_tar, tar_bytes

HOW_TO = Path(__file__).resolve().parents[1] / "docs" / "how_to"
TEXT = "".join((HOW_TO / name).read_text() for name in ("pack_a_dataset.md", "pack_imagenet.md"))
COMMANDS = re.findall(
    r"^fastpsl (data .*)$",
    "\n".join(re.findall(r"^```bash\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)),
    re.MULTILINE,
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create a folder with every source that the page names, except parquet files."""
    photos = [jpeg(photo(i, 40, 50)) for i in range(6)]
    for folder in (tmp_path / "photos" / "train", tmp_path / "more"):
        photo_tree(folder)
    for i in range(2):
        make_tar(tmp_path / "shards" / f"train-{i}.tar", {f"{i}.jpg": photos[i], f"{i}.cls": b"1"})
    inner = {f"n{i}.tar": tar_bytes({f"n{i}_1.JPEG": photos[i]}) for i in range(2)}
    make_tar(tmp_path / "ILSVRC2012_img_train.tar", inner)
    images, labels = published.random_images(12), np.arange(12) % 10
    np.savez(tmp_path / "digits.npz", images=images, labels=labels)
    np.savez(tmp_path / "pathmnist.npz", train_images=images, train_labels=labels[:, None], val_images=images)
    names = [f"class {i}" for i in range(100)]
    python = published.cifar10(images, labels, names[:10], is_python=True)
    published.publish(tmp_path, "cifar-10-python.tar.gz", "cifar-10-batches-py", python, monkeypatch)
    binary = published.cifar100(images, labels, names, is_python=False)
    published.publish(tmp_path, "cifar-100-binary.tar.gz", "cifar-100-binary", binary, monkeypatch)
    (tmp_path / "torchvision_root").mkdir()
    stl = published.stl10(published.random_images(12, 96), labels, names[:10])
    published.publish(tmp_path / "torchvision_root", "stl10_binary.tar.gz", "stl10_binary", stl, monkeypatch)
    lists(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lists(root: Path) -> None:
    """Write lists of two images each, with their images."""
    files = {"0": jpeg(photo(0, 40, 50)), "1": jpeg(photo(1, 40, 50))}
    train = {
        f"{name}/train/n0{i}/0.jpg": files["0"]
        for name in ("tiny-imagenet-200", "imagenet")
        for i in (1, 2, 3)
    }
    val = {
        f"{name}/{i}.jpg": files["1"]
        for name in ("tiny-imagenet-200/val/images", "imagenet/val")
        for i in (0, 1)
    }
    tree(root, train | val)
    for folder in ("inat18/train_val2018/Aves", "miniImageNet/images", "yfcc/a"):
        tree(root / folder, {f"{name}.jpg": data for name, data in files.items()})
    images256 = root / "places205" / "data" / "vision" / "torralba" / "deeplearning" / "images256"
    tree(images256 / "a" / "abbey", {f"{name}.jpg": data for name, data in files.items()})
    record = {
        "images": [{"id": i, "file_name": f"train_val2018/Aves/{i}.jpg"} for i in range(2)],
        "annotations": [{"image_id": i, "category_id": i} for i in range(2)],
        "categories": [{"id": i, "name": f"species {i}"} for i in range(2)],
    }
    tree(
        root,
        {
            "inat18/train2018.json": json.dumps(record).encode(),
            "miniImageNet/test.csv": b"filename,label\n0.jpg,n01\n1.jpg,n02\n",
            "places205/trainvalsplit_places205/val_places205.csv": b"a/abbey/0.jpg 0\na/abbey/1.jpg 0\n",
            "tiny-imagenet-200/val/val_annotations.txt": b"1.jpg\tn03\t0\t0\t9\t9\n0.jpg\tn01\t1\t1\t8\t8\n",
            "synset_labels.txt": b"n03\nn01\n",
            "tiny-yfcc.txt": b"yfcc/a/0.jpg\nyfcc/a/1.jpg\n",
        },
    )


def data_sets(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write pets/, saved/ and hf:me/pets, the last one as a folder because the cache has its own tests."""
    datasets = pytest.importorskip("datasets")
    images = [{"bytes": jpeg(photo(i, 40, 50)), "path": None} for i in range(4)]
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["cat", "dog"]))
    rows = datasets.Dataset.from_dict({"image": images, "label": [0, 1, 0, 1]}, features=features)
    rows.save_to_disk("saved")
    datasets.DatasetDict(train=rows, test=rows).save_to_disk("me/pets")
    (here / "pets").mkdir()
    for split in ("train", "test"):
        rows.to_parquet(f"pets/{split}-00000-of-00001.parquet")


def test_each_command_runs(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if find_spec("datasets"):
        data_sets(here, monkeypatch)
    assert len(COMMANDS) == 33
    for command in COMMANDS:
        arguments = [argument.strip("'") for argument in command.split()]
        if arguments[2] in ("pets/", "saved/", "hf:me/pets") and not find_spec("datasets"):
            continue
        if arguments[1] == "append":  # other commands have written other images to the same name
            main(["data", "write", "photos/train", arguments[3], "--overwrite"])
        main([*arguments, "--overwrite"] if arguments[1] == "write" else arguments)
        if arguments[1] == "append":
            with Beton("train.*beton") as beton:
                assert len(beton.paths) == 2
        if arguments[1] == "write" and "--dry-run" not in arguments:
            out = Path(arguments[3])
            name = f"{out.stem}-*-of-*.beton" if "--shard-mb" in arguments else arguments[3]
            with Beton(name) as beton:
                assert len(beton) > 0, command
    output = capsys.readouterr()
    assert "nothing was written" in output.out and "'train.*beton' names all of it" in output.out
    assert "2 samples" in output.out and "all sound" in output.out and "Traceback" not in output.err
