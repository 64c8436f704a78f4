"""Weights from an address: bounds of the download, copies in the cache, and names on the Hub."""

import errno
import io
import json
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import unquote

import pytest
import safetensors.torch
import torch
from huggingface_hub import HfFileSystem, constants
from typing_extensions import override

import fastpsl
from fastpsl.files.remote.address import open_stream, remote_objects
from fastpsl.files.system_errors import input_error
from fastpsl.models import initial_weights
from fastpsl.models.initial_weights import open_initial
from tests.files.test_remote_http import Handler, Server, serving

pytest.importorskip("aiohttp")


def torch_bytes(value: float) -> bytes:
    out = io.BytesIO()
    torch.save({"w": torch.full((40_000,), value)}, out)
    return out.getvalue()


INPUT = {"mean": [0, 0, 0], "std": [1, 1, 1], "input_size": [3, 9, 9]}
CONFIG = {"architecture": "resnet18", "pretrained_cfg": INPUT}
SOUND, OTHER = torch_bytes(1), torch_bytes(2)
assert len(SOUND) == len(OTHER)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "fastpsl" / "weights"


@pytest.fixture
def server() -> Iterator[Server]:
    with serving({"x.pt": (SOUND, len(SOUND))}) as server:
        yield server


def copies(cache: Path) -> list[Path]:
    return [path for path in cache.glob("*/*") if path.name != "lock"]


def first_value(address: str) -> float:
    return float(open_initial(address).state["w"][0])


def safetensors_bytes(header: bytes, length: int | None = None, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


UNLIKE = "its first bytes are not those of a safetensors file"
CLAIM = json.dumps({"w": {"dtype": "F32", "shape": [2**38], "data_offsets": [0, 2**40]}}).encode()


@pytest.mark.parametrize(
    ("name", "data", "size", "message"),
    [
        ("x.pt", SOUND, 5 << 40, "has 5,497.56 GB, and at most 8 GB are .*give --max-download-gb 5498"),
        ("x.pt", SOUND, 3 << 30, "has 3.22 GB, and the disk of .* has room for 1.90 GB; free some space, o"),
        ("x.safetensors", safetensors_bytes(CLAIM), 1 << 20, f"{UNLIKE} of 1,048,576 bytes"),
        ("x.safetensors", safetensors_bytes(CLAIM, 1 << 62), 1 << 20, UNLIKE),
        ("x.safetensors", safetensors_bytes(CLAIM, 1 << 30), 1 << 30, UNLIKE),
        ("x.safetensors", safetensors_bytes(b"[" * 99_999), 1 << 20, UNLIKE),
        ("x.safetensors", safetensors_bytes(b'{"w": 1}'), 1 << 20, UNLIKE),
        ("x.safetensors", b"no", 2, UNLIKE),
    ],
)
def test_what_a_server_claims_is_bounded_before_its_data_are_fetched(
    name: str,
    data: bytes,
    size: int,
    message: str,
    server: Server,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usage = type(initial_weights.shutil.disk_usage("/"))
    monkeypatch.setattr(
        initial_weights.shutil, "disk_usage", lambda _: usage(4 << 30, 2 << 30, 2_000_000_000)
    )
    server.files = {name: (data, size)}
    with pytest.raises(ValueError, match=f"^{server.address}/{name}: .*{message}"):
        open_initial(f"{server.address}/{name}")
    assert server.num_sent < 1 << 17 and not copies(cache)


def test_the_bound_is_an_option(server: Server) -> None:
    values: dict[str, Any] = {"init": f"{server.address}/x.pt", "backbone": "resnet18"}
    with pytest.raises(ValueError, match="and at most 1e-05 GB are downloaded"):
        fastpsl.pretrain("simclr", **values, max_download_gb=1e-5)
    assert server.num_sent == 0
    with pytest.raises(ValueError, match="max_download_gb 0.0: it must be above 0"):
        fastpsl.pretrain("simclr", **values, max_download_gb=0.0)


def test_what_a_killed_download_left_is_removed(server: Server, cache: Path) -> None:
    assert first_value(f"{server.address}/x.pt") == 1
    (copy,) = copies(cache)
    left = [copy.with_name(f".{name}.123-0123abcd.tmp") for name in (copy.name, "0123456789abcdef.pt")]
    for path in left:
        path.touch()
    assert first_value(f"{server.address}/x.pt") == 1
    assert copies(cache) == [copy]


@pytest.mark.parametrize("version", [("ETag", '"2"'), None])
def test_a_file_that_is_replaced_while_it_comes_is_not_kept(
    version: tuple[str, str] | None, server: Server, cache: Path
) -> None:
    server.version = version and ("ETag", '"1"')

    def replace(number: int, range: str) -> None:
        if range == f"bytes=0-{len(SOUND) - 1}":
            server.files, server.version = {"x.pt": (OTHER, len(OTHER))}, version

    server.on_request = replace
    with pytest.raises(ValueError, match=r"x.pt: was replaced while it was in use"):
        open_initial(f"{server.address}/x.pt")
    assert not copies(cache)
    assert first_value(f"{server.address}/x.pt") == 2


def test_a_server_without_versions_is_asked_at_each_start(server: Server) -> None:
    server.version = None
    assert first_value(f"{server.address}/x.pt") == 1
    num_sent = server.num_sent
    assert first_value(f"{server.address}/x.pt") == 1
    assert server.num_sent - num_sent == 2 * (1 << 16) < len(SOUND)
    server.files = {"x.pt": (OTHER, len(OTHER))}
    assert first_value(f"{server.address}/x.pt") == 2


def test_a_copy_that_is_refused_is_removed_and_fetched_again(server: Server, cache: Path) -> None:
    """The server sent it damaged, or it was damaged here."""
    damaged = bytearray(SOUND)
    damaged[len(SOUND) // 2] ^= 1
    address = f"{server.address}/x.pt"
    message = rf"^{address} is no readable file.*; its copy .* removed, so the same command fetches it again"
    server.files = {"x.pt": (bytes(damaged), len(damaged))}
    with pytest.raises(ValueError, match=message):
        open_initial(address)
    server.files = {"x.pt": (SOUND, len(SOUND))}
    assert first_value(address) == 1
    copies(cache)[0].write_bytes(damaged)
    with pytest.raises(ValueError, match=message):
        open_initial(address)
    assert not copies(cache) and first_value(address) == 1


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EIO, errno.EACCES, errno.ESTALE])
def test_an_error_of_the_system_removes_no_copy(
    code: int, server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first_value(f"{server.address}/x.pt")

    def fail(path: Path) -> NoReturn:
        try:
            raise OSError(code, os.strerror(code), str(path))
        except OSError as error:
            raise input_error(path, error) from None

    monkeypatch.setattr(initial_weights, "open_weights", fail)
    with pytest.raises(ValueError, match=f"cannot be read \\({os.strerror(code)}\\)"):
        open_initial(f"{server.address}/x.pt")
    assert len(copies(cache)) == 1


@pytest.mark.parametrize(
    "name",
    [
        "lock.pt", "lock/x.pt", "x" * 300 + ".pt", ".x.pt.1-0123abcd.tmp.pt", "%00.pt", "...PTH", "A.Pth.TAR",
        "é\n.ckpt",
    ],
)  # fmt: skip
def test_no_name_of_an_address_is_that_of_the_lock_or_too_long(
    name: str, server: Server, cache: Path
) -> None:
    from yarl import URL

    server.files = {URL(f"/{name}").raw_path[1:]: (SOUND, len(SOUND))}
    assert first_value(f"{server.address}/{name}") == 1
    assert all(re.fullmatch(r"[0-9a-f]{16}\.[a-z]+", path.name) for path in copies(cache))


def test_an_address_that_ends_as_no_weights_do_is_a_folder(server: Server) -> None:
    for folder in ("lock", "resnet18.a1_in1k", "run.v2", "a.pt/b"):
        server.files = {f"{folder}/{name}": file for name, file in folder_of(1).items()}
        for end in ("", "/"):
            assert open_initial(f"{server.address}/{folder}{end}").backbone == "timm/resnet18", folder


# The Hub.

NAME, OLD, NEW = "timm/resnet18.a1_in1k", "a" * 40, "b" * 40


class Hub(Handler):
    """The Hub's answers about one repository. Files are called COMMIT/PATH, and main has the last commit."""

    @override
    def answer(self, with_body: bool) -> None:
        place, _, rest = unquote(self.path).partition("?")[0].partition(NAME)
        kind, _, path = rest.strip("/").partition("/")
        if place == "/" and kind == "resolve":
            self.path = f"/{path}"
            return super().answer(with_body)
        commits = {"": max(self.server.files)[:40], "main": max(self.server.files)[:40], "v1.0": OLD}
        found: object = {"id": NAME, "sha": commits.get(path, path)}
        if kind == "tree":
            found = [
                {"type": "file", "path": name[41:], "size": size, "oid": name[:40]}
                for name, (_, size) in self.server.files.items()
                if os.path.dirname(name) == path.strip("/")
            ]
        data = json.dumps(found).encode()
        self.send_response(200 if place == "/api/models/" else 404)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        return None


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    HfFileSystem.clear_instance_cache()
    with serving({}, Hub) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        template = f"{server.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield server
    HfFileSystem.clear_instance_cache()


def folder_of(value: float) -> dict[str, tuple[bytes, int]]:
    data, text = safetensors.torch.save({"w": torch.full((2,), value)}), json.dumps(CONFIG).encode()
    return {"model.safetensors": (data, len(data)), "config.json": (text, len(text))}


def test_names_with_dots_on_the_hub_are_folders(hub: Server) -> None:
    files = {
        f"{commit}/{folder}{name}": file
        for commit, values in ((OLD, (1, 2)), (NEW, (3, 4)))
        for folder, value in zip(("", "sub/folder.v2/"), values, strict=True)
        for name, file in folder_of(value).items()
    }
    hub.files = files | {f"{NEW}/sub/x.PT": (SOUND, len(SOUND))}
    for place, value, backbone in (
        ("", 3, "timm/resnet18"),
        ("/", 3, "timm/resnet18"),
        ("@v1.0", 1, "timm/resnet18"),
        ("/sub/folder.v2", 4, "timm/resnet18"),
        ("@v1.0/sub/folder.v2", 2, "timm/resnet18"),
        ("/model.safetensors", 3, None),
        ("@v1.0/sub/folder.v2/model.safetensors", 2, None),
        ("/sub/x.PT", 1, None),
    ):
        weights = open_initial(f"hf://{NAME}{place}")
        assert (float(weights.state["w"][0]), weights.backbone) == (value, backbone), place
        assert weights.source == f"hf://{NAME}{place}"


def test_a_branch_that_moves_is_read_at_one_commit(hub: Server) -> None:
    """The Hub's file system remembers listings, so it could not tell."""
    old, new = bytes(9 << 20), b"1" * (9 << 20)
    hub.files = {f"{OLD}/x.tar": (old, len(old))}
    (remote,) = remote_objects(f"hf://{NAME}/x.tar")

    def move(number: int, range: str) -> None:
        hub.files = {f"{OLD}/x.tar": (old, len(old)), f"{NEW}/x.tar": (new, len(new))}

    hub.on_request = move
    with open_stream(remote) as stream:
        assert stream.read() == old
    assert str(remote) == f"hf://{NAME}/x.tar"
    with open_stream(remote_objects(f"hf://{NAME}/x.tar")[0]) as stream:
        assert stream.read() == new


@pytest.mark.parametrize(
    ("address", "is_file"),
    [
        ("hf://timm/resnet18.a1_in1k", False),
        ("hf://someone/weights.pt", False),
        ("hf://someone/weights.pt@main", False),
        ("hf://datasets/someone/weights.bin", False),
        ("hf://someone/name@v1.0/x.safetensors", True),
        ("s3://bucket/run.v2", False),
        ("s3://bucket/x.PTH.TAR", True),
        ("s3://bucket/x.pt?versionId=3.7", True),
        ("s3://bucket/x?name=y.pt", False),
        ("https://host/vissl/model_final.torch", True),
    ],
)
def test_which_addresses_are_files(address: str, is_file: bool) -> None:
    assert initial_weights._is_file(address) == is_file
