"""The turbo decoder: it decodes the parts of images that their crops need, and resizes, in C (turbo.c)."""

from typing_extensions import override

from fastpsl.pipelines.decoders.compiled import CompiledDecoder
from fastpsl.pipelines.decoders.libturbo import Handle, library


class TurboDecoder(CompiledDecoder):
    """A decoder on the CPU for betons, by our own library on libjpeg-turbo.

    Raises:
        ValueError: If the library was not built.
    """

    name = "turbo"
    _is_turbo = True

    def __init__(self) -> None:
        library()
        super().__init__()

    @override
    def _new_handle(self) -> Handle:
        return Handle()
