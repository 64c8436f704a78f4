"""Answers of web servers that are read no further than was asked for, whatever their headers say."""

import re

import aiohttp
from typing_extensions import override

from fastpsl.files.remote.failures import RemoteDataError, WrongBytesError

_MAX_LISTING_BYTES = 1 << 26  # of an answer without a range: a page that lists files


class BoundedAnswer(aiohttp.ClientResponse):
    """An answer whose body ends one byte after the range that was asked for.

    This byte tells the reader that the server sent more.
    """

    @override
    async def read(self) -> bytes:
        """Return the body.

        Raises:
            WrongBytesError: It is of another range.
            RemoteDataError: It is of no range, and above 64 MiB.
        """
        if self._body is not None:
            return self._body
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.request_info.headers.get("Range", ""))
        sent = re.match(r"bytes (\d{1,19})-", self.headers.get("Content-Range", ""))
        first = int(sent[1]) if sent else 0  # without this header, an answer of status 200 is the whole file
        if asked and (sent or self.status == 200) and first != int(asked[1]):
            raise WrongBytesError(f"bytes from {first:,} came, those from {int(asked[1]):,} were asked for")
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
