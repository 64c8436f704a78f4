"""An error of the system is told by the system's words, and never as damage of what cannot be read."""

import builtins
import errno
import io
import os
import re
import resource
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typing_extensions import override

import fastpsl.model
from fastpsl.evaluation.feature_file import read_features
from fastpsl.evaluation.replay import PastRun
from fastpsl.evaluation.result_file import read_result
from fastpsl.evaluation.trained_run import TrainedRun
from fastpsl.files.digest import sha256_of_file
from fastpsl.files.paths import require_existing
from fastpsl.files.system_errors import (
    UnreadableError,
    input_error,
    input_errors,
    is_of_the_system,
    raise_of_the_system,
    remedy,
)
from fastpsl.models import export, timm_backbone
from fastpsl.models.checkpoint import CheckpointManager
from fastpsl.models.foreign_weights import read_weights, read_weights_sidecar
from fastpsl.models.given import _copied
from fastpsl.models.own_backbone import made
from fastpsl.pipelines.beton import shard
from fastpsl.pipelines.beton.encode import Target
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.sidecar import read_sidecar
from fastpsl.pipelines.beton.write import convert_one
from fastpsl.pipelines.datasets.open_folder import Folder
from fastpsl.pipelines.datasets.voc import dataset as voc
from fastpsl.pipelines.decoders import dali, dali_pipeline, libffcv
from fastpsl.pipelines.decoders.choose import reason_of
from fastpsl.pipelines.decoders.codes import CHANGED
from fastpsl.pipelines.image import libturbo
from fastpsl.pipelines.image.image_file import upright_size
from fastpsl.pipelines.interface.dataset import BadImage, is_of_one_file, read_bytes
from fastpsl.pipelines.interface.reading import PLAIN
from fastpsl.pipelines.loader.annotated import read_image
from fastpsl.pipelines.loader.batch import BadSampleError
from fastpsl.pipelines.readers.arrays import arrays
from fastpsl.pipelines.readers.listed import read_list
from fastpsl.pipelines.readers.parquet import parquet_files, reading_errors
from fastpsl.pipelines.readers.published import published
from fastpsl.pipelines.readers.tar import tar_members, tar_source
from fastpsl.pipelines.readers.text_lists import read_classes
from fastpsl.scripts.recipe import _read_config
from fastpsl.tables.runs import Run, find_runs
from fastpsl.tasks.jigsaw import read_permutations
from fastpsl.tasks.pseudo_labels.file import _read
from fastpsl.transfer.detection import proposals
from tests.pipelines.photos import jpeg, photo
from tests.pipelines.written import make_tar, parquet_bytes, tree, write_folder

FALSE = re.compile(r"damaged|remove|again|\bis no\b|no sound|extract|download", re.IGNORECASE)


def told(read: Callable[[], object]) -> str:
    """Return the line that `read` raises, which must not tell of damage."""
    with pytest.raises((ValueError, OSError)) as error:
        read()
    line = str(error.value)
    assert "\n" not in line and not FALSE.search(line), line
    return line


@contextmanager
def no_more_files() -> Iterator[None]:
    """Let this process open no more files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def break_opening(monkeypatch: pytest.MonkeyPatch, number: int, name: str) -> None:
    """Have every opening by Python of files whose path holds `name` fail."""

    def broken(real: Callable[..., Any]) -> Callable[..., Any]:
        def function(path: Any = ".", *more: Any, **options: Any) -> Any:
            if name in str(path):
                raise OSError(number, os.strerror(number), str(path))
            return real(path, *more, **options)

        return function

    for module, names in ((builtins, ["open"]), (io, ["open"]), (os, ["open", "listdir", "scandir"])):
        for each in names:
            monkeypatch.setattr(module, each, broken(getattr(module, each)))


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a sound file of each kind."""
    here = tmp_path_factory.mktemp("sound")
    tree(here / "photos", dict.fromkeys(("cat/a.jpg", "cat/b.jpg", "dog/c.jpg"), jpeg(photo(0, 20, 30))))
    write_folder(here / "photos", here / "x.beton")
    np.save(here / "p.npy", np.array([[0, 1], [1, 0]]))
    np.savez(here / "x.npz", images=np.zeros((2, 4, 4, 3), np.uint8), labels=np.zeros(2, np.int64))
    make_tar(here / "x.tar", {"cat/a.jpg": jpeg(photo(0, 20, 30))})
    (here / "list.txt").write_text("photos/cat/a.jpg 0\n")
    (here / "list.json").write_text("{}")
    (here / "net.py").write_text("def Net():\n    return 1\n")
    (here / "run/checkpoints").mkdir(parents=True)
    for name in ("run/config.json", "weights.pt.json", "result.json", "f.json", "cifar-10-binary.tar.gz"):
        (here / name).write_text("{}")
    for step in (1, 2):
        torch.save({"format": 1}, here / f"run/checkpoints/step-{step:08d}.pt")
    torch.save({}, here / "weights.pt")
    save_file({"a": torch.zeros(1)}, here / "weights.safetensors")
    return here


READERS: dict[str, Callable[[Path], object]] = {
    "p.npy": read_permutations,
    "x.npz": arrays,
    "labels of x.npz": lambda path: _read(path, 2),
    "x.beton": shard.Shard,
    "x.beton.json": lambda path: read_sidecar(path.with_suffix("")),
    "photos": Folder,
    "list.txt": read_list,
    "list.json": read_list,
    "classes of list.txt": read_classes,
    "x.tar": lambda path: tar_source([path]),
    "text of list.txt": voc._lines,
    "bytes of list.txt": voc._bytes,
    "names in photos": voc._names,
    "size of photos/cat/a.jpg": lambda path: upright_size(str(path)),
    "conversion of photos/cat/a.jpg": lambda path: convert_one(path, Target()),
    "pixels of photos/cat/a.jpg": lambda path: fastpsl.model._pixels(path, PLAIN),
    "net.py": lambda path: made(f"{path}:Net"),
    "weights.pt": read_weights,
    "weights.safetensors": read_weights,
    "digest of weights.pt": sha256_of_file,
    "weights.pt.json": lambda path: read_weights_sidecar(path.with_suffix("")),
    "run/checkpoints/step-00000002.pt": lambda path: CheckpointManager(path.parent).newest(),
    "cifar-10-binary.tar.gz": lambda path: published(path, "cifar10"),
    "boxes.pkl": lambda path: list(proposals._read(path)),
    "boxes.mat": lambda path: list(proposals._read(path)),
    "training of run/config.json": lambda path: TrainedRun.of(path.parent),
    "replay of run/config.json": lambda path: PastRun.of(path.parent, data=None, backbone=None, recipe=None),
    "options of run/config.json": lambda path: _read_config(path.parent),
    "result.json": read_result,
    "f.json": lambda path: read_features(path.with_suffix(".npy")),
    "photos/cat/?": lambda path: require_existing(path, "images"),
    "run/config.json": lambda path: export._config_of_run(path.parent / "checkpoints" / "step.pt"),
}


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.ESTALE, errno.EACCES])
@pytest.mark.parametrize("what", READERS)
def test_readers_tell_the_systems_error(
    what: str, number: int, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if what.startswith("conversion") and number != errno.EMFILE:
        pytest.skip("a bad image, of which the list has the reason")
    path = here / what.rpartition(" ")[2]
    named = path.parent if path.name == "?" else path  # of a glob, the folder
    break_opening(monkeypatch, number, named.name)
    line = told(lambda: READERS[what](path))
    assert os.strerror(number) in line and str(named) in line
    if number == errno.EMFILE and not what.startswith("size"):  # whose caller has the remedy
        assert line.endswith("; raise the limit of open files (ulimit -n)")


def test_too_many_open_files(here: Path) -> None:
    (here / "x.parquet").write_bytes(parquet_bytes({"image": [jpeg(photo(0, 9, 9))]}))
    parquet_files("x", [here / "x.parquet"])  # imports what it needs
    readers = [
        lambda: parquet_files("x", [here / "x.parquet"]),
        lambda: Beton(here / "x.beton"),
        lambda: Folder(here / "photos"),
    ]
    with no_more_files():
        lines = [told(reader) for reader in readers]
    assert all("Too many open files" in line and "(ulimit -n)" in line for line in lines), lines


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO])
def test_an_index_keeps_no_error_that_passes(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many open files end the opening. What one file alone has is looked at anew."""
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(jpeg(photo(0, 20, 30)))
    with monkeypatch.context() as broken:
        break_opening(broken, number, "b.jpg")
        if number == errno.EMFILE:
            assert "b.jpg: cannot be read (Too many open files)" in told(lambda: Folder(tmp_path))
        else:
            for _ in range(2):
                with pytest.warns(UserWarning, match=r"1 of 2 .* b\.jpg: Input/output error; each is a bad"):
                    Folder(tmp_path).close()
    with Folder(tmp_path) as data:
        assert data.image_sizes() == (20, 30, 20, 30) and data.rows(np.arange(2)).height.tolist() == [20, 20]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_a_bad_sample_tells_the_systems_error(
    number: int, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = f"cannot be read ({os.strerror(number)})"
    with Folder(here / "photos") as data:
        break_opening(monkeypatch, number, "a.jpg")
        assert reason_of(CHANGED, data.rows(np.array([0])), 0) == reason
        with pytest.raises(BadSampleError, match=re.escape(reason)):
            read_image(data, 0)
    bad = convert_one(here / "photos/cat/a.jpg", Target())
    assert isinstance(bad, BadImage) and str(bad) == reason
    assert not FALSE.search(BadSampleError.remedy)


def test_a_failing_dataset_file_has_no_bad_samples(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*arguments: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with Beton(here / "x.beton") as data:
        rows = data.rows(np.array([0]))
        monkeypatch.setattr(os, "pread", failing)
        with pytest.raises(OSError, match="Input/output error"):
            read_bytes(rows, 0)
        monkeypatch.undo()


def test_a_tar_on_a_failing_disk_is_not_damaged() -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name in ("a.jpg", "b.jpg"):
            tar.addfile(tarfile.TarInfo(name))

    class Failing(io.BytesIO):
        bad_from = 0

        @override
        def read(self, num: int | None = -1) -> bytes:
            if self.tell() >= self.bad_from:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().read(num)

    stream = Failing(data.getvalue())
    for stream.bad_from in (0, 512):
        stream.seek(0)
        line = told(lambda: list(tar_members(stream, "x.tar")))
        assert line.startswith("x.tar: cannot be read (Input/output error)")


def test_libraries_are_not_called_missing(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    def no_dali() -> None:
        raise ImportError("libdali.so: cannot open shared object file: Too many open files")

    def no_library(path: str) -> Any:
        raise OSError(f"{path}: cannot open shared object file: Too many open files")

    monkeypatch.setattr(dali_pipeline, "_dali", no_dali)
    assert "DALI: cannot be read (Too many" in told(lambda: dali_pipeline.why_missing(torch.device("cpu")))
    for module in (libturbo, shard):
        monkeypatch.setattr(module, "open_library", no_library)
    for load in (libturbo._load, shard.library):
        assert "library: cannot be read (Too many" in told(load.__wrapped__)  # type: ignore[attr-defined]
    (here / "_libffcv.so").touch()
    package = type("Spec", (), {"submodule_search_locations": [str(here)]})
    monkeypatch.setattr(libffcv, "PathFinder", SimpleNamespace(find_spec=lambda name: package))
    monkeypatch.setattr(libffcv.ctypes, "CDLL", no_library)
    assert "_libffcv.so: cannot be read (Too many" in told(libffcv._load.__wrapped__)
    assert "nvjpeg" in told(dali.nvjpeg_library) and "libz" in told(lambda: dali.loads("libz.so"))


def test_what_networks_are_made_of_is_not_called_wrong(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    (here / "full.py").write_text("def Net():\n    raise MemoryError('no more')\n")
    with pytest.raises(MemoryError, match="no more"):
        made(f"{here / 'full.py'}:Net")

    class Large(torch.nn.Module):
        def __deepcopy__(self, memo: object) -> None:
            raise RuntimeError("DefaultCPUAllocator: Error code 12 (Cannot allocate memory)")

    with pytest.raises(MemoryError, match="Cannot allocate memory"):
        _copied("m", Large())

    def create_model(*words: object, **options: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), "model.safetensors")

    pytest.importorskip("timm")
    monkeypatch.setattr("timm.create_model", create_model)
    line = told(lambda: timm_backbone.published("timm/resnet18"))
    assert line.startswith("model.safetensors: cannot be read (Too")


def test_a_run_that_cannot_be_read_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text('{"options": {}, "science": {}}')
    assert Run.of(tmp_path).state == "unknown"
    break_opening(monkeypatch, errno.EACCES, "config.json")
    (run,) = find_runs(tmp_path)
    assert (run.state, run.damage) == ("unreadable", "config.json cannot be read (Permission denied)")


def test_errors_are_told_apart() -> None:
    of_the_system = [
        *(OSError(number, "") for number in (errno.EMFILE, errno.EACCES, errno.ESTALE, errno.EIO)),
        MemoryError(),
        OSError("x.so: cannot open shared object file: Too many open files"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory (Cannot allocate memory)"),
    ]
    of_the_file = [
        *(OSError(number, "") for number in (errno.ENOENT, errno.EISDIR, errno.EINVAL)),
        OSError("Invalid data stream"), ValueError("Too many open files"), RuntimeError("Bad magic number"),
    ]  # fmt: skip
    assert all(map(is_of_the_system, of_the_system)) and not any(map(is_of_the_system, of_the_file))
    assert is_of_one_file(PermissionError(errno.EACCES, "")) and not is_of_one_file(OSError(errno.EMFILE, ""))
    for error in of_the_system:
        with pytest.raises((UnreadableError, MemoryError)):
            raise_of_the_system("x", error)
    for error in of_the_file:
        raise_of_the_system("x", error)
    with pytest.raises(UnreadableError, match="^y: cannot be read"):
        raise_of_the_system("x", input_error("y", of_the_system[0]))
    assert remedy(MemoryError(), "") == "free some memory" and remedy(ValueError(), "look") == "look"


def test_lines_of_inputs(tmp_path: Path) -> None:
    line = r"nothing: cannot be read \(No such file .*; give a file that is there$"
    with pytest.raises(UnreadableError, match=line), input_errors("the list"):
        (tmp_path / "nothing").read_bytes()
    with pytest.raises(UnreadableError, match="^x: cannot be read"), reading_errors("x"):
        raise OSError(errno.EIO, "Input/output error")
    assert str(input_error("x", OSError(errno.EACCES, "Permission denied"))) == (
        "x: cannot be read (Permission denied); make it readable for this user"
    )
