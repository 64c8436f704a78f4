"""Where files of strangers come in: each gate has a sound file, and a way of opening it as users do."""

import contextlib
import gzip
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch

from fastpsl import cli
from fastpsl.evaluation.label_lists import read_label_list
from fastpsl.evaluation.result import FORMAT as RESULT_FORMAT
from fastpsl.label_file import read_labels, write_labels
from fastpsl.permutations import read_permutations
from fastpsl.pictures import draw_curve
from fastpsl.pipelines.beton import Beton
from fastpsl.pipelines.data import open_data
from fastpsl.pipelines.voc import VOC
from fastpsl.reporter import MetricsFile
from fastpsl.resume import find_checkpoint
from fastpsl.transfer.proposals import Proposals
from tests.fastpsl.tiny import one_process
from tests.pipelines.photos import jpeg, photo, photo_samples, write
from tests.pipelines.voc_folders import voc_2007


class Gate(NamedTuple):
    """name    the file's, as a user has it
    make    writes the sound file and what belongs to it into an empty folder; the path of the file that is attacked
    open    reads it; gives what was said, for people. ValueError or exit code 2 where it is refused
    """

    name: str
    make: Callable[[Path], Path]
    open: Callable[[Path], str]


class Refused(ValueError):
    """A command that ended with exit code 2, and what it said."""


def command(*arguments: object) -> str:
    """What `fastpsl ...` says, in this process. Refused where it ends with 2; assertion where with anything else but 0."""
    output = io.BytesIO()
    stream = io.TextIOWrapper(output, encoding="utf-8", write_through=True)
    code: object = 0
    with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        try:
            cli.main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code or 0
    said = output.getvalue().decode(errors="surrogateescape")
    if code == cli.EXIT_USER_ERROR:
        raise Refused(said)
    assert code == 0, (code, said)
    return said


def _picture(seed: int = 0) -> bytes:
    return jpeg(photo(seed, 32, 40))


def _weights() -> dict[str, torch.Tensor]:
    return {"conv1.weight": torch.arange(64 * 3 * 7 * 7, dtype=torch.float32).reshape(64, 3, 7, 7)}


def _make_pth(folder: Path) -> Path:
    torch.save({"state_dict": _weights()}, folder / "w.pth")
    return folder / "w.pth"


def _make_safetensors(folder: Path) -> Path:
    from safetensors.torch import save_file

    save_file(
        _weights(), folder / "w.safetensors", metadata={"fastpsl": json.dumps({"backbone": "resnet18"})}
    )
    return folder / "w.safetensors"


def _make_told(folder: Path) -> Path:
    _make_pth(folder)
    (folder / "w.pth.json").write_text(json.dumps({"sha256": "0", "backbone": "resnet18"}))
    return folder / "w.pth.json"


def _export(path: Path) -> str:
    told = [
        "--backbone",
        "resnet18",
        "--input-channels",
        "RGB",
        "--input-mean",
        "0.5",
        "0.5",
        "0.5",
        "--input-std",
        "0.5",
        "0.5",
        "0.5",
    ]
    return command("export", path, path.parent / "out.pth", "--to", "timm", "--overwrite", *told)


def _export_told(path: Path) -> str:
    return command("export", path.with_suffix(""), path.parent / "out.pth", "--to", "timm", "--overwrite")


_SCIENCE = {"recipe": "jigsaw_r50", "seed": 0}


def _make_checkpoint(folder: Path) -> Path:
    position = {"stage": 0, "step": 3, "run_step": 3, "first_epoch": 0, "seconds": 1.0, "summaries": []}
    state = {
        "format": 1, "science": _SCIENCE, "machine": {}, "position": position,
        "backbone": _weights(), "learner": {}, "task": {},
    }  # fmt: skip
    path = folder / "checkpoints" / "step-00000003.pt"
    path.parent.mkdir()
    torch.save(state, path)
    return path


def _resume(path: Path) -> str:
    options: Any = SimpleNamespace(resume=str(path))
    return "; ".join(find_checkpoint(options, one_process(), path.parents[1], _SCIENCE, {})[2])


def _data(folder: Path) -> Beton:
    path = folder / "data.beton"
    if not path.exists():
        write(path, photo_samples(6))
    return Beton(path)


def _make_labels(folder: Path) -> Path:
    with _data(folder) as data:
        return write_labels(folder / "labels.npz", np.arange(6) % 3, 3, data, "by hand")


def _open_labels(path: Path) -> str:
    with _data(path.parent) as data:
        return f"{read_labels(path, data).num_classes} classes"


def _make_permutations(folder: Path) -> Path:
    np.save(folder / "p.npy", np.stack([np.arange(9), np.arange(9)[::-1]]))
    return folder / "p.npy"


def _make_permutations_bin(folder: Path) -> Path:
    rows = np.stack([np.arange(9), np.arange(9)[::-1]]) + 1
    (folder / "p.bin").write_bytes(np.array([2, 9], "<i4").tobytes() + rows.astype("<i4").tobytes())
    return folder / "p.bin"


def _make_label_list(folder: Path) -> Path:
    (folder / "list.txt").write_text("0\n3\n")
    return folder / "list.txt"


def _make_label_array(folder: Path) -> Path:
    np.save(folder / "list.npy", np.array([0, 3]))
    return folder / "list.npy"


def _open_label_list(path: Path) -> str:
    with _data(path.parent) as data:
        return str(read_label_list(path, data))


_BOXES = np.array([[1, 1, 20, 20], [2, 3, 30, 40]], np.float32)


def _make_proposals(folder: Path) -> Path:
    import pickle

    voc_2007(folder)
    record = {"boxes": [_BOXES] * 2, "scores": [np.ones(2, np.float32)] * 2, "ids": [5, 7]}
    (folder / "p.pkl").write_bytes(pickle.dumps(record, protocol=2))
    return folder / "p.pkl"


def _make_proposals_mat(folder: Path) -> Path:
    from scipy.io import savemat

    voc_2007(folder)
    cells = {"images": np.empty(2, object), "boxes": np.empty(2, object)}
    cells["images"][:], cells["boxes"][:] = ["000005", "000007"], [_BOXES, _BOXES]
    savemat(folder / "p.mat", cells)
    return folder / "p.mat"


def _open_proposals(path: Path) -> str:
    return str(len(Proposals([path], _voc(path.parent)).boxes(0)))


def _voc(root: Path) -> VOC:
    return VOC(root, ("2007_trainval",), "boxes")


def _make_xml(folder: Path) -> Path:
    return voc_2007(folder) / "VOC2007" / "Annotations" / "000007.xml"


def _make_voc_list(folder: Path) -> Path:
    return voc_2007(folder) / "VOC2007" / "ImageSets" / "Main" / "trainval.txt"


def _open_voc(path: Path) -> str:
    root = next(parent for parent in path.parents if parent.name == "VOC2007").parent
    data = _voc(root)
    return str([data.objects(i) for i in range(data.num_samples)])


def _write(path: Path) -> str:
    """As a source of `fastpsl beton write`, and what info and verify say of the beton."""
    out = path.parent / "out.beton"
    said = command("beton", "write", path, out, "--overwrite", "--max-bad", "50%", "--workers", "1")
    return said + command("beton", "info", out) + command("beton", "verify", out, "--workers", "1")


def _make_npz(folder: Path) -> Path:
    np.savez(folder / "x.npz", images=np.stack([photo(i, 16, 16) for i in range(4)]), labels=np.arange(4))
    return folder / "x.npz"


def make_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def _make_tar(folder: Path) -> Path:
    return make_tar(folder / "x.tar", {f"c{i % 2}/{i}.jpg": _picture(i) for i in range(4)})


def _make_targz(folder: Path) -> Path:
    path = _make_tar(folder)
    packed = path.with_name("x.tar.gz")
    packed.write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    path.unlink()
    return packed


def _make_webdataset(folder: Path) -> Path:
    members = {}
    for i in range(4):
        members |= {f"{i:03}.jpg": _picture(i), f"{i:03}.json": json.dumps({"label": i}).encode()}
    return make_tar(folder / "w.tar", members)


def _make_parquet(folder: Path) -> Path:
    import pyarrow
    from pyarrow import parquet

    cells = [{"bytes": _picture(i), "path": f"{i}.jpg"} for i in range(4)]
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    parquet.write_table(
        pyarrow.table({"image": pyarrow.array(cells, kind), "label": [0, 1, 0, 1]}), folder / "t.parquet"
    )
    return folder / "t.parquet"


def _pictures(folder: Path) -> None:
    for i in range(3):
        (folder / f"{i}.jpg").write_bytes(_picture(i))


def _make_list(folder: Path) -> Path:
    _pictures(folder)
    (folder / "l.txt").write_text("0.jpg 0\n1.jpg 1\n2.jpg 0\n")
    return folder / "l.txt"


def _make_csv(folder: Path) -> Path:
    _pictures(folder)
    (folder / "l.csv").write_text("filename,label\n0.jpg,cat\n1.jpg,dog\n2.jpg,cat\n")
    return folder / "l.csv"


def _make_json_list(folder: Path) -> Path:
    _pictures(folder)
    record = {
        "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(3)],
        "annotations": [{"id": i, "image_id": i, "category_id": i % 2} for i in range(3)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(("cat", "dog"))],
    }
    (folder / "l.json").write_text(json.dumps(record))
    return folder / "l.json"


def _open_list(path: Path) -> str:
    """As --data, and written."""
    os.environ["XDG_CACHE_HOME"] = str(path.parent / "cache")
    with contextlib.closing(open_data(path)) as data:
        names = data.class_names
    return _write(path) + str(names and len(names))


def run_folder(folder: Path) -> Path:
    """A run and the result of an evaluation, as they lie below `--runs`."""
    run = folder / "runs" / "jigsaw_r50-001"
    run.mkdir(parents=True)
    options = {"data": "train.beton", "out": str(run), "seed": 0}
    (run / "config.json").write_text(json.dumps({"options": options, "science": {"seed": 0}}))
    (run / "status.json").write_text(json.dumps({"state": "finished", "stage": 1, "step": 4, "reason": ""}))
    stage = {"stage": "level1", "num_steps": 4, "num_steps_planned": 4, "held_out": {"loss": 1.0}}
    (run / "results.json").write_text(json.dumps([stage]))
    lines = [
        {"run_step": i, "stage": "level1", "level": 1, "step": i, "lr": 0.1, "loss": 2.0 / i}
        for i in range(1, 5)
    ]
    for name in ("metrics.jsonl", "probe.jsonl", "epochs.jsonl"):
        (run / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    checkpoint = {
        "path": str(run / "checkpoints" / "step-00000004.pt"),
        "sha256": "c" * 64,
        "kind": "fastpsl",
    }
    record = {
        "format": RESULT_FORMAT, "protocol": "linear/vissl", "recipe": "linear_probe", "numbers": {"top1_B4": 40.0},
        "settings": {"seed": 0}, "checkpoint": checkpoint | {"backbone": "resnet50", "science": {"seed": 0}},
        "data": {"train": "a" * 32, "val": "b" * 32, "num_train": 480, "num_val": 160}, "cut": False, "seconds": 1.0,
        "commit": "", "packages": {}, "date": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    (run / "result.json").write_text(json.dumps(record))
    return run


def _table(path: Path) -> str:
    runs = path.parent.parent
    return command("table", "psl/4", "--runs", runs, "--out", runs.parent / "out", "--scale", "tiny")


def _curve(path: Path) -> str:
    MetricsFile(path.parent / "metrics.jsonl", 4)
    return draw_curve(path.parent).name


def _of_run(name: str) -> Callable[[Path], Path]:
    return lambda folder: run_folder(folder) / name


GATES = (
    Gate("w.pth", _make_pth, _export),
    Gate("w.safetensors", _make_safetensors, _export),
    Gate("w.pth.json", _make_told, _export_told),
    Gate("step-00000003.pt", _make_checkpoint, _resume),
    Gate("labels.npz", _make_labels, _open_labels),
    Gate("p.npy", _make_permutations, lambda path: str(read_permutations(path).shape)),
    Gate("p.bin", _make_permutations_bin, lambda path: str(read_permutations(path).shape)),
    Gate("list.txt", _make_label_list, _open_label_list),
    Gate("list.npy", _make_label_array, _open_label_list),
    Gate("p.pkl", _make_proposals, _open_proposals),
    Gate("p.mat", _make_proposals_mat, _open_proposals),
    Gate("000007.xml", _make_xml, _open_voc),
    Gate("trainval.txt", _make_voc_list, _open_voc),
    Gate("x.npz", _make_npz, _write),
    Gate("x.tar", _make_tar, _write),
    Gate("x.tar.gz", _make_targz, _write),
    Gate("w.tar", _make_webdataset, _write),
    Gate("t.parquet", _make_parquet, _write),
    Gate("l.txt", _make_list, _open_list),
    Gate("l.csv", _make_csv, _open_list),
    Gate("l.json", _make_json_list, _open_list),
    Gate("config.json", _of_run("config.json"), _table),
    Gate("status.json", _of_run("status.json"), _table),
    Gate("results.json", _of_run("results.json"), _table),
    Gate("result.json", _of_run("result.json"), _table),
    Gate("metrics.jsonl", _of_run("metrics.jsonl"), _curve),
)
