"""Folders of photos, and betons of them."""

import os
from pathlib import Path
from typing import Any

import pytest

from fastpsl.pipelines.beton.output import WriteReport
from fastpsl.pipelines.beton.write import write_beton
from fastpsl.pipelines.datasets import folder as folders
from fastpsl.pipelines.sources.folder import image_folder
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

    def counting(path: object) -> object:
        read.append(os.path.basename(str(path)))
        return scan(path)

    monkeypatch.setattr(folders, "_scan", counting)
    return read
