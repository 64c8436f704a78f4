"""Weights, checkpoints, pickles and arrays that would run code, or fill memory."""

import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from typing_extensions import override

from tests.faults.hostile_common import BOMB_BYTES, DEEP, ESCAPES, Attack, Payload, text


class _Runs:
    """Unpickled by pickle itself, it leaves the file `canary` beside the case's folder."""

    def __init__(self, path: Path):
        self._canary = path.parent / "canary"

    @override
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self._canary}",)


def _pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps({"boxes": _Runs(path), "ids": [], "scores": []}))


def _torch_zip(path: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(2)}, "format": 1, "science": _Runs(path)}, path)


def _torch_old(path: Path) -> None:
    torch.save({"a": _Runs(path)}, path, _use_new_zipfile_serialization=False)


def _torch_script(path: Path) -> None:
    class Module(torch.nn.Module):
        @override
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    torch.jit.script(Module()).save(str(path))


def _torch_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        _zeros(archive, "x/data.pkl", b"")


def _zeros(archive: zipfile.ZipFile, name: str, head: bytes) -> None:
    with archive.open(name, "w", force_zip64=True) as file:
        file.write(head)
        for _ in range(BOMB_BYTES >> 20):
            file.write(bytes(1 << 20))


def _torch_views(path: Path) -> None:
    """One number that says it is a tensor of 4 TB: strides of 0."""
    torch.save({"conv1.weight": torch.zeros(1).expand(64, 1 << 17, 1 << 17)}, path)


def _torch_odd(path: Path) -> None:
    strange = {"conv1.weight": "words", ESCAPES: torch.zeros(2), 5: torch.zeros(2), "x": [1]}
    torch.save({"state_dict": strange, "format": 1, "science": {ESCAPES: ESCAPES}, "position": None}, path)


def _torch_sparse(path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7).to_sparse()}, path)


def _safetensors_head(head: bytes) -> Payload:
    return text(struct.pack("<Q", len(head)), head)


def _safetensors_told(told: str) -> Payload:
    def make(path: Path) -> None:
        from safetensors.torch import save_file

        save_file({"conv1.weight": torch.zeros(2)}, path, metadata={"fastpsl": told})

    return make


def npy_head(shape: object, kind: str = "|u1") -> bytes:
    """The header of an .npy file that says so."""
    head = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    head += b" " * (63 - (10 + len(head)) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head


def _npy_objects(path: Path) -> None:
    np.save(path, np.array([_Runs(path)], dtype=object), allow_pickle=True)


def _npz(member: str, data: bytes) -> Payload:
    """An archive whose array `member` is `data`, and which has it again under a name that leads out."""

    def make(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"{member}.npy", data)
            archive.writestr(f"../../evil/{member}.npy", data)

    return make


def _npz_objects(path: Path) -> None:
    strange = np.array([_Runs(path)], dtype=object)
    np.savez(path, images=strange, labels=strange, format=np.int64(2))


def _npz_bomb(member: str, shape: object, rest: dict[str, Any]) -> Payload:
    def make(path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            _zeros(archive, f"{member}.npy", npy_head(shape))
            for name, value in rest.items():
                file = io.BytesIO()
                np.save(file, value)
                archive.writestr(f"{name}.npy", file.getvalue())

    return make


_LABELS = {"format": np.int64(2), "num_classes": np.int64(3), "num_split": np.int64(0)}


ATTACKS: list[Attack] = [
    *((gate, "code in a pickle", _pickled) for gate in ("w.pth", "step-00000003.pt", "p.pkl", "labels.npz", "p.npy", "list.npy", "x.npz")),
    *((gate, f"torch: {name}", make) for gate in ("w.pth", "step-00000003.pt") for name, make in (
        ("code", _torch_zip), ("code, old format", _torch_old), ("script", _torch_script), ("bomb", _torch_bomb),
        ("4 TB of strides", _torch_views), ("odd values", _torch_odd), ("sparse", _torch_sparse))),
    *(("w.safetensors", f"header: {name}", _safetensors_head(head)) for name, head in (
        ("deep", DEEP.encode()), ("empty", b"{}"), ("no JSON", b"{nonsense"), ("a list", b"[1,2]"),
        ("lies", b'{"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,4]}}'))),
    ("w.safetensors", "header of 2^62 bytes", text(struct.pack("<Q", 2**62), b"{}")),
    *(("w.safetensors", f"metadata: {name}", _safetensors_told(told)) for name, told in (
        ("deep", DEEP), ("no JSON", "{nonsense"), ("a list", "[1,2]"), ("escapes", json.dumps({"backbone": ESCAPES})))),
    *((gate, "objects", _npy_objects) for gate in ("p.npy", "list.npy")),
    *((gate, f"header: {name}", text(data)) for gate in ("p.npy", "list.npy") for name, data in (
        ("lies", npy_head((1 << 50, 9), "<i8") + bytes(64)), ("negative", npy_head((-1, 9), "<i8") + bytes(720)),
        ("deep", b"\x93NUMPY\x01\x00" + struct.pack("<H", 60_000) + b"(" * 60_000), ("code", npy_head("__import__('os')")))),
    ("p.bin", "header lies", text(struct.pack("<ii", 2**31 - 1, 2**31 - 1))),
    *((gate, "objects", _npz_objects) for gate in ("labels.npz", "x.npz")),
    *((gate, f"header: {name}", _npz(member, data)) for gate, member in (("labels.npz", "labels"), ("x.npz", "images")) for name, data in (
        ("lies", npy_head((10**9, 512, 512, 3)) + bytes(100)), ("negative", npy_head((-1, 8, 8, 3)) + bytes(192)),
        ("deep", b"\x93NUMPY\x01\x00" + struct.pack("<H", 60_000) + b"(" * 60_000), ("names lead out", npy_head((2, 8, 8, 3)) + bytes(384)))),
    ("labels.npz", "bomb", _npz_bomb("labels", (BOMB_BYTES,), _LABELS)),
    ("x.npz", "bomb", _npz_bomb("images", (BOMB_BYTES // (512 * 512 * 3), 512, 512, 3), {})),
    ("x.npz", "bomb of labels", _npz_bomb("labels", (BOMB_BYTES,), {"images": np.zeros((2, 8, 8, 3), np.uint8)})),
]  # fmt: skip
