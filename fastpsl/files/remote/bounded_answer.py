"""Answers of web servers that are read no further than was asked for, whatever their headers say."""

import re

import aiohttp
from typing_extensions import override

from fastpsl.files.remote.failures import RemoteDataError

_MAX_LISTING_BYTES = 1 << 26  # of an answer without a range: a page that lists files


class BoundedAnswer(aiohttp.ClientResponse):
    """An answer whose body ends one byte after the range that was asked for.

    This byte tells the reader that the server sent more.
    """

    @override
    async def read(self) -> bytes:
        """Return the body; without a range, raise RemoteDataError above 64 MiB."""
        if self._body is not None:
            return self._body
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.request_info.headers.get("Range", ""))
        most = int(asked[2]) - int(asked[1]) + 1 if asked else _MAX_LISTING_BYTES
        parts, left = list[bytes](), most + 1
        async for part in self.content.iter_any():
            parts.append(part[:left])
            left -= len(parts[-1])
            if left == 0:
                self.close()  # the connection, too, on which more comes
                break
        if left == 0 and not asked:
            raise RemoteDataError(
                f"{self.url}: the page that lists its files has more than {most:,} bytes; give the address "
                "of one file"
            )
        self._body = b"".join(parts)
        return self._body
