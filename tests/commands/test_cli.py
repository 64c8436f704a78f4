"""The `fastpsl` command as a user types it: its output, and a one-line error with exit code 2 for user
errors.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.decoders.libffcv import why_missing
from fastpsl.tasks.jigsaw import read_permutations
from tests.cli import Cli, refused
from tests.pipelines.photos import jpeg, photo
from tests.pipelines.written import tree
from tests.programs import interpreted

SHORT = {"cat/a.jpg": (60, 80), "cat/b.jpg": (90, 50), "dog/c.jpg": (70, 70)}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    files = {name: jpeg(photo(i, *size)) for i, (name, size) in enumerate(SHORT.items())}
    return tree(tmp_path / "photos", files)


def test_out_of_memory_is_one_line(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    def fails(*_: object) -> None:
        raise MemoryError("Unable to allocate 384. KiB")

    monkeypatch.setattr("fastpsl.commands.data.Write.run", fails)
    outcome = cli("data", "write", photos, tmp_path / "a.beton")
    refused(outcome, "fastpsl data write: out of memory (Unable to allocate 384. KiB): free some")


def test_write_verify_info(photos: Path, tmp_path: Path, cli: Cli) -> None:
    out = tmp_path / "train.beton"
    code, output, _ = cli("data", "write", photos, out, "--short-side", 40, "--quality", 80, "--workers", 2)
    assert code == 0 and "3 samples" in output and "0 taken over, 3 encoded" in output
    code, output, errors = cli("data", "verify", out)
    assert (code, output, errors) == (0, f"{out}: 3 samples, all sound\n", "")
    code, output, _ = cli("data", "info", out)
    assert code == 0
    for word in (
        "3 samples",
        "height min / median / max  40 / 40 / 72 px",
        "width  min / median / max  40 / 40 / 53 px",
        "3 JPEG, 0 raw",
        "cat          2  ########",
        "dog          1  ####",
        "short_side 40, quality 80",
        f"source {photos}",
    ):
        assert word in output, (word, output)


def test_names_of_any_kind(tmp_path: Path, cli: Cli) -> None:
    """Names with spaces, line feeds, letters of any script, and bytes that are no UTF-8."""
    for i, name in enumerate((b"caf\xc3\xa9 1/a b.jpg", "ζώα/\n.jpg".encode(), b"\xff\xfe/\xff.jpg")):
        path = Path(os.fsdecode(bytes(tmp_path / "my photos") + b"/" + name))
        path.parent.mkdir(parents=True)
        path.write_bytes(jpeg(photo(i, 40, 40)))
    (path.parent / "x y.jpg").write_bytes(b"broken")
    out = tmp_path / "a b é.beton"
    code, output, _ = cli("data", "write", tmp_path / "my photos", out, "--max-bad", 1)
    assert code == 0 and "3 samples" in output and "é.beton.bad.csv: 1 was left out as bad" in output
    assert cli("data", "verify", tmp_path / "a b *.beton")[0] == 0
    code, output, _ = cli("data", "info", out)
    assert code == 0 and "café 1" in output and "ζώα" in output and "\\udcff\\udcfe" in output
    with Beton(out) as beton:
        names = [os.path.basename(beton.name(i).rpartition("(")[2]) for i in range(3)]
        assert names == ["a b.jpg)", "\n.jpg)", "\udcff.jpg)"]


def test_verify_names_and_exits_2(photos: Path, tmp_path: Path, cli: Cli) -> None:
    out = tmp_path / "train.beton"
    cli("data", "write", photos, out)
    (tmp_path / "cut.beton").write_bytes(out.read_bytes()[:-1])
    data = bytearray(out.read_bytes())
    data[data.find((photos / "cat/b.jpg").read_bytes())] = 0
    out.write_bytes(data)
    code, output, errors = cli("data", "verify", out, tmp_path / "cut.beton")
    assert code == 2 and errors.count("\n") == 1 and "3 faults" in errors
    assert f"{out} sample 1 (cat/b.jpg): not a JPEG\n" in output and "checksum" in output
    assert f"{tmp_path}/cut.beton: is truncated" in output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("data write {photos} {tmp}/no/a.beton", "cannot be written (No such file or directory)"),
        ("data write {tmp}/none {tmp}/a.beton", "no such file or folder"),
        ("data write {tmp}/none {photos}/cat/a.jpg", "a.jpg: exists already"),
        ("data write {tmp}/none {photos}", "is a folder; choose another name"),
        ("data write {photos}/cat/a.jpg {tmp}/a.beton", "a.jpg: images are read by their folder, "),
        ("data write {photos}/cat/a.jpg {tmp}/a.beton --format tar", "is no tar"),
        ("data write {photos} {tmp}/a.beton --split train", "a folder has no splits"),
        ("data write {photos} {tmp}/a.beton --shard 2/2", "--shard 2/2"),
        ("data write {photos} {tmp}/a.beton --max-bad many", "--max-bad many"),
        ("data write {photos} {tmp}/a.beton --quality 0", "--quality 0"),
        ("data write {photos} {tmp}/a.beton --short-sied 5", "short-sied"),
        (
            "data write {photos}",
            "OUT is missing, as in `fastpsl data write SRC OUT`; see fastpsl data write --help",
        ),
        ("data verify", "no dataset file given"),
        ("data verify {tmp}/none.beton", "no such file or folder; give a .beton file or"),
        ("data info {photos}/cat/a.jpg", "is no dataset file of FFCV's format 2, as its first bytes show"),
        ("data check", "there is no command data check; allowed are write, append, verify, info, show"),
        ("recipes lst", "there is no command recipes lst; did you mean list? allowed are list, copy"),
        ("recipes copy", "NAME and FILE are missing, as in `fastpsl recipes copy NAME FILE`; see "),
        ("permutations --out {tmp}/none/p.npy --counts 5", "cannot be written"),
        ("permutations --out {tmp}/p.npy --num-pieces 3 --counts 7", "7"),
        ("permutations --out {tmp}/p.npy --counts 50 20", "50 20: each set begins with the one before it"),
        ("permutations --out {photos}/cat/a.jpg --counts 5", "exists already"),
    ],
)
def test_user_errors_are_one_line_and_exit_2(
    arguments: str, words: str, photos: Path, tmp_path: Path, cli: Cli
) -> None:
    refused(cli(*arguments.format(photos=photos, tmp=tmp_path).split()), words)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_the_installed_command(photos: Path, tmp_path: Path) -> None:
    """Run as a process, it has the right exit code, no traceback, one-line warnings and progress lines."""
    (photos / "dog" / "notes.txt").write_text("x")
    (photos / "empty").mkdir()
    program, out = Path(sys.executable).with_name("fastpsl"), tmp_path / "a.beton"
    command = [str(program), "data", "write", str(photos), str(out)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    classes, summary = process.stdout.splitlines()
    assert process.returncode == 0 and summary.startswith(f"{tmp_path}/a.beton: 3 samples")
    assert classes == f"{photos}: 3 classes: cat, dog, empty"
    warnings = process.stderr.splitlines()
    assert warnings[0] == (
        f"fastpsl data write: warning: {photos}: left out: 1 file of another kind (1 .txt), "
        "1 class without an image, which keeps its label (empty)"
    )
    missing_ffcv = [f"fastpsl data write: warning: {reason}: Pillow" for reason in [why_missing()] if reason]
    assert [line.split(" check")[0] for line in warnings[1:]] == missing_ffcv
    again = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert again.returncode == 2 and again.stderr.count("exists already") == 1
    assert "Traceback" not in again.stderr


def test_permutations(tmp_path: Path, cli: Cli) -> None:
    out = tmp_path / "p.npy"
    code, output, _ = cli("permutations", "--out", out)
    assert code == 0
    table = [line.split() for line in output.splitlines()[2:]]
    assert [row[:2] for row in table] == [["500", "7"], ["1,000", "6"], ["2,000", "4"]]
    assert [row[2] for row in table] == ["8.0160", "8.0080", "8.0040"] == [row[3] for row in table]
    permutations = np.load(out)
    assert permutations.shape == (2000, 9) and permutations.dtype == np.int64 and permutations.min() == 0
    assert (read_permutations(out) == permutations).all()
    assert cli("permutations", "--out", out, "--counts", 5, "--overwrite")[0] == 0
    assert len(read_permutations(out)) == 5


WRONG_NAMES = """
import sys
from fastpsl.cli import main

for line in sys.stdin.read().splitlines():
    try:
        main(line.split())
    except SystemExit as end:
        print(end.code, *(name for name in ("torch", "numba", "matplotlib") if name in sys.modules))
"""


def test_a_wrong_name_is_refused_before_torch_is_imported() -> None:
    wrong = {
        "train simclr --backbone resnet51": "--backbone resnet51.* did you mean resnet50",
        "train distill --teacher x.pth --teacher-backbone resnet_18": "backbone .* did you mean resnet18",
        "train distill --teacher nothing.pth": "nothing.pth: no such file",
        "eval linear --random-weights --backbone VGG-16": "--backbone .* did you mean vgg16",
        "features RUN --out x.npy --backbone alexnets": "--backbone .* did you mean alexnet",
        "export RUN x.pth --to tim": "--to tim: allowed are torchvision, timm, .*; perhaps you meant timm",
        "table psl/44": "unknown table 'psl/44': did you mean psl/4",
        "table psl/4 --scale tyny": "--scale tyny: allowed are paper, tiny; perhaps you meant tiny",
        "doctor jigsaws": "there is no recipe jigsaws; did you mean jigsaw",
        "eval voc-detection": "there is no recipe voc-detection; did you mean detect. allowed are linear",
    }
    done = interpreted(WRONG_NAMES, input="\n".join(wrong))
    assert done.stdout.splitlines() == ["2"] * len(wrong)
    for line, words in zip(done.stderr.splitlines(), wrong.values(), strict=True):
        assert re.search(words, line), line
