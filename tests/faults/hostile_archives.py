"""Archives and tables that lead out of their folder, name foreign files, or hold more than they seem to."""

import io
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

from typing_extensions import override

from tests.faults.hostile_common import (
    BOMB_BYTES,
    DEEP,
    DIGITS,
    ESCAPES,
    MARKUP,
    Attack,
    Payload,
    text_attacks,
)
from tests.faults.hostile_sound import write_tar
from tests.pipelines.photos import jpeg, photo

_IMAGE = jpeg(photo(0, 32, 40))
PRIVATE_IMAGE, _PRIVATE = jpeg(photo(99, 32, 40)), "private"


def _tar_of(**members: bytes) -> Payload:
    return lambda path: write_tar(path, members)


def _tar_traversal(path: Path) -> None:
    """Write names that lead out, links, devices, pipes and names with escapes, beside one sound image."""
    special_members: list[tuple[str, dict[str, Any]]] = [
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
            info.size = len(_IMAGE)
            tar.addfile(info, io.BytesIO(_IMAGE))
        for name, values in special_members:
            info = tarfile.TarInfo(name)
            for key, value in values.items():
                setattr(info, key, value)
            tar.addfile(info)


def _tar_size(size: bytes) -> Payload:
    """Build a first header with a wrong size and a right checksum."""

    def make(path: Path) -> None:
        head = bytearray(tarfile.TarInfo("a/x.jpg").tobuf())
        head[124:136] = size
        head[148:156] = b" " * 8
        head[148:156] = b"%06o\0 " % sum(head)
        path.write_bytes(bytes(head) * 2 + _IMAGE)

    return make


def _tar_pax(path: Path) -> None:
    info = tarfile.TarInfo("a/x.jpg")
    info.pax_headers = {"path": "../" * 3000 + f"{ESCAPES}.jpg", "size": "99999999999999999999"}
    info.size = len(_IMAGE)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info, io.BytesIO(_IMAGE))


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
        for name, size, data in (
            ("a/bomb.jpg", BOMB_BYTES, _Zeros()),
            ("a/good.jpg", len(_IMAGE), io.BytesIO(_IMAGE)),
        ):
            info = tarfile.TarInfo(name)
            info.size = size
            tar.addfile(info, data)  # type: ignore[arg-type]  # both can be read


def _gz_bomb(path: Path) -> None:
    compressor = zlib.compressobj(1, wbits=31)
    with open(path, "wb") as file:
        file.writelines(compressor.compress(bytes(1 << 20)) for _ in range(BOMB_BYTES >> 20))
        file.write(compressor.flush())


def _parquet(cells: list[Any], labels: list[int] | None = None) -> Payload:
    """Build a table of these cells; a `path` of _PRIVATE becomes that of an image elsewhere."""

    def make(path: Path) -> None:
        import pyarrow
        from pyarrow import parquet

        private = path.parent.parent / "private"
        private.mkdir(exist_ok=True)
        (private / "p.jpg").write_bytes(PRIVATE_IMAGE)
        kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
        resolved = [
            cell | {"path": str(private / "p.jpg")} if cell and cell["path"] == _PRIVATE else cell
            for cell in cells
        ]
        table = {"image": pyarrow.array(resolved, kind)} | ({"label": labels} if labels else {})
        parquet.write_table(pyarrow.table(table), path)

    return make


def _cell(data: bytes | None, path: str | None) -> dict[str, Any]:
    return {"bytes": data, "path": path}


_LABELS = (
    ("deep", "json", DEEP.encode()), ("infinite", "json", b'{"label": 1e999}'),
    ("true", "json", b'{"label": true}'), ("a path", "json", b'{"label": "../../x"}'),
    ("large", "json", b'{"label": 99999999999999999999}'), ("many digits", "cls", DIGITS.encode()),
    ("escapes", "cls", ESCAPES.encode()), ("negative", "cls", b"-5"),
)  # fmt: skip

ATTACKS: list[Attack] = [
    ("x.tar", "names lead out, links, devices", _tar_traversal),
    ("x.tar", "size of 2^62", _tar_size(b"\x80" + (2**62).to_bytes(11, "big"))),
    ("x.tar", "negative size", _tar_size(b"\xff" + (-512 % 2**88).to_bytes(11, "big"))),
    ("x.tar", "pax header", _tar_pax),
    ("x.tar", "60 tars in one another", _tar_nested),
    ("x.tar.gz", "bomb", _targz_bomb),
    ("x.tar.gz", "bomb of zeros", _gz_bomb),
    *(
        ("w.tar", f"label: {name}", _tar_of(**{"000.jpg": _IMAGE, f"000.{ending}": data}))
        for name, ending, data in _LABELS
    ),
    ("t.parquet", "path of a private picture", _parquet([_cell(None, _PRIVATE), _cell(_IMAGE, "../../x")])),
    ("t.parquet", "nothing in cells", _parquet([None, _cell(_IMAGE, None), _cell(None, None)])),
    ("t.parquet", "labels beyond", _parquet([_cell(_IMAGE, "a")] * 2, [2**40, -5])),
    ("t.parquet", "escapes", _parquet([_cell(b"bad", ESCAPES), _cell(_IMAGE, MARKUP)])),
    *text_attacks("t.parquet", {
        "noise": bytes(range(256)) * 4,
        "its name alone": b"PAR1" + bytes(500) + struct.pack("<I", 500) + b"PAR1", "empty": b"",
    }),
]  # fmt: skip
