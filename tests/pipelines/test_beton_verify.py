"""Verification of betons and of their sidecars."""

import base64
import json
import tracemalloc
import zlib
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.sidecar import PathPacker, Sidecar, read_sidecar
from fastpsl.pipelines.beton.verify import verify
from tests.pipelines.folders import photo_tree, write_folder
from tests.pipelines.photos import needs_ffcv
from tests.pipelines.test_beton import refused


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return photo_tree(tmp_path / "photos")


def damage_stream(data: bytearray, at: int, num_bytes: int) -> None:
    """Write a misplaced restart marker, at which libjpeg warns."""
    data[at + num_bytes // 2 : at + num_bytes // 2 + 2] = b"\xff\xd5"


def damage_table(data: bytearray, at: int, num_bytes: int) -> None:
    """Write an invalid Huffman table, which is an error."""
    table = data.index(b"\xff\xc4", at, at + num_bytes)
    data[table + 4 : table + 24] = b"\xff" * 20


@pytest.mark.parametrize(
    "damage",
    [
        damage_table,
        pytest.param(damage_stream, marks=needs_ffcv("others keep libjpeg's warnings to themselves")),
    ],
)
def test_verify_names_what_is_bad(
    damage: Callable[[bytearray, int, int], None], photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a.beton"
    write_folder(photos, out)
    with Beton(out) as beton:
        rows, names = beton.rows(np.arange(18)), [beton.name(i) for i in range(18)]
    data = bytearray(out.read_bytes())
    damage(data, int(rows.offset[4]), int(rows.num_bytes[4]))
    data[rows.offset[9]] = 0
    out.write_bytes(data)
    problems = list(verify(out))
    assert problems[0] == f"{names[4]}: does not decode without a libjpeg error or warning"
    assert problems[1] == f"{names[9]}: not a JPEG"
    assert "checksum" in problems[2] and len(problems) == 3
    (tmp_path / "a.beton.json").unlink()
    assert len(list(verify(out))) == 2  # readers and verify need no JSON


def test_sidecars_that_do_not_fit(photos: Path, tmp_path: Path) -> None:
    out, beside = tmp_path / "a.beton", tmp_path / "a.beton.json"
    write_folder(photos, out)
    text = beside.read_text()
    record = json.loads(text)
    for bad in ("", "{", "[1]", "null", '{"format": 1}', text.replace('"format": 1', '"format": 9')):
        beside.write_text(bad)
        refused(out, "remove")
    beside.write_text(text.replace('"written": {', f'"written": {{"a": [{"[],[]," * (1 << 20)}[]],', 1))
    refused(out, "more than 2,097,152 values", "remove")
    beside.write_text(json.dumps(record | {"num_samples": 5}))
    refused(out, "18 samples", "of 5")
    beside.write_text(json.dumps(record | {"class_names": ["ant", "cat"]}))
    refused(out, "sample 12", "label above 1")
    beside.unlink()
    with Beton(out) as beton:
        assert beton.class_names is None and beton.num_classes == 3 and beton.name(1) == f"{out} sample 1"


@pytest.mark.parametrize("value", [1e999, -1, 10**30, "9" * 5000, float("nan")])
@pytest.mark.parametrize("key", ["num_samples", "data_start"])
def test_numbers_of_nonsense_in_a_sidecar(key: str, value: object, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.beton"
    write_folder(photos, out)
    beside = tmp_path / "a.beton.json"
    beside.write_text(json.dumps(json.loads(beside.read_text()) | {key: value}))
    (problem,) = verify(out)
    assert "a.beton" in problem and "\n" not in problem and "remove" in problem


def packed(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data)).decode()


NAMES = b"\n".join(b"%d.jpg" % i for i in range(18))


@pytest.mark.parametrize(
    "paths",
    [
        "AAAA",
        packed(NAMES)[:-8],
        packed(NAMES + b"\nmore.jpg"),
        packed(NAMES[:-7]),
        packed(b"x" * (40 << 20)),  # one name of 40 MB
        packed(b"\n" * (40 << 20)),
        base64.b64encode(zlib.compress(NAMES) + b"more").decode(),
    ],
    ids=["no zlib", "cut", "one more", "one less", "a long one", "many", "something behind"],
)
def test_damaged_source_paths_are_told_by_verify_and_cost_readers_the_names_alone(
    paths: str, photos: Path, tmp_path: Path
) -> None:
    out, beside = tmp_path / "a.beton", tmp_path / "a.beton.json"
    write_folder(photos, out)
    beside.write_text(json.dumps(json.loads(beside.read_text()) | {"source_paths": paths}))
    (fault,) = verify(out)
    assert fault.startswith(f"{beside}: its source_paths are damaged; copy it again, or remove it (")
    with Beton(out) as beton:
        assert all(beton.name(i).startswith(f"{out} sample {i}") for i in range(18))
    sidecar = read_sidecar(out)
    assert sidecar is not None
    tracemalloc.start()
    with pytest.raises(ValueError, match="source_paths are damaged"):
        deque(sidecar.source_paths(), 0)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 12 << 20


def test_paths_of_any_kind_survive_packing() -> None:
    paths = ["a/b.jpg", "", "new\nline", "back\\slash", "\\n", "\udcff not utf-8", "ü", "x" * 5000]
    packer = PathPacker()
    for path in paths:
        packer.add(path)
    assert list(Sidecar(8, None, {}, 0, "", packer.finish()).source_paths()) == paths
    assert list(Sidecar(0, None, {}, 0, "", PathPacker().finish()).source_paths()) == []
