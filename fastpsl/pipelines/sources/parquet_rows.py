"""The rows of tables, a few at a time: of parquet files, and of data sets of the package datasets."""

import contextlib
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

from fastpsl.files.remote.address import RemoteDataError, RemoteObject
from fastpsl.pipelines.sources.columns import Columns
from fastpsl.pipelines.sources.files import SourceFile, open_file
from fastpsl.pipelines.sources.source import parts_of

BATCH_ROWS = 32
_BUFFER_BYTES = 1 << 22


def is_file(part: object) -> bool:
    """Return whether a part is a parquet file, not a data set of the package datasets."""
    return isinstance(part, Path | RemoteObject)


def require_pyarrow() -> None:
    """Raise ImportError unless parquet files can be read here."""
    import pyarrow.parquet  # noqa: F401


@contextlib.contextmanager
def open_parquet(path: SourceFile, **options: Any) -> Iterator[Any]:
    """Open a parquet file."""
    from pyarrow.parquet import ParquetFile

    if isinstance(path, Path):
        with ParquetFile(path, **options) as file:
            yield file
    else:
        with open_file(path) as stream, ParquetFile(stream, **options) as file:
            yield file


def rows(
    part: Any, columns: Columns, positions: range, batch_rows: int = BATCH_ROWS
) -> Iterator[tuple[Any, Any]]:
    """Yield (image, label or None) for some rows of a parquet file or a data set."""
    return (_rows_of_file if is_file(part) else _rows_of_dataset)(part, columns, positions, batch_rows)


def _rows_of_file(
    path: SourceFile, columns: Columns, positions: range, batch_rows: int
) -> Iterator[tuple[Any, Any]]:
    # pre_buffer would hold whole row groups.
    with open_parquet(path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        for group, group_positions in parts_of(positions, sizes):
            position = 0
            for batch in file.iter_batches(batch_rows, row_groups=[group], columns=columns.names):
                first, last = (
                    max(group_positions.start - position, 0),
                    min(group_positions.stop - position, len(batch)),
                )
                if first < last:
                    yield from _pairs(batch.slice(first, last - first), columns)
                position += len(batch)
                if position >= group_positions.stop:
                    break


def row_groups(path: SourceFile, positions: range) -> list[range]:
    """Return the part of each row group that lies within `positions`."""
    with open_parquet(path) as file:
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    starts = [0, *accumulate(sizes)]
    return [range(starts[i] + p.start, starts[i] + p.stop) for i, p in parts_of(positions, sizes)]


def _rows_of_dataset(
    dataset: Any, columns: Columns, positions: range, batch_rows: int
) -> Iterator[tuple[Any, Any]]:
    for table in (
        dataset.select_columns(columns.names).select(positions).with_format("arrow").iter(batch_rows)
    ):
        yield from _pairs(table, columns)


def _pairs(table: Any, columns: Columns) -> Iterator[tuple[Any, Any]]:
    """Yield (image, label or None) for each row."""
    images = table.column(columns.image).to_pylist()
    labels = table.column(columns.label).to_pylist() if columns.label else [None] * len(images)
    yield from zip(images, labels, strict=True)


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
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{what}: cannot be read ({type(error).__name__}: {reason}); copy or download it again"
        ) from None
