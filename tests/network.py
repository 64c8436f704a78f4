"""Two network namespaces that stand for two machines, with a link between them that delays and may be down.

A thread carries the packets: not every kernel can delay them by itself.
"""

import contextlib
import ctypes
import fcntl
import heapq
import os
import select
import shutil
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

_TUNSETIFF, _TUN_NO_PI = 0x400454CA, 0x1001
_CLONE_NEWNET = 0x40000000
_FOLDER = Path("/run/netns")
MTU = 60_000  # large packets, because a thread carries each
DEVICE = "tun-fastpsl"
ADDRESSES = ("10.77.0.1", "10.77.0.2")


def enter(name: str) -> None:
    """Let the calling thread, and what it starts, see the devices of a namespace alone."""
    fd = os.open(_FOLDER / name, os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).setns(fd, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    finally:
        os.close(fd)


class Link:
    """A link between two namespaces."""

    def __init__(self, names: tuple[str, str], delay_s: float):
        self.names, self.delay_s, self.is_up = names, delay_s, True
        self.num_carried = 0
        self._fds = [_opened(name) for name in names]
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        self._thread.join(5)
        for fd in self._fds:
            os.close(fd)

    def _carry(self) -> None:
        under_way: list[tuple[float, int, int, bytes]] = []
        other = dict(zip(self._fds, reversed(self._fds), strict=True))
        while not self._ended.is_set():
            left_s = under_way[0][0] - time.monotonic() if under_way else 0.05
            ready, _, _ = select.select(self._fds, [], [], max(0.0, left_s))
            for fd in ready:
                packet = os.read(fd, MTU + 100)
                self.num_carried += 1
                heapq.heappush(
                    under_way, (time.monotonic() + self.delay_s, self.num_carried, other[fd], packet)
                )
            while under_way and under_way[0][0] <= time.monotonic():
                *_, fd, packet = heapq.heappop(under_way)
                if self.is_up:
                    with contextlib.suppress(OSError):  # its device has gone
                        os.write(fd, packet)


def _opened(name: str) -> int:
    """Return a device of a namespace, which a thread enters for it."""
    fds, errors = list[int](), list[Exception]()

    def open_it() -> None:
        try:
            enter(name)
            fd = os.open("/dev/net/tun", os.O_RDWR)
            fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), _TUN_NO_PI))
            fds.append(fd)
        except Exception as error:  # noqa: BLE001  (it is raised below)
            errors.append(error)

    thread = threading.Thread(target=open_it)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return fds[0]


def why_not() -> str:
    """Return why there can be no namespaces with a link; empty if there can."""
    if not shutil.which("ip"):
        return "there is no command ip (apt install iproute2)"
    if os.geteuid():
        return "only root may make network namespaces"
    return "" if os.access("/dev/net/tun", os.R_OK | os.W_OK) else "/dev/net/tun cannot be opened"


@contextlib.contextmanager
def two_machines(delay_s: float) -> Iterator[Link]:
    """Yield the link of two namespaces."""
    names = f"fastpsl-a-{os.getpid()}", f"fastpsl-b-{os.getpid()}"
    with contextlib.ExitStack() as stack:
        for name in names:
            _ip("netns", "add", name)
            stack.callback(_ip, "netns", "del", name)
        link = Link(names, delay_s)
        stack.callback(link.close)
        for name, address in zip(names, ADDRESSES, strict=True):
            inside = ("netns", "exec", name, "ip")
            _ip(*inside, "addr", "add", f"{address}/24", "dev", DEVICE)
            _ip(*inside, "link", "set", "dev", DEVICE, "mtu", str(MTU), "up")
            _ip(*inside, "link", "set", "dev", "lo", "up")
        yield link


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=30)
