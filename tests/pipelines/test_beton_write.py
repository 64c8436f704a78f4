"""Writing betons: what stands in them, in which order, and what is left when something goes wrong."""

import csv
import gc
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastpsl.pipelines import beton_file
from fastpsl.pipelines.beton import Beton
from fastpsl.pipelines.beton_convert import Target
from fastpsl.pipelines.beton_file import BetonFile, PartialFile
from fastpsl.pipelines.beton_sidecar import PathPacker, Sidecar, read_sidecar
from fastpsl.pipelines.beton_verify import info, verify
from fastpsl.pipelines.beton_write import WriteReport, max_bad_count, quarantine_path, write_beton
from fastpsl.pipelines.libffcv import Codec
from fastpsl.pipelines.sources import Sample, image_folder
from tests.pipelines.photos import jpeg, needs_ffcv, photo
from tests.pipelines.test_beton import refused, stock

CLI = [sys.executable, "-c", "from fastpsl.cli import main; main()"]


def tree(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    names = [f"{kind}/{i % 3}/{i:02}.jpg" for kind in ("cat", "ant", "dog") for i in range(6)]
    return tree(tmp_path / "photos", {name: jpeg(photo(i, 60 + i, 90 - i)) for i, name in enumerate(names)})


def write_folder(folder: Path, out: Path, shard: tuple[int, int] = (0, 1), **options: Any) -> WriteReport:
    source = image_folder(folder, shard)
    return write_beton(
        source.samples(), out, num_samples=source.num_samples, class_names=source.class_names, **options
    )


def test_a_tree_in_imagefolders_order(photos: Path, tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    out = tmp_path / "a.beton"
    write_folder(photos, out)
    expected = ImageFolder(str(photos))
    with Beton(out) as beton:
        assert beton.class_names == expected.classes == ["ant", "cat", "dog"] and beton.num_classes == 3
        assert list(beton.labels()) == expected.targets
        for i, (path, _) in enumerate(expected.samples):
            assert beton.read(i) == Path(path).read_bytes()
            assert beton.name(i) == f"{out} sample {i} ({os.path.relpath(path, photos)})"
    assert list(verify(out)) == [] and not quarantine_path(out).exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.beton", "a.beton.json", "photos"]
    sidecar = json.loads((tmp_path / "a.beton.json").read_text())
    assert sidecar["written"]["num_passed"] == 18 and sidecar["num_samples"] == 18
    data, start = out.read_bytes(), sidecar["data_start"]
    assert sidecar["sha256"] == hashlib.sha256(data[start:] + data[:start]).hexdigest()


@needs_ffcv("its own Reader and Loader read")
def test_ffcv_reads_ours(tmp_path: Path) -> None:
    pictures = [photo(i, 40, 50) for i in range(10)]
    samples = [Sample(str(i), picture, 7 - i) for i, picture in enumerate(pictures[:8])]
    outs = {mode: tmp_path / f"{mode}.beton" for mode in ("raw", "jpg")}
    for mode, out in outs.items():
        write_beton(samples, out, num_samples=10, target=Target(mode=mode))  # fewer than announced
    stock("read", *outs.values())
    for mode, out in outs.items():
        with np.load(f"{out}.npz") as found, Beton(out) as beton:
            assert list(found["names"]) == ["image", "label"] and found["num_samples"] == 8
            for i in range(8):
                expected = pictures[i] if mode == "raw" else Codec().decode(beton.read(i), 40, 50)[0]
                for os_cache in (True, False):
                    assert list(found[f"labels_{os_cache}"]) == list(range(7, -1, -1))
                    assert (found[f"images_{os_cache}"][i] == expected).all()


def test_pages_and_large_samples(tmp_path: Path) -> None:
    """No sample crosses a page; one larger than a page makes all pages larger."""
    random = np.random.default_rng(0)
    sides = [
        (600, 700),
        (500, 300),
        (900, 1000),
        (10, 10),
        (1500, 1400),
        (900, 900),
        (20, 30),
    ]  # up to 6.3 MB, page 2 MiB
    pictures = [random.integers(0, 256, (*side, 3), dtype=np.uint8) for side in sides]
    out = tmp_path / "a.beton"
    samples = [Sample(str(i), picture, i) for i, picture in enumerate(pictures)]
    write_beton(samples, out, num_samples=7, target=Target(mode="raw"), page_bytes=1 << 21)
    with Beton(out) as beton:
        page = beton.shards[0].page_size
        rows = beton.rows(np.arange(7))
        assert page == 1 << 23
        assert (rows.offset // page == (rows.offset + rows.num_bytes - 1) // page).all() and (
            np.diff(rows.offset) > 0
        ).all()
        assert [beton.read(i) for i in range(7)] == [picture.tobytes() for picture in pictures]
    assert list(verify(out)) == []


def test_the_file_does_not_depend_on_workers(photos: Path, tmp_path: Path) -> None:
    for num_workers in (1, 2, 7):
        write_folder(
            photos, tmp_path / f"{num_workers}.beton", target=Target(short_side=40), num_workers=num_workers
        )
    assert len({(tmp_path / f"{n}.beton").read_bytes() for n in (1, 2, 7)}) == 1


def test_many_samples_flush_their_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beton_file, "_ROWS_BUFFERED", 16)
    monkeypatch.setattr(beton_file, "_BUFFER_BYTES", 5000)
    for num in (15, 16, 17, 100):
        images = np.random.default_rng(num).integers(0, 256, (num, 5, 9, 3), dtype=np.uint8)
        samples = (Sample(f"é\n\\{i}", images[i], i % 4) for i in range(num))
        out = tmp_path / f"{num}.beton"
        write_beton(samples, out, num_samples=num, target=Target(mode="raw"))
        with Beton(out) as beton:
            assert [beton.read(i) for i in range(num)] == [image.tobytes() for image in images]
            assert list(beton.labels()) == [i % 4 for i in range(num)]
        assert list(verify(out)) == []
        sidecar = read_sidecar(out)
        assert sidecar and list(sidecar.source_paths()) == [f"é\n\\{i}" for i in range(num)]


def test_shards_together_are_the_whole(photos: Path, tmp_path: Path) -> None:
    write_folder(photos, tmp_path / "whole.beton")
    for i in range(4):
        write_folder(photos, tmp_path / f"part-{i}.beton", (i, 4))
    with Beton(tmp_path / "whole.beton") as whole, Beton(tmp_path / "part-*.beton") as parts:
        assert parts.class_names == whole.class_names and parts.num_samples == 18
        assert [parts.read(i) for i in range(18)] == [whole.read(i) for i in range(18)]
        assert list(parts.labels()) == list(whole.labels())


def test_flat_folders_and_folders_of_nothing(tmp_path: Path) -> None:
    flat = tree(
        tmp_path / "flat",
        {"b.jpg": jpeg(photo(0, 30, 30)), "a.JPEG": jpeg(photo(1, 30, 30)), "notes.txt": b"x"},
    )
    source = image_folder(flat)
    assert (source.num_samples, source.class_names, source.num_ignored) == (2, None, 1)
    assert [(sample.name, sample.label) for sample in source.samples()] == [("a.JPEG", -1), ("b.jpg", -1)]
    write_folder(flat, tmp_path / "flat.beton")
    with Beton(tmp_path / "flat.beton") as beton:
        assert list(beton.labels()) == [-1, -1] and beton.class_names is None and beton.num_classes == 0
        assert "without a label            2" in info(beton)
    for folder, word in (
        (tmp_path / "none", "no such folder"),
        (tree(tmp_path / "text", {"a/notes.txt": b"x"}), "holds no images"),
        (tree(tmp_path / "mixed", {"a.jpg": b"x", "cat/b.jpg": b"x"}), "a.jpg lies beside the class folders cat"),
    ):
        with pytest.raises(ValueError, match=word):
            image_folder(folder)
    tree(tmp_path / "gap", {"cat/a.jpg": b"x", "dog/a.jpg": b"x", ".git/a.jpg": b"x"})
    (tmp_path / "gap" / "cow").mkdir()
    (tmp_path / "gap" / "dog" / "circle").symlink_to(tmp_path / "gap" / "dog")
    source = image_folder(tmp_path / "gap")
    assert (
        source.class_names == ["cat", "cow", "dog"]
        and source.empty_classes == ["cow"]
        and source.num_samples == 2
    )


def test_broken_images_are_listed_and_left_out(photos: Path, tmp_path: Path) -> None:
    good = (photos / "ant/0/00.jpg").read_bytes()
    tree(photos, {"ant/0/zcut.jpg": good[:500], "cat/empty, indeed.png": b"", "dog/text.jpg": b"hello"})
    (photos / "dog" / "gone.jpg").symlink_to("/nowhere")
    out = tmp_path / "a.beton"
    report = write_folder(photos, out, max_bad="4")
    assert (report.num_samples, report.num_quarantined) == (18, 4)
    with open(quarantine_path(out), newline="") as file:
        rows = list(csv.reader(file))
    assert [row[0] for row in rows] == [
        "path",
        "ant/0/zcut.jpg",
        "cat/empty, indeed.png",
        "dog/gone.jpg",
        "dog/text.jpg",
    ]
    assert all(len(row) == 2 and row[1] for row in rows) and "No such file" in rows[3][1]
    with Beton(out) as beton:
        assert beton.name(5) == f"{out} sample 5 (ant/2/05.jpg)"
        assert beton.name(6) == f"{out} sample 6 (cat/0/00.jpg)"
    assert list(verify(out)) == []
    sidecar = read_sidecar(out)
    assert sidecar and sidecar.written["num_quarantined"] == 4
    for name in ("ant/0/zcut.jpg", "cat/empty, indeed.png", "dog/gone.jpg", "dog/text.jpg"):
        (photos / name).unlink()
    write_folder(photos, out, overwrite=True)
    assert not quarantine_path(out).exists()  # an older list would mislead


def test_too_many_broken_images_stop(photos: Path, tmp_path: Path) -> None:
    tree(photos, {"ant/x.jpg": b"1", "ant/y.jpg": b"2"})
    out = tmp_path / "a.beton"
    with pytest.raises(ValueError, match="--max-bad 5% allows 1 of 20"):
        write_folder(photos, out, max_bad="5%")
    assert quarantine_path(out).read_text().count("\n") == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.beton.quarantine.csv", "photos"]
    with pytest.raises(ValueError, match="no image could be used"):
        write_beton([Sample("x", b"1", 0)], out, num_samples=1, max_bad="100%")
    assert not out.exists()


@pytest.mark.parametrize(
    ("text", "count"), [("0", 0), ("20", 20), ("1%", 12), ("0.5%", 6), ("100%", 1281), ("0%", 0)]
)
def test_max_bad(text: str, count: int) -> None:
    assert max_bad_count(text, 1281) == count


@pytest.mark.parametrize("text", ["", "-1", "x", "1.5", "101%", "-1%", "%", "nan%"])
def test_max_bad_of_nonsense(text: str) -> None:
    with pytest.raises(ValueError, match="--max-bad"):
        max_bad_count(text, 100)


def test_an_existing_file_is_kept_unless_told(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.beton"
    out.write_bytes(b"precious")
    with pytest.raises(ValueError, match="exists already"):
        write_folder(photos, out)
    assert out.read_bytes() == b"precious"
    with pytest.raises(ValueError, match="is a folder"):
        write_folder(photos, tmp_path, overwrite=True)
    tree(photos, {"ant/x.jpg": b"1"})
    with pytest.raises(ValueError, match="--max-bad"):
        write_folder(photos, out, overwrite=True, max_bad="0")
    assert out.read_bytes() == b"precious"  # a failed run changes nothing


def test_folders_that_cannot_be_written(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (Path("/proc/a.beton"), tmp_path / "file" / "a.beton", tmp_path / "none" / "a.beton"):
        with pytest.raises(ValueError) as caught:
            write_folder(photos, out)
        assert (
            str(out) in str(caught.value)
            and "cannot be written" in str(caught.value)
            and "\n" not in str(caught.value)
        )


FULL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (9_000_000, 9_000_000))  # data start at 8 MiB: the disk is full after 600 kB
from fastpsl.cli import main
main(["beton", "write", sys.argv[1], sys.argv[2]])
"""


def test_a_full_disk(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (400, 600, 3), dtype=np.uint8)
    photos = tree(tmp_path / "photos", {f"{i:02}.jpg": jpeg(noise) for i in range(12)})
    out = tmp_path / "out" / "a.beton"
    out.parent.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", FULL, photos, out], capture_output=True, text=True, timeout=100, check=False
    )
    errors = [line for line in done.stderr.splitlines() if not line.startswith("fastpsl: warning: ffcv is")]
    assert done.returncode == 2 and len(errors) == 1, done.stderr
    assert f"{out}: cannot be written (File too large); free some space" in done.stderr
    assert list(out.parent.iterdir()) == []


def test_killed_at_any_time_nothing_stands_under_the_final_name(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    photos = tree(tmp_path / "photos", {f"{i:04}.jpg": jpeg(noise) for i in range(600)})
    out = tmp_path / "a.beton"
    partial = beton_file.partial_path(out)
    random, num_killed = np.random.default_rng(0), 0
    for _ in range(4):
        process = subprocess.Popen(
            [*CLI, "beton", "write", photos, out], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        while not (partial.exists() and partial.stat().st_size > 1 << 23) and process.poll() is None:
            time.sleep(0.002)
        time.sleep(random.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if process.returncode == -signal.SIGKILL and not out.exists():
            num_killed += 1
            assert partial.exists() and not out.exists()
        else:
            out.unlink()
    assert num_killed >= 2
    done = subprocess.run(
        [*CLI, "beton", "write", photos, out], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0 and list(verify(out)) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.beton", "a.beton.json", "photos"]


def test_two_writers_of_one_file(tmp_path: Path) -> None:
    out = tmp_path / "a.beton"
    first = BetonFile(out, 1, 1 << 21)
    with pytest.raises(ValueError, match="another process is writing it"):
        PartialFile(out)
    first.file.discard()
    stale = beton_file.partial_path(out)
    stale.write_bytes(b"left by a killed run")
    second = PartialFile(out)
    assert stale.stat().st_size == 0  # taken over, emptied
    second.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_changes_or_fails_leaves_nothing(photos: Path, tmp_path: Path) -> None:
    source = image_folder(photos)
    (photos / "dog/0/00.jpg").unlink()
    with pytest.raises(ValueError, match="18 images at the start, 17 at the end"):
        write_beton(source.samples(), tmp_path / "a.beton", num_samples=18)

    def failing() -> Iterator[Sample]:
        yield Sample("a", jpeg(photo(0, 30, 30)), 0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_beton(failing(), tmp_path / "a.beton", num_samples=18)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("beton-write")]


def damage_stream(data: bytearray, at: int, num_bytes: int) -> None:
    """A restart marker where none belongs, of which libjpeg warns."""
    data[at + num_bytes // 2 : at + num_bytes // 2 + 2] = b"\xff\xd5"


def damage_table(data: bytearray, at: int, num_bytes: int) -> None:
    """A Huffman table of nonsense, which is an error."""
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
    assert len(list(verify(out))) == 2  # readers and verify do without the JSON


def test_sidecars_that_do_not_fit(photos: Path, tmp_path: Path) -> None:
    out, beside = tmp_path / "a.beton", tmp_path / "a.beton.json"
    write_folder(photos, out)
    text = beside.read_text()
    record = json.loads(text)
    for bad in ("", "{", "[1]", "null", '{"format": 1}', text.replace('"format": 1', '"format": 9')):
        beside.write_text(bad)
        refused(out, "remove")
    beside.write_text(json.dumps(record | {"num_samples": 5}))
    refused(out, "18 samples", "of 5")
    beside.write_text(json.dumps(record | {"class_names": ["ant", "cat"]}))
    refused(out, "sample 12", "label above 1")
    beside.unlink()
    with Beton(out) as beton:
        assert beton.class_names is None and beton.num_classes == 3 and beton.name(1) == f"{out} sample 1"


def test_paths_of_any_kind_survive_packing() -> None:
    paths = ["a/b.jpg", "", "new\nline", "back\\slash", "\\n", "\udcff not utf-8", "ü", "x" * 5000]
    packer = PathPacker()
    for path in paths:
        packer.add(path)
    assert list(Sidecar(8, None, {}, 0, "", packer.finish()).source_paths()) == paths
    assert list(Sidecar(0, None, {}, 0, "", PathPacker().finish()).source_paths()) == []


def test_memory_does_not_grow_with_samples(tmp_path: Path) -> None:
    script = """
import resource, sys
import numpy as np
from fastpsl.pipelines.beton_convert import Target
from fastpsl.pipelines.beton_write import write_beton
from fastpsl.pipelines.libffcv import Codec
from fastpsl.pipelines.sources import Sample
image = np.zeros((64, 64, 3), np.uint8)
peaks = []
for num in (500, 12000):
    write_beton((Sample(f"class/{i}", image, 0) for i in range(num)), sys.argv[1], num_samples=num, target=Target(mode="raw"), overwrite=True)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print((peaks[1] - peaks[0]) / 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "a"],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert float(done.stdout) < 40  # MiB; the images are 147 MB


def test_image_files_are_not_left_open(photos: Path, tmp_path: Path) -> None:
    gc.collect()  # what other tests left
    before = len(os.listdir("/proc/self/fd"))
    write_folder(photos, tmp_path / "a.beton")
    tree(photos, {"ant/x.jpg": b"1"})
    with pytest.raises(ValueError):
        write_folder(photos, tmp_path / "b.beton", max_bad="0")
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before
