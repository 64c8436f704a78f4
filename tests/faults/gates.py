"""The gates through which files of strangers enter: each has a sound file, and opens a file as users do."""

import contextlib
import gzip
import io
import json
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch

from fastpsl import cli
from fastpsl.engine.metrics_file import MetricsFile
from fastpsl.engine.resume import find_checkpoint
from fastpsl.evaluation.label_lists import read_label_list
from fastpsl.evaluation.result import FORMAT as RESULT_FORMAT
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.data.open import open_data
from fastpsl.pipelines.voc.dataset import VOC
from fastpsl.plots.training_curve import draw_curve
from fastpsl.tasks.permutation_files import read_permutations
from fastpsl.tasks.pseudo_labels.file import read_labels, write_labels
from fastpsl.transfer.detection.proposals import Proposals
from tests.engine.tiny import one_process
from tests.pipelines.photos import jpeg, photo, photo_samples, write
from tests.pipelines.voc_folders import voc_2007

_SCIENCE = {"recipe": "jigsaw_r50", "seed": 0}
_ARANGE = np.arange(9)


class Gate(NamedTuple):
    """An entrance for files of strangers.

    Attributes:
        place: The file to attack, within a folder.
        make: Writes the sound file and its companions, with the path of that file.
        open: Reads it and returns the text that users see; ValueError or exit code 2 if it is refused.
    """

    place: str
    make: Callable[[Path], object]
    open: Callable[[Path], str]

    @property
    def name(self) -> str:
        return Path(self.place).name


class Refused(ValueError):
    """A command that ended with exit code 2, and its output."""


def _command(*arguments: object) -> str:
    """Run `fastpsl ...` in this process and return its output; raise Refused for exit code 2."""
    output = io.BytesIO()
    stream = io.TextIOWrapper(output, encoding="utf-8", write_through=True)
    code: object = 0
    with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        try:
            cli.main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code or 0
    text = output.getvalue().decode(errors="surrogateescape")
    if code == cli.EXIT_USER_ERROR:
        raise Refused(text)
    assert code == 0, (code, text)
    return text


# Sound files.


def small_jpeg(seed: int = 0) -> bytes:
    return jpeg(photo(seed, 32, 40))


def _weights() -> dict[str, torch.Tensor]:
    return {"conv1.weight": torch.arange(64 * 3 * 7 * 7, dtype=torch.float32).reshape(64, 3, 7, 7)}


def _pth(path: Path) -> None:
    torch.save({"state_dict": _weights()}, path)


def _safetensors(path: Path) -> None:
    from safetensors.torch import save_file

    save_file(_weights(), path, metadata={"fastpsl": json.dumps({"backbone": "resnet18"})})


def _export_json(path: Path) -> None:
    _pth(path.with_suffix(""))
    path.write_text(json.dumps({"sha256": "0", "backbone": "resnet18"}))


def _checkpoint(path: Path) -> None:
    path.parent.mkdir()
    position = {"stage": 0, "step": 3, "run_step": 3, "first_epoch": 0, "seconds": 1.0, "summaries": []}
    state = {"format": 1, "science": _SCIENCE, "machine": {}, "position": position, "backbone": _weights()}
    torch.save({**state, "learner": {}, "task": {}}, path)


def _small_beton(folder: Path) -> Beton:
    path = folder / "data.beton"
    return Beton(path if path.exists() else write(path, photo_samples(6)))


def _labels(path: Path) -> None:
    with _small_beton(path.parent) as data:
        write_labels(path, np.arange(6) % 3, 3, data, "by hand")


def _permutations_bin(path: Path) -> None:
    rows = np.stack([_ARANGE, _ARANGE[::-1]]) + 1
    path.write_bytes(np.array([2, 9], "<i4").tobytes() + rows.astype("<i4").tobytes())


_BOXES = np.array([[1, 1, 20, 20], [2, 3, 30, 40]], np.float32)


def _proposals(path: Path) -> None:
    voc_2007(path.parent)
    record = {"boxes": [_BOXES] * 2, "scores": [np.ones(2, np.float32)] * 2, "ids": [5, 7]}
    path.write_bytes(pickle.dumps(record, protocol=2))


def _proposals_mat(path: Path) -> None:
    from scipy.io import savemat

    voc_2007(path.parent)
    cells = {"images": np.empty(2, object), "boxes": np.empty(2, object)}
    cells["images"][:], cells["boxes"][:] = ["000005", "000007"], [_BOXES, _BOXES]
    savemat(path, cells)


def _photos() -> np.ndarray:
    return np.stack([photo(i, 16, 16) for i in range(4)])


def add(tar: tarfile.TarFile, name: str, data: Any, size: int | None = None, **values: Any) -> None:
    """Add a member of these bytes, or of `size` bytes of a file, with other values in its header."""
    info = tarfile.TarInfo(name)
    info.size = len(data) if size is None else size
    for key, value in values.items():
        setattr(info, key, value)
    tar.addfile(info, io.BytesIO(data) if isinstance(data, bytes) else data)


def write_tar(path: Path, members: dict[str, bytes] | None = None) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in (members or {f"c{i % 2}/{i}.jpg": small_jpeg(i) for i in range(4)}).items():
            add(tar, name, data)


def _targz(path: Path) -> None:
    write_tar(path)
    path.write_bytes(gzip.compress(path.read_bytes(), mtime=0))


def _webdataset(path: Path) -> None:
    pairs = ((f"{i:03}.{ending}", i, ending) for i in range(4) for ending in ("jpg", "json"))
    members = {name: small_jpeg(i) if kind == "jpg" else b'{"label": %d}' % i for name, i, kind in pairs}
    write_tar(path, members)


def write_parquet(path: Path, cells: list[Any], labels: list[int] | None) -> None:
    import pyarrow
    from pyarrow import parquet

    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    table = {"image": pyarrow.array(cells, kind)} | ({"label": labels} if labels else {})
    parquet.write_table(pyarrow.table(table), path)


def cell(data: bytes | None, path: str | None) -> dict[str, Any]:
    return {"bytes": data, "path": path}


def _list(text: str) -> Callable[[Path], None]:
    """Return a maker of a list of three images."""

    def make(path: Path) -> None:
        for i in range(3):
            path.with_name(f"{i}.jpg").write_bytes(small_jpeg(i))
        path.write_text(text)

    return make


_JSON_LIST = {
    "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(3)],
    "annotations": [{"id": i, "image_id": i, "category_id": i % 2} for i in range(3)],
    "categories": [{"id": i, "name": name} for i, name in enumerate(("cat", "dog"))],
}


def _run_folder(path: Path) -> None:
    """Write a run and the result of an evaluation, as they lie below `--runs`."""
    run = path.parent
    run.mkdir(parents=True)
    lines = [
        {"run_step": i, "stage": "level1", "level": 1, "step": i, "lr": 0.1, "loss": 2.0 / i}
        for i in range(1, 5)
    ]
    checkpoint = {
        "path": str(run / "checkpoints" / "step-00000004.pt"), "sha256": "c" * 64, "kind": "fastpsl",
        "backbone": "resnet50", "science": {"seed": 0},
    }  # fmt: skip
    records: dict[str, Any] = {
        "config": {"options": {"data": "train.beton", "out": str(run), "seed": 0}, "science": {"seed": 0}},
        "status": {"state": "finished", "stage": 1, "step": 4, "reason": ""},
        "results": [{"stage": "level1", "num_steps": 4, "num_steps_planned": 4, "held_out": {"loss": 1.0}}],
        "result": {
            "format": RESULT_FORMAT, "protocol": "linear/vissl", "recipe": "linear_probe",
            "numbers": {"top1_B4": 40.0}, "settings": {"seed": 0}, "checkpoint": checkpoint,
            "data": {"train": "a" * 32, "val": "b" * 32, "num_train": 480, "num_val": 160}, "cut": False,
            "seconds": 1.0, "commit": "", "packages": {}, "date": "2026-01-01T00:00:00+00:00",
        },
    }  # fmt: skip
    for name, record in records.items():
        (run / f"{name}.json").write_text(json.dumps(record))
    for name in ("metrics", "probe", "epochs"):
        (run / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


# How users open them.


def _export(path: Path) -> str:
    backbone = ("--backbone", "resnet18", "--input-channels", "RGB")
    values = ("--input-mean", *(0.5,) * 3, "--input-std", *(0.5,) * 3)
    out = path.parent / "out.pth"
    return _command("export", path, out, "--to", "timm", "--overwrite", *backbone, *values)


def _export_by_json(path: Path) -> str:
    return _command("export", path.with_suffix(""), path.parent / "out.pth", "--to", "timm", "--overwrite")


def _resume(path: Path) -> str:
    options: Any = SimpleNamespace(resume=str(path))
    return "; ".join(find_checkpoint(options, one_process(), path.parents[1], _SCIENCE, {})[2])


def _with_beton(read: Callable[[Path, Beton], Any]) -> Callable[[Path], str]:
    def open(path: Path) -> str:
        with _small_beton(path.parent) as data:
            return str(read(path, data))

    return open


def _open_permutations(path: Path) -> str:
    return str(read_permutations(path).shape)


def _voc(root: Path) -> VOC:
    return VOC(root, ("2007_trainval",), "boxes")


def _open_proposals(path: Path) -> str:
    return str(len(Proposals([path], _voc(path.parent)).boxes(0)))


def _open_voc(path: Path) -> str:
    root = next(parent for parent in path.parents if parent.name == "VOC2007").parent
    data = _voc(root)
    return str([data.objects(i) for i in range(data.num_samples)])


def _write(path: Path) -> str:
    """Write a beton from the file, and return the output of write, info and verify."""
    out = path.parent / "out.beton"
    text = _command("data", "write", path, out, "--overwrite", "--max-bad", "50%", "--workers", "1")
    return text + _command("data", "info", out) + _command("data", "verify", out, "--workers", "1")


def _open_list(path: Path) -> str:
    """Open the list as --data, then write a beton from it."""
    os.environ["XDG_CACHE_HOME"] = str(path.parent / "cache")
    with contextlib.closing(open_data(path)) as data:
        names = data.class_names
    return _write(path) + str(names and len(names))


def _table(path: Path) -> str:
    runs = path.parent.parent
    return _command("table", "psl/4", "--runs", runs, "--out", runs.parent / "out", "--scale", "tiny")


def _curve(path: Path) -> str:
    MetricsFile(path.parent / "metrics.jsonl", 4)
    return draw_curve(path.parent).name


_PARQUET_CELLS = [cell(small_jpeg(i), f"{i}.jpg") for i in range(4)]
_RUN = "runs/jigsaw_r50-001"
RECORDS = ("config.json", "status.json", "results.json", "result.json")
GATES = (
    Gate("w.pth", _pth, _export),
    Gate("w.safetensors", _safetensors, _export),
    Gate("w.pth.json", _export_json, _export_by_json),
    Gate("checkpoints/step-00000003.pt", _checkpoint, _resume),
    Gate("labels.npz", _labels, _with_beton(lambda path, data: read_labels(path, data).num_classes)),
    Gate("p.npy", lambda path: np.save(path, np.stack([_ARANGE, _ARANGE[::-1]])), _open_permutations),
    Gate("p.bin", _permutations_bin, _open_permutations),
    Gate("list.txt", lambda path: path.write_text("0\n3\n"), _with_beton(read_label_list)),
    Gate("list.npy", lambda path: np.save(path, np.array([0, 3])), _with_beton(read_label_list)),
    Gate("p.pkl", _proposals, _open_proposals),
    Gate("p.mat", _proposals_mat, _open_proposals),
    Gate("VOC2007/Annotations/000007.xml", lambda path: voc_2007(path.parents[2]), _open_voc),
    Gate("VOC2007/ImageSets/Main/trainval.txt", lambda path: voc_2007(path.parents[3]), _open_voc),
    Gate("x.npz", lambda path: np.savez(path, images=_photos(), labels=np.arange(4)), _write),
    Gate("x.tar", write_tar, _write),
    Gate("x.tar.gz", _targz, _write),
    Gate("w.tar", _webdataset, _write),
    Gate("t.parquet", lambda path: write_parquet(path, _PARQUET_CELLS, [0, 1, 0, 1]), _write),
    Gate("l.txt", _list("0.jpg 0\n1.jpg 1\n2.jpg 0\n"), _open_list),
    Gate("l.csv", _list("filename,label\n0.jpg,cat\n1.jpg,dog\n2.jpg,cat\n"), _open_list),
    Gate("l.json", _list(json.dumps(_JSON_LIST)), _open_list),
    *(Gate(f"{_RUN}/{name}", _run_folder, _table) for name in RECORDS),
    Gate(f"{_RUN}/metrics.jsonl", _run_folder, _curve),
)
