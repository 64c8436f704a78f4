"""Settings of the host program that must not change what an image becomes.

Pillow reads them from its modules, and Python its filters of warnings, alike for all threads. Other threads
of the host may use Pillow meanwhile, so nothing is set for a while and put back. Each setting becomes a value
that looks at the thread: it is Pillow's own one where images are decoded here. Elsewhere it is the host's.
"""

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from PIL import Image, ImageFile, JpegImagePlugin, PngImagePlugin, TiffImagePlugin

_thread = threading.local()


def _decodes() -> bool:
    """Return whether this thread is within `decoding`."""
    return getattr(_thread, "decodes", False)


class _Setting:
    """A setting of Pillow; `value` is Pillow's default within `decoding`, and the host's in other threads."""

    def __init__(self, own: int, hosts: int) -> None:
        self.own, self.hosts, self.before = own, hosts, hosts

    @property
    def value(self) -> int:
        return self.own if _decodes() else self.hosts

    def __bool__(self) -> bool:
        return bool(self.value)

    def __index__(self) -> int:
        return self.value

    def __lt__(self, other: int) -> bool:
        return self.value < other


def _divide(module: ModuleType, name: str, own: int) -> None:
    """Give a module's setting two values: `own` where images are decoded here, the host's elsewhere."""
    setting = _Setting(own, getattr(module, name))

    def set_hosts(_: ModuleType, value: "int | _Setting") -> None:
        # unittest.mock puts back what it has found in the dictionary.
        value = setting.before if isinstance(value, _Setting) else value
        setting.before, setting.hosts = setting.hosts, value

    # The module's functions look in its dictionary, all others ask the module.
    vars(module)[name] = setting
    divided = property(lambda _: setting.value, set_hosts)
    module.__class__ = type("module", (type(module),), {name: divided})


_divide(ImageFile, "LOAD_TRUNCATED_IMAGES", False)  # half a file would be an image
_divide(PngImagePlugin, "MAX_TEXT_CHUNK", 1 << 20)  # a PNG with longer texts is refused
_divide(PngImagePlugin, "MAX_TEXT_MEMORY", 64 << 20)
_divide(TiffImagePlugin, "READ_LIBTIFF", False)


class _Warnings:
    """A stand-in for `warnings` in modules of Pillow: `warn` does nothing in threads that decode here."""

    def __getattr__(self, name: str) -> Any:
        return getattr(warnings, name)

    def warn(self, message: Any, category: type[Warning] | None = None, stacklevel: int = 1) -> None:
        if not _decodes():
            warnings.warn(message, category, stacklevel + 1)


for _module in (Image, JpegImagePlugin, PngImagePlugin, TiffImagePlugin):
    if hasattr(_module, "warnings"):
        _module.warnings = _Warnings()  # type: ignore[attr-defined]


@contextmanager
def decoding() -> Iterator[None]:
    """Have Pillow decode by its own settings in this thread, and without warnings, which may be errors."""
    before = _decodes()
    _thread.decodes = True
    try:
        yield
    finally:
        _thread.decodes = before


def _is_hosts(_: logging.LogRecord) -> bool:
    return not _decodes()


def log_quietly(name: str) -> None:
    """Drop what a library logs of damaged files in threads that decode here, where the reason is raised."""
    logging.getLogger(name).addFilter(_is_hosts)
