"""Folders of photos, tar files and betons, as tests write them."""

import io
import os
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastpsl.pipelines.beton.encode import Target
from fastpsl.pipelines.beton.output import WriteReport
from fastpsl.pipelines.beton.write import write_beton
from fastpsl.pipelines.datasets import open_folder as folders
from fastpsl.pipelines.interface.source import Sample
from fastpsl.pipelines.readers.folder import image_folder
from tests.pipelines.photos import jpeg, photo


def tree(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def photo_tree(root: Path) -> Path:
    """Write 18 photos in three classes."""
    names = [f"{kind}/{i % 3}/{i:02}.jpg" for kind in ("cat", "ant", "dog") for i in range(6)]
    return tree(root, {name: jpeg(photo(i, 60 + i, 90 - i)) for i, name in enumerate(names)})


def write_folder(folder: Path, out: Path, shard: tuple[int, int] = (0, 1), **options: Any) -> WriteReport:
    source = image_folder(folder, shard)
    return write_beton(
        source.samples(), out, num_samples=source.num_samples, class_names=source.class_names, **options
    )


def headers_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the names of files from which headers are read."""
    read, scan = [], folders._scan

    def counting(path: object, *rest: Any) -> object:
        read.append(os.path.basename(str(path)))
        return scan(path, *rest)

    monkeypatch.setattr(folders, "_scan", counting)
    return read


def parquet_bytes(columns: Mapping[str, Any], **options: Any) -> bytes:
    """Return a parquet file; skip the test where pyarrow is not installed."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    out = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), out, **options)
    return out.getvalue()


Members = Mapping[str, bytes] | Sequence[tuple[str, bytes]]


def tar_bytes(members: Members, mode: str = "w", **options: Any) -> bytes:
    """Return a tar with the files in the given order."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode, **options) as tar:  # type: ignore[call-overload]
        for name, data in members.items() if isinstance(members, Mapping) else members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def make_tar(path: Path, members: Members, **options: Any) -> Path:
    """Write a tar, compressed according to its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = {".gz": "w:gz", ".tgz": "w:gz", ".bz2": "w:bz2", ".xz": "w:xz"}.get(path.suffix, "w")
    path.write_bytes(tar_bytes(members, mode, **options))
    return path


def write_labelled(
    path: Path, labels: Sequence[int], class_names: list[str] | None = None, *, side_px: int = 32
) -> Path:
    """Write a beton of raw, square noise images, named p0, p1, p2, ..., and return its path.

    Args:
        path: The beton.
        labels: A label for each image; -1 is none.
        class_names: The classes' names.
        side_px: The images' side.
    """
    images = np.random.default_rng(0).integers(0, 256, (len(labels), side_px, side_px, 3), dtype=np.uint8)
    return write_raw(path, images, labels, class_names)


def write_raw(
    path: Path, images: Iterable[np.ndarray], labels: Sequence[int], class_names: list[str] | None = None
) -> Path:
    """Write a beton of raw images, uint8 [H, W, 3], named p0, p1, p2, ..., and return its path."""
    samples = [Sample(f"p{i}", *of_one) for i, of_one in enumerate(zip(images, labels, strict=True))]
    write_beton(samples, path, num_samples=len(labels), class_names=class_names, target=Target(mode="raw"))
    return path
