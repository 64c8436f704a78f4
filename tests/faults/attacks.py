"""The attacks made by hand: files of strangers that would run code, write elsewhere, or fill memory."""

import hashlib
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from typing_extensions import override

from fastpsl.pipelines.views import Input
from tests import recorded
from tests.faults.gates import RECORDS, add, cell, small_jpeg, write_parquet, write_tar

Payload = Callable[[Path], object]  # changes the sound file at a path, or a file beside it
Attack = tuple[str, str, Payload]  # the gate's name, the attack in words, and the attack

ESCAPES = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202e\r"
MARKUP = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>"
# Far above the memory limit when unpacked, far below it on the disk.
BOMB_BYTES = 1 << 29
DEEP, DIGITS = "[" * 200_000, "9" * 5000


def text(*parts: str | bytes) -> Payload:
    """Return an attack that replaces the file by these parts."""
    data = b"".join(
        part if isinstance(part, bytes) else part.encode("utf-8", "surrogateescape") for part in parts
    )
    return lambda path: path.write_bytes(data)


def texts(gate: str, contents: dict[str, str | bytes], prefix: str = "") -> list[Attack]:
    """Return, for each named content, an attack that replaces a gate's file by it."""
    return [(gate, prefix + name, text(content)) for name, content in contents.items()]


# Weights, checkpoints, pickles and arrays that would run code or fill memory.


class _Runs:
    """An object that leaves the file `canary` beside the case's folder when pickle itself unpickles it."""

    def __init__(self, path: Path):
        self._canary = path.parent / "canary"

    @override
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self._canary}",)


def _pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps({"boxes": _Runs(path), "ids": [], "scores": []}))


def _saved(make: Callable[[Path], object], **settings: Any) -> Payload:
    """Return an attack by what torch saves."""
    return lambda path: torch.save(make(path), path, **settings)


def _torch_script(path: Path) -> None:
    class Module(torch.nn.Module):
        @override
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    torch.jit.script(Module()).save(str(path))


def _bomb(member: str, head: bytes = b"", **rest: Any) -> Payload:
    """Build an archive of a huge member of zeros, and small arrays."""

    def make(path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            with archive.open(member, "w", force_zip64=True) as file:
                file.write(head)
                file.writelines(bytes(1 << 20) for _ in range(BOMB_BYTES >> 20))
            for name, value in rest.items():
                with io.BytesIO() as array:
                    np.save(array, value)
                    archive.writestr(f"{name}.npy", array.getvalue())

    return make


def _odd_weights(path: Path) -> dict[str, Any]:
    state = {"conv1.weight": "words", ESCAPES: torch.zeros(2), 5: torch.zeros(2), "x": [1]}
    return {"state_dict": state, "format": 1, "science": {ESCAPES: ESCAPES}, "position": None}


def metadata_of(metadata: str) -> Payload:
    def make(path: Path) -> None:
        from safetensors.torch import save_file

        save_file({"conv1.weight": torch.zeros(2)}, path, metadata={"fastpsl": metadata})

    return make


def _npy_head(shape: object, kind: str = "|u1") -> bytes:
    """Return the header of an .npy file with this shape and dtype."""
    head = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    head += b" " * (63 - (10 + len(head)) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head


def _objects(path: Path) -> np.ndarray:
    return np.array([_Runs(path)], dtype=object)


def _npz_member(member: str, data: bytes) -> Payload:
    """Build an archive with the array `member`, also under a name that leads out."""

    def make(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"{member}.npy", data)
            archive.writestr(f"../../evil/{member}.npy", data)

    return make


TORCH_FILES: dict[str, Payload] = {
    "code": _saved(lambda path: {"state_dict": {"a": torch.zeros(2)}, "format": 1, "science": _Runs(path)}),
    "code, old format": _saved(lambda path: {"a": _Runs(path)}, _use_new_zipfile_serialization=False),
    "script": _torch_script,
    "bomb": _bomb("x/data.pkl"),
    # One number as a tensor of 4 TB, by strides of 0.
    "4 TB of strides": _saved(lambda path: {"conv1.weight": torch.zeros(1).expand(64, 1 << 17, 1 << 17)}),
    "odd values": _saved(_odd_weights),
    "sparse": _saved(lambda path: {"conv1.weight": torch.zeros(64, 3, 7, 7).to_sparse()}),
}
HEADS = {
    "deep": DEEP.encode(), "empty": b"{}", "no JSON": b"{nonsense", "a list": b"[1,2]",
    "lies": b'{"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,4]}}',
}  # fmt: skip
METADATA = {
    "deep": DEEP, "no JSON": "{nonsense", "a list": "[1,2]", "escapes": json.dumps({"backbone": ESCAPES}),
}  # fmt: skip
_DEEP_HEAD = b"\x93NUMPY\x01\x00" + struct.pack("<H", 60_000) + b"(" * 60_000
_NPY_FILES: dict[str, str | bytes] = {
    "lies": _npy_head((1 << 50, 9), "<i8") + bytes(64),
    "negative": _npy_head((-1, 9), "<i8") + bytes(720),
    "deep": _DEEP_HEAD,
    "code": _npy_head("__import__('os')"),
}
_NPZ_MEMBERS = {
    "lies": _npy_head((10**9, 512, 512, 3)) + bytes(100),
    "negative": _npy_head((-1, 8, 8, 3)) + bytes(192),
    "deep": _DEEP_HEAD,
    "names lead out": _npy_head((2, 8, 8, 3)) + bytes(384),
}
_LABELS: dict[str, Any] = {"format": np.int64(2), "num_classes": np.int64(3), "num_split": np.int64(0)}
_IMAGES = np.zeros((2, 8, 8, 3), np.uint8)
_IMAGES_SHAPE = (BOMB_BYTES // (512 * 512 * 3), 512, 512, 3)
_PICKLE_GATES = ("w.pth", "step-00000003.pt", "p.pkl", "labels.npz", "p.npy", "list.npy", "x.npz")

_ON_ARRAYS: list[Attack] = [
    *((gate, "code in a pickle", _pickled) for gate in _PICKLE_GATES),
    *((gate, f"torch: {name}", make) for gate in _PICKLE_GATES[:2] for name, make in TORCH_FILES.items()),
    *(
        ("w.safetensors", f"header: {name}", text(struct.pack("<Q", len(head)), head))
        for name, head in HEADS.items()
    ),
    ("w.safetensors", "header of 2^62 bytes", text(struct.pack("<Q", 2**62), b"{}")),
    *(("w.safetensors", f"metadata: {name}", metadata_of(metadata)) for name, metadata in METADATA.items()),
    *((gate, "objects", lambda path: np.save(path, _objects(path))) for gate in ("p.npy", "list.npy")),
    *texts("p.npy", _NPY_FILES, "header: "),
    *texts("list.npy", _NPY_FILES, "header: "),
    ("p.bin", "header lies", text(struct.pack("<ii", 2**31 - 1, 2**31 - 1))),
    *(
        (gate, "objects", lambda path: np.savez(path, format=2, images=_objects(path), labels=_objects(path)))
        for gate in ("labels.npz", "x.npz")
    ),
    *(
        (gate, f"header: {name}", _npz_member(member, data))
        for gate, member in (("labels.npz", "labels"), ("x.npz", "images"))
        for name, data in _NPZ_MEMBERS.items()
    ),
    ("labels.npz", "bomb", _bomb("labels.npy", head=_npy_head((BOMB_BYTES,)), **_LABELS)),
    ("x.npz", "bomb", _bomb("images.npy", head=_npy_head(_IMAGES_SHAPE))),
    ("x.npz", "bomb of labels", _bomb("labels.npy", _npy_head((BOMB_BYTES,)), images=_IMAGES)),
]  # fmt: skip

# Archives and tables that lead out of their folder, name foreign files, or hold more than they seem to.

_IMAGE = small_jpeg()
PRIVATE_IMAGE, _PRIVATE = small_jpeg(99), "private"


def _tar_traversal(path: Path) -> None:
    """Write names that lead out, links, devices, pipes and names with escapes, beside one sound image."""
    escapes = f"{ESCAPES}/{MARKUP.replace('/', '|')}.jpg"
    with tarfile.open(path, "w") as tar:
        for name in ("../../evil/x.jpg", "/evil.jpg", escapes, "good/z.jpg"):
            add(tar, name, _IMAGE)
        add(tar, "link/l.jpg", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add(tar, "link/h.jpg", b"", type=tarfile.LNKTYPE, linkname="../../evil/x.jpg")
        add(tar, "dev/n.jpg", b"", type=tarfile.CHRTYPE, devmajor=1, devminor=5)
        add(tar, "dev/f.jpg", b"", type=tarfile.FIFOTYPE)


def _tar_size(size: bytes) -> Payload:
    """Build a first header with a wrong size and a right checksum."""
    head = bytearray(tarfile.TarInfo("a/x.jpg").tobuf())
    head[124:136], head[148:156] = size, b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return text(bytes(head) * 2 + _IMAGE)


def _tar_pax(path: Path) -> None:
    headers = {"path": "../" * 3000 + f"{ESCAPES}.jpg", "size": "99999999999999999999"}
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        add(tar, "a/x.jpg", _IMAGE, pax_headers=headers)


def _tar_nested(path: Path) -> None:
    members = {"x.jpg": _IMAGE}
    for i in range(60):
        write_tar(path, members)
        members = {f"d{i}.tar": path.read_bytes()}
    write_tar(path, members)


class _Zeros(io.RawIOBase):
    """A stream that returns as many zeros as requested."""

    @override
    def read(self, size: int = -1) -> bytes:
        return bytes(size)


def _targz_bomb(path: Path) -> None:
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        add(tar, "a/bomb.jpg", _Zeros(), BOMB_BYTES)
        add(tar, "a/good.jpg", _IMAGE)


def _gz_bomb(path: Path) -> None:
    compressor = zlib.compressobj(1, wbits=31)
    with open(path, "wb") as file:
        file.writelines(compressor.compress(bytes(1 << 20)) for _ in range(BOMB_BYTES >> 20))
        file.write(compressor.flush())


def _cells(cells: list[Any], labels: list[int] | None = None) -> Payload:
    """Build a table of these cells; a `path` of _PRIVATE becomes that of an image elsewhere."""

    def make(path: Path) -> None:
        private = path.parent.parent / "private" / "p.jpg"
        private.parent.mkdir(exist_ok=True)
        private.write_bytes(PRIVATE_IMAGE)
        place = {_PRIVATE: str(private)}
        named = [each and each | {"path": place.get(each["path"], each["path"])} for each in cells]
        write_parquet(path, named, labels)

    return make


_WEBDATASET_LABELS: dict[str, str] = {
    "deep": DEEP, "infinite": '{"label": 1e999}', "true": '{"label": true}', "a path": '{"label": "../../x"}',
    "large": '{"label": 99999999999999999999}', "many digits": DIGITS, "escapes": ESCAPES, "negative": "-5",
}  # fmt: skip


def _webdataset_label(name: str, label: str) -> Attack:
    ending = "cls" if name in ("many digits", "escapes", "negative") else "json"
    members = {"000.jpg": _IMAGE, f"000.{ending}": label.encode()}
    return "w.tar", f"label: {name}", lambda path: write_tar(path, members)


_ON_ARCHIVES: list[Attack] = [
    ("x.tar", "names lead out, links, devices", _tar_traversal),
    ("x.tar", "size of 2^62", _tar_size(b"\x80" + (2**62).to_bytes(11, "big"))),
    ("x.tar", "negative size", _tar_size(b"\xff" + (-512 % 2**88).to_bytes(11, "big"))),
    ("x.tar", "pax header", _tar_pax),
    ("x.tar", "60 tars in one another", _tar_nested),
    ("x.tar.gz", "bomb", _targz_bomb),
    ("x.tar.gz", "bomb of zeros", _gz_bomb),
    *(_webdataset_label(*label) for label in _WEBDATASET_LABELS.items()),
    ("t.parquet", "path of a private picture", _cells([cell(None, _PRIVATE), cell(_IMAGE, "../../x")])),
    ("t.parquet", "nothing in cells", _cells([None, cell(_IMAGE, None), cell(None, None)])),
    ("t.parquet", "labels beyond", _cells([cell(_IMAGE, "a")] * 2, [2**40, -5])),
    ("t.parquet", "escapes", _cells([cell(b"bad", ESCAPES), cell(_IMAGE, MARKUP)])),
    *texts("t.parquet", {
        "noise": bytes(range(256)) * 4,
        "its name alone": b"PAR1" + bytes(500) + struct.pack("<I", 500) + b"PAR1", "empty": b"",
    }),
]  # fmt: skip

# Hostile JSON, XML, lists and folder names: endless nesting, odd numbers, markup, escapes, ways out.

_BOX = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
_INFINITE_BOX = _BOX.replace("<xmin>1", "<xmin>1e999").replace("<ymin>1", "<ymin>nan")
_LAUGHS = '<!ENTITY a0 "lol">' + "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 10))
_ENTITIES = {
    "laughs": (f"<!DOCTYPE annotation [{_LAUGHS}]>", "&a9;"),
    "file": ('<!DOCTYPE annotation [<!ENTITY a9 SYSTEM "file:///etc/passwd">]>', "&a9;"),
    "remote": ('<!DOCTYPE annotation SYSTEM "http://127.0.0.1:9/x.dtd">', "dog"),
    "quadratic": (f'<!DOCTYPE annotation [<!ENTITY a9 "{"x" * 100_000}">]>', "&a9;" * 10_000),
}


def _object(name: str, box: str = _BOX) -> str:
    return f"<annotation><object><name>{name}</name>{box}</object></annotation>"


def json_edit(edit: Callable[[Any], Any]) -> Payload:
    """Return an attack that edits the value of the sound record, or returns another."""

    def make(path: Path) -> None:
        record = recorded.read(path)
        recorded.write(path, edit(record) or record)

    return make


def keys_of(place: str) -> recorded.Place:
    """Return the keys of a place in a record that are named with dots between them."""
    return tuple(int(key) if key.isdecimal() else key for key in place.split("."))


def value_attacks(gate: str, places: Iterable[str], values: dict[str, Any]) -> list[Attack]:
    """Return an attack for each place in a record, named by keys with dots between them, and value."""

    def attack(place: str, value: Any) -> Payload:
        return json_edit(lambda record: recorded.planted(record, keys_of(place), value))

    return [
        (gate, f"{name} in {key}", attack(key, value)) for key in places for name, value in values.items()
    ]


def all_strings(text: str) -> Payload:
    """Append `text` to every string of the sound JSON, except values that identify its kind."""

    def append(value: Any) -> Any:
        if isinstance(value, str):
            return value + text
        if isinstance(value, list):
            return [append(part) for part in value]
        if isinstance(value, dict):
            kept = ("format", "protocol", "state")
            return {key: part if key in kept else append(part) for key, part in value.items()}
        return value

    return json_edit(append)


def _folder_renamed(text: str) -> Payload:
    """Rename the run's folder to markup or escapes."""
    return lambda path: path.parent.rename(path.parent.with_name(text.replace("/", "|")))


def plant_code(path: Path) -> Path:
    """Write a Python file beside a path, which leaves the file `canary` there when it runs."""
    code = path.with_name("net.py")
    code.write_text(f"open({str(path.with_name('canary'))!r}, 'w')\n")
    return code


def _names_code(path: Path) -> None:
    """Name a Python file as the backbone of the weights beside the JSON."""
    digest = hashlib.sha256(path.with_suffix("").read_bytes()).hexdigest()
    record = {"sha256": digest, "backbone": f"{plant_code(path)}:Net", "input": Input().as_dict()}
    path.write_text(json.dumps(record))


JSON_TEXTS: dict[str, str | bytes] = {
    "deep": DEEP, "deep objects": '{"a":' * 200_000, "empty": "", "a number": "7", "null": "null",
    "a list": "[1, 2]", "infinity": "1e999", "many digits": DIGITS, "zeros": bytes(4096),
    "bytes": bytes(range(256)), "cut": '{"a": [1,', "escapes": json.dumps({ESCAPES: ESCAPES}),
    "surrogate": '{"a": "\\ud800"}', "NaN": "NaN",
}  # fmt: skip
_PATH = "../../../etc/passwd"
_CONFIG_VALUES = {"infinity": float("inf"), "a list": [[]], "null": None, "a large number": 10**30}
_VALUES = {"infinity": float("inf"), "a list": [[]], "a large number": 10**30, "null": None, "a path": _PATH}
_LIST_VALUES = {
    "infinity": float("inf"), "a list": [[]], "an object": {}, "a large number": 10**30, "null": None,
    "a path": _PATH,
}  # fmt: skip
_LIST_KEYS = (
    "images.0.id", "images.0.file_name", "annotations.0.image_id", "annotations.0.category_id",
    "categories.0.id", "categories.0.name", "images", "annotations", "categories",
)  # fmt: skip
_RESULT_KEYS = (
    "numbers", "settings", "checkpoint", "data", "protocol", "recipe", "data.num_train", "numbers.top1_B4",
    "checkpoint.science", "checkpoint.path",
)  # fmt: skip
_CONFIG_KEYS = ("options", "science", "science.seed", "options.data")

_ON_TEXTS: list[Attack] = [
    *(
        ("000007.xml", f"entities: {kind}", text(f'<?xml version="1.0"?>{head}', _object(name)))
        for kind, (head, name) in _ENTITIES.items()
    ),
    *texts("000007.xml", {
        "deep": "<a>" * 200_000, "empty": "", "escapes": _object(MARKUP, ""),
        "infinite box": _object("dog", _INFINITE_BOX),
    }),
    *texts("trainval.txt", {
        "leads out": f"{_PATH}\n", "zeros": bytes(100), "escapes": ESCAPES + "\n",
        "one long line": "a" * 1_000_000, "not UTF-8": b"\xff\xfe\n",
    }),
    *texts("list.txt", {
        "many digits": DIGITS, "negative": "-1\n", "not UTF-8": b"\xff\xfe\n", "escapes": ESCAPES + "\n",
        "zeros": bytes(100), "other digits": "²\n",
    }),
    *texts("l.txt", {
        "leads out": "../../../../etc/passwd 0\n", "a zero byte": "a\0b.jpg 0\n",
        "large label": "0.jpg 99999999999999999999\n", "many digits": f"0.jpg {DIGITS}\n",
        "one long line": "a" * 1_000_000 + "\n", "bytes": bytes(range(256)) * 9, "other digits": "0.jpg ²\n",
        "devices": "/dev/zero 0\n/dev/tty 1\n", "escapes": f"{ESCAPES}.jpg 0\n0.jpg 1\n",
    }),
    *texts("l.csv", {
        "escapes": f"filename,label\n0.jpg,{ESCAPES}{MARKUP}\n",
        "a long field": "filename,label\n" + "a" * 1_000_000 + ",x\n",
        "open quote": 'filename,label\n"0.jpg,x\n', "a zero byte": "filename,label\na\0.jpg,x\n",
        "formula": "filename,label\n=cmd|' /C calc'!A0.jpg,x\n0.jpg,=1+1\n",
    }),
    *(
        attack for gate in ("w.pth.json", "l.json", *RECORDS, "metrics.jsonl")
        for attack in texts(gate, JSON_TEXTS, "JSON: ")
    ),
    *(
        (gate, f"{name} in every string", all_strings(suffix))
        for gate in (*RECORDS, "l.json") for name, suffix in (("escapes", ESCAPES), ("markup", MARKUP))
    ),
    *value_attacks("l.json", _LIST_KEYS, _LIST_VALUES),
    *value_attacks("result.json", _RESULT_KEYS, _VALUES),
    *value_attacks("config.json", _CONFIG_KEYS, _CONFIG_VALUES),
    ("result.json", "markup as the folder's name", _folder_renamed(MARKUP)),
    ("result.json", "escapes as the folder's name", _folder_renamed(ESCAPES)),
    ("w.pth.json", "a Python file as the backbone", _names_code),
]  # fmt: skip

ATTACKS = _ON_ARRAYS + _ON_ARCHIVES + _ON_TEXTS
