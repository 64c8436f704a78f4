"""Data behind an address: its file system, its files, stretches of their bytes, and failures on the way.

Credentials come from where the ecosystem keeps them (AWS's environment and ~/.aws, Google's default
credentials, Hugging Face's token, ~/.netrc for https). An address holds none, because it gets into logs and
checkpoints.
"""

import glob
import io
import logging
import posixpath
import re
import threading
from concurrent.futures import Future
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, final
from urllib.parse import urlsplit

from typing_extensions import Buffer, override

from fastpsl.console.installed import install
from fastpsl.files.digest import blake2b
from fastpsl.files.leftovers import is_leftover
from fastpsl.files.paths import with_literal_folder
from fastpsl.files.remote.failures import HELP, NEVER, RemoteDataError, WrongBytesError, persistently
from fastpsl.files.workers import Workers

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem


ALLOWED = "s3://, gs://, hf:// or https://"
# Waits for a connection, and for the next bytes of an answer: botocore's own are 60 s each, after which
# `persistently` would have no time left for another try.
_CONNECT_S, _READ_S = 10, 30
_ANSWER_S = 60.0  # a single answer: 8 MiB come at 140 kB/s; several are under way at a time


_PACKAGES = {  # what fsspec needs for each scheme
    "s3": "s3fs", "gs": "gcsfs", "hf": "huggingface_hub", "https": "aiohttp", "http": "aiohttp"
}  # fmt: skip
_RETRIES = {"total_max_attempts": 1}  # `persistently` tries again
_S3_OPTIONS = {"connect_timeout": _CONNECT_S, "read_timeout": _READ_S, "retries": _RETRIES}


def is_remote(source: object) -> bool:
    """Return whether `source` is an address, such as s3://bucket/train.beton, and no path."""
    return not isinstance(source, Path) and re.match("[A-Za-z][A-Za-z0-9+.-]*://", str(source)) is not None


def check_address(address: str) -> None:
    """Check an address without a look at the network."""
    parts = urlsplit(_path_of(address))
    package = _PACKAGES.get(parts.scheme.lower())
    if package is None:
        raise ValueError(f"{parts.scheme}://…: data of this kind are not read; give {ALLOWED}, or a path")
    if "@" in parts.netloc or (parts.query and parts.scheme in ("http", "https")):
        # The address itself is not repeated.
        raise ValueError(
            f"{parts.scheme}://…: the address holds a password or a signature, which would get into logs; "
            f"give it without, and credentials by the environment ({HELP})"
        )
    if find_spec("fsspec") is None or find_spec(package) is None:
        raise ValueError(f"{address}: needs the package {package}; {install('remote')}")


def _path_of(address: str) -> str:
    """Return an address whose # is part of a name: a web server is not sent what follows it."""
    return address.replace("#", "%23") if address.lower().startswith(("http://", "https://")) else address


def file_system(address: str) -> "AbstractFileSystem":
    """Return fsspec's file system for an address; those of one process share its connections."""
    check_address(address)
    import fsspec

    scheme = urlsplit(address).scheme.lower()
    options: dict[str, Any] = {"config_kwargs": _S3_OPTIONS} if scheme == "s3" else {}
    if scheme in ("http", "https"):  # anybody has such a server
        from fastpsl.files.remote.bounded_answer import BoundedAnswer

        # Ranges are of the file itself, and not of what a server would compress.
        client = {
            "trust_env": True,
            "response_class": BoundedAnswer,
            "headers": {"Accept-Encoding": "identity"},
        }
        options = {"client_kwargs": client}
    # Its tracebacks would come before our line.
    logging.getLogger(_PACKAGES[scheme]).addHandler(logging.NullHandler())
    files = fsspec.filesystem(scheme, use_listings_cache=False, **options)
    if hasattr(files, "retries"):  # `persistently` tries again, and says so
        files.retries = 1
    return files


def answer(files: "AbstractFileSystem", name: str, *arguments: Any, **options: Any) -> Any:
    """Call a function of a file system, with a limit of time if the file system supports one."""
    if not files.async_impl:
        return getattr(files, name)(*arguments, **options)
    from fsspec.asyn import sync

    return sync(files.loop, getattr(files, f"_{name}"), *arguments, timeout=_ANSWER_S, **options)


# Of tries before there is a loader with a limit of its own: a minute outlasts the restart of a server or a
# short failure of the network (not measured).
LIMIT_S = 60.0
# The names under which fsspec's file systems tell a file's version.
_VERSIONS = ("ETag", "etag", "generation", "md5Hash", "blob_id", "Last-Modified", "LastModified", "mtime")
# Of each end of a file; their digest is its version if the server tells none. A dataset file has its header
# and the end of its last table there, so that most changes show.
_END_BYTES = 1 << 16


@dataclass(frozen=True)
class RemoteObject:
    """A file elsewhere, in one version."""

    address: str  # such as s3://bucket/train.beton
    path: str  # in `files`
    num_bytes: int
    version: str  # what its server tells versions apart by, or else a digest of both ends
    files: Any  # fsspec's AbstractFileSystem

    @override
    def __str__(self) -> str:
        return self.address

    @property
    def name(self) -> str:
        """The last part of the address."""
        return self.path.rstrip("/").rpartition("/")[2]

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes from `start` to `stop`, by one request; raise what fsspec raises, too."""
        data: bytes = answer(self.files, "cat_file", self.path, start=start, end=stop)
        if len(data) > stop - start:
            raise RemoteDataError(
                f"{self.address}: its server sends whole files, not the part that is asked for; choose one "
                "that answers range requests, or download the file"
            )
        if len(data) != stop - start:
            raise WrongBytesError(f"{len(data):,} bytes came, {stop - start:,} were asked for")
        return data

    def read_persistently(self, start: int, stop: int, left: threading.Event = NEVER) -> bytes:
        """Return the bytes from `start` to `stop` of this version, asking again where that fails for a while.

        Raises:
            RemoteDataError: It fails for longer, or the file was replaced.
        """

        def read() -> bytes:
            try:
                return self.read(start, stop)
            finally:
                self.check_unchanged()

        return persistently(read, self.address, LIMIT_S, left)

    def is_unchanged(self) -> bool:
        """Return whether the server still has this version; raises what fsspec raises."""
        num_bytes, version = _size_and_version(answer(self.files, "info", self.path))
        return num_bytes == self.num_bytes and (version or self._digest_of_ends()) == self.version

    def check_unchanged(self) -> None:
        """Raise RemoteDataError unless the server still has this version; raises what fsspec raises, too."""
        if not self.is_unchanged():
            raise RemoteDataError(
                f"{self.address}: was replaced while it was in use; put the old one back, or start anew"
            )

    def with_version(self) -> "RemoteObject":
        """Return this file with a version, even if its server tells none; raises what fsspec raises."""
        return self if self.version else replace(self, version=self._digest_of_ends())

    def _digest_of_ends(self) -> str:
        parts = (0, min(_END_BYTES, self.num_bytes)), (max(0, self.num_bytes - _END_BYTES), self.num_bytes)
        return blake2b(b"".join(self.read(*part) for part in parts), digest_size=16).hexdigest()


def remote_objects(
    address: str, allowed: str = "the address of a .beton file, or a quoted glob of them"
) -> list[RemoteObject]:
    """Return the files that an address or a glob of addresses names, sorted by name."""
    files = file_system(address)
    scheme = address.partition("://")[0]

    def found() -> tuple[str, str, list[dict[str, Any]]]:
        root, at_commit, path = _place(files, address)
        try:  # a name may have characters of a pattern
            info = files.info(path)
            if info["type"] != "directory" or not glob.has_magic(path):
                return root, at_commit, [info]
        except FileNotFoundError:
            if not glob.has_magic(path):
                raise
        path = with_literal_folder(path, files.isdir)
        infos = [
            info if info.get("size") is not None else files.info(name)
            for name, info in files.glob(path, detail=True).items()
            if not is_leftover(posixpath.basename(name))  # a shell's * does not match ._x.tar either
        ]
        return root, at_commit, infos

    root, at_commit, infos = persistently(found, address, LIMIT_S)
    infos = [info for info in infos if info["type"] != "directory"]
    if not infos:
        raise ValueError(f"{address}: no file matches; give {allowed}")
    objects = []
    for info in sorted(infos, key=lambda info: str(info["name"])):
        path, (num_bytes, version) = str(info["name"]), _size_and_version(info)
        full = root + path.removeprefix(at_commit)
        full = full if full.startswith(f"{scheme}://") else f"{scheme}://{full}"
        if num_bytes <= 0:
            raise ValueError(f"{full}: is empty, or its server does not tell its size; upload it again")
        remote = RemoteObject(full, path, num_bytes, version, files)
        objects.append(persistently(remote.with_version, full, LIMIT_S))
    return objects


def _place(files: Any, address: str) -> tuple[str, str, str]:
    """Return the beginning of an address, its replacement with a commit, and the path in the file system.

    A path of the Hub begins with the commit that its branch has now. A commit never changes, and the Hub's
    file system remembers what a branch had.
    """
    path = files._strip_protocol(_path_of(address))
    at: Any = files.resolve_path(path) if address.startswith("hf://") else None
    if not hasattr(at, "revision"):  # a bucket of the Hub has no commits either
        return "", "", path
    from huggingface_hub import HfApi

    commit = HfApi().repo_info(at.repo_id, repo_type=at.repo_type, revision=at.revision).sha
    root = replace(at, path_in_repo="")
    here, there = root.unresolve(), replace(root, revision=commit, _raw_revision=None).unresolve()
    return here, there, there + path.removeprefix(here)


def read_whole(address: str, max_bytes: int) -> bytes | None:
    """Return a small file's bytes, or None where there is none."""
    files = file_system(address)

    def call() -> bytes | None:
        try:
            _, _, path = _place(files, address)
            return bytes(answer(files, "cat_file", path, start=0, end=max_bytes + 1))
        except FileNotFoundError:
            return None

    data = persistently(call, address, LIMIT_S)
    if data is not None and len(data) > max_bytes:
        raise RemoteDataError(
            f"{address}: has more than {max_bytes:,} bytes, and at most so many are read; write the dataset "
            "file again, and upload both"
        )
    return data


def _size_and_version(info: dict[str, Any]) -> tuple[int, str]:
    version = next((str(info[name]) for name in _VERSIONS if info.get(name)), "")
    return int(info.get("size") or 0), version


_BLOCK_BYTES = 8 << 20  # as a page of a dataset file has; the version is asked for after each
_NUM_AHEAD = 4  # blocks fetched before they are read, 32 MiB of memory for each stream (not measured)


@final
class _Blocks(io.RawIOBase):
    """The raw stream, which fetches blocks ahead in threads."""

    def __init__(self, remote: RemoteObject) -> None:
        self._remote, self._position = remote, 0
        self._blocks: dict[int, Future[bytes]] = {}
        self._left = threading.Event()
        self._workers = Workers(_NUM_AHEAD, "fastpsl-stream")

    @override
    def readable(self) -> bool:
        return True

    @override
    def seekable(self) -> bool:
        return True

    @override
    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._remote.num_bytes}[whence]
        self._position = max(start + offset, 0)
        return self._position

    @override
    def readinto(self, buffer: Buffer) -> int:
        view = memoryview(buffer).cast("B")
        if self._position >= self._remote.num_bytes:
            return 0
        number, start = divmod(self._position, _BLOCK_BYTES)
        part = self._block(number)[start : start + len(view)]
        view[: len(part)] = part
        self._position += len(part)
        return len(part)

    def _block(self, number: int) -> bytes:
        """Return a block, and ask for those after it."""
        wanted = range(number, min(number + _NUM_AHEAD, -(-self._remote.num_bytes // _BLOCK_BYTES)))
        self._blocks = {i: block for i, block in self._blocks.items() if i in wanted}
        for i in wanted:
            if i not in self._blocks:
                self._blocks[i] = self._workers.call(self._fetch, i)
        # A fetch ends within LIMIT_S and the answers of one more try: the block, the version, and both ends.
        return self._blocks[number].result(LIMIT_S + 4 * _ANSWER_S)

    def _fetch(self, number: int) -> bytes:
        start = number * _BLOCK_BYTES
        stop = min(start + _BLOCK_BYTES, self._remote.num_bytes)
        return self._remote.read_persistently(start, stop, self._left)

    @override
    def close(self) -> None:
        if not self.closed:
            self._left.set()
            self._workers.close(0.0)
        super().close()


def open_stream(remote: RemoteObject) -> IO[bytes]:
    """Open a remote file for reading.

    Reading raises RemoteDataError where it fails for a minute, and where another version has come. The server
    is asked for its version after each block of 8 MiB, so what was read is of one version.
    """
    return io.BufferedReader(_Blocks(remote), 1 << 16)
