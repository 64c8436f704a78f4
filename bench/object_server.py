"""A server of a folder's files, as S3 and https serve objects, behind a line with a latency and a rate.

    python bench/object_server.py FOLDER --latency-ms 20 --gbit 1

It prints its address, and serves /BUCKET/KEY from FOLDER/BUCKET/KEY until it is stopped. Each answer begins
after the latency. All answers share the rate, as those of one network port do.
"""

import argparse
import asyncio
import os
from pathlib import Path

from aiohttp import web

_PIECE_BYTES = 1 << 18


class Line:
    """A network line: pieces of all answers pass it one after the other."""

    def __init__(self, latency_s: float, bytes_per_s: float) -> None:
        self._latency_s, self._bytes_per_s, self._free_at = latency_s, bytes_per_s, 0.0

    async def begin(self) -> None:
        """Wait for the latency."""
        await asyncio.sleep(self._latency_s)

    async def send(self, num_bytes: int) -> None:
        """Wait until a piece has passed."""
        now = asyncio.get_running_loop().time()
        self._free_at = max(self._free_at, now - 0.01) + num_bytes / self._bytes_per_s
        if self._free_at > now:
            await asyncio.sleep(self._free_at - now)


def application(folder: Path, line: Line) -> web.Application:
    """Return the server of a folder."""

    async def answer(request: web.Request) -> web.StreamResponse:
        await line.begin()
        path = folder / request.path.lstrip("/")
        if not path.is_file():
            error = "<Error><Code>NoSuchKey</Code><Message>There is none.</Message></Error>"
            return web.Response(status=404, text=error, content_type="application/xml")
        size = path.stat().st_size
        asked = request.http_range
        start, stop = asked.start or 0, min(asked.stop or size, size)
        is_part = "Range" in request.headers
        response = web.StreamResponse(
            status=206 if is_part else 200,
            headers={
                "Content-Length": str(stop - start),
                "ETag": f'"{size:x}"',
                "Accept-Ranges": "bytes",
                "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT",
            },
        )
        if is_part:
            response.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        response.force_close()  # MosaicML's worker processes inherit connections, and would hang with them
        await response.prepare(request)
        if request.method == "GET":
            fd = os.open(path, os.O_RDONLY)
            try:
                while start < stop:
                    piece = os.pread(fd, min(_PIECE_BYTES, stop - start), start)
                    await line.send(len(piece))
                    await response.write(piece)
                    start += len(piece)
            finally:
                os.close(fd)
        await response.write_eof()
        return response

    app = web.Application()
    app.router.add_route("GET", "/{path:.*}", answer, name="get")
    app.router.add_route("HEAD", "/{path:.*}", answer, name="head")
    return app


async def _serve(options: argparse.Namespace) -> None:
    line = Line(options.latency_ms / 1000, options.gbit * 1e9 / 8)
    runner = web.AppRunner(application(options.folder, line))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    print(f"http://{host}:{port}", flush=True)
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--latency-ms", type=float, default=0.0)
    parser.add_argument("--gbit", type=float, default=1.0, help="the rate, in Gbit/s")
    asyncio.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
