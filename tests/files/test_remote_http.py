"""A web server on this machine: processes that open a file of it at one moment, and a server that lies."""

import errno
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from typing_extensions import override

from fastpsl.files.remote import cache as cache_module
from fastpsl.files.remote.cache import Cache
from fastpsl.pipelines.beton import remote
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.shard import ALLOCATION, HEADER
from fastpsl.pipelines.datasets.open import open_data
from fastpsl.pipelines.sample.betons import sample_paths
from tests.warm import CONTEXT

pytest.importorskip("aiohttp")
pytest.importorskip("fsspec")


SOUND = sample_paths().test_32.read_bytes()
SIDECAR = Path(f"{sample_paths().test_32}.json").read_bytes()
ROUNDS, OPENERS = 8, 4


class Server(ThreadingHTTPServer):
    """A server of files that may claim to be longer than they are; the rest is zeros.

    Attributes:
        files: The first bytes and the size of each file, by name.
        num_sent: The bytes that were sent.
    """

    files: Mapping[str, tuple[bytes, int]]
    num_sent = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    @override
    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def do_HEAD(self) -> None:
        self.answer(False)

    def do_GET(self) -> None:
        self.answer(True)

    def answer(self, with_body: bool) -> None:
        data, size = self.server.files.get(self.path[1:], (b"", 0))
        asked = re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        # The JSON comes whole, whatever was asked for.
        whole = not asked or self.path.endswith("endless.beton.json")
        start, stop = (0, size) if whole else (int(asked[1]), min(int(asked[2]) + 1, size))  # type: ignore[index]
        self.send_response(404 if not size else 200 if whole else 206)
        self.send_header("ETag", '"1"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        while with_body and start < stop:
            part = data[start : min(stop, start + (1 << 20))] or bytes(min(stop - start, 1 << 20))
            try:
                self.wfile.write(part)
            except OSError:
                self.close_connection = True
                return
            self.server.num_sent += len(part)
            start += len(part)


@contextmanager
def serving(files: Mapping[str, tuple[bytes, int]]) -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        server.files = files
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def honest(name: str) -> dict[str, tuple[bytes, int]]:
    return {name: (SOUND, len(SOUND)), f"{name}.json": (SIDECAR, len(SIDECAR))}


def open_in_rounds(address: str, folder: Path, barrier: Any) -> None:
    for number in range(ROUNDS):
        barrier.wait(60)
        with Beton(address, Cache(folder / str(number), 0.1)) as data:
            assert data.num_samples == 160 and data.class_names


def test_processes_that_open_one_address_at_one_moment_all_succeed(tmp_path: Path) -> None:
    barrier = CONTEXT.Barrier(OPENERS)
    with serving(honest("x.beton")) as server:
        arguments = (f"{server.address}/x.beton", tmp_path, barrier)
        openers = [CONTEXT.Process(target=open_in_rounds, args=arguments) for _ in range(OPENERS)]
        for opener in openers:
            opener.start()
        for opener in openers:
            opener.join(240)
    assert [opener.exitcode for opener in openers] == [0] * OPENERS
    names = {path.name for path in tmp_path.glob("*/files/*/*")}
    assert names == {"x.beton", "x.beton.json", "x.beton.parts"}


def test_the_json_is_written_where_it_differs(tmp_path: Path) -> None:
    files = honest("x.beton")
    with serving(files) as server:

        def kept() -> os.stat_result | None:
            open_data(f"{server.address}/x.beton", tmp_path, 0.1).close()
            found = list(tmp_path.glob("files/*/x.beton.json"))
            return found[0].stat() if found else None

        first, second = kept(), kept()
        assert first and second and first.st_ino == second.st_ino
        files["x.beton.json"] = (SIDECAR + b" ", len(SIDECAR) + 1)
        third = kept()
        assert third and third.st_size == first.st_size + 1
        del files["x.beton.json"]
        assert kept() is None


def with_header(**fields: int) -> bytes:
    header = np.frombuffer(SOUND, HEADER, 1).copy()
    for name, value in fields.items():
        header[name] = value
    return header.tobytes() + SOUND[HEADER.itemsize :]


TABLE = 160 * ALLOCATION.itemsize


@pytest.mark.parametrize(
    ("data", "size", "words"),
    [
        (with_header(page_size=28), len(SOUND), "says that its pages have 28 bytes, which none has"),
        (with_header(page_size=(1 << 32) - 1), len(SOUND), "says that its pages have 4,294,967,295 bytes"),
        (with_header(alloc_table_ptr=1 << 50), (1 << 50) + TABLE, "536,870,912 pages for 160 parts of samp"),
        (with_header(alloc_table_ptr=1 << 50), 1 << 50, "is not whole, or damaged (1,125,899,906,842,624 b"),
        (with_header(num_samples=1 << 32, alloc_table_ptr=1 << 42), (1 << 42) + (ALLOCATION.itemsize << 32),
         "its tables take 223 GB, and the cache at most 0.1 GB; give a larger --cache-gb"),
        (with_header(num_samples=1 << 23, alloc_table_ptr=(1 << 44) - (1 << 30), page_size=1 << 21),
         (1 << 44) - (1 << 30) + (ALLOCATION.itemsize << 23),
         "says that it has 8,388,096 pages for 8,388,608 parts"),
    ],
)  # fmt: skip
def test_what_a_header_claims_is_bounded_before_memory_is_taken(
    data: bytes, size: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parts(*_: object) -> NoReturn:
        pytest.fail("arrays of what it claims were made")

    monkeypatch.setattr(remote.Layout, "parts", parts)
    with serving({"x.beton": (data, size)}) as server:
        address = f"{server.address}/x.beton"
        with pytest.raises(ValueError, match=f"^{address}: .*{re.escape(words)}") as caught:
            open_data(address, tmp_path, 0.1)
        assert "\n" not in str(caught.value) and server.num_sent <= 1 << 14
    assert not list(tmp_path.glob("files/*"))


def test_no_more_of_a_json_is_read_than_its_dataset_file_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_SIDECAR_BYTES", 1000)
    name = "endless.beton"
    with serving(honest(name) | {f"{name}.json": (b" ", 1 << 40)}) as server:
        with pytest.raises(ValueError, match=f"^{server.address}/{name}.json: has more than .* bytes, and a"):
            open_data(f"{server.address}/{name}", tmp_path, 0.1)
        assert server.num_sent < 1 << 26  # what fits into the buffers of a connection
    assert not list(tmp_path.glob("files/*/*.json"))


def test_long_names_and_strange_files_in_the_cache_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "stray").touch()
    name = "x" * 245 + ".beton"
    with serving(honest(name)) as server, Beton(f"{server.address}/{name}", Cache(tmp_path, 0.1)) as data:
        assert data.num_samples == 160 and data.class_names


REMEDIES = {errno.ENOSPC: "free", errno.EFBIG: "raise the limit of"}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EFBIG, errno.EROFS, errno.ENAMETOOLONG])
@pytest.mark.parametrize("place", ["ftruncate", "memmap", "write_atomically"])
def test_a_cache_that_cannot_take_a_file_is_a_line(
    place: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> NoReturn:
        raise OSError(code, os.strerror(code), "some/name")

    Cache(tmp_path, 0.1)
    modules = {"ftruncate": cache_module.os, "memmap": cache_module.np, "write_atomically": cache_module}
    monkeypatch.setattr(modules[place], place, fail)
    message = (
        f"^--cache-dir {tmp_path}: cannot be used \\({os.strerror(code)}\\); {REMEDIES.get(code, 'give')} "
    )
    with serving(honest("x.beton")) as server, pytest.raises(ValueError, match=message):
        open_data(f"{server.address}/x.beton", tmp_path, 0.1)
    assert not [
        fd for fd in os.listdir("/proc/self/fd") if str(tmp_path) in os.path.realpath(f"/proc/self/fd/{fd}")
    ]
