"""Writing betons: the state of the files after an error."""

import csv
import errno
import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fastpsl.files.atomic import PartialFile, output_errors, partial_path
from fastpsl.pipelines.beton.encode import Target
from fastpsl.pipelines.beton.file import BetonFile
from fastpsl.pipelines.beton.output import bad_path, small_path
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.sidecar import read_sidecar
from fastpsl.pipelines.beton.verify import verify
from fastpsl.pipelines.beton.write import max_bad_count, write_beton
from fastpsl.pipelines.data.source import Sample
from fastpsl.pipelines.image import image_file
from fastpsl.pipelines.sources.folder import image_folder
from tests.pipelines.folders import photo_tree, tree, write_folder
from tests.pipelines.photos import jpeg, photo

CLI = [sys.executable, "-c", "from fastpsl.cli import main; main()"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return photo_tree(tmp_path / "photos")


def test_bad_images_are_listed_and_left_out(photos: Path, tmp_path: Path) -> None:
    good = (photos / "ant/0/00.jpg").read_bytes()
    tree(photos, {"ant/0/zcut.jpg": good[:500], "cat/empty, indeed.png": b"", "dog/text.jpg": b"hello"})
    (photos / "dog" / "gone.jpg").symlink_to("/nowhere")
    out = tmp_path / "a.beton"
    report = write_folder(photos, out, max_bad="4")
    assert (report.num_samples, report.num_bad) == (18, 4)
    with open(bad_path(out), newline="") as file:
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
    assert sidecar and sidecar.written["num_bad"] == 4
    for name in ("ant/0/zcut.jpg", "cat/empty, indeed.png", "dog/gone.jpg", "dog/text.jpg"):
        (photos / name).unlink()
    write_folder(photos, out, overwrite=True)
    assert not bad_path(out).exists()  # an older list would mislead


def test_a_row_of_a_list_is_one_row_and_no_formula(tmp_path: Path) -> None:
    """Names with all kinds of line ends, quotes and commas, and names that a spreadsheet would evaluate."""
    names = [
        "a\rb.jpg",
        "a\nb.jpg",
        'a"b,c.jpg',
        "\r.jpg",
        "=HYPERLINK(1).jpg",
        "+1.jpg",
        "-1.jpg",
        "@x.jpg",
        "1=2.jpg",
    ]
    out = tmp_path / "a.beton"
    samples = [Sample(name, b"none", 0) for name in names] + [Sample("good", photo(0, 30, 30), 0)]
    write_beton(samples, out, num_samples=len(samples), max_bad="100%")
    with open(bad_path(out), newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    beside = ["./" + name if name[0] in "=+-@\r" else name for name in names]
    assert [row[0] for row in rows] == ["path", *beside]
    assert all(len(row) == 2 for row in rows) and not any(row[0][0] in "=+-@\r" for row in rows)
    assert bad_path(out).read_bytes().startswith(b'"path","reason"\n"a\rb.jpg",')


def test_ctrl_c_ends_a_write_whose_read_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An event stands for storage that does not respond."""
    (tmp_path / "hangs.jpg").touch()
    responds, open_file = threading.Event(), image_file.open_file

    def open_when_it_responds(path: Path) -> int:
        responds.wait(240)
        return open_file(path)

    monkeypatch.setattr(image_file, "open_file", open_when_it_responds)
    before = set(threading.enumerate())
    samples = [Sample("good", photo(0, 30, 30), 0), Sample("hangs.jpg", tmp_path / "hangs.jpg", 0)]

    def interrupted() -> Iterator[Sample]:
        yield from samples
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            write_beton(interrupted(), tmp_path / "a.beton", num_samples=2, num_workers=2)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert [path.name for path in tmp_path.iterdir()] == ["hangs.jpg"]
    threads = [
        thread for thread in set(threading.enumerate()) - before if thread.name.startswith("beton-write")
    ]
    assert len(threads) == 1 and threads[0].daemon  # so that the interpreter does not wait for it
    responds.set()
    threads[0].join(30)
    assert not threads[0].is_alive()


def test_too_many_bad_images_stop(photos: Path, tmp_path: Path) -> None:
    tree(photos, {"ant/x.jpg": b"1", "ant/y.jpg": b"2"})
    out = tmp_path / "a.beton"
    with pytest.raises(ValueError, match="--max-bad 5% allows 1 of 20"):
        write_folder(photos, out, max_bad="5%")
    assert bad_path(out).read_text().count("\n") == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.beton.bad.csv", "photos"]
    with pytest.raises(ValueError, match="no image could be used"):
        write_beton([Sample("x", b"1", 0)], out, num_samples=1, max_bad="100%")
    assert not out.exists()


def test_small_images_are_listed_apart_from_broken_ones(tmp_path: Path) -> None:
    """By the shorter side of the stored image, shrunk and upright. `max_bad` does not count them."""
    sizes = {"ant/a.jpg": (53, 90), "ant/b.jpg": (52, 90), "ant/c.png": (90, 52), "cat/d.jpg": (212, 400)}
    photos, out = tmp_path / "photos", tmp_path / "a.beton"
    tree(photos, {name: jpeg(photo(i, *size)) for i, (name, size) in enumerate(sizes.items())})
    tree(photos, {"cat/e.jpg": b"broken"})
    report = write_folder(photos, out, max_bad="1", target=Target(min_px=53))
    assert (report.num_samples, report.num_small, report.num_bad) == (2, 2, 1)
    assert report.first_small == "ant/b.jpg: 90 x 52 px"
    expected = '"path","reason"\n"ant/b.jpg","90 x 52 px"\n"ant/c.png","52 x 90 px"\n'
    assert small_path(out).read_text() == expected
    assert bad_path(out).read_text().count("\n") == 2
    sidecar = read_sidecar(out)
    assert sidecar and (sidecar.written["min_px"], sidecar.written["num_small"]) == (53, 2)
    with Beton(out) as beton:
        assert beton.image_sizes()[:2] == (53, 90)
        assert beton.name(1) == f"{out} sample 1 (cat/d.jpg)"
    assert list(verify(out)) == []

    shrunk = Target(short_side=50, min_px=51)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(ValueError, match="no image could be used; 4 are below --min-px 51$"):
        write_folder(photos, out, max_bad="1", target=shrunk, overwrite=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    report = write_folder(photos, out, max_bad="1", target=Target(short_side=50, min_px=50), overwrite=True)
    assert (report.num_samples, report.num_small, report.first_small) == (4, 0, "")
    assert not small_path(out).exists()  # an older list would mislead


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
    assert out.read_bytes() == b"precious"  # a failed run leaves it as it was


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
# The data start at 8 MiB, so the disk is full after 600 kB.
resource.setrlimit(resource.RLIMIT_FSIZE, (9_000_000, 9_000_000))
from fastpsl.cli import main
main(["data", "write", sys.argv[1], sys.argv[2]])
"""


@pytest.mark.parametrize(
    "number, remedy",
    [
        (errno.ENOSPC, "free some space"),
        (errno.EFBIG, "(ulimit -f)"),
        (errno.EMFILE, "(ulimit -n)"),
        (errno.EROFS, "a folder that can be written"),
    ],
)
def test_what_cannot_be_written_says_what_helps(number: int, remedy: str) -> None:
    with (
        pytest.raises(ValueError, match=r"^x\.beton: cannot be written \(") as caught,
        output_errors(Path("x.beton")),
    ):
        raise OSError(number, os.strerror(number))
    assert remedy in str(caught.value)
    with pytest.raises(ValueError, match=r"^run/status\.json: cannot"), output_errors(Path("run")):
        raise OSError(number, os.strerror(number), "run/status.json")


def test_a_full_disk(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (400, 600, 3), dtype=np.uint8)
    photos = tree(tmp_path / "photos", {f"{i:02}.jpg": jpeg(noise) for i in range(12)})
    out = tmp_path / "out" / "a.beton"
    out.parent.mkdir()
    process = subprocess.run(
        [sys.executable, "-c", FULL, photos, out], capture_output=True, text=True, timeout=240, check=False
    )
    errors = [
        line for line in process.stderr.splitlines() if not line.startswith("fastpsl: warning: ffcv is")
    ]
    assert process.returncode == 2 and len(errors) == 1, process.stderr
    assert f"{out}: cannot be written (File too large); raise the limit of a file's size" in process.stderr
    assert list(out.parent.iterdir()) == []


# The kernel ends the process in the write that exceeds the limit, so Python cleans up nothing.
KILLED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
from fastpsl.cli import main
main(["data", "write", sys.argv[1], sys.argv[2]])
"""


@pytest.mark.slow
def test_killed_at_any_byte_nothing_stands_under_the_final_name(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    photos = tree(tmp_path / "photos", {f"{i:04}.jpg": jpeg(noise) for i in range(60)})
    whole, out = tmp_path / "whole.beton", tmp_path / "a.beton"
    write_beton(image_folder(photos).samples(), whole, num_samples=60)
    num_bytes = whole.stat().st_size
    for limit in (100, (8 << 20) + 1_000_000, num_bytes - 1):  # the images begin at 8 MiB
        command = [sys.executable, "-c", KILLED, str(photos), str(out), str(limit)]
        process = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
        assert process.returncode == -signal.SIGXFSZ, process.stderr
        assert partial_path(out).exists() and not out.exists()
    process = subprocess.run(
        [*CLI, "data", "write", photos, out, "--resume"],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert process.returncode == 0 and list(verify(out)) == []
    assert "60 samples, 60 of them before the interruption" in process.stdout
    assert out.read_bytes() == whole.read_bytes()
    names = sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith("whole"))
    assert names == ["a.beton", "a.beton.json", "photos"]


def test_two_writers_of_one_file(tmp_path: Path) -> None:
    out = tmp_path / "a.beton"
    first = BetonFile(out, 1, 1 << 21)
    with pytest.raises(ValueError, match="another process is writing it"):
        PartialFile(out)
    first.file.discard()
    stale = partial_path(out)
    stale.write_bytes(b"left by a killed run")
    second = PartialFile(out)
    assert stale.stat().st_size == 0  # reused and emptied
    second.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_changes_or_fails_leaves_nothing(photos: Path, tmp_path: Path) -> None:
    source = image_folder(photos)
    (photos / "dog/0/00.jpg").unlink()
    with pytest.raises(ValueError, match="18 images were counted at the start, 17 at the end"):
        write_beton(source.samples(), tmp_path / "a.beton", num_samples=18)

    def failing() -> Iterator[Sample]:
        yield Sample("a", jpeg(photo(0, 30, 30)), 0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_beton(failing(), tmp_path / "a.beton", num_samples=18)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("beton-write")]


def test_image_files_are_not_left_open(photos: Path, tmp_path: Path) -> None:
    gc.collect()  # garbage of other tests
    before = len(os.listdir("/proc/self/fd"))
    write_folder(photos, tmp_path / "a.beton")
    tree(photos, {"ant/x.jpg": b"1"})
    with pytest.raises(ValueError):
        write_folder(photos, tmp_path / "b.beton", max_bad="0")
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before
