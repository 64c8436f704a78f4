"""Files made to do harm, by hand: each function changes the sound file of a gate into one, or what lies beside it."""

import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.faults.hostile_gates import make_tar
from tests.pipelines.photos import jpeg, photo

ESCAPES = "\x1b[2J\x1b]0;owned\x07\x9b31m\r"
MARKUP = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>"
_BOMB_BYTES = 1 << 30
_DEPTH = 200_000

Payload = Callable[[Path], None]


class _Runs:
    """Unpickled by pickle itself, it leaves the file `canary` beside the case's folder."""

    def __init__(self, path: Path):
        self._canary = path.parent / "canary"

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
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    torch.jit.script(Module()).save(str(path))


def _torch_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        _zeros(archive, "x/data.pkl", b"")


def _zeros(archive: zipfile.ZipFile, name: str, head: bytes) -> None:
    with archive.open(name, "w", force_zip64=True) as file:
        file.write(head)
        for _ in range(_BOMB_BYTES >> 20):
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
    return lambda path: path.write_bytes(struct.pack("<Q", len(head)) + head) and None


def _safetensors_told(told: str) -> Payload:
    def make(path: Path) -> None:
        from safetensors.torch import save_file

        save_file({"conv1.weight": torch.zeros(2)}, path, metadata={"fastpsl": told})

    return make


def _text(*texts: str | bytes) -> Payload:
    data = b"".join(
        text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape") for text in texts
    )
    return lambda path: path.write_bytes(data) and None


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


_PICTURE = jpeg(photo(0, 32, 40))
PRIVATE_PICTURE, _PRIVATE = jpeg(photo(99, 32, 40)), "private"


def _tar_of(**members: bytes) -> Payload:
    return lambda path: make_tar(path, members) and None


def _tar_traversal(path: Path) -> None:
    """Names that lead out, links, devices, pipes, names with escapes; one picture is sound."""
    strange: list[tuple[str, dict[str, Any]]] = [
        ("link/l.jpg", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}),
        ("link/h.jpg", {"type": tarfile.LNKTYPE, "linkname": "../../evil/x.jpg"}),
        ("dev/n.jpg", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 5}),
        ("dev/f.jpg", {"type": tarfile.FIFOTYPE}),
    ]
    with tarfile.open(path, "w") as tar:
        for name in (
            "../../evil/x.jpg",
            "/evil.jpg",
            f"{ESCAPES}/{MARKUP.replace('/', '|')}.jpg",
            "good/z.jpg",
        ):
            info = tarfile.TarInfo(name)
            info.size = len(_PICTURE)
            tar.addfile(info, io.BytesIO(_PICTURE))
        for name, values in strange:
            info = tarfile.TarInfo(name)
            for key, value in values.items():
                setattr(info, key, value)
            tar.addfile(info)


def _tar_size(size: bytes) -> Payload:
    """A first header whose size lies, under a good checksum."""

    def make(path: Path) -> None:
        head = bytearray(tarfile.TarInfo("a/x.jpg").tobuf())
        head[124:136] = size
        head[148:156] = b" " * 8
        head[148:156] = b"%06o\0 " % sum(head)
        path.write_bytes(bytes(head) * 2 + _PICTURE)

    return make


def _tar_pax(path: Path) -> None:
    info = tarfile.TarInfo("a/x.jpg")
    info.pax_headers = {"path": "../" * 3000 + f"{ESCAPES}.jpg", "size": "99999999999999999999"}
    info.size = len(_PICTURE)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info, io.BytesIO(_PICTURE))


def _tar_nested(path: Path) -> None:
    members = {"x.jpg": _PICTURE}
    for i in range(60):
        make_tar(path, members)
        members = {f"d{i}.tar": path.read_bytes()}
    make_tar(path, members)


class _Zeros(io.RawIOBase):
    """As many zeros as are asked for."""

    def read(self, size: int = -1) -> bytes:
        return bytes(size)


def _targz_bomb(path: Path) -> None:
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for name, size, data in (
            ("a/bomb.jpg", _BOMB_BYTES, _Zeros()),
            ("a/good.jpg", len(_PICTURE), io.BytesIO(_PICTURE)),
        ):
            info = tarfile.TarInfo(name)
            info.size = size
            tar.addfile(info, data)  # type: ignore[arg-type]  # both can be read


def _gz_bomb(path: Path) -> None:
    compressor = zlib.compressobj(1, wbits=31)
    with open(path, "wb") as file:
        file.writelines(compressor.compress(bytes(1 << 20)) for _ in range(_BOMB_BYTES >> 20))
        file.write(compressor.flush())


def _parquet(cells: list[Any], labels: list[int] | None = None) -> Payload:
    """A table of these cells; a `path` of PRIVATE becomes that of a picture elsewhere on the machine."""

    def make(path: Path) -> None:
        import pyarrow
        from pyarrow import parquet

        private = path.parent.parent / "private"
        private.mkdir(exist_ok=True)
        (private / "p.jpg").write_bytes(PRIVATE_PICTURE)
        kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
        named = [
            cell | {"path": str(private / "p.jpg")} if cell and cell["path"] == _PRIVATE else cell
            for cell in cells
        ]
        table = {"image": pyarrow.array(named, kind)} | ({"label": labels} if labels else {})
        parquet.write_table(pyarrow.table(table), path)

    return make


def _entities(kind: str) -> Payload:
    """XML's ways to other files, and to more memory."""
    laughs = '<!ENTITY a0 "lol">' + "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 10))
    heads = {
        "laughs": f"<!DOCTYPE annotation [{laughs}]>",
        "file": '<!DOCTYPE annotation [<!ENTITY a9 SYSTEM "file:///etc/passwd">]>',
        "remote": '<!DOCTYPE annotation SYSTEM "http://127.0.0.1:9/x.dtd">',
        "quadratic": f'<!DOCTYPE annotation [<!ENTITY a9 "{"x" * 100_000}">]>',
    }
    name = "&a9;" * (10_000 if kind == "quadratic" else 1) if kind != "remote" else "dog"
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    return _text(
        f'<?xml version="1.0"?>{heads[kind]}<annotation><object><name>{name}</name>{box}</object></annotation>'
    )


def _json_with(value: Any, *keys: str) -> Payload:
    """The sound JSON with another value at a place."""

    def make(path: Path) -> None:
        record = json.loads(path.read_text())
        place = record
        for key in keys[:-1]:
            place = place[int(key)] if key.isdecimal() else place[key]
        place[int(keys[-1]) if keys[-1].isdecimal() else keys[-1]] = value
        path.write_text(json.dumps(record))

    return make


def _all_strings(text: str) -> Payload:
    """The sound JSON with `text` behind every string and key, but those that tell what it is."""

    def changed(value: Any) -> Any:
        if isinstance(value, str):
            return value + text
        if isinstance(value, list):
            return [changed(part) for part in value]
        if isinstance(value, dict):
            return {
                key: part if key in ("format", "protocol", "state") else changed(part)
                for key, part in value.items()
            }
        return value

    return lambda path: path.write_text(json.dumps(changed(json.loads(path.read_text())))) and None


def _folder_renamed(text: str) -> Payload:
    """The run's folder under a name that is markup or escapes."""

    def make(path: Path) -> None:
        path.parent.rename(path.parent.with_name(text.replace("/", "|")))

    return make


_DEEP = "[" * _DEPTH
_DIGITS = "9" * 5000
_JSON_TEXTS: dict[str, str | bytes] = {
    "deep": _DEEP, "deep objects": '{"a":' * _DEPTH, "empty": "", "a number": "7", "null": "null", "a list": "[1, 2]",
    "infinity": "1e999", "many digits": _DIGITS, "zeros": bytes(4096), "bytes": bytes(range(256)), "cut": '{"a": [1,',
    "escapes": json.dumps({ESCAPES: ESCAPES}), "surrogate": '{"a": "\\ud800"}', "NaN": "NaN",
}  # fmt: skip
_JSON_GATES = (
    "w.pth.json",
    "l.json",
    "config.json",
    "status.json",
    "results.json",
    "result.json",
    "metrics.jsonl",
)
_LABELS = {"format": np.int64(2), "num_classes": np.int64(3), "num_split": np.int64(0)}

PAYLOADS: list[tuple[str, str, Payload]] = [
    *((gate, "code in a pickle", _pickled) for gate in ("w.pth", "step-00000003.pt", "p.pkl", "labels.npz", "p.npy", "list.npy", "x.npz")),
    *((gate, f"torch: {name}", make) for gate in ("w.pth", "step-00000003.pt") for name, make in (
        ("code", _torch_zip), ("code, old format", _torch_old), ("script", _torch_script), ("bomb", _torch_bomb),
        ("4 TB of strides", _torch_views), ("odd values", _torch_odd), ("sparse", _torch_sparse))),
    *(("w.safetensors", f"header: {name}", _safetensors_head(head)) for name, head in (
        ("deep", _DEEP.encode()), ("empty", b"{}"), ("no JSON", b"{nonsense"), ("a list", b"[1,2]"),
        ("lies", b'{"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,4]}}'))),
    ("w.safetensors", "header of 2^62 bytes", _text(struct.pack("<Q", 2**62), b"{}")),
    *(("w.safetensors", f"metadata: {name}", _safetensors_told(told)) for name, told in (
        ("deep", _DEEP), ("no JSON", "{nonsense"), ("a list", "[1,2]"), ("escapes", json.dumps({"backbone": ESCAPES})))),
    *((gate, "objects", _npy_objects) for gate in ("p.npy", "list.npy")),
    *((gate, f"header: {name}", _text(data)) for gate in ("p.npy", "list.npy") for name, data in (
        ("lies", npy_head((1 << 50, 9), "<i8") + bytes(64)), ("negative", npy_head((-1, 9), "<i8") + bytes(720)),
        ("deep", b"\x93NUMPY\x01\x00" + struct.pack("<H", 60_000) + b"(" * 60_000), ("code", npy_head("__import__('os')")))),
    ("p.bin", "header lies", _text(struct.pack("<ii", 2**31 - 1, 2**31 - 1))),
    *((gate, "objects", _npz_objects) for gate in ("labels.npz", "x.npz")),
    *((gate, f"header: {name}", _npz(member, data)) for gate, member in (("labels.npz", "labels"), ("x.npz", "images")) for name, data in (
        ("lies", npy_head((10**9, 512, 512, 3)) + bytes(100)), ("negative", npy_head((-1, 8, 8, 3)) + bytes(192)),
        ("deep", b"\x93NUMPY\x01\x00" + struct.pack("<H", 60_000) + b"(" * 60_000), ("names lead out", npy_head((2, 8, 8, 3)) + bytes(384)))),
    ("labels.npz", "bomb", _npz_bomb("labels", (_BOMB_BYTES,), _LABELS)),
    ("x.npz", "bomb", _npz_bomb("images", (_BOMB_BYTES // (512 * 512 * 3), 512, 512, 3), {})),
    ("x.npz", "bomb of labels", _npz_bomb("labels", (_BOMB_BYTES,), {"images": np.zeros((2, 8, 8, 3), np.uint8)})),
    ("x.tar", "names lead out, links, devices", _tar_traversal),
    ("x.tar", "size of 2^62", _tar_size(b"\x80" + (2**62).to_bytes(11, "big"))),
    ("x.tar", "negative size", _tar_size(b"\xff" + (-512 % 2**88).to_bytes(11, "big"))),
    ("x.tar", "pax header", _tar_pax),
    ("x.tar", "60 tars in one another", _tar_nested),
    ("x.tar.gz", "bomb", _targz_bomb),
    ("x.tar.gz", "bomb of zeros", _gz_bomb),
    *(("w.tar", f"label: {name}", _tar_of(**{"000.jpg": _PICTURE, f"000.{ending}": data})) for name, ending, data in (
        ("deep", "json", _DEEP.encode()), ("infinite", "json", b'{"label": 1e999}'), ("true", "json", b'{"label": true}'),
        ("a path", "json", b'{"label": "../../x"}'), ("large", "json", b'{"label": 99999999999999999999}'),
        ("many digits", "cls", _DIGITS.encode()), ("escapes", "cls", ESCAPES.encode()), ("negative", "cls", b"-5"))),
    ("t.parquet", "path of a private picture", _parquet([{"bytes": None, "path": _PRIVATE}, {"bytes": _PICTURE, "path": "../../x"}])),
    ("t.parquet", "nothing in cells", _parquet([None, {"bytes": _PICTURE, "path": None}, {"bytes": None, "path": None}])),
    ("t.parquet", "labels beyond", _parquet([{"bytes": _PICTURE, "path": "a"}] * 2, [2**40, -5])),
    ("t.parquet", "escapes", _parquet([{"bytes": b"bad", "path": ESCAPES}, {"bytes": _PICTURE, "path": MARKUP}])),
    *(("t.parquet", name, _text(data)) for name, data in (
        ("noise", bytes(range(256)) * 4), ("its name alone", b"PAR1" + bytes(500) + struct.pack("<I", 500) + b"PAR1"), ("empty", b""))),
    *(("000007.xml", f"entities: {kind}", _entities(kind)) for kind in ("laughs", "file", "remote", "quadratic")),
    *(("000007.xml", name, _text(data)) for name, data in (
        ("deep", "<a>" * _DEPTH), ("empty", ""), ("escapes", f"<annotation><object><name>{MARKUP}</name></object></annotation>"),
        ("infinite box", "<annotation><object><name>dog</name><bndbox><xmin>1e999</xmin><ymin>nan</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"))),
    *(("trainval.txt", name, _text(data)) for name, data in (
        ("leads out", "../../../etc/passwd\n"), ("zeros", bytes(100)), ("escapes", ESCAPES + "\n"), ("one long line", "a" * 1_000_000), ("not UTF-8", b"\xff\xfe\n"))),
    *(("list.txt", name, _text(data)) for name, data in (
        ("many digits", _DIGITS), ("negative", "-1\n"), ("not UTF-8", b"\xff\xfe\n"), ("escapes", ESCAPES + "\n"), ("zeros", bytes(100)), ("other digits", "²\n"))),
    *(("l.txt", name, _text(data)) for name, data in (
        ("leads out", "../../../../etc/passwd 0\n"), ("a zero byte", "a\0b.jpg 0\n"), ("large label", "0.jpg 99999999999999999999\n"),
        ("many digits", f"0.jpg {_DIGITS}\n"), ("one long line", "a" * 1_000_000 + "\n"), ("bytes", bytes(range(256)) * 9),
        ("other digits", "0.jpg ²\n"), ("devices", "/dev/zero 0\n/dev/tty 1\n"), ("escapes", f"{ESCAPES}.jpg 0\n0.jpg 1\n"))),
    *(("l.csv", name, _text(data)) for name, data in (
        ("escapes", f"filename,label\n0.jpg,{ESCAPES}{MARKUP}\n"), ("a long field", "filename,label\n" + "a" * 1_000_000 + ",x\n"),
        ("open quote", 'filename,label\n"0.jpg,x\n'), ("a zero byte", "filename,label\na\0.jpg,x\n"), ("formula", "filename,label\n=cmd|' /C calc'!A0.jpg,x\n0.jpg,=1+1\n"))),
    *((gate, f"JSON: {name}", _text(text)) for gate in _JSON_GATES for name, text in _JSON_TEXTS.items()),
    *((gate, f"{name} in every string", _all_strings(text)) for gate in ("config.json", "status.json", "results.json", "result.json", "l.json") for name, text in (("escapes", ESCAPES), ("markup", MARKUP))),
    *(("l.json", f"{name} in {keys}", _json_with(value, *keys.split("."))) for keys in ("images.0.id", "images.0.file_name", "annotations.0.image_id", "annotations.0.category_id", "categories.0.id", "categories.0.name", "images", "annotations", "categories") for name, value in (
        ("infinity", float("inf")), ("a list", [[]]), ("an object", {}), ("a large number", 10**30), ("null", None), ("a path", "../../../etc/passwd"))),
    *(("result.json", f"{name} in {keys}", _json_with(value, *keys.split("."))) for keys in ("numbers", "settings", "checkpoint", "data", "protocol", "recipe", "data.num_train", "numbers.top1_B4", "checkpoint.science", "checkpoint.path") for name, value in (
        ("infinity", float("inf")), ("a list", [[]]), ("a large number", 10**30), ("null", None), ("a path", "../../../etc/passwd"))),
    *(("config.json", f"{name} in {keys}", _json_with(value, *keys.split("."))) for keys in ("options", "science", "science.seed", "options.data") for name, value in (
        ("infinity", float("inf")), ("a list", [[]]), ("null", None), ("a large number", 10**30))),
]  # fmt: skip

FOLDER_NAMES: list[tuple[str, str, Payload]] = [
    ("result.json", "markup as the folder's name", _folder_renamed(MARKUP)),
    ("result.json", "escapes as the folder's name", _folder_renamed(ESCAPES)),
]
