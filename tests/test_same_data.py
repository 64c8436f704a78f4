"""Data are the same by their pixels where files tell these, and records from before go on by names alone."""

import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fastpsl
from bench.evidence.results import _check_data
from bench.evidence.weights import _saw_same
from fastpsl.console.progress import operation as console_operation
from fastpsl.engine.options import PretrainOptions
from fastpsl.engine.run import Run, RunData
from fastpsl.engine.trainer import pretrain
from fastpsl.evaluation.replay import PastRun
from fastpsl.evaluation.result import data_record
from fastpsl.files.digest import sha256_of_json
from fastpsl.models.checkpoint import read_checkpoint
from fastpsl.pipelines.beton.encode import Target
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.sidecar import MARK, MARK_START
from fastpsl.pipelines.beton.write import write_beton
from fastpsl.pipelines.datasets.open import open_data
from fastpsl.pipelines.datasets.open_folder import Folder
from fastpsl.pipelines.datasets.subset import Subset
from fastpsl.pipelines.interface.identity import parts_of, same_data
from fastpsl.pipelines.interface.source import Sample
from fastpsl.tables.comparison import compare
from fastpsl.tasks.pseudo_labels.file import read_labels, write_labels
from tests.engine.test_trainer import tiny_experiment
from tests.engine.tiny import one_process
from tests.evaluation.test_features import extraction
from tests.tables.table_results import put, report

NUM, SIZE = 40, 32
OLDER = "older than digests of contents"


def write(path: Path, seed: int) -> Path:
    """Write raw images of one size: only their pixels depend on the seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (NUM, SIZE, SIZE, 3), np.uint8)
    path.unlink(missing_ok=True)
    Path(f"{path}.json").unlink(missing_ok=True)
    samples = [Sample(str(i), image, i % 4) for i, image in enumerate(pixels)]
    write_beton(samples, path, num_samples=NUM, target=Target(mode="raw"))
    return path


def write_folder(root: Path, seed: int) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, SIZE, SIZE, 3), np.uint8)
    for i, image in enumerate(pixels):
        (root / f"class{i % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / f"class{i % 2}" / f"{i}.bmp")
    return root


def keeping_time(path: Path, write: Callable[[], object]) -> None:
    """Change a file as tools do that set its time back."""
    status = path.stat()
    write()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def digest_of(path: Path) -> str:
    with open_data(path) as data:  # type: ignore[attr-defined]
        return str(data.digest())


@pytest.fixture
def beton(tmp_path: Path) -> Path:
    return write(tmp_path / "a.beton", 0)


def test_pixels_are_a_part_of_it(beton: Path, tmp_path: Path) -> None:
    first, copied = digest_of(beton), tmp_path / "copy.beton"
    shutil.copy(beton, copied)
    os.utime(copied)
    assert digest_of(copied) == first  # times are not
    with Beton(beton) as data:
        part = Subset(data, np.array([1, 5])).digest()
    other = digest_of(write(beton, 1))
    assert parts_of(first)[0] == parts_of(other)[0] and not same_data(first, other)
    with Beton(beton) as data:
        assert parts_of(Subset(data, np.array([1, 5])).digest())[0] == parts_of(part)[0]
        assert not same_data(Subset(data, np.array([1, 5])).digest(), part)
    with open(beton, "r+b") as file:  # as ffcv's own writer leaves it
        file.seek(MARK_START)
        file.write(b"\0" * len(MARK))
    assert digest_of(beton) == parts_of(other)[0]
    one, two = (write(tmp_path / f"shard-{i}.beton", i) for i in range(2))
    both = digest_of(tmp_path / "shard-*.beton")
    two.unlink()
    shutil.copy(one, two)
    assert not same_data(digest_of(tmp_path / "shard-*.beton"), both)


def test_each_is_compared_as_far_as_both_tell() -> None:
    for first, second, are_same in (
        ("a", "a", True), ("a", "b", False), ("a.v2.c", "a.v2.c", True), ("a.v2.c", "a.v2.d", False),
        ("a", "a.v2.c", True), ("a.v2.c", "a", True), ("a.v2.c", "b", False), ("a.v2.c", "b.v2.c", False),
        ("synthetic-3-2-4x5", "synthetic-3-2-4x5", True),
    ):  # fmt: skip
        assert same_data(first, second) is are_same


def features_of(path: Path, out: Path) -> np.ndarray:
    with open_data(path) as data:  # type: ignore[attr-defined]
        return np.array(extraction(data).to_file(out, one_process(), overwrite=True).features())


@pytest.mark.parametrize("kind", ["beton", "without checksums", "folder"])
def test_features_of_other_pixels_are_made_anew(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, write_again = (
        (tmp_path / "data", write_folder) if kind == "folder" else (tmp_path / "a.beton", write)
    )
    files = [path]

    def written(seed: int) -> Path:
        write_again(path, seed)
        if kind == "without checksums":
            with open(path, "r+b") as file:
                file.seek(MARK_START)
                file.write(b"\0" * len(MARK))
        files[:] = [path] if path.is_file() else sorted(path.rglob("*.bmp"))
        for each in files:
            os.utime(each, ns=(1, 1))  # so that the time of writing does not tell
        return path

    first = features_of(written(0), tmp_path / "F.npy")
    status = (tmp_path / "F.npy").stat()
    assert np.array_equal(features_of(path, tmp_path / "F.npy"), first)
    assert (tmp_path / "F.npy").stat().st_mtime_ns == status.st_mtime_ns  # kept
    capsys.readouterr()
    other = features_of(written(1), tmp_path / "F.npy")
    assert ("F.npy: made anew" in capsys.readouterr().err) is (kind != "beton")
    assert np.array_equal(other, features_of(path, tmp_path / "G.npy")) and not np.array_equal(other, first)


def test_features_of_an_older_version_are_made_anew_once(
    beton: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their digest has no contents; neither --overwrite nor another name is asked for."""
    out = tmp_path / "F.npy"
    with Beton(beton) as data:
        work = extraction(data)
        work.to_file(out, one_process())
        record = json.loads((tmp_path / "F.json").read_text())
        wanted = work.wanted() | {"data": parts_of(data.digest())[0]}
        old = record | wanted | {"digest": sha256_of_json(wanted)}
        (tmp_path / "F.json").write_text(json.dumps(old))
        capsys.readouterr()
        for _ in range(2):
            work.to_file(out, one_process())
        assert capsys.readouterr().err.count("made anew") == 1
        with pytest.raises(ValueError, match="holds other features"):
            extraction(data, block=2).to_file(out, one_process())


def options(beton: Path, out: Path) -> PretrainOptions:
    return PretrainOptions(
        data=str(beton), val="none", out=out, batch_size=20, epochs=(1, 1, 1), max_steps_per_stage=1,
        checkpoint_steps=1, tensorboard=False, workers=1,
    )  # fmt: skip


def train(beton: Path, out: Path) -> Run:
    run = Run("tiny", RunData(options(beton, out), one_process()))
    pretrain(tiny_experiment(), run)
    run.close()
    return run


def as_before(folder: Path) -> None:
    """Give a run's records the digest of the data that versions without contents wrote."""
    config = json.loads((folder / "config.json").read_text())
    names = parts_of(config["science"]["data_digest"])[0]
    config["science"]["data_digest"] = names
    (folder / "config.json").write_text(json.dumps(config))
    for path in (folder / "checkpoints").glob("*.pt"):
        state = read_checkpoint(path)
        state["science"]["data_digest"] = names
        torch.save(state, path)


def test_a_run_goes_on_with_its_own_pixels_alone(
    beton: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    first = train(beton, out).science["data_digest"]
    assert OLDER not in capsys.readouterr().err
    as_before(out)
    assert train(beton, out).science["data_digest"] == first
    assert capsys.readouterr().err.count(OLDER) == 1
    (out / "checkpoints").rename(out / "older")  # those of the second start have contents
    shutil.copytree(out / "older", out / "checkpoints")
    for path in (out / "checkpoints").glob("*.pt"):
        state = read_checkpoint(path)
        state["science"]["data_digest"] = first
        torch.save(state, path)
    write(beton, 1)
    with pytest.raises(ValueError, match="belongs to another experiment: the data: its digest"):
        train(beton, out)
    as_before(out)
    train(beton, out)
    assert OLDER in capsys.readouterr().err


def test_the_state_of_a_loader(beton: Path) -> None:
    def loader() -> Any:
        return fastpsl.loader(beton, batch_size=8, size_px=16, device="cpu", num_threads=1)

    with loader() as batches:
        state = batches.state_dict()
    old = state | {"data": parts_of(state["data"])[0]}
    with loader() as batches, warnings.catch_warnings():
        warnings.simplefilter("error")
        batches.load_state_dict(state)
        with pytest.raises(UserWarning, match=OLDER):
            batches.load_state_dict(old)
    write(beton, 1)
    with loader() as batches:
        with pytest.raises(ValueError, match="a state of other batches"):
            batches.load_state_dict(state)
        with pytest.warns(UserWarning, match=OLDER):
            batches.load_state_dict(old)


def test_a_file_of_labels(beton: Path, tmp_path: Path) -> None:
    labels, path = np.arange(NUM) % 3, tmp_path / "labels.npz"
    with Beton(beton) as data:
        write_labels(path, labels, 3, data, "test")
        assert np.array_equal(read_labels(path, data).labels, labels)
        with np.load(path) as file:
            arrays = dict(file)
        old = tmp_path / "old.npz"
        np.savez(old, **(arrays | {"data_digest": parts_of(data.digest())[0]}))
        with pytest.warns(UserWarning, match=f"old.npz is {OLDER}"):
            assert np.array_equal(read_labels(old, data).labels, labels)
    with Beton(write(beton, 1)) as data:
        with pytest.raises(ValueError, match="of another data set"):
            read_labels(path, data)
        with pytest.warns(UserWarning, match=OLDER):
            read_labels(old, data)


def test_a_replay_shows_the_runs_own_pixels(beton: Path, tmp_path: Path) -> None:
    given = options(beton, tmp_path / "run")

    def said(digest: str) -> str:
        science = {"data_digest": digest}
        past = PastRun(tmp_path, None, given, science, NUM, 1)  # type: ignore[arg-type]
        data = RunData(given, one_process())
        try:
            return past.check_data(data, allow_other=False)
        finally:
            data.close()

    first = digest_of(beton)
    assert said(first) == "" and OLDER in said(parts_of(first)[0])
    write(beton, 1)
    assert OLDER in said(parts_of(first)[0])
    with pytest.raises(ValueError, match=f"40 training images with the digest {first[:8]}"):
        said(first)


def test_tables_put_old_records_beside_new_ones(tmp_path: Path) -> None:
    """One data set that both tell of is one; two with other pixels are not mixed."""
    names = {"train": "a" * 32, "val": "b" * 32}
    known = {part: f"{digest}.v2.{'c' * 32}" for part, digest in names.items()}
    put(tmp_path, data=names), put(tmp_path, seed=1, data=known)
    with pytest.warns(UserWarning, match=OLDER):
        assert len(report(tmp_path).used) == 2
    put(tmp_path, seed=2, data=known | {"train": f"{'a' * 32}.v2.{'d' * 32}"})
    with pytest.raises(ValueError, match=r"results of 2 data sets must not be mixed .*aaaaaaaa\.dddddddd"):
        report(tmp_path)


def test_a_committed_record_is_compared_with_new_scores(beton: Path) -> None:
    """Records of experiments from before digests of contents, with scores of today."""
    with Beton(beton) as data, Beton(write(beton.with_name("b.beton"), 1)) as val:
        now = data_record(data, val)
    older = {name: parts_of(text)[0] if isinstance(text, str) else text for name, text in now.items()}
    assert _saw_same(older, now) and _saw_same(now, now)
    _check_data([[older, now]])
    other = now | {"train": f"{older['train']}.v2.{'0' * 32}"}
    assert not _saw_same(other, now) and not _saw_same(now | {"num_train": 1}, now)
    with pytest.raises(ValueError, match="several train sets"):
        _check_data([[older, now, other]])


def test_runs_are_compared_by_what_both_tell(beton: Path, tmp_path: Path) -> None:
    for name in "ab":
        train(beton, tmp_path / name)
    as_before(tmp_path / "a")
    with pytest.warns(UserWarning, match=OLDER):
        lines = compare([tmp_path / "a", tmp_path / "b"]).differences.get("What is learned", [])
    assert not [line for line in lines if line.title == "data_digest"]
    train(write(beton, 1), tmp_path / "c")
    (line,) = compare([tmp_path / "b", tmp_path / "c"]).differences["What is learned"]
    assert line.title == "data_digest" and len(set(line.cells)) == 2


def test_an_index_is_made_anew_where_only_the_status_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An orientation that is corrected in place, with the time kept, and `chmod`, which is said."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "photos" / "a" / "0.jpg"
    path.parent.mkdir(parents=True)
    image, exif = Image.fromarray(np.zeros((20, 30, 3), np.uint8)), Image.Exif()
    exif[0x0112] = 6
    image.save(path, exif=exif)

    said = list[str]()

    def operation(text: str, *more: Any) -> Any:
        said.append(text)
        return console_operation(text, *more)

    monkeypatch.setattr("fastpsl.pipelines.datasets.open_folder.operation", operation)

    def shape() -> tuple[int, ...]:
        with Folder(path.parent.parent) as data:
            return data.image_sizes()[:2]

    assert shape() == (30, 20)
    exif[0x0112] = 1
    keeping_time(path, lambda: image.save(path, exif=exif))
    assert shape() == (20, 30) == shape()
    path.chmod(0o600)
    shape()
    os.utime(path)
    shape()
    path.with_name("1.jpg").symlink_to(path)
    shape()
    reasons = [text.partition("reading headers")[2] for text in said if "reading headers" in text]
    assert [reason.partition("because ")[2][:22] for reason in reasons] == [
        "", *["the status of files ha"] * 2, "files were written to", "files came, went or ch",
    ]  # fmt: skip
