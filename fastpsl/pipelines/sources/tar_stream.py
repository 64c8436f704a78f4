"""The members of a tar, read as a stream: nothing is unpacked, and damage is distinguished from the end."""

import bz2
import contextlib
import gzip
import lzma
import posixpath
import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, NamedTuple, cast

from fastpsl.files.leftovers import is_leftover
from fastpsl.files.remote.address import RemoteDataError
from fastpsl.pipelines.beton.file import MAX_PAGE_BYTES
from fastpsl.pipelines.data.dataset import BadImage
from fastpsl.pipelines.sources.files import SourceFile, open_file

# The errors of reading a damaged tar. ValueError and OverflowError come from senseless numbers and names,
# RuntimeError from bz2 when it is read again after an error.
_DAMAGE = (
    tarfile.TarError, OSError, EOFError, ValueError, OverflowError, RuntimeError, zlib.error, lzma.LZMAError
)  # fmt: skip
_COMPRESSED: dict[bytes, Callable[[IO[bytes]], object]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}
_BLOCK_BYTES = 1 << 16


class Member(NamedTuple):
    """A file in a tar.

    `read(max_bytes)` returns its bytes or raises BadImage; it works until the next member is requested.
    """

    name: str  # relative to the root, without "." and ".."
    read: Callable[[int], bytes]


class Damage(NamedTuple):
    """The last item of a damaged tar, or of a damaged tar within it."""

    name: str  # the tar
    reason: str
    is_no_tar: bool = False  # not even the first header could be read
    is_last_whole: bool = True  # the last member before it is sound


def is_left_over(name: str) -> bool:
    """Return whether a member is hidden or left by another program, or lies in a folder that is."""
    return any(map(is_leftover, name.split("/")))


@contextlib.contextmanager
def open_tar(path: SourceFile) -> Iterator[tuple[IO[bytes], Callable[[], int]]]:
    """Open a tar, compressed or not.

    Yields:
        The stream of the uncompressed tar, and a function that returns the position in the file.

    Raises:
        ValueError: It cannot be opened.
    """
    try:
        raw = open_file(path)
        head = raw.read(6)
        raw.seek(0)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); give tars that can be read") from None
    with contextlib.ExitStack() as stack:
        stack.enter_context(raw)
        stream: IO[bytes] = raw
        for magic, opener in _COMPRESSED.items():
            if head.startswith(magic):
                stream = stack.enter_context(contextlib.closing(cast(IO[bytes], opener(raw))))
        yield stream, raw.tell


def tar_members(stream: IO[bytes], tar_name: str, folder: str = "") -> Iterator[Member | Damage]:
    """Yield the files and links of a tar in order, and at last a Damage where it is damaged.

    Members of a tar within it appear in a folder with its name.

    Args:
        stream: The uncompressed tar.
        tar_name: Its name for messages.
        folder: The folder put before all names.
    """
    try:
        tar = tarfile.TarFile(fileobj=stream, encoding="utf-8")
        # Not next(), because Python 3.10 raises an error for a tar without members.
        info: tarfile.TarInfo | None = tar.firstmember  # type: ignore[attr-defined]
    except _DAMAGE as error:
        yield Damage(tar_name, _reason(error), is_no_tar=True)
        return
    while info:
        name = posixpath.join(folder, posixpath.normpath("/" + info.name).lstrip("/"))
        is_inner = info.isreg() and name.lower().endswith(".tar") and not folder and not is_left_over(name)
        if is_inner:
            try:
                inner = tar.extractfile(info)
                assert inner is not None
                yield from tar_members(inner, f"{tar_name}/{name}", name[: -len(".tar")])
            except _DAMAGE as error:
                yield Damage(tar_name, _reason(error))
                return
        is_member = not is_inner and (info.isreg() or info.issym() or info.islnk())
        if is_member:
            yield Member(name, _reader(tar, info))
        start = tar.offset
        try:
            if stream.tell() != start:
                stream.seek(start - 1)
                if not stream.read(1):
                    raise EOFError
        except _DAMAGE as error:
            reason = f"{_reason(error)} at {name}, it and what follows is lost"
            yield Damage(tar_name, reason, is_last_whole=not is_member)
            return
        try:
            # Not next(), because it keeps every member, and takes a damaged header for the end.
            info = tarfile.TarInfo.fromtarfile(tar)
            if tar.offset <= start or info.size < 0:
                raise tarfile.ReadError  # a size of nonsense
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            info = None
        except tarfile.EmptyHeaderError:  # type: ignore[attr-defined]
            yield Damage(tar_name, f"is cut short after {name}: no end mark follows")
            return
        except _DAMAGE as error:
            yield Damage(tar_name, f"{_reason(error)} after {name}, what follows is lost")
            return
    try:  # read to the very end, because compressed files have checksums there
        while block := stream.read(_BLOCK_BYTES):
            if block.count(0) < len(block):
                yield Damage(
                    tar_name, "goes on after its end mark (joined by cat?); give the tars one by one"
                )
                return
    except _DAMAGE as error:
        yield Damage(tar_name, f"{_reason(error)} at its end, an image may be damaged")


def _reader(tar: tarfile.TarFile, info: tarfile.TarInfo) -> Callable[[int], bytes]:
    def read(max_bytes: int = MAX_PAGE_BYTES) -> bytes:
        if not info.isreg():
            raise BadImage(
                "a link within a tar is not followed; tar --dereference --hard-dereference makes one without"
            )
        if info.size > max_bytes:
            raise BadImage(f"{info.size:,} bytes; at most {max_bytes:,} are taken")
        try:
            file = tar.extractfile(info)
            assert file is not None
            return file.read()
        except _DAMAGE as error:  # if nothing follows, a Damage comes next
            raise BadImage(_reason(error)) from None

    return read


def _reason(error: BaseException) -> str:
    if isinstance(error, RemoteDataError):  # the network failed, and the tar may be sound
        raise error
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read ({error.strerror})"
    if isinstance(error, EOFError) or str(error) in (
        "unexpected end of data",
        "truncated header",
        "empty header",
    ):
        return "is cut short"
    if isinstance(error, (OSError, RuntimeError, zlib.error, lzma.LZMAError)):
        return "its compression is damaged"
    return "a header is damaged"
