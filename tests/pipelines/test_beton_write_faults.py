"""Writing betons: the state of the files after an error or an interruption, and going on."""

import csv
import errno
import gc
import os
import re
import resource
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from fastpsl.cli import main
from fastpsl.commands.data import Write
from fastpsl.files.atomic import PartialFile, partial_path
from fastpsl.files.system_errors import output_errors
from fastpsl.pipelines.beton import output
from fastpsl.pipelines.beton.encode import Target
from fastpsl.pipelines.beton.file import BetonFile
from fastpsl.pipelines.beton.output import bad_path, journal_path, small_path
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.sidecar import read_sidecar
from fastpsl.pipelines.beton.verify import betons_to_verify, info, verify
from fastpsl.pipelines.beton.write import can_go_on, max_bad_count, write_beton
from fastpsl.pipelines.image import image_file
from fastpsl.pipelines.interface.source import Sample
from fastpsl.pipelines.readers.folder import image_folder
from tests.cli import Cli
from tests.pipelines.interrupted import NUM, RAW, files, interrupt_at, samples, write
from tests.pipelines.photos import jpeg, photo
from tests.pipelines.readers import refused
from tests.pipelines.written import tree, write_folder
from tests.programs import interpreted
from tests.warm import spawn


def test_bad_images_are_listed_and_left_out(photos: Path, tmp_path: Path) -> None:
    good = (photos / "ant/0/00.jpg").read_bytes()
    tree(photos, {"ant/0/zcut.jpg": good[:500], "cat/empty, indeed.png": b"", "dog/text.jpg": b"hello"})
    (photos / "dog" / "gone.jpg").symlink_to("/nowhere")
    out = tmp_path / "a.beton"
    report = write_folder(photos, out, max_bad="4")
    assert (report.num_samples, report.num_bad) == (18, 4)
    with open(bad_path(out), newline="") as file:
        rows = list(csv.reader(file))
    bad = ["ant/0/zcut.jpg", "cat/empty, indeed.png", "dog/gone.jpg", "dog/text.jpg"]
    assert [row[0] for row in rows] == ["path", *bad]
    assert all(len(row) == 2 and row[1] for row in rows) and "No such file" in rows[3][1]
    with Beton(out) as beton:
        assert beton.name(5) == f"{out} sample 5 (ant/2/05.jpg)"
        assert beton.name(6) == f"{out} sample 6 (cat/0/00.jpg)"
    assert list(verify(out)) == []
    sidecar = read_sidecar(out)
    assert sidecar and sidecar.written["num_bad"] == 4
    for name in bad:
        (photos / name).unlink()
    write_folder(photos, out, overwrite=True)
    assert not bad_path(out).exists()  # an older list would mislead


def test_a_row_of_a_list_is_one_row_and_no_formula(tmp_path: Path) -> None:
    """Names with all kinds of line ends, quotes and commas, and names that a spreadsheet would evaluate."""
    names = ["a\rb.jpg", "a\nb.jpg", 'a"b,c.jpg', "\r.jpg", "=HYPERLINK(1).jpg"]
    names += ["+1.jpg", "-1.jpg", "@x.jpg", "1=2.jpg"]
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
    new = set(threading.enumerate()) - before
    threads = [thread for thread in new if thread.name.startswith("beton-write")]
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
    with pytest.raises(ValueError, match="the source holds no image; give another SRC, or leave out --shard"):
        write_folder(photos, out, shard=(0, 99))


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
        with refused(out, "cannot be written"):
            write_folder(photos, out)


def limit_files(num_bytes: int, action: signal.Handlers) -> None:
    """Set the most bytes of a file, and what happens in the write that exceeds them."""
    signal.signal(signal.SIGXFSZ, action)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))


def code_of(
    photos: Path, out: Path, num_bytes: int, action: signal.Handlers, log: Path = Path(os.devnull)
) -> int | None:
    """Return the exit code of a writing in a process of its own, whose files have a limit."""
    words = ["fastpsl", "data", "write", str(photos), str(out)]
    limit = partial(limit_files, num_bytes, action)
    process = spawn(words, os.environ | {"OMP_NUM_THREADS": "1"}, out.parent, Path(os.devnull), log, limit)
    process.join(240)
    return process.exitcode


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.ENOSPC, "free some space"), (errno.EFBIG, "(ulimit -f)"), (errno.EMFILE, "(ulimit -n)")]
    + [(errno.EROFS, "a folder that can be written")],
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
    # The data start at 8 MiB, so the disk is full after 600 kB.
    assert code_of(photos, out, 9_000_000, signal.SIG_IGN, tmp_path / "log") == 2
    others = "fastpsl data write: warning: ffcv is"
    (error,) = [line for line in (tmp_path / "log").read_text().splitlines() if not line.startswith(others)]
    assert f"{out}: cannot be written (File too large); raise the limit of a file's size" in error
    assert list(out.parent.iterdir()) == []


@pytest.mark.slow
def test_killed_at_any_byte_nothing_stands_under_the_final_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The kernel ends the process in a write, so Python cleans up nothing."""
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    photos = tree(tmp_path / "photos", {f"{i:04}.jpg": jpeg(noise) for i in range(60)})
    whole, out = tmp_path / "whole.beton", tmp_path / "a.beton"
    write_beton(image_folder(photos).samples(), whole, num_samples=60)
    num_bytes = whole.stat().st_size
    for limit in (100, (8 << 20) + 1_000_000, num_bytes - 1):  # the images begin at 8 MiB
        assert code_of(photos, out, limit, signal.SIG_DFL) == -signal.SIGXFSZ
        assert partial_path(out).exists() and not out.exists()
    main(["data", "write", str(photos), str(out), "--resume"])
    assert list(verify(out)) == []
    assert "60 samples, 60 of them before the interruption" in capsys.readouterr().out
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


def interrupt(out: Path, num: int, **options: object) -> None:
    """Write until `num` images are done."""

    def stop(num_done: int, *_: int) -> None:
        if num_done == num:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(out, on_progress=stop, **options)


def in_folder(path: Path) -> Path:
    path.mkdir()
    return path / "a.beton"


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("shard_mb", [None, 3])
def test_two_interruptions_leave_no_trace(shard_mb: int | None, tmp_path: Path) -> None:
    whole, out = in_folder(tmp_path / "whole"), in_folder(tmp_path / "a")
    expected = write(whole, shard_mb=shard_mb)
    interrupt(out, 3, shard_mb=shard_mb)
    interrupt(out, 8, shard_mb=shard_mb, resume=True)
    names = ["a.beton"] if shard_mb is None else ["a-00000-of-00002.beton", "a-00001-of-00002.beton"]
    given, seen = list[int](), list[tuple[int, int, int]]()

    def rest(skip: int) -> Iterator[Sample]:
        given.append(skip)
        return samples(skip)

    report = write(out, rest, shard_mb=shard_mb, resume=True, on_progress=lambda *now: seen.append(now))
    # The first shard, of seven images, is whole with the ninth one.
    end = 10 * 120_000 if shard_mb is None else 3 * 120_000 + (out.parent / names[0]).stat().st_size
    assert given == [7] and seen[0] == (8, 1, 6 * 120_000) and seen[-1] == (NUM, 1, end)
    assert replace(report, seconds=0, num_before=0) == replace(expected, seconds=0) and report.num_before == 6
    assert files(out.parent) == files(whole.parent)
    assert [name for name in sorted(files(out.parent)) if name.endswith(".beton")] == names
    assert betons_to_verify([str(out.parent / "*.beton")])[1] == []
    for name in names:
        assert list(verify(out.parent / name)) == []


KILLED_TWICE = """
import os, signal, sys
from pathlib import Path
from fastpsl.pipelines.beton import output
from tests.pipelines.interrupted import files, write
output.EVERY_BYTES, output.EVERY_S = 300_000, 0
shard_mb = int(sys.argv[2]) or None
whole, out = Path(sys.argv[1], "whole/a.beton"), Path(sys.argv[1], "a/a.beton")
whole.parent.mkdir()


def child(call_to_die_at, out, **options):
    '''Write in a child that is killed before its n-th change of the disk; return whether it was.'''
    pid = os.fork()
    if pid == 0:
        left = [call_to_die_at]
        def dying(function):
            def call(*arguments, **more):
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **more)
            return call
        os.fsync = lambda fd: None  # which takes long, and matters where the power is lost only
        for name in ("pwrite", "fsync", "replace", "unlink", "ftruncate"):
            setattr(os, name, dying(getattr(os, name)))
        write(out, shard_mb=shard_mb, **options)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    assert status in (0, signal.SIGKILL), status
    return status != 0


write(whole, shard_mb=shard_mb)
expected, num, num_gone_on = files(whole.parent), 0, 0
while True:
    out.parent.mkdir(exist_ok=True)
    if not child(num, out):
        break
    assert not [name for name in files(out.parent) if name.endswith(".beton")] or num > 20
    child(num // 2, out, resume=True, overwrite=True)
    num_gone_on += any(name.endswith(".journal") for name in files(out.parent))
    assert not child(10**9, out, resume=True, overwrite=True)
    assert files(out.parent) == expected, (num, sorted(files(out.parent)), sorted(expected))
    for path in out.parent.iterdir():
        path.unlink()
    num += 5
print(num, num_gone_on)
"""


@pytest.mark.parametrize("shard_mb", [0, 3])
def test_killed_twice_before_any_change_of_the_disk(shard_mb: int, tmp_path: Path) -> None:
    done = interpreted(KILLED_TWICE, tmp_path, shard_mb)
    assert done.returncode == 0, done.stderr
    num, num_gone_on = map(int, done.stdout.split())
    assert num >= 30 and num_gone_on >= 5


@pytest.mark.usefixtures("often")
def test_an_interrupted_writing_is_told_of_and_kept(tmp_path: Path) -> None:
    out = tmp_path / "a.beton"
    interrupt(out, 8)
    kept = files(tmp_path)
    assert sorted(kept) == [".a.beton.journal", ".a.beton.partial"] and can_go_on(out)
    with pytest.raises(ValueError, match=r"there, with 8 images; --resume goes on with it, --overwrite"):
        write(out)
    assert files(tmp_path) == kept
    write(out, overwrite=True)
    assert sorted(files(tmp_path)) == ["a.beton", "a.beton.bad.csv", "a.beton.json", "a.beton.small.csv"]
    with pytest.raises(ValueError, match="exists already"):
        write(out, resume=True)


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": replace(RAW, quality=80)}, "was begun with quality 90, now it is 80"),
        ({"target": replace(RAW, max_side=100)}, "with max_side None, now it is 100"),
        ({"num_samples": 13}, "with num_samples 12, now it is 13"),
        ({"class_names": ["ant", "wasp"]}, "with class_names 2 names"),
        ({"page_bytes": 1 << 22}, "with page_bytes 2097152, now it is 4194304"),
        ({"shard_mb": 3}, "with shard_mb None, now it is 3"),
        ({"record": {"source": "/b"}}, "with source /a, now it is /b"),
        (
            {"source": lambda skip: (replace(sample, name=f"z{sample.name}") for sample in samples(skip))},
            "the source has changed: image 8 of 12 was ant/7.png, now it is zant/7.png",
        ),
        ({"source": lambda skip: iter(())}, "image 8 of 12 was ant/7.png, now it is missing"),
    ],
)
def test_another_command_or_source_is_refused(options: dict[str, object], words: str, tmp_path: Path) -> None:
    out = tmp_path / "a.beton"
    interrupt(out, 8, record={"source": "/a"})
    kept = files(tmp_path)
    with refused(words, "--overwrite instead of --resume"):
        write(out, resume=True, **{"record": {"source": "/a"}, **options})  # type: ignore[arg-type]
    assert files(tmp_path) == kept


@pytest.mark.usefixtures("often")
def test_other_files_that_came_meanwhile_are_no_other_source(tmp_path: Path) -> None:
    """Such as a .DS_Store, which macOS writes when somebody looks at the folder."""
    out = tmp_path / "a.beton"
    interrupt(out, 8, record={"left_out": {}})
    write(out, resume=True, record={"left_out": {"leftovers": 1}})
    with Beton(out) as beton:
        told = "1 bad image, 1 image that is too small, 1 leftover of another program"
        assert beton.left_out.line() == told
        assert f"  left out when written      {told}\n" in info(beton) and "'leftovers'" not in info(beton)


@pytest.mark.usefixtures("often")
def test_other_versions_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "a.beton"
    interrupt(out, 8)
    monkeypatch.setattr("fastpsl.pipelines.beton.write.version", lambda name: "0.1")
    with pytest.raises(ValueError, match=r"with versions .*, now it is .*pillow 0\.1"):
        write(out, resume=True)


@pytest.mark.usefixtures("often")
def test_a_partial_file_that_is_not_as_the_journal_says(tmp_path: Path) -> None:
    out = tmp_path / "a.beton"
    for place in (1 << 21, (1 << 21) + 5 * 120_000):
        interrupt(out, 8, overwrite=True)
        data = bytearray(partial_path(out).read_bytes())
        data[place] ^= 1
        for damaged in (bytes(data), bytes(data[:place])):
            partial_path(out).write_bytes(damaged)
            with pytest.raises(ValueError, match=r"\.a\.beton\.partial is not as \.a\.beton\.journal says"):
                write(out, resume=True)
    # Without the partial file there is nothing to go on with.
    partial_path(out).unlink()
    assert write(out, resume=True).num_before == 0


@pytest.mark.usefixtures("often")
def test_a_journal_whose_last_line_is_torn(tmp_path: Path) -> None:
    whole, out = in_folder(tmp_path / "whole"), in_folder(tmp_path / "a")
    write(whole)
    for cut, tail, num_before in ((0, b"", 6), (1, b"", 5), (30, bytes(30), 5), (9, b"12345]]}\n", 5)):
        interrupt(out, 8, overwrite=True)
        data = journal_path(out).read_bytes()
        journal_path(out).write_bytes(data[: len(data) - cut] + tail)
        assert write(out, resume=True, overwrite=True).num_before == num_before
        assert files(out.parent) == files(whole.parent)


def test_a_short_writing_leaves_nothing(tmp_path: Path) -> None:
    interrupt(tmp_path / "a.beton", 8)
    assert files(tmp_path) == {}
    assert write(tmp_path / "a.beton", resume=True).num_before == 0


@pytest.mark.usefixtures("often")
def test_a_full_disk_keeps_what_is_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, out = in_folder(tmp_path / "whole"), in_folder(tmp_path / "a")
    write(whole)
    real = output.BetonFile.flush

    def full(file: output.BetonFile) -> None:
        if file.num_samples > 4:
            raise OSError(28, "No space left on device")
        real(file)

    monkeypatch.setattr(output.BetonFile, "flush", full)
    with pytest.raises(ValueError, match="No space left on device.*free some space"):
        write(out)
    monkeypatch.setattr(output.BetonFile, "flush", real)
    assert write(out, resume=True).num_before == 4 and files(out.parent) == files(whole.parent)


@pytest.mark.usefixtures("often")
def test_ctrl_c_tells_the_command_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    names = [f"{kind}/{i:02}.jpg" for kind in ("ant", "a bee") for i in range(9)]
    photos = tree(tmp_path / "my photos", {name: jpeg(photo(3, 40, 50)) for name in names})
    whole, out = in_folder(tmp_path / "whole"), in_folder(tmp_path / "a")
    options = ("--max-side", 45, "--workers", 1)
    cli("data", "write", photos, whole, *options)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 10)
        ended = cli("data", "write", photos, out, *options)
    expected = f"fastpsl data write '{photos}' {out} --workers 1 --max-side 45 --resume"
    assert ended.code == 130
    assert ended.err.splitlines()[-1] == f"fastpsl data write: interrupted; go on with: {expected}"
    told = cli("data", "write", photos, out, *options, "--resume").out
    assert "18 samples, 9 of them before the interruption" in told
    assert files(out.parent) == files(whole.parent)
    other = in_folder(tmp_path / "b").with_name("b.beton")
    began, again = (cli("data", "write", photos, other, "--resume", "--workers", 1) for _ in range(2))
    assert "b.beton: there is nothing to go on with, so writing starts at the first image" in began.out
    assert again.code and "b.beton: exists already" in again.err and "so it is begun" not in again.out


def test_shards_by_size(tmp_path: Path) -> None:
    """They have the order of one file, are nearly full, and a set of fewer replaces one of more."""
    out = tmp_path / "a.beton"
    write(out)
    assert write(out, shard_mb=3).num_shards == 2
    with Beton(out) as one, Beton(tmp_path / "a-*.beton") as shards:
        assert shards.class_names == one.class_names and len(one) == len(shards) == 10
        assert shards.labels().tolist() == one.labels().tolist()
        assert [one.read(i) for i in range(10)] == [shards.read(i) for i in range(10)]
    sizes = [path.stat().st_size for path in sorted(tmp_path.glob("a-*.beton"))]
    assert 3_000_000 - 120_000 < sizes[0] <= 3_000_000 and len(sizes) == 2
    with pytest.raises(ValueError, match=r"a-00000-of-00002\.beton: exists already"):
        write(out, shard_mb=3)
    write(out, shard_mb=16, overwrite=True)
    names = [name for name in sorted(files(tmp_path)) if re.match(r"a-.*\.beton", name)]
    assert names == ["a-00000-of-00001.beton", "a-00000-of-00001.beton.json"]
    write(out, shard_mb=3, overwrite=True)
    (tmp_path / "a-00001-of-00002.beton").unlink()
    assert "copy it, or write all again" not in str(betons_to_verify([str(out)])[1])


def test_options_that_exclude_each_other(tmp_path: Path) -> None:
    options = Write("photos", str(tmp_path / "a.beton"), shard_mb=100, shard="0/2")
    with pytest.raises(ValueError, match=r"--shard 0/2 with --shard-mb 100: give one of them"):
        options.run()
    with pytest.raises(ValueError, match=r"--shard-mb 3: give a number from 16 to 1000000"):
        Write("photos", str(tmp_path / "a.beton"), shard_mb=3).run()


def test_a_folder_that_loses_a_photo_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = tree(tmp_path / "photos", {f"ant/{i}.jpg": jpeg(photo(i, 40, 50)) for i in range(3)})
    write_folder(photos, tmp_path / "a.beton")
    (photos / "ant/1.jpg").unlink()
    report = write_folder(photos, tmp_path / "a.beton", overwrite=True, resume=True)
    assert report.num_samples == 2 and report.num_before == 0
