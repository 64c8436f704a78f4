"""A remote file as a stream, for sources that are read from front to back, such as tars."""

import io
import threading
from typing import IO, final

from typing_extensions import Buffer, override

from fastpsl.pipelines.remote.failures import persistently
from fastpsl.pipelines.remote.objects import LIMIT_S, RemoteObject
from fastpsl.pipelines.workers import Workers

_BLOCK_BYTES = 8 << 20
_NUM_AHEAD = 4  # blocks fetched before they are read


class _Block:
    """A block that was asked for."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.data = b""
        self.error: Exception | None = None


@final
class _Blocks(io.RawIOBase):
    """The raw stream, which fetches blocks ahead in threads."""

    def __init__(self, remote: RemoteObject) -> None:
        self._remote, self._position = remote, 0
        self._blocks: dict[int, _Block] = {}
        self._left = threading.Event()
        self._workers = Workers(_NUM_AHEAD, "fastpsl-stream")

    @override
    def readable(self) -> bool:
        return True

    @override
    def seekable(self) -> bool:
        return True

    @override
    def tell(self) -> int:
        return self._position

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
                self._blocks[i] = _Block()
                self._workers.submit(self._fetch, i, self._blocks[i])
        block = self._blocks[number]
        block.done.wait(2 * LIMIT_S)
        if block.error is not None:
            raise block.error
        assert block.done.is_set()  # a fetch ends within LIMIT_S and one more answer
        return block.data

    def _fetch(self, number: int, block: _Block) -> None:
        start = number * _BLOCK_BYTES
        stop = min(start + _BLOCK_BYTES, self._remote.num_bytes)
        try:
            block.data = persistently(
                lambda: self._remote.read(start, stop), self._remote.address, LIMIT_S, self._left
            )
        except Exception as error:  # noqa: BLE001 - raised in `_block`
            block.error = error
        block.done.set()

    @override
    def close(self) -> None:
        if not self.closed:
            self._left.set()
            self._workers.close(0.0)
        super().close()


def open_stream(remote: RemoteObject) -> IO[bytes]:
    """Open a remote file for reading.

    Reading raises RemoteDataError where it fails for a minute.

    Args:
        remote: The file.
    """
    return io.BufferedReader(_Blocks(remote), 1 << 16)
