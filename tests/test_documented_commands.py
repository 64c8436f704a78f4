"""The commands that pages and recipes print exist, and those of one page run as printed."""

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest

from fastpsl.cli import Fastpsl, main
from fastpsl.commands.doctor import Doctor
from fastpsl.commands.launch import Slurm
from fastpsl.commands.train import Eval, Train
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.scripts.recipe_files import find_recipe, load_recipe, named_path, recipe_path
from tests.pipelines import published_files as published
from tests.pipelines.photos import jpeg, photo
from tests.pipelines.written import make_tar, photo_tree, tar_bytes, tree
from tests.programs import ROOT

PAGES = (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("recipes/*.py"))
# In backticks, indented as code, or with an option.
COMMAND = re.compile(r"(?:`|^ {4,}|^(?=fastpsl .* --))(fastpsl [a-z](?:[^`\n\\]|\\{1,2}\n)*)", re.MULTILINE)
NO_COMMANDS = {"crc32"}  # `fastpsl crc32 1` is what a dataset file's checksum begins with


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the words of the page's commands, without comments."""
    for match in COMMAND.finditer(page.read_text()):
        line = re.sub(r"\\+\n", " ", match[1]).split("  #")[0].replace("…", "")
        words = shlex.split(line.replace("'", "") if line.count("'") % 2 else line, comments=True)[1:]
        if words[0] not in NO_COMMANDS:
            yield words


def names(kind: Any) -> set[str]:
    """Return the names of a command's options, those of its groups too."""
    hints = get_type_hints(kind)
    groups = [hints[field.name] for field in fields(kind) if is_dataclass(hints[field.name])]
    return {field.name for field in fields(kind)}.union(*(names(group) for group in groups))


@pytest.mark.parametrize(
    "page", [page for page in PAGES if next(commands(page), None)], ids=lambda p: str(p.relative_to(ROOT))
)
def test_printed_commands_exist(page: Path) -> None:
    for words in commands(page):
        kind: Any = Fastpsl
        words = words[words[0] == "help" :]
        while words and (known := getattr(kind, "commands", None)):
            if words[0] not in known:
                break
            kind = known[words.pop(0)]
        assert kind is not Fastpsl, words
        options = {"help"} | (names(kind) if is_dataclass(kind) else set())
        if kind in (Train, Eval) and words and words[0] in kind.names:
            options |= names(load_recipe(named_path(words[0], kind.names, words[1:])).options)
        elif kind is Slurm and words and words[0] in Train.names:
            options |= names(find_recipe(Train.names[words[0]]).options)
        elif kind is Doctor:
            recipes = [Path(word).stem for word in words if word.endswith(".py") or word == "RECIPE"]
            recipes += [Train.names[word] for word in words if word in Train.names]
            if not all(map(recipe_path, recipes)):
                continue  # a script of the reader's
            options = options.union(*(names(find_recipe(recipe).options) for recipe in recipes))
        elif kind in (Train, Eval):
            assert not words or words[0] == words[0].upper() or words[0].endswith(".py"), words
            continue
        for word in words:
            if word.startswith("--"):
                option = word[2:].partition("=")[0].replace("-", "_")
                assert option in options or option.removeprefix("no_") in options, (page.name, words)


TEXT = (Path(__file__).resolve().parents[1] / "docs" / "how_to" / "pack_a_dataset.md").read_text()
DATA_COMMANDS = re.findall(
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
    roots = "tiny-imagenet-200", "imagenet"
    train = {f"{root}/train/n0{i}/0.jpg": files["0"] for root in roots for i in (1, 2, 3)}
    roots = "tiny-imagenet-200/val/images", "imagenet/val"
    val = {f"{root}/{i}.jpg": files["1"] for root in roots for i in (0, 1)}
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
    assert len(DATA_COMMANDS) == 29
    for command in DATA_COMMANDS:
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
