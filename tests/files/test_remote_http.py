"""A web server on this machine: processes that open a file of it at one moment, and a server that lies."""

import contextlib
import errno
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from typing_extensions import override

from fastpsl.files.remote import cache as cache_module
from fastpsl.files.remote.address import open_stream, remote_objects
from fastpsl.files.remote.cache import Cache
from fastpsl.files.remote.failures import WrongBytesError
from fastpsl.pipelines.beton import remote
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.shard import ALLOCATION, HEADER
from fastpsl.pipelines.datasets.open import open_data
from fastpsl.pipelines.embedded.draw_sample import sample_paths
from fastpsl.pipelines.readers.parquet import parquet_files
from fastpsl.pipelines.readers.tar import tar_source
from tests.pipelines.photos import jpeg, photo
from tests.pipelines.written import parquet_bytes, tar_bytes
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
        version: The header that tells a file's version, and its value; None for a server without one.
        on_request: Called with the number of each request, from 1 on, and its Range, before it is answered.
        shift: How far before the range that was asked for an answer begins.
        num_sent: The bytes that were sent, counted before they go.
    """

    files: Mapping[str, tuple[bytes, int]]
    version: tuple[str, str] | None = ("ETag", '"1"')
    on_request: Callable[[int, str], None] = staticmethod(lambda number, range: None)
    shift = 0
    num_sent = num_asked = 0

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
        self.server.num_asked += 1
        self.server.on_request(self.server.num_asked, self.headers.get("Range", ""))
        data, size = self.server.files.get(self.path[1:], (b"", 0))
        asked = re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        # The JSON comes whole, whatever was asked for.
        whole = not asked or self.path.endswith("endless.beton.json")
        start, stop = (0, size) if whole else (int(asked[1]), min(int(asked[2]) + 1, size))  # type: ignore[index]
        self.send_response(404 if not size else 200 if whole else 206)
        if self.server.version:
            self.send_header(*self.server.version)
        if not whole and self.server.shift:
            start, stop = start - self.server.shift, stop - self.server.shift
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        while with_body and start < stop:
            part = data[start : min(stop, start + (1 << 20))] or bytes(min(stop - start, 1 << 20))
            self.server.num_sent += len(part)  # before who reads them can ask for the count
            try:
                self.wfile.write(part)
            except OSError:
                self.close_connection = True
                return
            start += len(part)


@contextmanager
def serving(files: Mapping[str, tuple[bytes, int]], handler: type[Handler] = Handler) -> Iterator[Server]:
    with Server(("127.0.0.1", 0), handler) as server:
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
    assert names == {"data.beton", "data.beton.json", "data.beton.parts"}


REPLACED = "was replaced while it was in use; put the old one back, or start anew"
VERSIONS = [("ETag", '"2"'), ("Last-Modified", "Sat, 01 Jan 2000 00:00:00 GMT"), None]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_stream_is_of_one_version_of_the_file(version: tuple[str, str] | None) -> None:
    """The other one comes before the second block, with as many bytes. Without a version, its ends differ."""
    old, new = (bytes([byte]) * (9 << 20) for byte in (1, 2))
    with serving({"x": (old, len(old))}) as server:
        server.version = version and (version[0], "before")
        (remote,) = remote_objects(f"{server.address}/x")
        with open_stream(remote) as stream:
            assert stream.read() == old

        def replace(number: int, range: str) -> None:
            if range.startswith(f"bytes={8 << 20}-"):
                server.files, server.version = {"x": (new, len(new))}, version

        server.on_request = replace
        with open_stream(remote) as stream, pytest.raises(ValueError, match=REPLACED):
            stream.read()


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_tars_and_parquet_files_are_of_one_version(kind: str) -> None:
    """It is replaced after its samples were counted, or while they are yielded."""
    images = [jpeg(photo(number, 30, 40)) for number in range(4)]
    data = (
        tar_bytes({f"{i}.jpg": image for i, image in enumerate(images)})
        if kind == "tar"
        else parquet_bytes({"image": images})
    )
    with serving({f"x.{kind}": (data, len(data))}) as server:
        found = remote_objects(f"{server.address}/x.{kind}")
        source = tar_source(found) if kind == "tar" else parquet_files("x", found)
        assert [sample.image for sample in source.samples()] == images
        server.version = ("ETag", '"2"')
        with pytest.raises(ValueError, match=REPLACED):
            list(source.samples())


def test_a_dataset_file_is_opened_in_one_version(tmp_path: Path) -> None:
    with serving(honest("x.beton")) as server:

        def replace(number: int, range: str) -> None:
            if range.startswith("bytes=0-") and not range.endswith("-16383"):  # of a table
                server.version = ("ETag", '"2"')

        server.on_request = replace
        with pytest.raises(ValueError, match=REPLACED):
            open_data(f"{server.address}/x.beton", tmp_path, 0.1)


def test_without_a_version_another_file_of_the_same_size_is_another_one(tmp_path: Path) -> None:
    other = SOUND[:-1] + bytes([SOUND[-1] ^ 1])
    with serving(honest("x.beton")) as server:
        server.version = None
        folders = list[set[str]]()
        for data in (SOUND, SOUND, other):
            server.files = honest("x.beton") | {"x.beton": (data, len(data))}
            with contextlib.suppress(ValueError):
                open_data(f"{server.address}/x.beton", tmp_path, 0.1).close()
            folders.append({path.name for path in tmp_path.glob("files/*")})
    assert folders[0] == folders[1] < folders[2]


def test_a_number_sign_and_brackets_are_parts_of_a_name(tmp_path: Path) -> None:
    """A web server is not sent what follows a # that is not encoded."""
    with serving(honest("d%23/a%23b.beton") | honest("a[1].beton") | honest("a%5B1%5D.beton")) as server:
        for name in ("d#/a#b.beton", "d%23/a%23b.beton", "a[1].beton", "a%5B1%5D.beton"):
            with closing(open_data(f"{server.address}/{name}", tmp_path, 0.1)) as data:
                assert data.num_samples == 160 and data.class_names
        for secret in ("a#b.beton?sig=x", "a.beton?sig=x#b"):
            with pytest.raises(ValueError, match="http://…: the address holds a password or a signature"):
                open_data(f"{server.address}/{secret}", tmp_path, 0.1)


def test_bytes_of_another_range_are_not_taken() -> None:
    data = bytes(range(256))
    with serving({"x": (data, len(data))}) as server:
        (remote,) = remote_objects(f"{server.address}/x")
        assert remote.read(16, 32) == data[16:32]
        server.shift = 8
        with pytest.raises(WrongBytesError, match="bytes from 8 came, those from 16 were asked for"):
            remote.read(16, 32)


def test_the_json_is_written_where_it_differs(tmp_path: Path) -> None:
    files = honest("x.beton")
    with serving(files) as server:

        def kept() -> os.stat_result | None:
            open_data(f"{server.address}/x.beton", tmp_path, 0.1).close()
            found = list(tmp_path.glob("files/*/data.beton.json"))
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


@pytest.mark.parametrize("name", ["x" * 245 + ".beton", "x.parts", ".x.json", "%00"])
def test_strange_names_and_files_in_the_cache_do_no_harm(name: str, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "stray").touch()
    cache = Cache(tmp_path, 0.1)
    with serving(honest(name)) as server, Beton(f"{server.address}/{name}", cache) as data:
        assert data.num_samples == 160 and data.class_names
        cache._give_up(1 << 30)
        assert len(list(tmp_path.glob("files/*/*.parts"))) == 1  # it is open


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
