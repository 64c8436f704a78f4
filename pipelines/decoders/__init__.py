"""Decoders: the same samples and the same crops, from whatever is installed.

    name                      which, for error messages and logs
    reasons                   code → text
    decode(rows, boxes, outs) → int8 codes [n], 0 = good. Per view: boxes int32 [n, 4] (top, left, height, width) in
                              source pixels; outs uint8 [n, S, S, 3] RGB, written in place (by any number of threads)

The picture of a sample whose code is not 0 is undefined.
"""

import warnings
from typing import TYPE_CHECKING, Protocol

import numpy as np

from fastpsl.pipelines import libffcv
from fastpsl.pipelines.decoders.codes import WRONG_COMPONENTS, WRONG_SIZE
from fastpsl.pipelines.decoders.synthetic import Synthetic, SyntheticDecoder

if TYPE_CHECKING:
    from fastpsl.pipelines.beton import Beton, Rows

NAMES = ("ffcv", "torchvision", "synthetic")
INSTALL = 'pip install "fastpsl[ffcv]"'


class Decoder(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def reasons(self) -> dict[int, str]: ...

    def decode(self, rows: "Rows", boxes: list[np.ndarray], outs: list[np.ndarray]) -> np.ndarray: ...


def open_decoder(name: str, data: "Beton | Synthetic") -> tuple[Decoder, str]:
    """The decoder and why it was chosen. `auto`: ffcv where its library loads, else torchvision with one warning."""
    if name not in ("auto", *NAMES):
        raise ValueError(
            f"decoder {name!r}: there are auto, {', '.join(NAMES)}; ffcv is installed by {INSTALL}"
        )
    if isinstance(data, Synthetic):
        if name not in ("auto", "synthetic"):
            raise ValueError(
                f"decoder {name!r} cannot read synthetic data; use auto or synthetic, or give a beton"
            )
        return SyntheticDecoder(), "the data is synthetic"
    if name == "synthetic":
        return SyntheticDecoder(), "asked for: pictures are noise, whatever the beton holds"
    why_missing = libffcv.why_missing()
    if name == "ffcv" and why_missing:
        raise ValueError(f"decoder 'ffcv': {why_missing}; install it by {INSTALL}, or use torchvision")
    if name == "torchvision" or why_missing:
        from fastpsl.pipelines.decoders.torchvision import TorchvisionDecoder

        if name == "torchvision":
            return TorchvisionDecoder(), "asked for"
        warnings.warn(
            f"decoding by torchvision, which is slower: {why_missing}; {INSTALL} installs it", stacklevel=3
        )
        return TorchvisionDecoder(), why_missing
    from fastpsl.pipelines.decoders.ffcv import FfcvDecoder

    return FfcvDecoder(), "asked for" if name == "ffcv" else "its library is installed"


def reason_of(decoder: Decoder, code: int, rows: "Rows", i: int) -> str:
    """The reason for a code of row i in words, with the sizes where sizes are the matter."""
    text = decoder.reasons[code]
    if code in (WRONG_SIZE, WRONG_COMPONENTS):
        from fastpsl.pipelines.decoders.torchvision import read_bytes

        jpeg = np.frombuffer(read_bytes(rows, i), np.uint8)
        _, height, width, components, _, _ = libffcv.jpeg_header(jpeg, len(jpeg))
        if code == WRONG_COMPONENTS:
            return f"{text}: the header says {components}"
        return f"the header says {height}x{width} px, the table {rows.height[i]}x{rows.width[i]}"
    return text
