"""The ffcv decoder: libffcv decodes whole images. It is the reference for betons as stock FFCV reads them."""

from typing_extensions import override

from fastpsl.pipelines.decoders.compiled import CompiledDecoder
from fastpsl.pipelines.decoders.libffcv import Handle, library


class FfcvDecoder(CompiledDecoder):
    """A decoder on the CPU for betons, by libffcv.

    Raises:
        ValueError: If libffcv is not installed.
    """

    name = "ffcv"
    _is_turbo = False

    def __init__(self) -> None:
        library()
        super().__init__()

    @override
    def _new_handle(self) -> Handle:
        return Handle()
