"""The gates through which files of strangers enter: each has a sound file, and opens a file as users do."""

import contextlib
import gzip
import io
import json
import os
import pickle
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch

from fastpsl import cli
from fastpsl.engine.reporter import MetricsFile
from fastpsl.engine.resume import find_checkpoint
from fastpsl.evaluation.few_labels import read_label_list
from fastpsl.evaluation.result_file import FORMAT as RESULT_FORMAT
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.datasets.open import open_data
from fastpsl.pipelines.datasets.voc.dataset import VOC
from fastpsl.plots.charts import draw_curve
from fastpsl.tasks.jigsaw import read_permutations
from fastpsl.tasks.pseudo_labels.file import read_labels, write_labels
from fastpsl.transfer.detection.proposals import Proposals
from tests.engine.tiny import one_process
from tests.pipelines.photos import jpeg, photo, photo_samples, write
from tests.pipelines.voc_folders import voc_2007

_SCIENCE = {"recipe": "jigsaw_r50", "seed": 0}


class Refused(ValueError):
    """A command that ended with exit code 2, and its output."""


def command(*arguments: object) -> str:
    """Run `fastpsl ...` in this process and return its output; raise Refused for exit code 2."""
    output = io.BytesIO()
    stream = io.TextIOWrapper(output, encoding="utf-8", write_through=True)
    code: object = 0
    with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream), warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        try:
            cli.main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code or 0
    text = output.getvalue().decode(errors="surrogateescape")
    if code == cli.EXIT_USER_ERROR:
        raise Refused(text)
    assert code == 0, (code, text)
    return text


def small_jpeg(seed: int = 0) -> bytes:
    return jpeg(photo(seed, 32, 40))


def _small_beton(folder: Path) -> Beton:
    path = folder / "data.beton"
    return Beton(path if path.exists() else write(path, photo_samples(6)))


def add(tar: tarfile.TarFile, name: str, data: Any, size: int | None = None, **values: Any) -> None:
    """Add a member of these bytes, or of `size` bytes of a file, with other values in its header."""
    info = tarfile.TarInfo(name)
    info.size = len(data) if size is None else size
    for key, value in values.items():
        setattr(info, key, value)
    tar.addfile(info, io.BytesIO(data) if isinstance(data, bytes) else data)


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            add(tar, name, data)


def write_parquet(path: Path, cells: list[Any], labels: list[int] | None) -> None:
    import pyarrow
    from pyarrow import parquet

    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    table = {"image": pyarrow.array(cells, kind)} | ({"label": labels} if labels else {})
    parquet.write_table(pyarrow.table(table), path)


def cell(data: bytes | None, path: str | None) -> dict[str, Any]:
    return {"bytes": data, "path": path}


def _write_run(run: Path) -> None:
    """Write a run and the result of an evaluation, as they lie below `--runs`."""
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
        "results": [{"stage": "level1", "num_steps": 4, "num_steps_planned": 4, "val": {"loss": 1.0}}],
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


_WEIGHTS = torch.arange(64 * 3 * 7 * 7, dtype=torch.float32).reshape(64, 3, 7, 7)
_PERMUTATIONS = np.stack([np.arange(9), np.arange(9)[::-1]])
_BOXES = np.array([[1, 1, 20, 20], [2, 3, 30, 40]], np.float32)
_LISTS = {
    "l.txt": "0.jpg 0\n1.jpg 1\n2.jpg 0\n",
    "l.csv": "filename,label\n0.jpg,cat\n1.jpg,dog\n2.jpg,cat\n",
    "l.json": json.dumps(
        {
            "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(3)],
            "annotations": [{"id": i, "image_id": i, "category_id": i % 2} for i in range(3)],
            "categories": [{"id": i, "name": name} for i, name in enumerate(("cat", "dog"))],
        }
    ),
}
RECORDS = ("config.json", "status.json", "results.json", "result.json")


def make_sound(path: Path) -> None:
    """Write the sound file of this name, and its companions."""
    from safetensors.torch import save_file
    from scipy.io import savemat

    weights = {"conv1.weight": _WEIGHTS.clone()}
    match path.name:
        case "w.pth":
            torch.save({"state_dict": weights}, path)
        case "w.safetensors":
            save_file(weights, path, metadata={"fastpsl": json.dumps({"backbone": "resnet18"})})
        case "w.pth.json":
            make_sound(path.with_suffix(""))
            path.write_text(json.dumps({"sha256": "0", "backbone": "resnet18"}))
        case "step-00000003.pt":
            path.parent.mkdir()
            position = {"stage": 0, "step": 3, "run_step": 3, "first_epoch": 0, "seconds": 1.0}
            state = {
                "format": 1,
                "science": _SCIENCE,
                "machine": {},
                "position": position | {"summaries": []},
                "num_stages": 1,
                "choices": {},
            }
            torch.save({**state, "backbone": weights, "train_step": {}, "task": {}}, path)
        case "labels.npz":
            with _small_beton(path.parent) as data:
                write_labels(path, np.arange(6) % 3, 3, data, "by hand")
        case "p.npy":
            np.save(path, _PERMUTATIONS)
        case "p.bin":
            path.write_bytes(np.array([2, 9], "<i4").tobytes() + (_PERMUTATIONS + 1).astype("<i4").tobytes())
        case "list.txt":
            path.write_text("0\n3\n")
        case "list.npy":
            np.save(path, np.array([0, 3]))
        case "p.pkl":
            voc_2007(path.parent)
            record = {"boxes": [_BOXES] * 2, "scores": [np.ones(2, np.float32)] * 2, "ids": [5, 7]}
            path.write_bytes(pickle.dumps(record, protocol=2))
        case "p.mat":
            voc_2007(path.parent)
            cells = {"images": np.empty(2, object), "boxes": np.empty(2, object)}
            cells["images"][:], cells["boxes"][:] = ["000005", "000007"], [_BOXES, _BOXES]
            savemat(path, cells)
        case "000007.xml" | "trainval.txt":
            voc_2007(_voc_root(path))
        case "x.npz":
            np.savez(path, images=np.stack([photo(i, 16, 16) for i in range(4)]), labels=np.arange(4))
        case "x.tar" | "x.tar.gz":
            write_tar(path, {f"c{i % 2}/{i}.jpg": small_jpeg(i) for i in range(4)})
            if path.suffix == ".gz":
                path.write_bytes(gzip.compress(path.read_bytes(), mtime=0))
        case "w.tar":
            members: dict[str, bytes] = {}
            for i in range(4):
                members |= {f"{i:03}.jpg": small_jpeg(i), f"{i:03}.json": b'{"label": %d}' % i}
            write_tar(path, members)
        case "t.parquet":
            write_parquet(path, [cell(small_jpeg(i), f"{i}.jpg") for i in range(4)], [0, 1, 0, 1])
        case "l.txt" | "l.csv" | "l.json":
            for i in range(3):
                path.with_name(f"{i}.jpg").write_bytes(small_jpeg(i))
            path.write_text(_LISTS[path.name])
        case _:
            _write_run(path.parent)


def open_as_users(path: Path) -> str:
    """Open the file of this name as users do, and return the text that they see."""
    here, name = path.parent, path.name
    match name:
        case "w.pth" | "w.safetensors" | "w.pth.json":
            weights = here / name.removesuffix(".json")
            backbone = ("--backbone", "resnet18", "--input-channels", "RGB")
            values = (*backbone, "--input-mean", *(0.5,) * 3, "--input-std", *(0.5,) * 3)
            options = values if weights == path else ()
            return command("export", weights, here / "out.pth", "--to", "timm", "--overwrite", *options)
        case "step-00000003.pt":
            resuming: Any = SimpleNamespace(resume=str(path))
            return "; ".join(find_checkpoint(resuming, one_process(), path.parents[1], _SCIENCE, {})[2])
        case "labels.npz":
            with _small_beton(here) as data:
                return f"{read_labels(path, data).num_classes} classes"
        case "list.txt" | "list.npy":
            with _small_beton(here) as data:
                return str(read_label_list(path, data))
        case "p.npy" | "p.bin":
            return str(read_permutations(path).shape)
        case "p.pkl" | "p.mat":
            return str(len(Proposals([path], _voc(here)).boxes(0)))
        case "000007.xml" | "trainval.txt":
            voc = _voc(_voc_root(path))
            return str([voc.objects(i) for i in range(voc.num_samples)])
        case "l.txt" | "l.csv" | "l.json":  # as --data, then a beton is written from it
            os.environ["XDG_CACHE_HOME"] = str(here / "cache")
            with contextlib.closing(open_data(path)) as listed:
                names = listed.class_names
            return _write(path) + str(names and len(names))
        case "metrics.jsonl":
            MetricsFile(path, 4)
            return draw_curve(here).name
        case _ if name in RECORDS:
            out = here.parents[1] / "out"
            return command("table", "psl/4", "--runs", here.parent, "--out", out, "--scale", "tiny")
    return _write(path)


def _write(path: Path) -> str:
    """Write a beton from the file, and return the output of write, info and verify."""
    out = path.parent / "out.beton"
    text = command("data", "write", path, out, "--overwrite", "--max-bad", "50%", "--workers", "1")
    return text + command("data", "info", out) + command("data", "verify", out, "--workers", "1")


def _voc(root: Path) -> VOC:
    return VOC(root, ("2007_trainval",), "boxes")


def _voc_root(path: Path) -> Path:
    return next(parent for parent in path.parents if parent.name == "VOC2007").parent


class Gate(NamedTuple):
    """An entrance for files of strangers.

    Attributes:
        make: Writes the sound file and its companions, with the path of that file.
        open: Reads it and returns the text that users see; ValueError or exit code 2 if it is refused.
        names: What a refusal may name instead of the file.
    """

    place: str  # the file to attack, within a folder
    command: str = ""  # which opens it, where several do
    make: Callable[[Path], object] = make_sound
    open: Callable[[Path], str] = open_as_users
    names: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.command} {Path(self.place).name}".strip()


GATES = tuple(map(Gate, (
    "w.pth", "w.safetensors", "w.pth.json", "checkpoints/step-00000003.pt", "labels.npz", "p.npy", "p.bin",
    "list.txt", "list.npy", "p.pkl", "p.mat", "VOC2007/Annotations/000007.xml",
    "VOC2007/ImageSets/Main/trainval.txt", "x.npz", "x.tar", "x.tar.gz", "w.tar", "t.parquet", "l.txt",
    "l.csv", "l.json", *(f"runs/jigsaw_r50-001/{name}" for name in (*RECORDS, "metrics.jsonl")),
)))  # fmt: skip
