"""Hugging Face data sets from disk: parquet files, folders of `save_to_disk`, and the local cache (hf:NAME).

Nothing is ever downloaded, and no code of a data set runs. Rows are read a few at a time.

Folders KEY=VALUE below what is given are columns, as Hive and Spark write them, and the one of labels is
read. Names that begin with an underscore or a dot are skipped, as by them and by Arrow.
"""

import contextlib
import glob
import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, takewhile
from pathlib import Path, PurePosixPath
from random import Random
from typing import Any
from urllib.parse import unquote

from fastpsl.console.installed import install
from fastpsl.console.progress import operation
from fastpsl.console.words import cut
from fastpsl.files.leftovers import is_leftover
from fastpsl.files.remote.address import RemoteObject
from fastpsl.files.remote.failures import RemoteDataError
from fastpsl.files.system_errors import input_errors, raise_of_the_system
from fastpsl.pipelines.beton.shard import MAX_LABEL
from fastpsl.pipelines.interface.dataset import BadImage
from fastpsl.pipelines.interface.source import PICKED, Counted, Picks, Sample, changed, choose_split, parts_of
from fastpsl.pipelines.readers.folder import SourceFile, open_file
from fastpsl.pipelines.readers.labels import NO_LABELS, Census, class_number, is_label_word

NO_COLUMN = "none"
_LABEL_KINDS = ("classes", "integer", "number", "text")
_TYPES = {  # of pyarrow, by their names
    "bytes": r"(large_)?binary|struct<.*\bbytes: (large_)?binary",
    "integer": r"(u?int\d+|bool)$",
    "number": r"(halffloat|float|double)$",
    "text": r"(large_)?string|dictionary<values=(large_)?string",
}


@dataclass(frozen=True)
class Columns:
    """The columns to read, and class names where the table has them."""

    image: str
    label: str | None
    class_names: list[str] | None = None
    is_told_by_values: bool = False  # labels of fractions or text, whose classes are told by all of them
    left_out: str = ""  # a column with a label's name that holds no labels, and what it holds

    @property
    def names(self) -> list[str]:
        return [self.image, self.label] if self.label else [self.image]


def choose_columns(
    what: str, schema: Any, image: str | None, label: str | None, keys: Collection[str] = ()
) -> Columns:
    """Choose the columns that hold images and labels; `keys` are those that folders tell.

    Images are datasets' Image feature, else encoded bytes. Labels are a key with a label's name, else the
    ClassLabel. Else they are, of the columns with a label's name, integers or booleans, other numbers, or
    text.
    """
    with reading_errors(what):
        kinds, class_names = _kinds(schema)
    kinds |= dict.fromkeys(keys, "text")
    all_columns = f"its columns are {', '.join(kinds)}"
    label = label or next((key for key in keys if is_label_word(key)), None)
    images = _column(what, "image", image, kinds, ("image", "bytes"), all_columns)
    if images is None:
        raise ValueError(f"{what}: no column of images or of their bytes; {all_columns}")
    if label == NO_COLUMN:
        return Columns(images, None)
    likely = {name: kind for name, kind in kinds.items() if kind == "classes" or is_label_word(name)}
    labels = _column(what, "label", label, kinds if label else likely, _LABEL_KINDS, all_columns)
    unusable = [f"{name} holds neither numbers nor text" for name in likely if not labels]
    return Columns(
        images,
        labels,
        None if labels in keys else class_names.get(labels or ""),
        labels is not None and kinds[labels] in ("number", "text"),
        unusable[0] if unusable else "",
    )


def _kinds(schema: Any) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Return each column's content ("image", "bytes", one of _LABEL_KINDS or "") and class names."""
    features = (
        json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    )
    kinds, class_names = {}, {}
    for column in schema:
        feature, type_name = features.get(column.name), str(column.type)
        feature = feature if isinstance(feature, dict) else {}
        if feature.get("_type") == "Image":
            kind = "image"
        elif feature.get("_type") == "ClassLabel":
            kind = "classes"
            class_names[column.name] = [str(name) for name in feature.get("names") or ()]
        else:
            kind = next((kind for kind, types in _TYPES.items() if re.match(types, type_name)), "")
        kinds[column.name] = kind
    return kinds, {name: names for name, names in class_names.items() if names}


def _column(
    what: str,
    role: str,
    column: str | None,
    kinds: dict[str, str],
    allowed: tuple[str, ...],
    all_columns: str,
) -> str | None:
    """Return the given column, or the only one of the first kind in `allowed` that occurs."""
    option = f"--{role}-column"
    if column is not None:
        if column not in kinds:
            raise ValueError(f"{what}: {option} {column}: there is no such column; {all_columns}")
        if kinds[column] not in allowed:
            holds = {"image": "images or their bytes", "label": "numbers, text or a ClassLabel"}[role]
            raise ValueError(f"{what}: {option} {column}: does not hold {holds}; {all_columns}")
        return column
    for kind in allowed:
        matches = [name for name in kinds if kinds[name] == kind]
        if len(matches) > 1:
            none_option = f" or {NO_COLUMN}" if role == "label" else ""
            raise ValueError(
                f"{what}: several columns may hold {role}s; give {option} {' or '.join(matches)}{none_option}"
            )
        if matches:
            return matches[0]
    return None


_HIVE_NOTHING = "__HIVE_DEFAULT_PARTITION__"


def parquet_in(folder: str) -> list[Path]:
    """Return the parquet files in a folder, or else in its data/, where the Hub keeps them.

    Those in folders KEY=VALUE below are among them.
    """
    with input_errors(folder):
        found = (list(_files_in(place)) for place in (folder, os.path.join(folder, "data")))
        return sorted(next((paths for paths in found if paths), []))


def _files_in(folder: str) -> Iterator[Path]:
    if not os.path.isdir(folder):
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if _is_hidden(entry.name):
                continue
            if "=" in entry.name and entry.is_dir():
                yield from _files_in(entry.path)
            elif entry.name.endswith(".parquet"):
                yield Path(entry.path)


def _is_hidden(name: str) -> bool:
    return is_leftover(name) or (name.startswith("_") and "=" not in name)


def _own_parts(src: str, path: SourceFile) -> list[str]:
    """Return the parts of a file's path that `src` does not name, as a folder or a glob's beginning."""
    given = PurePosixPath(src).parts
    given = given if os.path.exists(src) else tuple(takewhile(lambda part: not glob.has_magic(part), given))
    return [part for part in PurePosixPath(str(path)).parts if part not in given]


def _folders(src: str, path: SourceFile) -> list[str]:
    """Return the folders KEY=VALUE that a file lies in."""
    return [part for part in _own_parts(src, path)[:-1] if "=" in part]


def _values(folders: Iterable[str]) -> dict[str, str | None]:
    """Return what folders KEY=VALUE tell, None for Hive's null."""
    pairs = (folder.partition("=") for folder in folders)
    return {unquote(key): None if value == _HIVE_NOTHING else unquote(value) for key, _, value in pairs}


BATCH_ROWS = 32
_BUFFER_BYTES = 1 << 22


def is_file(part: object) -> bool:
    """Return whether a part is a parquet file, not a data set of the package datasets."""
    return isinstance(part, Path | RemoteObject)


@contextlib.contextmanager
def open_parquet(path: SourceFile, **options: Any) -> Iterator[Any]:
    """Open a parquet file."""
    from pyarrow.parquet import ParquetFile

    with contextlib.ExitStack() as stack:
        file = path if isinstance(path, Path) else stack.enter_context(open_file(path))
        yield stack.enter_context(ParquetFile(file, **options))


def rows(
    part: Any, columns: Columns, positions: range, batch_rows: int = BATCH_ROWS
) -> Iterator[tuple[Any, Any]]:
    """Yield (image, label or None) for some rows of a parquet file or a data set."""
    if is_file(part):
        tables = _tables_of_file(part, columns, positions, batch_rows)
    else:
        chosen = part.select_columns(columns.names).select(positions)
        tables = chosen.with_format("arrow").iter(batch_rows)
    for table in tables:
        images = table.column(columns.image).to_pylist()
        labels = table.column(columns.label).to_pylist() if columns.label else [None] * len(images)
        yield from zip(images, labels, strict=True)


def _tables_of_file(path: SourceFile, columns: Columns, positions: range, batch_rows: int) -> Iterator[Any]:
    # pre_buffer would hold whole row groups.
    with open_parquet(path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
        for group, here in parts_of(positions, _group_sizes(file)):
            position = 0
            for batch in file.iter_batches(batch_rows, row_groups=[group], columns=columns.names):
                first, last = max(here.start - position, 0), min(here.stop - position, len(batch))
                if first < last:
                    yield batch.slice(first, last - first)
                position += len(batch)
                if position >= here.stop:
                    break


def row_groups(path: SourceFile, positions: range) -> list[range]:
    """Return the part of each row group that lies within `positions`."""
    with open_parquet(path) as file:
        sizes = _group_sizes(file)
    starts = [0, *accumulate(sizes)]
    return [range(starts[i] + p.start, starts[i] + p.stop) for i, p in parts_of(positions, sizes)]


def _group_sizes(file: Any) -> list[int]:
    return [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]


@contextlib.contextmanager
def reading_errors(what: object) -> Iterator[None]:
    """Turn errors into a ValueError of one line.

    For missing data sets and damaged files, datasets and pyarrow raise nearly any type.
    """
    try:
        yield
    except RemoteDataError:
        raise
    except Exception as error:  # noqa: BLE001
        raise_of_the_system(what, error)
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{what}: cannot be read ({type(error).__name__}: {reason}); copy or download it again"
        ) from None


_LABEL_ROWS = 1 << 14  # at a time, where labels alone are read
_SPLIT_OF_FILE = re.compile(r"(.+)-\d{5}-of-\d{5}\.parquet")  # the names that datasets gives


@dataclass
class Tables(Counted):
    """A data set in columns; its parts are parquet files, or one datasets.Dataset."""

    what: str  # for messages
    roots: tuple[Path, ...]  # folders of the images that rows only name
    data: Sequence[Any]
    columns: Columns
    names: Sequence[str] = ()  # of the parquet files
    folder_labels: Sequence[str | None] = ()  # of each file, if folders tell the labels

    def __post_init__(self) -> None:
        """Read labels that are fractions or text, because all of them tell the classes."""
        if self.columns.is_told_by_values:
            self.columns = replace(self.columns, **self._classes())
        label, self.class_names = self.columns.label, self.columns.class_names
        where = f"the folders {label}=…" if self.folder_labels else label
        labels = f"labels from {where}" if label else "no labels: -1"
        self.notes = [f"images from column {self.columns.image}, {labels}"]
        if self.columns.left_out:
            self.warnings = [f"column {self.columns.left_out}: {NO_LABELS}"]
        self._numbers = self.numbers

    def _classes(self) -> dict[str, Any]:
        column, census = self.columns.label, Census()
        columns = Columns(str(column), None)
        for label in self.folder_labels:
            census.add(label)
        data = () if self.folder_labels else self.data
        with operation(f"{self.what}: reading column {column}", "parts", len(data)) as progress:
            for part, count in zip(progress.track(data), self.counts, strict=False):
                with reading_errors(self.what):
                    for label, _ in rows(part, columns, range(count), _LABEL_ROWS):
                        census.add(label)
        if fault := census.fault:
            return {"label": None, "left_out": f"{column} {fault}"}
        return {"class_names": census.class_names}

    def samples(self, skip: int = 0) -> Iterator[Sample]:
        """Yield this shard's rows in order."""
        return self._samples_of(self.parts(skip))

    def picks(self, num: int, random: Random) -> Picks:
        """Choose rows at random; of parquet files the first ones of some row groups."""
        parts, each = self.shuffled(num, random)
        runs = ((i, run) for i, positions in parts for run in self._runs(i, positions, each, random))
        how = ("the first of row groups " if is_file(self.data[0]) else "") + "picked at random"
        return Picks(how, True, self._samples_of(runs))

    def _runs(self, i: int, positions: range, num: int, random: Random) -> list[range]:
        """Return runs of `num` rows of a part in all, within `positions`."""
        if not is_file(self.data[i]):
            return [range(p, p + 1) for p in random.sample(positions, min(num, len(positions)))]
        with reading_errors(self.data[i]):
            groups = row_groups(self.data[i], positions)
        chosen = random.sample(groups, min(len(groups), -(-num // PICKED)))
        return [group[: -(-num // len(chosen))] for group in chosen]

    def _samples_of(self, parts: Iterable[tuple[int, range]]) -> Iterator[Sample]:
        for i, positions in parts:
            part, position = self.data[i], positions.start
            from_file, columns = is_file(part), self.columns
            what = str(part) if from_file else self.what
            if self.folder_labels:
                columns = replace(columns, label=None)
            with reading_errors(what):
                for image, label in rows(part, columns, positions):
                    name = f"{self.names[i]} row {position}" if from_file else f"row {position}"
                    if self.folder_labels and self.columns.label:
                        label = self.folder_labels[i]
                    yield self._sample(name, image, label)
                    position += 1
            if position != positions.stop:
                raise changed(what, positions.stop, position)

    def _sample(self, name: str, image: Any, label: Any) -> Sample:
        path = image.get("path") if isinstance(image, dict) else None
        data = image.get("bytes") if isinstance(image, dict) else image
        name += f" ({os.path.basename(path)})" if path else ""
        last = len(self.class_names) - 1 if self.class_names else MAX_LABEL
        number = class_number(label, self._numbers)
        if number is None or not -1 <= number <= last:
            shown = repr(cut(label)) if isinstance(label, str) else label
            return Sample(name, BadImage(f"its label is {shown}; -1 (none) to {last} are allowed"), -1)
        if data is not None:
            return Sample(name, data, number)
        return Sample(name, self._named(path) if path else BadImage("the row has no image"), number)

    def _named(self, path: str) -> Path | BadImage:
        """Return the file that a row names.

        Files elsewhere are refused, because an untrusted table could copy any image of this machine into a
        dataset file.
        """
        if not self.roots:
            return BadImage("the row holds no bytes, and names a file that is not beside it")
        try:
            target = os.path.realpath(os.path.join(self.roots[0], path))
            is_below = any(Path(target).is_relative_to(os.path.realpath(root)) for root in self.roots)
        except ValueError:  # a NUL within the path
            is_below = False
        if not is_below:
            return BadImage(
                f"the row holds no bytes and names a file that is not below {self.roots[0]}: "
                f"put the images there"
            )
        return Path(target)


def parquet_files(
    src: str,
    paths: Sequence[SourceFile],
    split: str | None = None,
    shard: tuple[int, int] = (0, 1),
    image_column: str | None = None,
    label_column: str | None = None,
) -> Tables:
    """Open the parquet files that `src` names as one data set, in the order of their names.

    A split is needed if the names contain several (train-00000-of-00002.parquet). `shard` (i, n) keeps the
    i-th of n runs of neighbours.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise _missing(error) from None
    paths = [path for path in paths if not any(map(_is_hidden, _own_parts(src, path)))]
    if not paths:
        raise ValueError(
            f"{src}: all names begin with _ or a dot, which Spark, Hive and Arrow skip; "
            "give one file by its own name, or rename them"
        )
    split_of = {path: match[1] for path in paths if (match := _SPLIT_OF_FILE.fullmatch(path.name))}
    if split_of:
        split = choose_split(src, split, set(split_of.values()))
        paths = [path for path in paths if split_of.get(path) == split]
    elif split:
        raise ValueError(
            f"{src}: --split {split}: the files' names tell no split, as train-00000-of-00002.parquet does; "
            "give that split's files as SRC"
        )
    paths, schemas, counts = sorted(paths, key=str), list[Any](), list[int]()
    folders = [_folders(src, path) for path in paths]
    values = [_values(each) for each in folders]
    with operation(f"{src}: counting rows", "files", len(paths)) as progress:
        for path, of_folders in zip(progress.track(paths), values, strict=True):
            with reading_errors(path), open_parquet(path) as file:
                schemas.append(file.schema_arrow)
                counts.append(file.metadata.num_rows)
            if {*schemas[-1].names, *of_folders} != {*schemas[0].names, *values[0]}:
                raise ValueError(f"{path}: has other columns than {paths[0]}; give the files of one data set")
    if not sum(counts):
        raise ValueError(f"{src}: has no rows; give a data set of images")
    columns = choose_columns(src, schemas[0], image_column, label_column, values[0])
    for key, value in values[0].items():
        if key != columns.label and not (label_column == NO_COLUMN and is_label_word(key)):
            raise ValueError(
                f"{src}: its folders tell {key} ({key}={value}), and only {columns.label or 'label'} is read "
                f"of folders; give a folder within {key}=…, or one without {key} in its paths"
            )
    for path, schema in zip(paths, schemas, strict=True):
        with reading_errors(path):
            names = _kinds(schema)[1].get(columns.label or "")
        if names and columns.class_names and names != columns.class_names:
            raise ValueError(
                f"{path}: its class names differ from those of {paths[0]}; give files with the same classes, "
                "or write it alone with --classes"
            )
    roots = tuple(path.parents[len(folders[0])] for path in paths[:1] if isinstance(path, Path))
    labels = [each[columns.label] for each in values] if columns.label in values[0] else []
    names = ["/".join([*each, path.name]) for each, path in zip(folders, paths, strict=True)]
    return Tables(src, roots, paths, columns, names, labels, counts=counts, shard=shard)


def hugging_face(
    name: str,
    split: str | None = None,
    shard: tuple[int, int] = (0, 1),
    image_column: str | None = None,
    label_column: str | None = None,
) -> Tables:
    """Open a data set of the package datasets; the arguments are those of `parquet_files` but for the first.

    `name` is a folder that `save_to_disk` wrote, or NAME or NAME:CONFIG in the local cache.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"  # huggingface_hub reads it on import
    try:
        import datasets
    except ImportError as error:
        raise _missing(error) from None
    datasets.config.HF_HUB_OFFLINE = True
    datasets.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    path, _, config = name.partition(":")
    with reading_errors(name), operation(f"{name}: opening it with the package datasets"):
        if os.path.isdir(name):
            dataset = datasets.load_from_disk(name)
        else:
            try:
                dataset = datasets.load_dataset(path, config or None)
            except (ConnectionError, FileNotFoundError):
                dataset = None
    if dataset is None:
        raise ValueError(
            f"hf:{name}: neither a folder nor in the local cache, and nothing is downloaded; "
            f"load_dataset({path!r}) in Python puts it there"
        )
    split = choose_split(name, split, dataset if isinstance(dataset, dict) else {""})
    if isinstance(dataset, dict):
        dataset = dataset[split]
    if not len(dataset):
        raise ValueError(f"{name}: has no rows; give a data set of images")
    columns = choose_columns(name, dataset.features.arrow_schema, image_column, label_column)
    cache = (Path(datasets.config.HF_DATASETS_CACHE), Path(datasets.config.HF_CACHE_HOME))
    roots = (Path(name),) if os.path.isdir(name) else cache
    return Tables(name, roots, [dataset], columns, counts=[len(dataset)], shard=shard)


def _missing(error: ImportError) -> ValueError:
    return ValueError(f"parquet files and hf: need Hugging Face's datasets ({error}); {install('datasets')}")
