"""The files behind an address: their sizes, their versions, and stretches of their bytes."""

import posixpath
from dataclasses import dataclass
from typing import Any

from typing_extensions import override

from fastpsl.pipelines.remote.address import answer, file_system
from fastpsl.pipelines.remote.failures import RemoteDataError, WrongBytesError, persistently
from fastpsl.pipelines.sources.leftovers import is_leftover

LIMIT_S = 60.0  # of tries before there is a loader with a limit of its own
# What tells two versions of a file apart, by the names that fsspec's file systems have for it.
_VERSIONS = ("ETag", "etag", "generation", "md5Hash", "blob_id", "Last-Modified", "LastModified", "mtime")


@dataclass(frozen=True)
class RemoteObject:
    """A file elsewhere, in one version.

    Attributes:
        address: Its address, such as s3://bucket/train.beton.
        path: Its path in `files`.
        num_bytes: Its size.
        version: What its server tells versions apart by; empty if it has nothing of the kind.
        files: The file system.
    """

    address: str
    path: str
    num_bytes: int
    version: str
    files: Any  # fsspec's AbstractFileSystem

    @override
    def __str__(self) -> str:
        return self.address

    @property
    def name(self) -> str:
        """The last part of the address."""
        return self.path.rstrip("/").rpartition("/")[2]

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes from `start` to `stop`, by one request.

        Raises:
            WrongBytesError: There are fewer.
            RemoteDataError: There are more, as from a server that does not answer range requests.
            Exception: What fsspec raises.
        """
        data: bytes = answer(self.files, "cat_file", self.path, start=start, end=stop)
        if len(data) > stop - start:
            raise RemoteDataError(
                f"{self.address}: its server sends whole files, not the part that is asked for; choose one "
                "that answers range requests, or download the file"
            )
        if len(data) != stop - start:
            raise WrongBytesError(f"{len(data):,} bytes came, {stop - start:,} were asked for")
        return data

    def is_unchanged(self) -> bool:
        """Return whether the server still has this version; raises what fsspec raises."""
        info = answer(self.files, "info", self.path)
        return _size_and_version(info) == (self.num_bytes, self.version)


def remote_objects(
    address: str, allowed: str = "the address of a .beton file, or a quoted glob of them"
) -> list[RemoteObject]:
    """Return the files that an address or a glob of addresses names, sorted by name.

    Args:
        address: The address.
        allowed: What may be given, for the message.

    Raises:
        ValueError: There are none, or they cannot be reached. The message is one line.
    """
    files = file_system(address)
    scheme = address.partition("://")[0]

    def found() -> list[dict[str, Any]]:
        path = files._strip_protocol(address)
        if not any(character in path for character in "*?["):
            return [files.info(path)]
        return [
            info if info.get("size") is not None else files.info(name)
            for name, info in files.glob(path, detail=True).items()
            if not is_leftover(posixpath.basename(name))  # a shell's * does not match ._x.tar either
        ]

    infos = [info for info in persistently(found, address, LIMIT_S) if info["type"] != "directory"]
    if not infos:
        raise ValueError(f"{address}: no file matches; give {allowed}")
    objects = []
    for info in sorted(infos, key=lambda info: str(info["name"])):
        path, (num_bytes, version) = str(info["name"]), _size_and_version(info)
        full = path if path.startswith(f"{scheme}://") else f"{scheme}://{path}"
        if num_bytes <= 0:
            raise ValueError(f"{full}: is empty, or its server does not tell its size; upload it again")
        objects.append(RemoteObject(full, path, num_bytes, version, files))
    return objects


def read_whole(address: str, max_bytes: int) -> bytes | None:
    """Return a small file's bytes, or None where there is none.

    Args:
        address: Its address.
        max_bytes: The most that it may have.

    Raises:
        ValueError: It cannot be reached, or has more.
    """
    files = file_system(address)

    def call() -> bytes | None:
        try:
            path = files._strip_protocol(address)
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
