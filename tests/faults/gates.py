"""The gates through which files of strangers enter: for each kind of file a small sound one, and its reader.

A reader returns plain data, or raises a ValueError of one line that names the file. It writes nothing.
"""

import contextlib
import functools
import gzip
import hashlib
import io
import json
import os
import pickle
import struct
import warnings
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from fastpsl import cli
from fastpsl.engine.dataset_pass import read_predictions
from fastpsl.engine.resume import find_checkpoint
from fastpsl.evaluation.feature_file import read_features
from fastpsl.evaluation.few_labels import read_label_list
from fastpsl.evaluation.outcomes import _read_outcome
from fastpsl.evaluation.replay import PastRun
from fastpsl.evaluation.result_file import FORMAT, read_result
from fastpsl.evaluation.trained_run import TrainedRun
from fastpsl.files.digest import sha256_of_file
from fastpsl.files.run_folder import LINES, read_lines
from fastpsl.files.untrusted import load_plain
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.kernels.geometry import Flip
from fastpsl.models.weights import open_weights
from fastpsl.pipelines.beton.encode import Target
from fastpsl.pipelines.beton.output import Journal
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.verify import verify
from fastpsl.pipelines.beton.write import write_beton
from fastpsl.pipelines.datasets import measured
from fastpsl.pipelines.datasets import open_folder as folders
from fastpsl.pipelines.datasets.open import open_data, open_source
from fastpsl.pipelines.datasets.voc.annotations import read_mask
from fastpsl.pipelines.datasets.voc.dataset import VOC, _bytes
from fastpsl.pipelines.image.codec import Codec
from fastpsl.pipelines.image.image_file import decode_any, read_image_file, upright_size
from fastpsl.pipelines.interface.dataset import BadImage
from fastpsl.pipelines.interface.source import Sample
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.views import ViewSpec
from fastpsl.scripts.recipe import values_of_config
from fastpsl.scripts.recipe_files import find_recipe
from fastpsl.tables.results import index_runs
from fastpsl.tables.runs import Run
from fastpsl.tasks.jigsaw import read_permutations
from fastpsl.tasks.pseudo_labels.file import read_labels, write_labels
from fastpsl.transfer.detection.proposals import Proposals
from tests.engine.tiny import one_process
from tests.pipelines.photos import DECODERS, exif, file_of, jpeg, photo
from tests.pipelines.published_files import old_pickle
from tests.pipelines.voc_folders import mask_of, save_mask, voc_2007, write_sbd_mask
from tests.pipelines.written import tar_bytes


class Gate(NamedTuple):
    """An entrance for files of strangers.

    Attributes:
        make: Writes the sound file at a path, and its companions.
        open: Reads it, and returns what was read, which is compared in words where the gate is `exact`.
        seal: Computes the checksums of damaged bytes anew, so that readers look behind them.
        exact: The file has checksums, so that other data than the sound file's must be refused or `found`.
        named: A refusal names the file.
    """

    make: Callable[[Path], object]
    open: Callable[[Path], object]
    seal: Callable[[bytes], bytes] = bytes
    exact: bool = False
    named: bool = True


FOUND = "read, and found by `fastpsl data verify`"


def root_of(path: Path) -> Path:
    """Return the folder of a case, which is named here."""
    return next(parent for parent in path.parents if parent.name == "here")


def command(*arguments: object) -> str:
    """Run `fastpsl ...` in this process and return its output; raise Refused for exit code 2."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    code: object = 0
    with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream), warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        try:
            cli.main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code or 0
    text = stream.buffer.getvalue().decode(errors="surrogateescape")  # type: ignore[attr-defined]
    if code == cli.EXIT_USER_ERROR:
        raise Refused(text)
    assert code == 0, (code, text)
    return str(text)


class Refused(ValueError):
    """The end of a command with exit code 2, with all that it printed."""


# Weights, checkpoints and arrays.

_TENSORS = {"conv1.weight": torch.arange(64 * 3 * 7 * 7, dtype=torch.float32).reshape(64, 3, 7, 7)}
_SCIENCE = {"recipe": "jigsaw_r50", "seed": 0, "backbone": "resnet18"}
_PERMUTATIONS = np.stack([np.arange(9), np.arange(9)[::-1]])


def _save_safetensors(path: Path) -> None:
    from safetensors.torch import save_file

    save_file(_TENSORS, path, metadata={"fastpsl": json.dumps(_exported())})


def _exported() -> dict[str, Any]:
    input = {"channels": "RGB", "size_px": 224, "mean": [0.5] * 3, "std": [0.5] * 3}
    return {"backbone": "resnet18", "input": input, "science": _SCIENCE, "run_step": 3}


def _save_exported(path: Path) -> None:
    torch.save(_TENSORS, path.with_suffix(""))
    path.write_text(json.dumps({**_exported(), "sha256": sha256_of_file(path.with_suffix(""))}))


def _save_checkpoint(path: Path) -> None:
    position = {"stage": 0, "step": 3, "run_step": 3, "first_epoch": 0, "seconds": 1.0, "summaries": []}
    state = {"format": 1, "science": _SCIENCE, "machine": {}, "position": position, "num_stages": 1}
    more = {"choices": {}, "train_step": {}, "task": {}, "input": _exported()["input"]}
    path.parent.mkdir()
    torch.save({**state, **more, "backbone": _TENSORS}, path)


def _open_checkpoint(path: Path) -> object:
    open_weights(path)
    resuming: Any = SimpleNamespace(resume=str(path))
    return find_checkpoint(resuming, one_process(), path.parents[1], _SCIENCE, {})[2]


def _small_beton(folder: Path) -> Beton:
    path = folder / "data.beton"
    return Beton(path if path.exists() else write_photos(path, "jpg", 6))


def _save_labels(path: Path) -> None:
    with _small_beton(path.parent) as data:
        write_labels(path, np.arange(6) % 3, 3, data, "by hand")


def _open_labels(path: Path) -> object:
    with _small_beton(path.parent) as data:
        return read_labels(path, data) if path.suffix == ".npz" else read_label_list(path, data)


def _save_list(path: Path) -> None:
    _small_beton(path.parent).close()
    np.save(path, np.array([0, 3])) if path.suffix == ".npy" else path.write_text("0\n3\n")


def _save_features(path: Path) -> None:
    np.save(path.with_suffix(".npy"), np.ones((4, 8), np.float32))
    np.save(path.with_name(f"{path.stem}-labels.npy"), np.arange(4, dtype=np.int32))
    record = {"format": 1, "digest": "a", "shape": [4, 8], "dtype": "float32", "block": "conv5"}
    more = {"size_px": 32, "backbone": "resnet18", "labels": f"{path.stem}-labels.npy", "bad": [1]}
    path.with_suffix(".json").write_text(json.dumps(record | more))


def _open_features(path: Path) -> object:
    if (features := read_features(path.with_suffix(".npy"))) is None:
        return None
    return str(features), features.good(), features.of_length_1(features.good()), features.labels()


ARRAYS = {
    "weights.pth": Gate(lambda path: torch.save({"state_dict": _TENSORS}, path), open_weights),
    "older.pth": Gate(
        lambda path: torch.save(_TENSORS, path, _use_new_zipfile_serialization=False), open_weights
    ),
    "weights.pkl": Gate(
        lambda path: path.write_bytes(pickle.dumps({"model": {"w": np.ones((2, 3))}, "by": "A"}, 2)),
        open_weights,
    ),
    "weights.safetensors": Gate(_save_safetensors, open_weights),
    "weights.pth.json": Gate(_save_exported, lambda path: open_weights(path.with_suffix(""))),
    "checkpoints/step-00000003.pt": Gate(_save_checkpoint, _open_checkpoint),
    "labels.npz": Gate(_save_labels, _open_labels, exact=True),
    "few.npy": Gate(_save_list, _open_labels),
    "few.txt": Gate(_save_list, _open_labels),
    "permutations.npy": Gate(lambda path: np.save(path, _PERMUTATIONS), read_permutations),
    "permutations.bin": Gate(
        lambda path: path.write_bytes(struct.pack("<ii18i", 2, 9, *_PERMUTATIONS.ravel() + 1)),
        read_permutations,
    ),
    "features.npy": Gate(_save_features, _open_features),
    "features.json": Gate(_save_features, _open_features),
    "predictions.npz": Gate(lambda path: np.savez(path, a=np.arange(9)), read_predictions),
    "outcome.json": Gate(
        lambda path: path.write_text(json.dumps({"fits": 1, "not_converged": 0, "ap": 0.5})), _read_outcome
    ),
    "data_batch_1": Gate(
        lambda path: path.write_bytes(old_pickle({b"labels": [1, 2], b"data": np.ones((2, 3072), np.uint8)})),
        lambda path: load_plain(path.read_bytes()), named=False,
    ),
}  # fmt: skip

# VOC: annotations, lists, masks and proposals.

_MASK_SIZE = 50, 70

_BOXES = np.array([[1, 1, 20, 20], [2, 3, 30, 40]], np.float32)


def _save_proposals(path: Path) -> None:
    from scipy.io import savemat

    voc_2007(path.parent)
    if path.suffix == ".pkl":
        record = {"boxes": [_BOXES] * 2, "scores": [np.ones(2, np.float32)] * 2, "ids": [5, 7]}
        path.write_bytes(pickle.dumps(record, protocol=2))
        return
    cells = {"images": np.empty(2, object), "boxes": np.empty(2, object)}
    cells["images"][:], cells["boxes"][:] = ["000005", "000007"], [_BOXES, _BOXES]
    savemat(path, cells)


def _open_voc(path: Path) -> object:
    data = VOC(root_of(path), ("2007_trainval",), "boxes")
    boxes = Proposals([path], data) if path.name.startswith("proposals") else None
    return [(data.objects(i), boxes and boxes.boxes(i)) for i in range(data.num_samples)]


def _save_mask(path: Path) -> None:
    from scipy.io import savemat

    mask = mask_of(0, *_MASK_SIZE)
    if path.suffix == ".png":
        save_mask(path, mask)
    else:
        write_sbd_mask(path, np.where(mask == 255, 0, mask), savemat)


def _open_mask(path: Path) -> object:
    return read_mask(path, _bytes(path), 20, _MASK_SIZE)


def sealed_png(data: bytes) -> bytes:
    """Return a PNG with the checksums of its chunks, as far as their lengths lead."""
    sealed, at = bytearray(data), 8
    while at + 12 <= len(sealed):
        end = at + 8 + int.from_bytes(sealed[at : at + 4], "big")
        sealed[end : end + 4] = struct.pack(">I", zlib.crc32(sealed[at + 4 : end]))
        at = end + 4
    return bytes(sealed[: len(data)])


VOC_FILES = {
    "proposals.pkl": Gate(_save_proposals, _open_voc),
    "proposals.mat": Gate(_save_proposals, _open_voc),
    "VOC2007/Annotations/000007.xml": Gate(lambda path: voc_2007(root_of(path)), _open_voc),
    "VOC2007/ImageSets/Main/trainval.txt": Gate(lambda path: voc_2007(root_of(path)), _open_voc),
    "mask.png": Gate(_save_mask, _open_mask, sealed_png),
    "mask.mat": Gate(_save_mask, _open_mask),
}

# Sources of images: archives, tables, arrays and lists; and the images themselves.

_LISTS = {
    ".txt": "0.jpg 0\n1.jpg 1\n2.jpg 0\n",
    ".csv": "filename,label\n0.jpg,cat\n1.jpg,dog\n2.jpg,cat\n",
    ".json": json.dumps({
        "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(3)],
        "annotations": [{"id": i, "image_id": i, "category_id": i % 2} for i in range(3)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(("cat", "dog"))],
    }),
}  # fmt: skip


@functools.cache
def small_jpeg(seed: int = 0) -> bytes:
    return jpeg(photo(seed, 32, 40))


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    """Write a tar, whose bytes do not depend on the time if it is compressed."""
    data = tar_bytes(members)
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def sealed_tar(data: bytes) -> bytes:
    """Return a tar with the checksums of the headers that it has at their places."""
    sealed = bytearray(data)
    for at in range(0, len(sealed) - 511, 512):
        if sealed[at + 257 : at + 262] == b"ustar":
            sealed[at + 148 : at + 156] = b" " * 8
            sealed[at + 148 : at + 156] = b"%06o\0 " % sum(sealed[at : at + 512])
    return bytes(sealed)


def write_parquet(path: Path, cells: list[Any], labels: list[int] | None) -> None:
    import pyarrow
    from pyarrow import parquet

    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    table = {"image": pyarrow.array(cells, kind)} | ({"label": labels} if labels else {})
    parquet.write_table(pyarrow.table(table), path)


def cell(data: bytes | None, path: str | None) -> dict[str, Any]:
    return {"bytes": data, "path": path}


def _save_list_of_images(path: Path) -> None:
    for i in range(3):
        path.with_name(f"{i}.jpg").write_bytes(small_jpeg(i))
    path.write_text(_LISTS[path.suffix])


def _open_list(path: Path) -> object:
    with contextlib.closing(open_data(path)) as data:
        return data.class_names, list(data.names()), data.labels(), _open_source(path)


def _open_source(path: Path) -> object:
    source = open_source(str(path))
    return source.class_names, source.notes, source.warnings, list(source.samples())


_LABELLED = {f"{i:03}.{end}": small_jpeg(i) if end == "jpg" else b'{"label": %d}' % i
             for i in range(4) for end in ("jpg", "json")}  # fmt: skip
SOURCES = {
    "x.npz": Gate(
        lambda path: np.savez(path, images=np.stack([photo(i, 16, 16) for i in range(4)]), labels=range(4)),
        _open_source,
    ),
    "classes.tar": Gate(
        lambda path: write_tar(path, {f"c{i % 2}/{i}.jpg": small_jpeg(i) for i in range(4)}), _open_source,
        sealed_tar,
    ),
    "labelled.tar": Gate(lambda path: write_tar(path, _LABELLED), _open_source, sealed_tar),
    "x.tar.gz": Gate(lambda path: write_tar(path, {"c/0.jpg": small_jpeg()}), _open_source),
    "x.parquet": Gate(
        lambda path: write_parquet(path, [cell(small_jpeg(i), f"{i}.jpg") for i in range(4)], [0, 1, 0, 1]),
        _open_source,
    ),
    **{f"list{ending}": Gate(_save_list_of_images, _open_list) for ending in _LISTS},
}  # fmt: skip


def image_bytes(format: str, mode: str = "RGB", size: tuple[int, int] = (40, 48), **options: Any) -> bytes:
    image = Image.fromarray(photo(7, *size)).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    return file_of(image, format, **options)


IMAGE_BYTES: dict[str, bytes] = {
    "baseline.jpg": image_bytes("JPEG", exif=exif(6)), "cmyk.jpg": image_bytes("JPEG", "CMYK"),
    "progressive.jpg": image_bytes("JPEG", progressive=True),
    "restarts.jpg": image_bytes("JPEG", restart_marker_blocks=4),
    "x.png": image_bytes("PNG", "RGBA"), "deep.png": image_bytes("PNG", "I;16"),
    "palette.png": image_bytes("PNG", "P"), "x.webp": image_bytes("WEBP"), "x.bmp": image_bytes("BMP"),
    "lzw.tif": image_bytes("TIFF", compression="tiff_lzw"), "deep.tif": image_bytes("TIFF", "I;16"),
    "x.ppm": image_bytes("PPM"), "x.gif": image_bytes("GIF"), "x.avif": image_bytes("AVIF"),
    "x.jp2": image_bytes("JPEG2000"),
}  # fmt: skip


def _open_image(path: Path) -> object:
    """Decode an image by Pillow, and a JPEG by our own decoder; a `BadImage` is the reason that is listed."""
    try:
        data = read_image_file(path)
        size = upright_size(str(path))
        decode_any(data)
    except BadImage as error:
        raise ValueError(error) from None
    if path.suffix == ".jpg":
        codec = Codec()
        codec.decodes_cleanly(data, *size), codec.pack(data), codec.decode(data, *size, 2)
    return size


IMAGES = {
    name: Gate(
        lambda path: path.write_bytes(IMAGE_BYTES[path.name]), _open_image,
        sealed_png if ".png" in name else bytes, named=False,
    )
    for name in IMAGE_BYTES
}  # fmt: skip


# One crop is nearly the whole image, the other any part of it.
_VIEWS = [
    ViewSpec(RandomResizedCrop(64, scale=(0.9, 1.0)), (Flip(),)), ViewSpec(RandomResizedCrop(32), (Flip(),)),
]  # fmt: skip


def read(path: Path, decoder: str, on_bad_sample: str = "raise") -> tuple[list[str], list[int]]:
    """Read data once in their order; return a digest of each sample's views, and its label."""
    digests, labels = list[str](), list[int]()
    with (
        contextlib.closing(open_data(path)) as data,
        Loader(
            data, _VIEWS, batch_size_per_rank=8, train=False, decoder=decoder, num_threads=2,
            on_bad_sample=on_bad_sample,
        ) as loader,
    ):  # fmt: skip
        for batch in loader.epoch(0):
            for i, index in enumerate(batch.indices.tolist()):
                views = b"".join(images[i].numpy().tobytes() for images in batch.images)
                digests.append(hashlib.blake2b(views, digest_size=8).hexdigest() if index >= 0 else "")
                labels.append(int(batch.labels[i]))
    return digests, labels


def _save_folder(path: Path) -> None:
    for name in ("a/0.jpg", "a/1.jpg", "b/x.jpg"):
        (path.parents[1] / name).parent.mkdir(parents=True, exist_ok=True)
        (path.parents[1] / name).write_bytes(small_jpeg(len(name)))


def _open_folder(path: Path) -> object:
    """Read a folder whose sound images must be read as ever, and write a sound dataset file from it."""
    folder, out = path.parents[1], root_of(path) / "out" / "x.beton"
    out.parent.mkdir(exist_ok=True)
    digests, _ = read(folder, "pillow", "skip")
    source = open_source(str(folder))
    write_beton(
        source.samples(), out, num_samples=source.num_samples, max_bad="2", num_workers=1, overwrite=True
    )
    assert not (faults := list(verify(out, 1))), faults
    return digests[:2]


def write_photos(path: Path, mode: str, num: int = 24) -> Path:
    """Write a dataset file of small photos in 4 classes, as JPEGs, pixels or packed coefficients."""
    sizes = [(48 + 3 * i % 40, 40 + 7 * i % 50) for i in range(num)]
    samples = [Sample(f"{i % 4}/{i}.jpg", jpeg(photo(i, *size)), i % 4) for i, size in enumerate(sizes)]
    write_beton(
        samples, path, num_samples=num, class_names=["cat", "dog", "eel", "fox"], target=Target(mode=mode),
        num_workers=1, page_bytes=1 << 21, record={"source": "/photos", "shard": "0/1"},
    )  # fmt: skip
    return path


# The mode of each, and the decoder that reads it.
_DATASET_FILES = {
    "turbo": ("jpg", "turbo"), "ffcv": ("jpg", "ffcv"), "raw": ("raw", "pillow"),
    "coefficients": ("coefficients", "turbo"),
}  # fmt: skip


def _open_beton(path: Path) -> object:
    """Read it by the decoder of its name and verify it, which must find what is refused or read otherwise."""
    beton = path.with_suffix("") if path.suffix == ".json" else path
    _, decoder = _DATASET_FILES.get(path.stem, ("", "pillow"))
    faults = list(verify(beton, 1))
    assert all(str(beton) in fault and "\n" not in fault for fault in faults), faults
    try:
        reading = read(beton, decoder if decoder in DECODERS else "pillow")
    except ValueError:
        assert faults, "verify finds nothing"
        raise
    with Beton(beton) as data:
        data.name(3)
    return FOUND if faults and path.suffix != ".json" else reading


def _save_journal(path: Path) -> None:
    journal = Journal(path.with_name("x.beton"))
    journal.begin({"mode": "jpg"})
    journal.add(["0.jpg", 0], 100)
    journal.commit(lambda: None)
    journal.file.close()


def _open_journal(path: Path) -> object:
    journal = Journal(path.with_name("x.beton"))
    journal.file.close()
    return journal.command, journal.num_images


def _save_index(path: Path) -> None:
    """Write the index of a folder of images, as it lies in the cache."""
    os.environ["XDG_CACHE_HOME"] = str(root_of(path) / "cache")
    _save_folder(root_of(path) / "images" / "b" / "x.jpg")
    open_data(root_of(path) / "images").close()
    (index,) = (root_of(path) / "cache" / "fastpsl" / "folders").glob("*/")
    index.rename(path.parent)


BETONS = {
    **{
        f"{name}.beton": Gate(
            lambda path: write_photos(path, _DATASET_FILES[path.stem][0]), _open_beton, exact=True
        )
        for name in _DATASET_FILES
    },
    "x.beton.json": Gate(lambda path: write_photos(path.with_suffix(""), "jpg"), _open_beton, exact=True),
    ".x.beton.journal": Gate(_save_journal, _open_journal),
    "index/summary.json": Gate(_save_index, lambda path: folders._load(path.parent)),
    "index/records.npy": Gate(_save_index, lambda path: folders._load(path.parent)),
    "measured.json": Gate(
        lambda path: measured.keep(path, measured.Measured(1, [(0.0, 1.0, 2.0)])), measured.kept
    ),
}  # fmt: skip

# Records of runs, in the folder runs/simclr-001.

RUN = "runs/simclr-001"


def _save_run(path: Path) -> None:
    """Write a run and the result of an evaluation, as they lie below `--runs`."""
    recipe = find_recipe("simclr_r50")
    run = path.parent
    run.mkdir(parents=True)
    (run / "train.beton").touch()
    options = recipe.with_paper(data=str(run / "train.beton"), out=run)
    science = options.science() | {"recipe": recipe.name, "data_digest": "a" * 32, "precision": "fp32"}
    line = {"stage": "end to end", "level": 1, "lr": 0.1, "knn_accuracy": 9.0}
    lines = [line | {"run_step": i, "step": i, "loss": 2.0 / i} for i in range(1, 5)]
    weights = {"path": str(run / "checkpoints" / "step-00000004.pt"), "sha256": "c" * 64, "kind": "fastpsl"}
    records: dict[str, Any] = {
        "config": {"options": options.as_dict(), "science": science, "images": {"train": 480}, "steps": 4},
        "environment": {"world_size": 1, "packages": {"torch": "2"}},
        "status": {"state": "finished", "stage": 1, "step": 4, "reason": ""},
        "results": [{"stage": "end to end", "num_steps": 4, "num_steps_planned": 4, "val": {"loss": 1.0}}],
        "result": {
            "format": FORMAT, "protocol": "linear/vissl", "recipe": "linear_probe",
            "numbers": {"top1_B4": 40.0}, "settings": {"seed": 0},
            "checkpoint": weights | {"backbone": "resnet50", "science": {"seed": 0}},
            "data": {"train": "a" * 32, "val": "b" * 32, "num_train": 480, "num_val": 160}, "cut": False,
            "seconds": 1.0, "commit": "", "packages": {}, "date": "2026-01-01T00:00:00+00:00",
        },
    }  # fmt: skip
    for name, record in records.items():
        (run / f"{name}.json").write_text(json.dumps(record))
    for name in LINES:
        (run / name).write_text("".join(json.dumps(line) + "\n" for line in lines))


def _open_run(path: Path) -> object:
    """Read a run as `runs`, `table`, `eval`, `replay` and `--config` do; raise the last refusal."""
    run, recipe = path.parent, find_recipe("simclr_r50")
    readers: list[Callable[[], object]] = [
        lambda: [(one.as_dict(), one.looks, one.best, str(one.damage)) for one in [Run.of(run)]],
        lambda: vars(index_runs(run.parent)),
        lambda: TrainedRun.of(run),
        lambda: values_of_config(run / "config.json", recipe.name, recipe.options),
        lambda: PastRun.of(run, data=None, backbone=None, recipe=None),
        lambda: read_result(run / "result.json"),
        *(partial(list, read_lines(run / name)) for name in LINES),
    ]
    if path.name not in ("config.json", "environment.json"):
        del readers[2:5]  # which read these two
    results, refused = [], None
    for reader in readers:
        try:
            results.append(reader())
        except ValueError as error:
            refused = error
    if refused:
        raise refused
    return results


RECORDS = {
    f"{RUN}/{name}": Gate(_save_run, _open_run)
    for name in ("config.json", "environment.json", "status.json", "results.json", "result.json", *LINES)
}
# A dataset file is written in each case, which takes time.
FOLDERS = {"images/b/x.jpg": Gate(_save_folder, _open_folder, exact=True)}
GATES = ARRAYS | VOC_FILES | SOURCES | IMAGES | BETONS | RECORDS | FOLDERS
