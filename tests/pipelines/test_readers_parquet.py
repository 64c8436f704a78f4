"""Hugging Face data sets on disk: parquet files, saved folders, the local cache; columns, splits, damage."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.write import write_beton
from fastpsl.pipelines.datasets.open import open_source
from fastpsl.pipelines.interface.dataset import BadImage
from tests.pipelines.memory import printed_by
from tests.pipelines.photos import jpeg, photo
from tests.pipelines.readers import refused, samples

datasets = pytest.importorskip("datasets")
pyarrow = pytest.importorskip("pyarrow")
from pyarrow import parquet

PHOTOS = [jpeg(photo(i, 30 + i, 50 - i)) for i in range(10)]
LABELS = [i % 3 for i in range(10)]
NAMES = ["ant", "bee", "été"]


def rows(part: slice = slice(None)) -> Any:
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=NAMES), caption=datasets.Value("string")
    )
    images = [{"bytes": data, "path": f"p/{i}.jpg"} for i, data in enumerate(PHOTOS)]
    columns = {"image": images[part], "label": LABELS[part], "caption": ["x"] * len(PHOTOS[part])}
    return datasets.Dataset.from_dict(columns, features=features)


def write_parquet(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), path, **options)
    return path


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("hf é")
    rows().save_to_disk(str(root / "saved"))
    datasets.DatasetDict(train=rows(), test=rows(slice(3))).save_to_disk(str(root / "splits"))
    (root / "hub" / "data").mkdir(parents=True)
    for i in range(2):
        rows(slice(5 * i, 5 * i + 5)).to_parquet(
            root / "hub" / "data" / f"train-{i:05}-of-00002.parquet", batch_size=2
        )
    rows(slice(3)).to_parquet(root / "hub" / "data" / "test-00000-of-00001.parquet")
    return {path.name: path for path in root.iterdir()}


@pytest.mark.parametrize(
    ("name", "split"),
    [("saved", None), ("splits", "train"), ("hub", "train"), ("splits", "test"), ("hub", "test")],
)
def test_data_sets_on_disk(disk: dict[str, Path], name: str, split: str | None, tmp_path: Path) -> None:
    num = 3 if split == "test" else 10
    source = open_source(str(disk[name]), split=split)
    assert source.class_names == NAMES and source.mode == "jpg"
    assert source.notes == ["images from column image, labels from label"]
    results = samples(disk[name], split=split)
    assert [sample.image for sample in results] == PHOTOS[:num]
    assert [sample.label for sample in results] == LABELS[:num]
    file = f"{split}-00000-of-0000{1 + (split == 'train')}.parquet " if name == "hub" else ""
    assert results[1].name == f"{file}row 1 (1.jpg)"
    for num_shards in (2, 4, 12):
        shards = ((i, num_shards) for i in range(num_shards))
        assert [s for shard in shards for s in samples(disk[name], split=split, shard=shard)] == results
    if split != "test":
        out = tmp_path / "a.beton"
        write_beton(source.samples(), out, num_samples=10, class_names=source.class_names)
        with Beton(out) as beton:
            assert [beton.read(i) for i in range(10)] == PHOTOS and beton.class_names == NAMES


def test_splits_must_be_clear(disk: dict[str, Path], tmp_path: Path) -> None:
    for name in ("splits", "hub"):
        with pytest.raises(ValueError, match="has several splits; give --split test or train"):
            open_source(str(disk[name]))
        with refused("--split val is not among its splits; give --split test or train"):
            open_source(str(disk[name]), split="val")
    with pytest.raises(ValueError, match="--split train: it has no splits"):
        open_source(str(disk["saved"]), split="train")
    path = write_parquet(tmp_path / "a.parquet", {"image": PHOTOS, "label": LABELS})
    with pytest.raises(ValueError, match="--split train: the files' names tell no split"):
        open_source(str(path), split="train")


def test_the_local_cache_offline(
    disk: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A data set that load_dataset has prepared is read; an absent one is not looked for in the network."""
    files = {"train": [str(path) for path in sorted((disk["hub"] / "data").glob("train*"))]}
    datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "made"))
    (info,) = (tmp_path / "made").rglob("dataset_info.json")
    cached = tmp_path / "cache" / "me___pets" / "default" / "0.0.0" / "abc"
    cached.mkdir(parents=True)
    for path in info.parent.glob("*.arrow"):
        path.rename(cached / path.name.replace("parquet-", "pets-"))
    record = json.loads(info.read_text())
    record |= {"config_name": "default", "dataset_name": "pets"}
    (cached / "dataset_info.json").write_text(json.dumps(record))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    results = samples("hf:me/pets", split="train")
    assert [sample.image for sample in results] == PHOTOS and [sample.label for sample in results] == LABELS
    assert samples("hf:me/pets:default") == results
    assert samples(f"hf:{disk['saved']}") == results
    with refused("hf:me/cats: neither a folder nor in the local cache, and nothing is"):
        open_source("hf:me/cats")


def test_columns_without_features(tmp_path: Path) -> None:
    """Plain parquet has binary or struct columns, labels by name, nulls, and rows without an image."""
    src = tmp_path / "a.parquet"
    write_parquet(
        src,
        {"jpg": [*PHOTOS[:2], None], "label": pyarrow.array([5, None, 1], pyarrow.int16()), "id": [1, 2, 3]},
    )
    results = samples(src)
    assert [(sample.image, sample.label) for sample in results[:2]] == [(PHOTOS[0], 5), (PHOTOS[1], -1)]
    assert isinstance(results[2].image, BadImage) and results[2].name == "a.parquet row 2"
    assert [sample.label for sample in samples(src, label_column="id")] == [1, 2, 3]
    assert [sample.label for sample in samples(src, label_column="none")] == [-1] * 3
    (tmp_path / "file.jpg").write_bytes(PHOTOS[4])
    structs = [{"bytes": PHOTOS[0], "path": None}, {"bytes": None, "path": str(tmp_path / "file.jpg")}]
    write_parquet(src, {"picture": structs, "number": [1, 2]})
    results = samples(src)
    assert [sample.image for sample in results] == [PHOTOS[0], tmp_path / "file.jpg"]
    assert [sample.label for sample in results] == [-1, -1]
    write_parquet(src, {"jpg": PHOTOS[:2], "label": [-2, 2**31]})
    assert [str(sample.image) for sample in samples(src)] == [
        f"its label is {x}; -1 (none) to 2147483647 are allowed" for x in (-2, 2**31)
    ]


@pytest.mark.parametrize(
    ("columns", "options", "words"),
    [
        ({"text": ["x"], "label": [1]}, {},
         "no column of images or of their bytes; its columns are text, label"),
        ({"a": [b"x"], "b": [b"x"]}, {}, "several columns may hold images; give --image-column a or b"),
        ({"a": [b"x"], "label": [1], "cls": [1]}, {}, "give --label-column label or cls or none"),
        ({"a": [b"x"], "n": [1]}, {"image_column": "n"},
         "--image-column n: does not hold images or their bytes"),
        ({"a": [b"x"], "t": [[1]]}, {"label_column": "t"},
         "--label-column t: does not hold numbers, text or a ClassLabel"),
        ({"a": [b"x"]}, {"image_column": "c"}, "--image-column c"),
        ({"a": pyarrow.array([], pyarrow.binary())}, {}, "has no rows"),
    ],
)  # fmt: skip
def test_what_is_not_clear(
    columns: dict[str, Any], options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    src = write_parquet(tmp_path / "a.parquet", columns)
    with refused(words, src):
        open_source(str(src), **options)


def test_a_row_names_no_file_outside_of_its_tables_folder(tmp_path: Path) -> None:
    src = tmp_path / "table" / "a.parquet"
    (tmp_path / "private.jpg").write_bytes(PHOTOS[0])
    (tmp_path / "table-2").mkdir()
    (tmp_path / "table-2" / "b.jpg").write_bytes(PHOTOS[0])
    (tmp_path / "table" / "below").mkdir(parents=True)
    (tmp_path / "table" / "below" / "c.jpg").write_bytes(PHOTOS[1])
    (tmp_path / "table" / "link.jpg").symlink_to("../private.jpg")
    inside = ["below/c.jpg", str(tmp_path / "table/below/c.jpg"), "below/../below/c.jpg"]
    outside = ["../private.jpg", "../table-2/b.jpg", "link.jpg", "/etc/passwd", "a\0b"]
    outside.append(str(tmp_path / "private.jpg"))
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    rows = [{"bytes": None, "path": name} for name in inside + outside]
    write_parquet(src, {"image": pyarrow.array(rows, kind)})
    results = [sample.image for sample in samples(src)]
    assert results[:3] == [tmp_path / "table/below/c.jpg"] * 3
    reason = (
        "the row holds no bytes and names a file that is not below "
        f"{tmp_path / 'table'}: put the images there"
    )
    assert [str(image) for image in results[3:] if isinstance(image, BadImage)] == [reason] * len(outside)


def test_files_whose_class_names_differ(tmp_path: Path) -> None:
    for name, names in (("0", NAMES), ("1", NAMES[::-1])):
        part = rows(slice(5))
        part.cast_column("label", datasets.ClassLabel(names=names)).to_parquet(tmp_path / f"{name}.parquet")
    with refused(f"{tmp_path / '1.parquet'}: its class names differ from those of {tmp_path / '0.parquet'}"):
        samples(tmp_path)
    assert {sample.label for sample in samples(tmp_path, label_column="none")} == {-1}
    rows(slice(5)).to_parquet(tmp_path / "1.parquet")
    assert [sample.label for sample in samples(tmp_path)] == LABELS[:5] * 2


def test_folders_of_hive_tell_the_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also as URLs write them, as null, and as numbers; a column of the same name is not looked at."""
    folders = {"label=__HIVE_DEFAULT_PARTITION__": 0, "label=a%20b": 1, "label=cat": 2}
    for folder, i in folders.items():
        write_parquet(tmp_path / f"pets/{folder}/part-0.parquet", {"image": [PHOTOS[i]], "label": [9]})
    for hidden in ("_temporary/0/x", "label=cat/_x", "_x", ".x", "label=cat/.x"):
        write_parquet(tmp_path / f"pets/{hidden}.parquet", {"image": PHOTOS, "label": [0] * 10})
    monkeypatch.chdir(tmp_path / "pets")
    for src in (".", tmp_path / "pets", tmp_path / "pets" / "*" / "*.parquet", "label=*/p*"):
        source = open_source(str(src))
        assert source.class_names == ["a b", "cat"]
        assert source.notes == ["images from column image, labels from the folders label=…"]
        assert [(sample.name, sample.image, sample.label) for sample in source.samples()] == [
            (f"{folder}/part-0.parquet row 0", PHOTOS[i], i - 1) for folder, i in folders.items()
        ]
        assert [sample.label for i in range(3) for sample in samples(src, shard=(i, 3))] == [-1, 0, 1]
    assert {sample.label for sample in samples(".", label_column="none")} == {-1}
    assert [sample.label for sample in samples("label=cat")] == [9]  # the folder itself is given
    for i, year in enumerate((2024, 2025)):
        write_parquet(tmp_path / f"years/data/year={year}/class={7 + i}/0.parquet", {"image": PHOTOS[:2]})
    years = tmp_path / "years"
    with refused(years, "its folders tell year (year=2024), and only class is read of folders"):
        samples(years)
    with refused(years, "its folders tell class (class=7), and only year is read of folders"):
        samples(years, label_column="year")
    with refused(years, "--label-column breed", "its columns are image, year, class"):
        samples(years, label_column="breed")
    assert [sample.label for sample in samples(years / "data" / "year=2025")] == [8, 8]
    write_parquet(years / "data" / "0.parquet", {"image": PHOTOS[:2]})
    with refused("year=2024/class=7/0.parquet: has other columns than", years / "data" / "0.parquet"):
        samples(years)


def test_files_of_other_writers_in_one_folder(tmp_path: Path) -> None:
    """Columns are told by their names, and names that Spark hides are skipped, unless they are given."""
    write_parquet(tmp_path / "a.parquet", {"image": PHOTOS[:2], "label": [0, 1]})
    write_parquet(tmp_path / "b.parquet", {"label": ["cat", "1"], "image": PHOTOS[2:4]})
    write_parquet(tmp_path / "_tmp.parquet", {"image": PHOTOS, "label": [0] * 10})
    for src in (tmp_path, tmp_path / "*.parquet"):
        results = samples(src)
        assert [sample.label for sample in results] == [0, 1, -1, 1]
        assert str(results[2].image) == "its label is 'cat'; -1 (none) to 2147483647 are allowed"
        assert [results[i].image for i in (0, 1, 3)] == [PHOTOS[i] for i in (0, 1, 3)]
    assert len(samples(tmp_path / "_tmp.parquet")) == 10
    with refused(
        tmp_path / "_*.parquet", "all names begin with _ or a dot, which Spark, Hive and Arrow skip"
    ):
        samples(tmp_path / "_*.parquet")


def test_damaged_files(disk: dict[str, Path], tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    big = [jpeg(noise.integers(0, 256, (99, 99, 3), dtype=np.uint8)) for _ in range(9)]
    columns = {"image": big, "label": list(range(9))}
    write_parquet(tmp_path / "0.parquet", columns, compression="none", use_dictionary=False)
    src = write_parquet(tmp_path / "1.parquet", columns, compression="snappy", use_dictionary=False)
    whole = src.read_bytes()
    src.write_bytes(whole[: len(whole) // 2])
    with refused(f"{src}: cannot be read"):
        samples(tmp_path)
    write_parquet(src, {"picture": big})
    with pytest.raises(ValueError, match="has other columns than"):
        samples(tmp_path)
    table = pyarrow.table(columns).replace_schema_metadata({b"huggingface": b'{"info": null}'})
    parquet.write_table(table, src)
    with refused(f"{src}: cannot be read"):
        samples(src)
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text("{")
    with pytest.raises(ValueError, match="saved: cannot be read"):
        samples(tmp_path / "saved")


def test_memory_does_not_grow_with_rows(tmp_path: Path) -> None:
    """Row groups of 100 images, as `datasets` writes them: 5 MB, then 150 MB."""
    data = np.random.default_rng(0).bytes(100_000)
    schema, options = pyarrow.schema({"image": pyarrow.binary()}), {"compression": "none"}
    for name, num in (("small", 50), ("large", 1500)):
        with parquet.ParquetWriter(tmp_path / name, schema, use_dictionary=False, **options) as writer:
            for i in range(0, num, 50):
                images = [data[j:] + data[:j] for j in range(i, i + 50)]
                writer.write_table(pyarrow.table({"image": images}), row_group_size=100)
    small, large = printed_by(
        """
import sys
from fastpsl.pipelines.datasets.open import open_source
for path in sys.argv[1:]:
    assert sum(len(sample.image) for sample in open_source(path, "parquet").samples()) >= 5_000_000
    print(peak_mib())
""",
        tmp_path / "small",
        tmp_path / "large",
    )
    assert large - small < 40


def test_labels_that_are_text_are_classes(tmp_path: Path) -> None:
    """Of all files together; also pandas's categories, numbers as text, and data sets of `datasets`."""
    names = ["dog", None, "ant", "", "été", "dog"]
    expected = [1, -1, 0, -1, 2, 1]
    large = pyarrow.array(names, pyarrow.large_string())
    for values in (names, pyarrow.array(names).dictionary_encode(), large):
        write_parquet(tmp_path / "t" / "0.parquet", {"image": PHOTOS[:4], "label": values[:4]})
        write_parquet(tmp_path / "t" / "1.parquet", {"image": PHOTOS[4:6], "label": values[4:]})
        (tmp_path / "t" / "._1.parquet").write_bytes(b"of macOS")
        source = open_source(str(tmp_path / "t"))
        assert source.class_names == ["ant", "dog", "été"] and not source.warnings
        assert [sample.label for sample in source.samples()] == expected
        parts = [sample for i in range(3) for sample in samples(tmp_path / "t", shard=(i, 3))]
        assert [part.label for part in parts] == expected
    datasets.Dataset.from_dict({"image": PHOTOS[:6], "label": names}).save_to_disk(str(tmp_path / "saved"))
    assert [sample.label for sample in samples(tmp_path / "saved")] == expected
    write_parquet(tmp_path / "n.parquet", {"image": PHOTOS[:3], "label": ["10", "9", None]})
    assert [sample.label for sample in samples(tmp_path / "n.parquet")] == [10, 9, -1]
    given = open_source(str(tmp_path / "t"), classes="none")
    assert [sample.label for sample in given.samples()] == [-1] * 6


@pytest.mark.parametrize("column", ["class", "Category", "category_id", "labelName", "targets"])
def test_a_column_of_labels_is_told_by_its_name(column: str, tmp_path: Path) -> None:
    for values, expected, names in (
        ([3, 0, -1], [3, 0, -1], None),
        ([True, False, None], [1, 0, -1], None),
        (["cat", "ant", "cat"], [1, 0, 1], ["ant", "cat"]),
        (["nan", "inf", "1e5"], [2, 1, 0], ["1e5", "inf", "nan"]),
    ):
        src = write_parquet(tmp_path / "a.parquet", {"image": PHOTOS[:3], column: values})
        source = open_source(str(src))
        assert [sample.label for sample in source.samples()] == expected
        assert source.class_names == names and not source.warnings


def test_fractions_that_are_whole_are_numbers(tmp_path: Path) -> None:
    values = pyarrow.array([2.0, None, float("nan"), 0.0])
    src = write_parquet(tmp_path / "a.parquet", {"image": PHOTOS[:4], "label": values})
    assert [sample.label for sample in samples(src)] == [2, -1, -1, 0]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([0.5, 1.0], "holds 0.5, which is neither a whole number nor a name"),
        (["cat", "1"], "holds both numbers and names"),
        (["1.5", "2"], "holds '1.5', which is neither a whole number nor a name"),
        ([[0], [1]], "holds neither numbers nor text"),
    ],
)
def test_a_column_that_holds_no_labels_is_said(tmp_path: Path, values: list[Any], words: str) -> None:
    parquet.write_table(pyarrow.table({"image": PHOTOS[:2], "label": values}), tmp_path / "a.parquet")
    source = open_source(str(tmp_path / "a.parquet"))
    assert source.warnings[0].startswith(f"column label {words}: no labels; give ")
    assert source.class_names is None
    assert [sample.label for sample in source.samples()] == [-1, -1]
