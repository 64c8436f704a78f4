"""Settings of the host program that must not change what an image becomes.

Pillow reads them from its modules, and Python its filters of warnings, alike for all threads. Other threads
of the host may use Pillow meanwhile, so nothing is set for a while and put back. Each becomes a value that
looks at the thread: it is Pillow's own one where images are decoded here. Elsewhere it is the host's.
"""

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from PIL import ImageFile, PngImagePlugin, TiffImagePlugin
from typing_extensions import override

_thread = threading.local()


def _decodes() -> bool:
    """Return whether this thread decodes here."""
    return getattr(_thread, "decodes", False)


class _Setting:
    """A setting of Pillow; `value` is Pillow's own one in threads that decode here."""

    def __init__(self, own: int, hosts: int) -> None:
        self.own, self.hosts = own, hosts

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

    def set_hosts(_: ModuleType, value: int) -> None:
        setting.hosts = value

    # The module's functions look in its dictionary, all others ask the module.
    vars(module)[name] = setting
    divided = property(lambda _: setting.value, set_hosts)
    module.__class__ = type("module", (type(module),), {name: divided})


_divide(ImageFile, "LOAD_TRUNCATED_IMAGES", False)  # half a file would be an image
_divide(PngImagePlugin, "MAX_TEXT_CHUNK", 1 << 20)  # what refuses a PNG
_divide(PngImagePlugin, "MAX_TEXT_MEMORY", 64 << 20)
_divide(TiffImagePlugin, "READ_LIBTIFF", False)


class _HereAlone(type):
    @override
    def __subclasscheck__(cls, subclass: type) -> bool:
        return _decodes()


class _Decoding(Warning, metaclass=_HereAlone):
    """A category that every warning has in threads that decode here, and none in others."""


@contextmanager
def decoding() -> Iterator[None]:
    """Have Pillow decode by its own settings in this thread, and its warnings be no errors."""
    filters: list[Any] = warnings.filters  # type: ignore[assignment]
    if not filters or filters[0][2] is not _Decoding:
        warnings.simplefilter("ignore", _Decoding)
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
