"""The ffcv decoder: libffcv decodes whole images. It is the reference for betons as stock FFCV reads them."""

from fastpsl.pipelines.decoders import libffcv
from fastpsl.pipelines.decoders.compiled import CompiledDecoder


class FfcvDecoder(CompiledDecoder):
    """A decoder on the CPU for betons, by libffcv."""

    name = "ffcv"
    _bindings = libffcv
