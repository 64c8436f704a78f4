"""Arrays and archives from elsewhere that would fill the memory are refused by their stated size, unread."""

import io
import tracemalloc
import zipfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastpsl.evaluation.feature_file import FeatureFile
from fastpsl.evaluation.few_labels import read_label_list
from fastpsl.files.untrusted import check_zip, read_npy
from fastpsl.models.checkpoint import read_checkpoint
from fastpsl.models.foreign_weights import read_weights
from fastpsl.pipelines.datasets.open import open_data
from fastpsl.pipelines.embedded.draw_sample import sample_paths
from fastpsl.tasks.jigsaw import read_permutations
from fastpsl.tasks.pseudo_labels.file import read_labels

BOMB_BYTES = 1 << 30
MOST_BYTES = 1 << 26


def zeros(path: Path, dtype: str, num_bytes: int = BOMB_BYTES) -> Path:
    """Write an .npy file of zeros that takes no space on the disk."""
    with open(path, "wb") as file:
        described = {
            "descr": dtype,
            "fortran_order": False,
            "shape": (num_bytes // np.dtype(dtype).itemsize,),
        }
        np.lib.format.write_array_header_1_0(file, described)
        file.truncate(file.tell() + num_bytes)
    return path


def refused(read: Callable[..., Any], *arguments: Any) -> str:
    """Check that `read` raises a ValueError of one line without taking memory, and return the line.

    Only allocations by Python and numpy are counted; torch would read the same zip.
    """
    tracemalloc.start()
    with pytest.raises(ValueError) as error:
        read(*arguments)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < MOST_BYTES, f"{peak_bytes:,} bytes"
    line = str(error.value)
    assert len(line.splitlines()) == 1 and len(line) < 400
    return line


def bomb(path: Path, names: dict[str, str]) -> Path:
    """Write a zip of 1 MB with members that inflate to a GB in all.

    Args:
        path: The zip.
        names: The first bytes of each member, as latin-1.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, start in names.items():
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(start.encode("latin1"))
                for _ in range(1 << 6):
                    member.write(bytes(1 << 22))  # 256 MB
    return path


def header(dtype: str, count: int) -> str:
    written = io.BytesIO()
    np.lib.format.write_array_header_1_0(written, {"descr": dtype, "fortran_order": False, "shape": (count,)})
    return written.getvalue().decode("latin1")


def test_labels_that_inflate_beyond_the_data_are_not_inflated(tmp_path: Path) -> None:
    names = {"labels.npy": header("<i4", 1 << 26), "indices.npy": header("<i8", 1 << 25)}
    path = bomb(tmp_path / "labels.npz", names)
    with closing(open_data(str(sample_paths().test_32))) as data:
        line = refused(read_labels, path, data)
    assert (
        line.startswith(f"{path} is no readable file of labels (it would take 536,") and "labels.npz" in line
    )


def test_torchs_archives_hold_no_more_than_their_file(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"conv1.weight": torch.zeros(1000)}, path)
    assert read_weights(path)["conv1.weight"].shape == (1000,)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data if not name.endswith("/data/0") else bytes(1 << 28))
    for read in (read_weights, read_checkpoint):
        line = refused(read, path)
        assert str(path) in line and "it would take 268," in line


def test_arrays_are_judged_by_their_headers(tmp_path: Path) -> None:
    path = zeros(tmp_path / "a.npy", "<i8")
    assert f"{path}: cannot be read (1,073,741,824 bytes" in refused(read_permutations, path)
    path = tmp_path / "b.npy"
    path.write_bytes(header("<i8", 1 << 45).encode("latin1") + bytes(80))  # far shorter than its header says
    assert str(path) in refused(read_permutations, path)
    record = {"labels": "f-labels.npy", "shape": [1000, 8]}
    labels = zeros(tmp_path / "f-labels.npy", "<i4")
    assert f"{labels} cannot be read" in refused(FeatureFile(tmp_path / "f.npy", record).labels)
    np.save(labels, np.arange(1000, dtype=np.int32))
    loaded = FeatureFile(tmp_path / "f.npy", record).labels()
    assert loaded is not None and loaded.dtype == np.int32 and loaded.tolist() == list(range(1000))
    with closing(open_data(str(sample_paths().test_32))) as data:
        line = refused(read_label_list, zeros(tmp_path / "list.npy", "<i8", 1 << 33), data)
    assert "list.npy cannot be read (8,589,934,592 bytes" in line
    (tmp_path / "permutations.bin").write_bytes(b"\x00\x00\x00\x01\x04\x00\x00\x00")
    with open(tmp_path / "permutations.bin", "r+b") as file:
        file.truncate(8 + (1 << 28))  # as its header says, and 8 bytes more than are read
    assert "permutations.bin: cannot be read" in refused(read_permutations, tmp_path / "permutations.bin")


def test_what_is_read_owns_its_memory_and_is_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    for array in (
        np.arange(6, dtype=">i2").reshape(2, 3),
        np.asfortranarray(np.eye(3)),
        np.zeros((0, 9), np.int64),
    ):
        np.save(path, array)
        loaded = read_npy(path, 1 << 10)
        assert loaded.dtype == array.dtype and loaded.flags.owndata and np.array_equal(loaded, array)
    np.save(path, np.array([{}], object))
    with pytest.raises(ValueError, match="Python objects"):
        read_npy(path, 1 << 10)
    np.savez(tmp_path / "b.npz", a=array)
    with pytest.raises(ValueError, match="an archive"):
        read_npy(tmp_path / "b.npz", 1 << 10)
    with pytest.raises(ValueError, match="at most 5 "):
        check_zip(tmp_path / "b.npz", 5)
