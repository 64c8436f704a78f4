"""The turbo decoder: it decodes the parts of images that their crops need, and resizes, in C (turbo.c)."""

from fastpsl.pipelines.decoders import libturbo
from fastpsl.pipelines.decoders.compiled import CompiledDecoder


class TurboDecoder(CompiledDecoder):
    """A decoder on the CPU for betons, by our own library on libjpeg-turbo."""

    name = "turbo"
    _bindings = libturbo
