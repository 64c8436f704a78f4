"""Weights, checkpoints, pickles and arrays that would run code or fill memory."""

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

from tests.faults.hostile_common import BOMB_BYTES, DEEP, ESCAPES, Attack, Payload, text, text_attacks


class _Runs:
    """An object that leaves the file `canary` beside the case's folder when pickle itself unpickles it."""

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
    """Save one number as a tensor of 4 TB, by strides of 0."""
    torch.save({"conv1.weight": torch.zeros(1).expand(64, 1 << 17, 1 << 17)}, path)


def _torch_odd(path: Path) -> None:
    state = {"conv1.weight": "words", ESCAPES: torch.zeros(2), 5: torch.zeros(2), "x": [1]}
    torch.save({"state_dict": state, "format": 1, "science": {ESCAPES: ESCAPES}, "position": None}, path)


def _torch_sparse(path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7).to_sparse()}, path)


def _safetensors_head(head: bytes) -> Payload:
    return text(struct.pack("<Q", len(head)), head)


def _safetensors_metadata(metadata: str) -> Payload:
    def make(path: Path) -> None:
        from safetensors.torch import save_file

        save_file({"conv1.weight": torch.zeros(2)}, path, metadata={"fastpsl": metadata})

    return make


def npy_head(shape: object, kind: str = "|u1") -> bytes:
    """Return the header of an .npy file with this shape and dtype."""
    head = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    head += b" " * (63 - (10 + len(head)) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head


def _npy_objects(path: Path) -> None:
    np.save(path, np.array([_Runs(path)], dtype=object), allow_pickle=True)


def _npz(member: str, data: bytes) -> Payload:
    """Build an archive with the array `member`, also under a name that leads out."""

    def make(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"{member}.npy", data)
            archive.writestr(f"../../evil/{member}.npy", data)

    return make


def _npz_objects(path: Path) -> None:
    objects = np.array([_Runs(path)], dtype=object)
    np.savez(path, images=objects, labels=objects, format=np.int64(2))


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


_PICKLE_GATES = ("w.pth", "step-00000003.pt", "p.pkl", "labels.npz", "p.npy", "list.npy", "x.npz")
_TORCH_GATES = ("w.pth", "step-00000003.pt")
_TORCH_FILES: dict[str, Payload] = {
    "code": _torch_zip, "code, old format": _torch_old, "script": _torch_script, "bomb": _torch_bomb,
    "4 TB of strides": _torch_views, "odd values": _torch_odd, "sparse": _torch_sparse,
}  # fmt: skip
_HEADS = {
    "deep": DEEP.encode(), "empty": b"{}", "no JSON": b"{nonsense", "a list": b"[1,2]",
    "lies": b'{"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,4]}}',
}  # fmt: skip
_METADATA = {
    "deep": DEEP, "no JSON": "{nonsense", "a list": "[1,2]", "escapes": json.dumps({"backbone": ESCAPES}),
}  # fmt: skip
_DEEP_HEAD = b"\x93NUMPY\x01\x00" + struct.pack("<H", 60_000) + b"(" * 60_000
_NPY_FILES: dict[str, str | bytes] = {
    "header: lies": npy_head((1 << 50, 9), "<i8") + bytes(64),
    "header: negative": npy_head((-1, 9), "<i8") + bytes(720),
    "header: deep": _DEEP_HEAD,
    "header: code": npy_head("__import__('os')"),
}
_NPZ_MEMBERS = {
    "lies": npy_head((10**9, 512, 512, 3)) + bytes(100),
    "negative": npy_head((-1, 8, 8, 3)) + bytes(192),
    "deep": _DEEP_HEAD,
    "names lead out": npy_head((2, 8, 8, 3)) + bytes(384),
}
_IMAGES = {"images": np.zeros((2, 8, 8, 3), np.uint8)}

ATTACKS: list[Attack] = [
    *((gate, "code in a pickle", _pickled) for gate in _PICKLE_GATES),
    *((gate, f"torch: {name}", make) for gate in _TORCH_GATES for name, make in _TORCH_FILES.items()),
    *(("w.safetensors", f"header: {name}", _safetensors_head(head)) for name, head in _HEADS.items()),
    ("w.safetensors", "header of 2^62 bytes", text(struct.pack("<Q", 2**62), b"{}")),
    *(
        ("w.safetensors", f"metadata: {name}", _safetensors_metadata(metadata))
        for name, metadata in _METADATA.items()
    ),
    *((gate, "objects", _npy_objects) for gate in ("p.npy", "list.npy")),
    *text_attacks("p.npy", _NPY_FILES),
    *text_attacks("list.npy", _NPY_FILES),
    ("p.bin", "header lies", text(struct.pack("<ii", 2**31 - 1, 2**31 - 1))),
    *((gate, "objects", _npz_objects) for gate in ("labels.npz", "x.npz")),
    *(
        (gate, f"header: {name}", _npz(member, data))
        for gate, member in (("labels.npz", "labels"), ("x.npz", "images"))
        for name, data in _NPZ_MEMBERS.items()
    ),
    ("labels.npz", "bomb", _npz_bomb("labels", (BOMB_BYTES,), _LABELS)),
    ("x.npz", "bomb", _npz_bomb("images", (BOMB_BYTES // (512 * 512 * 3), 512, 512, 3), {})),
    ("x.npz", "bomb of labels", _npz_bomb("labels", (BOMB_BYTES,), _IMAGES)),
]  # fmt: skip
