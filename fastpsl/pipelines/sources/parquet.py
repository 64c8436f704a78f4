"""Hugging Face data sets from disk: parquet files, folders of `save_to_disk`, and the local cache (hf:NAME).

Nothing is ever downloaded, and no code of a data set runs. Rows are read a few at a time.
"""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

from fastpsl.console.progress import operation
from fastpsl.pipelines.beton.shard import MAX_LABEL
from fastpsl.pipelines.data.dataset import BadImage
from fastpsl.pipelines.sources.columns import Columns, choose_columns
from fastpsl.pipelines.sources.files import SourceFile
from fastpsl.pipelines.sources.labels import NO_LABELS, Census, class_number
from fastpsl.pipelines.sources.parquet_rows import (
    is_file,
    open_parquet,
    reading_errors,
    require_pyarrow,
    row_groups,
    rows,
)
from fastpsl.pipelines.sources.source import Picks, Sample, changed, choose_split, parts_of, shard_range
from fastpsl.pipelines.sources.tally import Tally

INSTALL = "pip install 'fastpsl-vision[datasets]'"
_LABEL_ROWS = 1 << 14  # at a time, where labels alone are read
_PICKED = 16  # neighbouring rows, for an estimate
_SPLIT_OF_FILE = re.compile(r"(.+)-\d{5}-of-\d{5}\.parquet")  # the names that datasets gives


@dataclass
class Tables:
    """A data set in columns, with its rows counted."""

    what: str  # for messages
    roots: tuple[Path, ...]  # folders of the images that rows only name
    parts: Sequence[Any]  # paths of parquet files, or one datasets.Dataset
    counts: list[int]  # rows in each part
    columns: Columns
    shard: tuple[int, int] = (0, 1)
    mode: str = "jpg"
    left_out: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        """Read labels that are fractions or text, because all of them tell the classes."""
        if self.columns.is_told_by_values:
            self.columns = replace(self.columns, **self._classes())
        self._numbers = {name: number for number, name in enumerate(self.class_names or ())}

    def _classes(self) -> dict[str, Any]:
        column, census = self.columns.label, Census()
        columns = Columns(str(column), None)
        with operation(f"{self.what}: reading column {column}", "parts", len(self.parts)) as progress:
            for part, count in zip(progress.track(self.parts), self.counts, strict=True):
                with reading_errors(self.what):
                    for label, _ in rows(part, columns, range(count), _LABEL_ROWS):
                        census.add(label)
        if fault := census.fault:
            return {"label": None, "left_out": f"{column} {fault}"}
        return {"class_names": census.class_names}

    @property
    def warnings(self) -> list[str]:
        return [f"column {self.columns.left_out}: {NO_LABELS}"] if self.columns.left_out else []

    @property
    def class_names(self) -> list[str] | None:
        return self.columns.class_names

    @property
    def notes(self) -> list[str]:
        label = self.columns.label
        return [
            f"images from column {self.columns.image}, "
            + (f"labels from {label}" if label else "no labels: -1")
        ]

    @property
    def num_total(self) -> int:
        return sum(self.counts)

    @property
    def num_samples(self) -> int:
        return len(shard_range(self.num_total, self.shard))

    def samples(self, skip: int = 0) -> Iterator[Sample]:
        """Yield this shard's rows in order.

        Raises:
            ValueError: A file is damaged or has changed since it was counted.
        """
        return self._samples_of(parts_of(shard_range(self.num_total, self.shard)[skip:], self.counts))

    def picks(self, num: int, random: Random) -> Picks:
        """Choose rows at random; of parquet files the first ones of some row groups."""
        parts = list(parts_of(shard_range(self.num_total, self.shard), self.counts))
        random.shuffle(parts)
        each = max(_PICKED, -(-num // len(parts)))
        runs = ((i, run) for i, positions in parts for run in self._runs(i, positions, each, random))
        how = ("the first of row groups " if is_file(self.parts[0]) else "") + "picked at random"
        return Picks(how, True, self._samples_of(runs))

    def _runs(self, i: int, positions: range, num: int, random: Random) -> list[range]:
        """Return runs of `num` rows of a part in all, within `positions`."""
        if not is_file(self.parts[i]):
            return [range(p, p + 1) for p in random.sample(positions, min(num, len(positions)))]
        with reading_errors(self.parts[i]):
            groups = row_groups(self.parts[i], positions)
        chosen = random.sample(groups, min(len(groups), -(-num // _PICKED)))
        return [group[: -(-num // len(chosen))] for group in chosen]

    def _samples_of(self, parts: Iterable[tuple[int, range]]) -> Iterator[Sample]:
        for i, positions in parts:
            part, position = self.parts[i], positions.start
            from_file = is_file(part)
            what = str(part) if from_file else self.what
            with reading_errors(what):
                for image, label in rows(part, self.columns, positions):
                    name = f"{part.name} row {position}" if from_file else f"row {position}"
                    yield self._sample(name, image, label)
                    position += 1
            if position != positions.stop:
                raise changed(what, positions.stop, position)

    def _sample(self, name: str, image: Any, label: Any) -> Sample:
        path = image.get("path") if isinstance(image, dict) else None
        data = image.get("bytes") if isinstance(image, dict) else image
        name += f" ({os.path.basename(path)})" if path else ""
        last = len(self.class_names) - 1 if self.class_names else MAX_LABEL
        label = class_number(label, self._numbers)
        if label is None or not -1 <= label <= last:
            return Sample(name, BadImage(f"its label is {label}; -1 (none) to {last} are allowed"), -1)
        if data is not None:
            return Sample(name, data, label)
        return Sample(name, self._named(path) if path else BadImage("the row has no image"), label)

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
    paths: Sequence[SourceFile],
    split: str | None = None,
    shard: tuple[int, int] = (0, 1),
    image_column: str | None = None,
    label_column: str | None = None,
) -> Tables:
    """Open parquet files as one data set, in the order of their names.

    Args:
        paths: The files.
        split: The split, needed if the names contain several (train-00000-of-00002.parquet).
        shard: (i, n) keeps the i-th of n runs of neighbours.
        image_column: The column of images; None to choose it.
        label_column: The column of labels; None to choose it.

    Raises:
        ValueError: Something is missing, damaged or ambiguous.
    """
    try:
        require_pyarrow()
    except ImportError as error:
        raise _missing(error) from None
    what = os.path.dirname(str(paths[0])) if len(paths) > 1 else str(paths[0])
    split_of = {path: match[1] for path in paths if (match := _SPLIT_OF_FILE.fullmatch(path.name))}
    if split_of:
        split = choose_split(what, split, set(split_of.values()))
        paths = [path for path in paths if split_of.get(path) == split]
    elif split:
        raise ValueError(
            f"{what}: --split {split}: the files' names tell no split, as train-00000-of-00002.parquet does; "
            "give that split's files as SRC"
        )
    paths, schemas, counts = sorted(paths, key=str), list[Any](), list[int]()
    with operation(f"{what}: counting rows", "files", len(paths)) as progress:
        for path in progress.track(paths):
            with reading_errors(path), open_parquet(path) as file:
                schemas.append(file.schema_arrow)
                counts.append(file.metadata.num_rows)
            if schemas[-1].names != schemas[0].names:
                raise ValueError(f"{path}: has other columns than {paths[0]}; give the files of one data set")
    if not sum(counts):
        raise ValueError(f"{what}: has no rows; give a data set of images")
    columns = choose_columns(what, schemas[0], image_column, label_column)
    roots = tuple(path.parent for path in paths[:1] if isinstance(path, Path))
    return Tables(what, roots, paths, counts, columns, shard)


def hugging_face(
    name: str,
    split: str | None = None,
    shard: tuple[int, int] = (0, 1),
    image_column: str | None = None,
    label_column: str | None = None,
) -> Tables:
    """Open a data set of the package datasets; the arguments are those of `parquet_files` but for the first.

    `name` is a folder that `save_to_disk` wrote, or NAME or NAME:CONFIG in the local cache.

    Raises:
        ValueError: It is not there, or the choice is ambiguous.
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
    return Tables(name, roots, [dataset], [len(dataset)], columns, shard)


def _missing(error: ImportError) -> ValueError:
    return ValueError(f"parquet files and hf: need Hugging Face's datasets ({error}); {INSTALL}")
