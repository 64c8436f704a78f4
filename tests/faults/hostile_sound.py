"""Sound files of every kind that strangers may send, with their companions; functions return the paths."""

import gzip
import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import torch

from fastpsl.evaluation.result import FORMAT as RESULT_FORMAT
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.tasks.pseudo_labels.file import write_labels
from tests.pipelines.photos import jpeg, photo, photo_samples, write
from tests.pipelines.voc_folders import voc_2007


def _jpeg(seed: int = 0) -> bytes:
    return jpeg(photo(seed, 32, 40))


def _weights() -> dict[str, torch.Tensor]:
    return {"conv1.weight": torch.arange(64 * 3 * 7 * 7, dtype=torch.float32).reshape(64, 3, 7, 7)}


def make_pth(folder: Path) -> Path:
    torch.save({"state_dict": _weights()}, folder / "w.pth")
    return folder / "w.pth"


def make_safetensors(folder: Path) -> Path:
    from safetensors.torch import save_file

    save_file(
        _weights(), folder / "w.safetensors", metadata={"fastpsl": json.dumps({"backbone": "resnet18"})}
    )
    return folder / "w.safetensors"


def make_export_json(folder: Path) -> Path:
    make_pth(folder)
    (folder / "w.pth.json").write_text(json.dumps({"sha256": "0", "backbone": "resnet18"}))
    return folder / "w.pth.json"


SCIENCE = {"recipe": "jigsaw_r50", "seed": 0}


def make_checkpoint(folder: Path) -> Path:
    position = {"stage": 0, "step": 3, "run_step": 3, "first_epoch": 0, "seconds": 1.0, "summaries": []}
    state = {
        "format": 1, "science": SCIENCE, "machine": {}, "position": position,
        "num_stages": 1, "backbone": _weights(), "train_step": {}, "task": {}, "choices": {},
    }  # fmt: skip
    path = folder / "checkpoints" / "step-00000003.pt"
    path.parent.mkdir()
    torch.save(state, path)
    return path


def small_beton(folder: Path) -> Beton:
    path = folder / "data.beton"
    if not path.exists():
        write(path, photo_samples(6))
    return Beton(path)


def make_labels(folder: Path) -> Path:
    with small_beton(folder) as data:
        return write_labels(folder / "labels.npz", np.arange(6) % 3, 3, data, "by hand")


def make_permutations(folder: Path) -> Path:
    np.save(folder / "p.npy", np.stack([np.arange(9), np.arange(9)[::-1]]))
    return folder / "p.npy"


def make_permutations_bin(folder: Path) -> Path:
    rows = np.stack([np.arange(9), np.arange(9)[::-1]]) + 1
    (folder / "p.bin").write_bytes(np.array([2, 9], "<i4").tobytes() + rows.astype("<i4").tobytes())
    return folder / "p.bin"


def make_label_list(folder: Path) -> Path:
    (folder / "list.txt").write_text("0\n3\n")
    return folder / "list.txt"


def make_label_array(folder: Path) -> Path:
    np.save(folder / "list.npy", np.array([0, 3]))
    return folder / "list.npy"


_BOXES = np.array([[1, 1, 20, 20], [2, 3, 30, 40]], np.float32)


def make_proposals(folder: Path) -> Path:
    voc_2007(folder)
    record = {"boxes": [_BOXES] * 2, "scores": [np.ones(2, np.float32)] * 2, "ids": [5, 7]}
    (folder / "p.pkl").write_bytes(pickle.dumps(record, protocol=2))
    return folder / "p.pkl"


def make_proposals_mat(folder: Path) -> Path:
    from scipy.io import savemat

    voc_2007(folder)
    cells = {"images": np.empty(2, object), "boxes": np.empty(2, object)}
    cells["images"][:], cells["boxes"][:] = ["000005", "000007"], [_BOXES, _BOXES]
    savemat(folder / "p.mat", cells)
    return folder / "p.mat"


def make_xml(folder: Path) -> Path:
    return voc_2007(folder) / "VOC2007" / "Annotations" / "000007.xml"


def make_voc_list(folder: Path) -> Path:
    return voc_2007(folder) / "VOC2007" / "ImageSets" / "Main" / "trainval.txt"


def make_npz(folder: Path) -> Path:
    np.savez(folder / "x.npz", images=np.stack([photo(i, 16, 16) for i in range(4)]), labels=np.arange(4))
    return folder / "x.npz"


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def make_tar(folder: Path) -> Path:
    return write_tar(folder / "x.tar", {f"c{i % 2}/{i}.jpg": _jpeg(i) for i in range(4)})


def make_targz(folder: Path) -> Path:
    path = make_tar(folder)
    packed = path.with_name("x.tar.gz")
    packed.write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    path.unlink()
    return packed


def make_webdataset(folder: Path) -> Path:
    members: dict[str, bytes] = {}
    for i in range(4):
        members |= {f"{i:03}.jpg": _jpeg(i), f"{i:03}.json": json.dumps({"label": i}).encode()}
    return write_tar(folder / "w.tar", members)


def make_parquet(folder: Path) -> Path:
    import pyarrow
    from pyarrow import parquet

    cells = [{"bytes": _jpeg(i), "path": f"{i}.jpg"} for i in range(4)]
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    parquet.write_table(
        pyarrow.table({"image": pyarrow.array(cells, kind), "label": [0, 1, 0, 1]}), folder / "t.parquet"
    )
    return folder / "t.parquet"


def _write_images(folder: Path) -> None:
    for i in range(3):
        (folder / f"{i}.jpg").write_bytes(_jpeg(i))


def make_list(folder: Path) -> Path:
    _write_images(folder)
    (folder / "l.txt").write_text("0.jpg 0\n1.jpg 1\n2.jpg 0\n")
    return folder / "l.txt"


def make_csv(folder: Path) -> Path:
    _write_images(folder)
    (folder / "l.csv").write_text("filename,label\n0.jpg,cat\n1.jpg,dog\n2.jpg,cat\n")
    return folder / "l.csv"


def make_json_list(folder: Path) -> Path:
    _write_images(folder)
    record = {
        "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(3)],
        "annotations": [{"id": i, "image_id": i, "category_id": i % 2} for i in range(3)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(("cat", "dog"))],
    }
    (folder / "l.json").write_text(json.dumps(record))
    return folder / "l.json"


def run_folder(folder: Path) -> Path:
    """Write a run and the result of an evaluation, as they lie below `--runs`."""
    run = folder / "runs" / "jigsaw_r50-001"
    run.mkdir(parents=True)
    options = {"data": "train.beton", "out": str(run), "seed": 0}
    (run / "config.json").write_text(json.dumps({"options": options, "science": {"seed": 0}}))
    (run / "status.json").write_text(json.dumps({"state": "finished", "stage": 1, "step": 4, "reason": ""}))
    stage = {"stage": "level1", "num_steps": 4, "num_steps_planned": 4, "val": {"loss": 1.0}}
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
        "format": RESULT_FORMAT, "protocol": "linear/vissl", "recipe": "linear_probe",
        "numbers": {"top1_B4": 40.0},
        "settings": {"seed": 0}, "checkpoint": checkpoint | {"backbone": "resnet50", "science": {"seed": 0}},
        "data": {"train": "a" * 32, "val": "b" * 32, "num_train": 480, "num_val": 160}, "cut": False,
        "seconds": 1.0,
        "commit": "", "packages": {}, "date": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    (run / "result.json").write_text(json.dumps(record))
    return run
