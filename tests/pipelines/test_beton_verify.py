"""Verification of betons, of their sidecars and of sets of shards."""

import base64
import fcntl
import json
import shutil
import tracemalloc
import warnings
import zlib
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastpsl.cli import main
from fastpsl.files.atomic import partial_path
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.sidecar import PathPacker, Sidecar, read_sidecar
from fastpsl.pipelines.beton.verify import betons_to_verify, verify
from tests.cli import Cli
from tests.pipelines.photos import jpeg, needs_ffcv, photo
from tests.pipelines.readers import refused as refusal
from tests.pipelines.test_beton import refused
from tests.pipelines.written import photo_tree, tree, write_folder


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, Path]:
    """Write 18 photos in three classes, and return the beton and its JSON."""
    write_folder(photo_tree(tmp_path / "photos"), tmp_path / "a.beton")
    return tmp_path / "a.beton", tmp_path / "a.beton.json"


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
    damage: Callable[[bytearray, int, int], None], written: tuple[Path, Path]
) -> None:
    out, beside = written
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
    beside.unlink()
    assert len(list(verify(out))) == 2  # readers and verify need no JSON


def test_sidecars_that_do_not_fit(written: tuple[Path, Path]) -> None:
    out, beside = written
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


def packed(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data)).decode()


NAMES = b"\n".join(b"%d.jpg" % i for i in range(18))


@pytest.mark.parametrize(
    "paths",
    [
        pytest.param(packed(NAMES)[:-8], id="cut"),
        pytest.param(packed(NAMES + b"\nmore.jpg"), id="one more"),
        pytest.param(packed(b"x" * (40 << 20)), id="a long one"),  # of 40 MB
        pytest.param(packed(b"\n" * (40 << 20)), id="many"),
        pytest.param(base64.b64encode(zlib.compress(NAMES) + b"more").decode(), id="something behind"),
    ],
)
def test_damaged_source_paths_are_told_by_verify_and_cost_readers_the_names_alone(
    paths: str, written: tuple[Path, Path]
) -> None:
    out, beside = written
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


GLOB = "train-*.beton"


def write(src: Path, out: Path, *options: object) -> Path:
    main(["data", "write", str(src), str(out), "--workers", "1", *map(str, options)])
    return out


@pytest.fixture
def shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> list[Path]:
    photo_tree(tmp_path / "photos")
    paths = [write(tmp_path / "photos", tmp_path / f"train-{i}.beton", "--shard", f"{i}/4") for i in range(4)]
    capsys.readouterr()
    return paths


def faults(*names: object) -> list[str]:
    return betons_to_verify([str(name) for name in names])[1]


def num_samples(paths: Any) -> int:
    with Beton(paths) as data:
        return len(data)


def missing(tmp_path: Path, i: int) -> str:
    return f"{tmp_path}: shard {i}/4 of {tmp_path}/photos is missing; write it with --shard {i}/4"


def test_complete_shards_have_no_fault(shards: list[Path], tmp_path: Path, cli: Cli) -> None:
    paths, lines = betons_to_verify([str(tmp_path / GLOB)])
    assert (paths, lines) == (shards, [])
    assert faults(*shards) == [] and faults(shards[2]) == []  # a single shard does not need the others
    assert num_samples(tmp_path / GLOB) == 18
    assert "18 samples" in cli("data", "info", tmp_path / GLOB).out
    assert num_samples(shards[1:3]) == 9  # a part of one write is allowed


def test_a_glob_that_misses_shards_is_read_with_a_warning(shards: list[Path], tmp_path: Path) -> None:
    shards[1].unlink()
    with pytest.warns(UserWarning, match=r"shard 1/4 of .* is missing; write it with --shard 1/4$"):
        Beton(tmp_path / GLOB).close()
    shards[3].unlink()
    with pytest.warns(UserWarning, match=r"shard 1/4 of .* \(and 1 more\)$") as warned:
        Beton(tmp_path / GLOB).close()
    assert len(warned) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Beton(shards[0]).close()
        Beton([shards[0], shards[2]]).close()


def test_verify_tells_interrupted_from_complete(shards: list[Path], tmp_path: Path, cli: Cli) -> None:
    shards[3].rename(partial_path(shards[3]))
    code, out, err = cli("data", "verify", tmp_path / GLOB)
    lines = out.splitlines()
    assert code == 2 and "2 faults" in err
    assert lines[0] == (
        f"{shards[3]}: is only there as .train-3.beton.partial, its writing was interrupted; "
        f"go on with the same command and --resume"
    )
    assert lines[1].startswith(missing(tmp_path, 3))
    assert [line.endswith("all sound") for line in lines] == [False, False, True, True, True]
    assert faults(shards[3]) == lines[:1]
    with open(partial_path(shards[3])) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        told = f"{shards[3]}: is only there as .train-3.beton.partial, is being written"
        assert faults(shards[3]) == [told]
    for path in shards[:3]:
        path.unlink()
    assert faults(tmp_path / GLOB) == lines[:1]  # and nothing else
    partial_path(shards[3]).unlink()
    with pytest.raises(ValueError, match="no file matches"):
        faults(tmp_path / GLOB)


def test_a_left_over_beside_a_whole_beton_is_no_fault(shards: list[Path], tmp_path: Path) -> None:
    partial_path(shards[3]).write_bytes(b"of an --overwrite that was interrupted")
    assert faults(tmp_path / GLOB) == []


def test_missing_shards_are_named(shards: list[Path], tmp_path: Path) -> None:
    shards[0].unlink()
    shards[2].unlink()
    expected = [missing(tmp_path, i) for i in (0, 2)]
    assert faults(tmp_path / GLOB) == expected == faults(shards[1], shards[3])


def other_photos(tmp_path: Path) -> Path:
    return shutil.copytree(tmp_path / "photos", tmp_path / "other")


def more_photos(tmp_path: Path) -> Path:
    return tree(tmp_path / "photos", {"ant/new.jpg": jpeg(photo(50, 40, 40))})


def more_classes(tmp_path: Path) -> Path:
    (tmp_path / "photos" / "zebu").mkdir()
    return tmp_path / "photos"


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (None, "--shard 1/5", "was written of 5 shards, {} of 4 shards"),
        (None, "", "was written of 1 shards, {} of 4 shards"),
        (None, "--shard 1/4 --max-side 40", "was written with --max-side 40, {} with --max-side None"),
        (None, "--shard 1/4 --mode raw", "was written with --mode raw, {} with --mode jpg"),
        (None, "--shard 1/4 --quality 50", "was written with --quality 50, {} with --quality 90"),
        (None, "--shard 1/4 --reencode all", "was written with --reencode all, {} with --reencode larger"),
        (other_photos, "--shard 1/4", "was written from other, {} from photos"),
        (more_photos, "--shard 1/4", "from a source of 19 images, {} from a source of 18 images"),
        (more_classes, "--shard 1/4", "its class names differ from those of {}"),
        (None, "--shard 2/4", "holds the same images as"),
    ],
)
def test_other_writes_are_named_and_refused(
    change: Callable[[Path], Path] | None, options: str, words: str, shards: list[Path], tmp_path: Path
) -> None:
    src = change(tmp_path) if change else tmp_path / "photos"
    write(src, shards[1], "--overwrite", *options.split())
    lines = [fault for fault in faults(tmp_path / GLOB) if "is missing" not in fault]
    words = words.replace("{}", str(shards[0])).replace("{tmp}", str(tmp_path))
    culprit = shards[2] if "2/4" in options else shards[1]
    assert len(lines) == 1 and lines[0].startswith(f"{culprit}: ") and words in lines[0], lines
    with refusal("" if "class names differ" in words else words):
        Beton(tmp_path / GLOB)


def test_machines_may_have_the_source_in_other_places(shards: list[Path], tmp_path: Path) -> None:
    elsewhere = shutil.copytree(tmp_path / "photos", tmp_path / "scratch" / "photos")
    write(elsewhere, shards[1], "--overwrite", "--shard", "1/4")
    assert faults(tmp_path / GLOB) == [] and num_samples(tmp_path / GLOB) == 18


def test_whole_betons_of_different_sources_may_be_read_together(shards: list[Path], tmp_path: Path) -> None:
    other = other_photos(tmp_path)
    write(tmp_path / "photos", tmp_path / "all-0.beton")
    write(other, tmp_path / "all-1.beton", "--max-side", 40)
    assert num_samples(tmp_path / "all-*.beton") == 36 and faults(tmp_path / "all-*.beton") == []
    write(other, tmp_path / "all-2.beton")
    same = r"all-2.beton: holds the same images as .*all-1.beton \(shard 0/1 of"
    with pytest.raises(ValueError, match=same):
        Beton(tmp_path / "all-*.beton")


def test_betons_whose_jsons_do_not_tell_belong_anywhere(shards: list[Path], tmp_path: Path) -> None:
    (tmp_path / "train-0.beton.json").unlink()
    for path, shard in ((shards[1], None), (shards[2], "many"), (shards[3], "7/4")):
        beside = path.with_name(path.name + ".json")
        record = json.loads(beside.read_text())
        record["written"]["shard"] = shard
        record["written"]["source"] = ["hand-made"]
        beside.write_text(json.dumps(record))
    assert faults(tmp_path / GLOB) == [] and num_samples(tmp_path / GLOB) == 18
