"""The attacks that no mutation finds: files that run code, lead elsewhere, never end, or fill memory."""

import io
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from typing_extensions import override

from tests import recorded
from tests.faults.gates import (
    ARRAYS,
    GATES,
    IMAGE_BYTES,
    RECORDS,
    RUN,
    cell,
    command,
    root_of,
    small_jpeg,
    write_parquet,
    write_photos,
    write_tar,
)
from tests.pipelines.photos import png_of

ESCAPES = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202e\r"
MARKUP = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>"
PRIVATE_IMAGE = small_jpeg(99)
# Far above the memory limit when unpacked, far below it on the disk.
BOMB_BYTES = 1 << 29
Make = Callable[[Path], object]  # changes the sound file at a path, or a file beside it


class Attack(NamedTuple):
    """An attack on a gate, in words."""

    gate: str
    words: str
    make: Make


# Gates that are commands, which print what is read, write pages of it, or run what is named.


def _write(path: Path) -> str:
    """Write a dataset file from a source, and return the output of write, info and verify."""
    out = path.parent / "out" / "x.beton"
    out.parent.mkdir(exist_ok=True)
    source = path.parents[1] if path.parts[-3] == "images" else path
    told = command("data", "write", source, out, "--overwrite", "--max-bad", "50%", "--workers", 1)
    return told + command("data", "info", out) + command("data", "verify", out, "--workers", 1)


def _train(path: Path, *more: object) -> str:
    out = path.parent / "out"
    if not out.exists():
        out.mkdir()
        write_photos(out / "data.beton", "jpg")
    return command("train", "simclr", "--dry-run", "--data", out / "data.beton", "--out", out / "run", *more)


def _table(path: Path) -> str:
    out = path.parent / "out"
    return command("table", "psl/4", "--runs", path.parents[1], "--out", out, "--scale", "tiny")


_EXPORT = ("--to", "timm", "--overwrite")
_COMMANDS: dict[str, tuple[tuple[str, ...], Callable[[Path], str]]] = {
    "write": (("classes.tar", "x.parquet", "x.tar.gz", "list.csv", "list.json", "images/b/x.jpg"), _write),
    "table": ((f"{RUN}/config.json", f"{RUN}/result.json"), _table),
    "runs": ((f"{RUN}/config.json", f"{RUN}/status.json"), lambda path: command("runs", path.parents[1])),
    "compare": (
        (f"{RUN}/config.json",),
        lambda path: command("compare", path.parents[1], "--out", path.parent / "out"),
    ),
    "replay": (
        (f"{RUN}/config.json",),
        lambda path: command("replay", path.parent, "--step", 2, "--out", path.parent / "out"),
    ),
    "--config": ((f"{RUN}/config.json",), lambda path: _train(path, "--config", path.parent)),
    "--init": (("weights.pth.json",), lambda path: _train(path, "--init", path.with_suffix(""))),
    "export": (
        ("weights.pth.json",),
        lambda path: command("export", path.with_suffix(""), path.parent / "out" / "w.pth", *_EXPORT),
    ),
}
COMMANDS = {
    f"{name}: {place}": GATES[place]._replace(open=open, exact=False)
    for name, (places, open) in _COMMANDS.items()
    for place in places
}


def text(*parts: str | bytes) -> Make:
    """Return an attack that replaces the file by these parts."""
    data = b"".join(
        part if isinstance(part, bytes) else part.encode("utf-8", "surrogateescape") for part in parts
    )
    return lambda path: path.write_bytes(data)


# Weights, checkpoints, pickles and arrays that would run code or fill memory.


class _Runs:
    """An object that leaves the file `canary` in the case's folder when pickle itself unpickles it."""

    def __init__(self, path: Path):
        self._canary = root_of(path) / "canary"

    @override
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self._canary}",)


def runs_code(path: Path) -> None:
    """Write a pickle that runs code, as the kind of file that it replaces."""
    objects = np.array([_Runs(path)], dtype=object)
    match path.suffix:
        case ".pth" | ".pt":
            state, is_zip = {"backbone": {}, "science": _Runs(path)}, "older" not in path.name
            torch.save(state, path, _use_new_zipfile_serialization=is_zip)
        case ".npy":
            np.save(path, objects)
        case ".npz":
            np.savez(path, format=2, images=objects, labels=objects)
        case _:
            path.write_bytes(pickle.dumps({"model": _Runs(path), "boxes": _Runs(path), "ids": []}))


def _torch_script(path: Path) -> None:
    class Module(torch.nn.Module):
        @override
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    torch.jit.script(Module()).save(str(path))


def _bomb(member: str, head: bytes = b"") -> Make:
    """Build an archive of a huge member of zeros."""

    def make(path: Path) -> None:
        with (
            zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
            archive.open(member, "w", force_zip64=True) as file,
        ):
            file.write(head)
            file.writelines(bytes(1 << 20) for _ in range(BOMB_BYTES >> 20))

    return make


def _npy_head(shape: object, kind: str = "|u1") -> bytes:
    """Return the header of an .npy file with this shape and dtype."""
    head = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    head += b" " * (63 - (10 + len(head)) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head


_PICKLES = (
    "weights.pth", "older.pth", "weights.pkl", "checkpoints/step-00000003.pt", "labels.npz", "few.npy",
    "permutations.npy", "features.npy", "predictions.npz", "data_batch_1", "proposals.pkl", "x.npz",
)  # fmt: skip
_ZIPS = {
    "weights.pth": "x/data.pkl",
    "labels.npz": "labels.npy",
    "predictions.npz": "a.npy",
    "x.npz": "images.npy",
}
_ARRAYS = {
    "lies": _npy_head((1 << 50, 9), "<i8") + bytes(64), "code": _npy_head("__import__('os')"),
    "negative": _npy_head((-1, 9), "<i8") + bytes(720),
    "deep": b"\x93NUMPY\x01\x00" + struct.pack("<H", 60_000) + b"(" * 60_000,
}  # fmt: skip
_ON_ARRAYS = [
    *(Attack(gate, "code in a pickle", runs_code) for gate in _PICKLES),
    Attack("weights.pth", "a torch script", _torch_script),
    # One number as a tensor of 4 TB, by strides of 0.
    Attack("weights.pth", "4 TB of strides", lambda path: torch.save(
        {"conv1.weight": torch.zeros(1).expand(64, 1 << 17, 1 << 17)}, path
    )),
    *(
        Attack(gate, "a bomb", _bomb(member, _npy_head((BOMB_BYTES,)) if member.endswith("y") else b""))
        for gate, member in _ZIPS.items()
    ),
    *(
        Attack(gate, f"header: {words}", text(data))
        for gate in ("few.npy", "permutations.npy", "features.npy") for words, data in _ARRAYS.items()
    ),
    *(
        Attack("weights.safetensors", f"header: {words}", text(struct.pack("<Q", size), head))
        for words, size, head in (
            ("2^62 bytes", 2**62, b"{}"), ("deep", 200_000, b"[" * 200_000),
            ("lies", 73, b'{"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,4]}}'),
        )
    ),
]  # fmt: skip

# Sources that lead out of their folder, name foreign files, or hold more than they seem to.


def _add(tar: tarfile.TarFile, name: str, data: Any, size: int | None = None, **values: Any) -> None:
    """Add a member of these bytes, or of `size` bytes of a file, with other values in its header."""
    info = tarfile.TarInfo(name)
    info.size = len(data) if size is None else size
    for key, value in values.items():
        setattr(info, key, value)
    tar.addfile(info, io.BytesIO(data) if isinstance(data, bytes) else data)


def _tar_traversal(path: Path) -> None:
    """Write names that lead out, links, devices, pipes and names with escapes, beside one sound image."""
    escapes = f"{ESCAPES}/{MARKUP.replace('/', '|')}.jpg"
    with tarfile.open(path, "w") as tar:
        for name in ("../../evil/x.jpg", "/evil.jpg", escapes, "good/z.jpg"):
            _add(tar, name, small_jpeg())
        _add(tar, "link/l.jpg", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        _add(tar, "link/h.jpg", b"", type=tarfile.LNKTYPE, linkname="../../evil/x.jpg")
        _add(tar, "dev/n.jpg", b"", type=tarfile.CHRTYPE, devmajor=1, devminor=5)
        _add(tar, "dev/f.jpg", b"", type=tarfile.FIFOTYPE)


def _tar_pax(path: Path) -> None:
    headers = {"path": "../" * 3000 + f"{ESCAPES}.jpg", "size": "99999999999999999999"}
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        _add(tar, "a/x.jpg", small_jpeg(), pax_headers=headers)


def _tar_nested(path: Path) -> None:
    members = {"x.jpg": small_jpeg()}
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
        _add(tar, "a/bomb.jpg", _Zeros(), BOMB_BYTES)
        _add(tar, "a/good.jpg", small_jpeg())


def _gz_bomb(path: Path) -> None:
    compressor = zlib.compressobj(1, wbits=31)
    with open(path, "wb") as file:
        file.writelines(compressor.compress(bytes(1 << 20)) for _ in range(BOMB_BYTES >> 20))
        file.write(compressor.flush())


def _names_a_private_image(path: Path) -> None:
    private = root_of(path).with_name("private.jpg")
    private.write_bytes(PRIVATE_IMAGE)
    write_parquet(path, [cell(None, str(private)), cell(small_jpeg(), "../../x")], None)


_PATH = "../../../etc/passwd"
_LAUGHS = '<!ENTITY a0 "lol">' + "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 10))
_ENTITIES = {
    "laughs": (f"[{_LAUGHS}]", "&a9;"), "a file": ('[<!ENTITY a9 SYSTEM "file:///etc/passwd">]', "&a9;"),
    "remote": ('SYSTEM "http://127.0.0.1:9/x.dtd"', "dog"),
    "quadratic": (f'[<!ENTITY a9 "{"x" * 100_000}">]', "&a9;" * 10_000),
}  # fmt: skip
_OBJECT = (
    "<annotation><object><name>{}</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    "</object></annotation>"
)
_XML, _TRAINVAL = "VOC2007/Annotations/000007.xml", "VOC2007/ImageSets/Main/trainval.txt"
_ON_SOURCES = [
    Attack("write: classes.tar", "names lead out, links, devices", _tar_traversal),
    Attack("write: classes.tar", "a pax header", _tar_pax),
    Attack("classes.tar", "60 tars in one another", _tar_nested),
    Attack("write: x.tar.gz", "a bomb", _targz_bomb),
    Attack("x.tar.gz", "a bomb of zeros", _gz_bomb),
    Attack("write: x.parquet", "the path of a private image", _names_a_private_image),
    Attack("write: x.parquet", "escapes", lambda path: write_parquet(
        path, [cell(b"bad", ESCAPES), cell(small_jpeg(), MARKUP)], None
    )),
    *(
        Attack(_XML, f"entities: {words}", text(f"<!DOCTYPE annotation {entities}>", _OBJECT.format(name)))
        for words, (entities, name) in _ENTITIES.items()
    ),
    Attack(_XML, "deep", text("<a>" * 200_000)),
    Attack(_TRAINVAL, "leads out", text(f"{_PATH}\n")),
    *(Attack(gate, "a long line", text("a" * 1_000_000)) for gate in (_TRAINVAL, "list.txt", "few.txt")),
    Attack("list.txt", "leads out", text(f"{_PATH} 0\n")),
    Attack("list.txt", "devices", text("/dev/zero 0\n/dev/tty 1\n")),
    Attack("write: list.csv", "escapes", text(f"filename,label\n0.jpg,{ESCAPES}{MARKUP}\n")),
    Attack("write: list.csv", "a formula", text("filename,label\n=cmd|' /C calc'!A0.jpg,x\n0.jpg,=1+1\n")),
]  # fmt: skip

# Images that hold more than their size suggests, and odd entries and names of a folder.


def png(side: int, *extra: bytes) -> bytes:
    """Return a black PNG with one byte a pixel, and other chunks after its header."""
    compressor = zlib.compressobj(1)
    pixels = b"".join([*(compressor.compress(bytes(side + 1)) for _ in range(side)), compressor.flush()])
    head = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return png_of(head, *extra, b"IDAT" + pixels, b"IEND")


def _many_scans(path: Path) -> None:
    """Repeat the scans of a progressive JPEG: few bytes, much work."""
    data = IMAGE_BYTES["progressive.jpg"]
    path.write_bytes(data[:-2] + data[data.index(b"\xff\xda") : -2] * 400 + b"\xff\xd9")


def _lies_of_its_size(path: Path) -> None:
    data = bytearray(path.read_bytes())
    at = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
    data[at + 5 : at + 9] = b"\xff\xff\xff\xff"
    path.write_bytes(data)


def _named(name: str) -> Make:
    """Return an attack that gives a damaged image, and a sound one, this name."""

    def make(path: Path) -> None:
        path.with_name(f"{name}.png").write_bytes(path.read_bytes())
        path.with_name(f"{name}.jpg").write_bytes(b"\xff\xd8")
        path.unlink()

    return make


_FOLDER = "write: images/b/x.jpg"
_TEXT_BOMB = b"x\0\0" + zlib.compress(bytes(100 << 20), 1)
_ON_IMAGES = [
    Attack("x.png", "400 million pixels", lambda path: path.write_bytes(png(20_000))),
    *(
        Attack(gate, f"100 MB of {name.decode()}", text(png(8, name + _TEXT_BOMB)))
        for gate in ("x.png", _FOLDER) for name in (b"zTXt", b"iCCP")
    ),
    *(Attack(gate, "400 scans", _many_scans) for gate in ("progressive.jpg", _FOLDER)),
    *(Attack(gate, "65535 x 65535", _lies_of_its_size) for gate in ("baseline.jpg", "cmyk.jpg", _FOLDER)),
    *(
        Attack(_FOLDER, f"named {name!a}", _named(name))
        for name in (
            ESCAPES, "new\nline", MARKUP.replace("/", "|"), "=HYPERLINK(1)", "latin\udce9", "a" * 250, "-rf",
        )
    ),
]  # fmt: skip

# Records that name code, or hold markup and escapes.


def _everywhere(text: str) -> Make:
    """Append a text to every string of a record, except values that identify its kind."""

    def appended(value: Any) -> Any:
        if isinstance(value, str):
            return value + text
        if isinstance(value, list):
            return [appended(part) for part in value]
        kept = ("format", "protocol", "state", "recipe", "precision")
        if isinstance(value, dict):
            return {key: part if key in kept else appended(part) for key, part in value.items()}
        return value

    return lambda path: recorded.write(path, appended(recorded.read(path)))


def _names_code(*places: str) -> Make:
    """Return an attack that names a Python file at places of a record, with dots between its keys."""

    def make(path: Path) -> None:
        code, record = path.with_name("net.py"), recorded.read(path)
        code.write_text(f"open({str(path.with_name('canary'))!r}, 'w')\n")
        for place in places:
            record = recorded.planted(
                record, tuple(place.split(".")), f"{code}:Net" if "backbone" in place else str(code)
            )
        recorded.write(path, record)

    return make


_ON_RECORDS = [
    *(
        Attack(gate, f"{words} in every string", _everywhere(text))
        for gate in COMMANDS if "/" in gate and ".json" in gate
        for words, text in (("escapes", ESCAPES), ("markup", MARKUP))
    ),
    *(
        Attack(f"{name}: {RUN}/config.json", f"a Python file as {place}", _names_code(place))
        for name in ("replay", "--config", "runs", "compare")
        for place in ("science.recipe", "science.backbone", "options.backbone", "options.init", "options.val")
    ),
    *(
        Attack(f"{name}: weights.pth.json", "a Python file as the backbone", _names_code("backbone"))
        for name in ("export", "--init")
    ),
]  # fmt: skip

# What is no file, or never ends, at gates that are parts of folders.


def _instead(create: Callable[[Path], object]) -> Make:
    def make(path: Path) -> None:
        path.unlink()
        create(path)

    return make


_ODD_FILES: dict[str, Make] = {
    "a pipe": _instead(os.mkfifo),
    "a folder": _instead(os.mkdir),
    "a link to /dev/zero": _instead(lambda path: path.symlink_to("/dev/zero")),
    "a link to itself": _instead(lambda path: path.symlink_to(path)),
    "a GB of zeros": lambda path: os.truncate(path, 1 << 30),
}
_IN_FOLDERS = (*list(ARRAYS)[:6], _XML, "mask.png", _FOLDER, *RECORDS)
_ON_ALL = [
    *(Attack(gate, words, make) for gate in _IN_FOLDERS for words, make in _ODD_FILES.items()),
    *(Attack(gate, "deep", text("[" * 200_000)) for gate in GATES),
]

ATTACKS = sorted(
    _ON_ARRAYS + _ON_SOURCES + _ON_IMAGES + _ON_RECORDS + _ON_ALL, key=lambda attack: attack.gate
)
