"""Files of weights that claim more than they hold: refused, or read, in 300 MB of memory and in one line."""

import ast
import io
import json
import pickle
import resource
import socket
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from fastpsl.files.untrusted import load_plain
from fastpsl.models.checkpoint import read_checkpoint
from fastpsl.models.foreign_weights import read_weights, recognise
from tests.pipelines.threads import in_a_forked_process
from tests.test_architecture import ROOT, called, python_files

SIZE = 2_000_000  # of the largest files here
MOST_BYTES = 300 << 20
CPU_S = 40  # twenty times what each may take


def text(word: str) -> bytes:
    return b"X" + struct.pack("<I", len(word)) + word.encode()


def number(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def filled(body: bytes) -> bytes:
    """Return a pickle of SIZE bytes, most of which hold nothing, so that its size allows much."""
    rest = SIZE - len(body) - 8
    return b"\x80\x02X" + struct.pack("<I", rest) + bytes(rest) + b"0" + body + b"."


def model(value: bytes) -> bytes:
    return b"}" + text("model") + b"}" + text("w") + value + b"ss"


# NumPy's dtype of eight bytes that hide a pointer.
FIELD = b"cnumpy\ndtype\n" + text("O") + b"\x85R"
POINTERS = (
    b"cnumpy\ndtype\n" + text("V8") + b"\x85R(K\x03" + text("|") + b"N(" + text("a") + b"t}" + text("a")
    + b"(" + FIELD + b"K\x00tsK\x08K\x01K\x00tb"
)  # fmt: skip
ADDRESS = b"B\x08\x00\x00\x00" + struct.pack("<Q", 0x4141414141414140)
SHAPE = b"(" + number(200 << 20) + b"t"
LAUGHS = b"]q\x00" + b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(60))
BYTEARRAY = b"c__builtin__\nbytearray\n" + number(6 << 30) + b"\x85R"
HEX = b"c_codecs\nencode\nq\x01" + text("ab") + text("hex") + b"q\x03\x86R"
TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\nq\x01((" + text("storage") + b"ctorch\nFloatStorage\n" + text("0")
    + text("cpu") + b"%stQK\x00%s\x85K\x01\x85\x89ccollections\nOrderedDict\n)Rtq\x02"
)  # fmt: skip
OLD = b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
FEW, MANY = b"K\x04", number(6 << 35)


def named(names: list[str]) -> bytes:
    """Return a pickle of tensors that share four numbers."""
    return TENSOR % (FEW, FEW) + b"}" + b"".join(text(name) + b"h\x01h\x02Rs" for name in names)


PICKLES = {
    "a pointer": filled(model(b"cnumpy.core.multiarray\nscalar\n" + POINTERS + ADDRESS + b"\x86R")),
    "a pointer in an array": filled(model(b"cnumpy\nndarray\n((K\x01t" + POINTERS + ADDRESS + b"tR")),
    "arrays of 200 MB": filled(40 * model(b"cnumpy\nndarray\n" + SHAPE + text("u1") + b"\x86R")),
    "a memo of 2 GB": b"\x80\x02}r\x00\x00\x00\x08.",
    "a memo of 2 GB, as text": b"\x80\x02}p134217728\n.",
    "a frame of 2 GB": b"\x80\x04\x95\x00\x00\x00\x80\x00\x00\x00\x00}.",
    "bytes of 1 TB": b"\x80\x04\x8e\x00\x00\x00\x00\x00\x01\x00\x00x.",
    "two million lists": b"\x80\x02" + b"]" * (SIZE // 2) + b"a" * (SIZE // 2 - 1) + b".",
    "a million numbers": b"\x80\x02" + b"I1\n" * (SIZE // 3) + b".",
    "many lists": filled(b"]" * 200_000),
    "each holds the one before twice": filled(LAUGHS + model(b"h<")),
    "a number of 10,000 digits": b"\x80\x02\x8b\x00\x10\x00\x00" + b"\x01" * 4096 + b".",
    "a text that becomes bytes again and again": filled(
        model(b"c_codecs\nencode\nq\x01" + text("a" * 1_000_000) + b"q\x02" + text("latin1") + b"q\x03]("
        + b"h\x01h\x02h\x03\x86R" * 600 + b"e")
    ),
    "an array in many places": pickle.dumps(
        {"model": dict.fromkeys(map(str, range(1000)), np.zeros(1_000_000, np.int8))}
    ),
    "an array in lists": pickle.dumps({"model": {"w": [[np.zeros(1_000_000, np.int8)] * 20] * 20}}),
    "sets": filled(b"\x8f" * 200_000),
    "an array of 7,500 long sides": filled(model(
        b"cnumpy.core.numeric\n_frombuffer\n(C\x00cnumpy\ndtype\n" + text("f4") + b"\x85R("
        + 7_500 * (b"\x8a\xff" + b"\xff" * 254 + b"\x7f") + b"t" + text("C") + b"tR"
    )),
}  # fmt: skip
BIG = b"](" + b"".join(b"J" + struct.pack("<i", 300 + i) for i in range(100_000)) + b"eq\x01"
ZIPPED = {
    **{
        f"a {name[1].decode()} again and again": BIG
        + b"c%b\n%b\nq\x02](" % name
        + b"h\x02h\x01\x85R" * 500
        + b"e"
        for name in ((b"__builtin__", b"set"), (b"collections", b"Counter"))
    },
    "a bytearray of 6 GB": BYTEARRAY,
    "a text that doubles": HEX + b"q\x02h\x01h\x02h\x03\x86R" * 40,
    "a name of a million letters": named(["module." * 140_000]),
    "20,000 tensors": named([f"{i:x}" for i in range(20_000)]),
    "a tensor without end": named(["w"]).replace(FEW, MANY),
    "each holds the one before twice": LAUGHS + model(b"h<"),
    "a list of lists": b"}" + b"]" * 200_000,
}
OLDER = {
    "a bytearray of 6 GB": b"\x80\x02}" + BYTEARRAY + b"0.",
    "a tensor without end": b"\x80\x02"
    + (TENSOR % (MANY + b"N", MANY))
    + b"}"
    + text("w")
    + b"h\x01h\x02Rs.",
    "a memo of 2 GB": b"\x80\x02}r\x00\x00\x00\x08.",
}


def zipped(body: bytes) -> bytes:
    """Return torch's zip of SIZE bytes with a pickle."""
    pickled = b"\x80\x02" + body + b"."
    parts = {"data.pkl": pickled, "version": b"3\n", "data/0": bytes(16)}
    parts["data/1"] = bytes(SIZE - len(pickled) - 500)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for member, data in parts.items():
            archive.writestr(f"w/{member}", data)
    return file.getvalue()


def older(body: bytes) -> bytes:
    """Return a file of torch's older format with a pickle."""
    return OLD + body + pickle.dumps([], 2)


def in_bounds(path: Path) -> list[str]:
    """Return what two readers say of a file, in a process that may take CPU_S and MOST_BYTES more."""

    def read() -> list[str]:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MOST_BYTES,) * 2)
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
        said = []
        for reader in (read_weights, read_checkpoint):
            try:
                reader(path)
                said.append("")
            except ValueError as error:
                said.append(str(error))
        return said

    lines: list[str] = in_a_forked_process(read)
    assert isinstance(lines, list), lines
    assert all(len(line.splitlines()) <= 1 and len(line) < 500 for line in lines), lines
    return lines


@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_takes_no_more_than_it_brought(tmp_path: Path, name: str) -> None:
    path = tmp_path / "w.pkl"
    path.write_bytes(PICKLES[name])
    assert all(in_bounds(path))
    with pytest.raises(ValueError, match="a pickle"):  # as CIFAR's batches and proposals are read
        load_plain(PICKLES[name])


@pytest.mark.parametrize("name", ZIPPED)
def test_torchs_zip_takes_no_more_than_it_brought(tmp_path: Path, name: str) -> None:
    path = tmp_path / "w.pt"
    path.write_bytes(zipped(ZIPPED[name]))
    lines = in_bounds(path)
    assert bool(lines[0]) == (name != "20,000 tensors") and lines[1]


@pytest.mark.parametrize("name", OLDER)
def test_torchs_older_format_takes_no_more_than_it_brought(tmp_path: Path, name: str) -> None:
    path = tmp_path / "w.pt"
    path.write_bytes(older(OLDER[name]))
    assert all(in_bounds(path))
    with zipfile.ZipFile(path, "a") as archive:  # torch goes by the first bytes
        archive.writestr("w/data.pkl", b"\x80\x02}.")
    assert all(in_bounds(path))


def test_a_zip_has_one_list_of_its_parts(tmp_path: Path) -> None:
    """Readers of zips differ in which list they take, so that a checked pickle need not be the loaded one."""
    path = tmp_path / "w.pt"
    torch.save({"w": torch.zeros(2)}, path)
    sound = path.read_bytes()
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("w/DATA.PKL", b"\x80\x02" + BYTEARRAY + b".")
    twice = path.read_bytes()
    for data in (twice, sound[:4] + sound, sound[:-2] + b"\x04\x00more"):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="two readers of zips"):
            read_weights(path)
    path.write_bytes(sound)
    assert read_weights(path)["w"].shape == (2,)


def test_safetensors_with_a_name_of_a_million_letters_is_refused(tmp_path: Path) -> None:
    head = json.dumps({"a" * 1_000_000: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", len(head)) + head)
    with pytest.raises(ValueError, match="longer names"):
        read_weights(path)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_arrays_of_detectron2_are_read(tmp_path: Path, protocol: int) -> None:
    arrays = {"count": np.array(5), "h": np.zeros(2, "f2")}
    arrays["stem.w"] = np.arange(6, dtype=np.float32).reshape(2, 3).T
    arrays["tied"] = arrays["stem.w"]
    path = tmp_path / "w.pkl"
    path.write_bytes(
        pickle.dumps({"model": arrays, "__author__": "A", "matching_heuristics": True}, protocol)
    )
    read = read_weights(path)
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        assert np.array_equal(read[name].numpy(), array) and read[name].numpy().dtype == array.dtype
        read[name] += 1  # a copy of its own


def test_a_number_that_claims_to_be_millions_is_not_spread_out(tmp_path: Path) -> None:
    """DeepCluster's first convolution is negated, and its filters are compared."""
    wanted = {"features.0.weight": torch.zeros(96, 2, 11, 11), "features.0.bias": torch.zeros(96)}
    huge = torch.zeros(1).expand(1 << 20, 2, 1 << 20)
    state = {"features.module.0.weight": huge, "top_layer.weight": huge, "sobel.1.weight": huge}
    found = recognise(tmp_path / "w.pth", state, wanted)
    assert found.tensors["features.0.weight"].shape == huge.shape
    state["features.module.0.weight"] = torch.zeros(96, 2, 11, 11)
    with pytest.raises(ValueError, match="not DeepCluster's"):
        recognise(tmp_path / "w.pth", state, wanted)


def test_pickles_are_loaded_in_two_modules() -> None:
    """They look at the opcodes before."""
    found = {
        str(path.relative_to(ROOT))
        for path in python_files("fastpsl")
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.ClassDef) and any("Unpickler" in ast.unparse(base) for base in node.bases))
        or (
            isinstance(node, ast.Call)
            and called(node) in ("load", "loads", "Unpickler")
            and ast.unparse(node.func).split(".")[0] in ("pickle", "torch", "Unpickler", "_Unpickler")
        )
    }
    assert found == {"fastpsl/files/untrusted.py", "fastpsl/models/checkpoint.py"}


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.pkl"])
def test_what_is_no_file_is_not_told_as_damaged(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)
        with pytest.raises(ValueError, match=f"^{name}: cannot be read .*; give a regular file"):
            read_weights(Path(name))
