"""The gates through which files of strangers enter: each has a sound file, and opens a file as users do."""

import contextlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from fastpsl import cli
from fastpsl.engine.reporter import MetricsFile
from fastpsl.engine.resume import find_checkpoint
from fastpsl.evaluation.few_labels import read_label_list
from fastpsl.pipelines.datasets.open import open_data
from fastpsl.pipelines.datasets.voc.dataset import VOC
from fastpsl.plots.charts import draw_curve
from fastpsl.tasks.jigsaw import read_permutations
from fastpsl.tasks.pseudo_labels.file import read_labels
from fastpsl.transfer.detection.proposals import Proposals
from tests.engine.tiny import one_process
from tests.faults.hostile_sound import (
    SCIENCE,
    make_checkpoint,
    make_csv,
    make_export_json,
    make_json_list,
    make_label_array,
    make_label_list,
    make_labels,
    make_list,
    make_npz,
    make_parquet,
    make_permutations,
    make_permutations_bin,
    make_proposals,
    make_proposals_mat,
    make_pth,
    make_safetensors,
    make_tar,
    make_targz,
    make_voc_list,
    make_webdataset,
    make_xml,
    run_folder,
    small_beton,
)


class Gate(NamedTuple):
    """An entrance for files of strangers.

    Attributes:
        name: The name of the file.
        make: Writes the sound file and its companions into an empty folder, and returns the file to attack.
        open: Reads it and returns the text that users see; ValueError or exit code 2 if it is refused.
    """

    name: str
    make: Callable[[Path], Path]
    open: Callable[[Path], str]


class Refused(ValueError):
    """A command that ended with exit code 2, and its output."""


def command(*arguments: object) -> str:
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


def _export(path: Path) -> str:
    backbone = ("--backbone", "resnet18", "--input-channels", "RGB")
    values = ("--input-mean", *(0.5,) * 3, "--input-std", *(0.5,) * 3)
    out = path.parent / "out.pth"
    return command("export", path, out, "--to", "timm", "--overwrite", *backbone, *values)


def _export_by_json(path: Path) -> str:
    return command("export", path.with_suffix(""), path.parent / "out.pth", "--to", "timm", "--overwrite")


def _resume(path: Path) -> str:
    options: Any = SimpleNamespace(resume=str(path))
    return "; ".join(find_checkpoint(options, one_process(), path.parents[1], SCIENCE, {})[2])


def _open_labels(path: Path) -> str:
    with small_beton(path.parent) as data:
        return f"{read_labels(path, data).num_classes} classes"


def _open_label_list(path: Path) -> str:
    with small_beton(path.parent) as data:
        return str(read_label_list(path, data))


def _open_proposals(path: Path) -> str:
    return str(len(Proposals([path], _voc(path.parent)).boxes(0)))


def _voc(root: Path) -> VOC:
    return VOC(root, ("2007_trainval",), "boxes")


def _open_voc(path: Path) -> str:
    root = next(parent for parent in path.parents if parent.name == "VOC2007").parent
    data = _voc(root)
    return str([data.objects(i) for i in range(data.num_samples)])


def _write(path: Path) -> str:
    """Write a beton from the file, and return the output of write, info and verify."""
    out = path.parent / "out.beton"
    text = command("data", "write", path, out, "--overwrite", "--max-bad", "50%", "--workers", "1")
    return text + command("data", "info", out) + command("data", "verify", out, "--workers", "1")


def _open_list(path: Path) -> str:
    """Open the list as --data, then write a beton from it."""
    os.environ["XDG_CACHE_HOME"] = str(path.parent / "cache")
    with contextlib.closing(open_data(path)) as data:
        names = data.class_names
    return _write(path) + str(names and len(names))


def _table(path: Path) -> str:
    runs = path.parent.parent
    return command("table", "psl/4", "--runs", runs, "--out", runs.parent / "out", "--scale", "tiny")


def _curve(path: Path) -> str:
    MetricsFile(path.parent / "metrics.jsonl", 4)
    return draw_curve(path.parent).name


def _of_run(name: str) -> Callable[[Path], Path]:
    return lambda folder: run_folder(folder) / name


GATES = (
    Gate("w.pth", make_pth, _export),
    Gate("w.safetensors", make_safetensors, _export),
    Gate("w.pth.json", make_export_json, _export_by_json),
    Gate("step-00000003.pt", make_checkpoint, _resume),
    Gate("labels.npz", make_labels, _open_labels),
    Gate("p.npy", make_permutations, lambda path: str(read_permutations(path).shape)),
    Gate("p.bin", make_permutations_bin, lambda path: str(read_permutations(path).shape)),
    Gate("list.txt", make_label_list, _open_label_list),
    Gate("list.npy", make_label_array, _open_label_list),
    Gate("p.pkl", make_proposals, _open_proposals),
    Gate("p.mat", make_proposals_mat, _open_proposals),
    Gate("000007.xml", make_xml, _open_voc),
    Gate("trainval.txt", make_voc_list, _open_voc),
    Gate("x.npz", make_npz, _write),
    Gate("x.tar", make_tar, _write),
    Gate("x.tar.gz", make_targz, _write),
    Gate("w.tar", make_webdataset, _write),
    Gate("t.parquet", make_parquet, _write),
    Gate("l.txt", make_list, _open_list),
    Gate("l.csv", make_csv, _open_list),
    Gate("l.json", make_json_list, _open_list),
    Gate("config.json", _of_run("config.json"), _table),
    Gate("status.json", _of_run("status.json"), _table),
    Gate("results.json", _of_run("results.json"), _table),
    Gate("result.json", _of_run("result.json"), _table),
    Gate("metrics.jsonl", _of_run("metrics.jsonl"), _curve),
)
