"""The crops and operations of views, in British and American spelling."""

from fastpsl.console.offered import offer_only_all
from fastpsl.kernels.colour import ColourDistortion, Grey, Solarise
from fastpsl.kernels.colour import ColourDistortion as ColorDistortion
from fastpsl.kernels.colour import Grey as Gray
from fastpsl.kernels.colour import Solarise as Solarize
from fastpsl.kernels.crops import RandomResizedCrop, ShorterSideCrop, Squashed
from fastpsl.kernels.filters import GaussianBlur, Sobel, SobelXY
from fastpsl.kernels.filters import GaussianBlur as Blur
from fastpsl.kernels.geometry import AllTurns, Enlarge, Flip, Hole, Rotate45, Rotate90, Shift, WarpPair
from fastpsl.kernels.jigsaw import JigsawTiles
from fastpsl.kernels.lab import Lightness
from fastpsl.kernels.rotation_crops import RotationCrop

__all__ = [
    "AllTurns", "Blur", "ColorDistortion", "ColourDistortion", "Enlarge", "Flip", "GaussianBlur", "Gray",
    "Grey", "Hole", "JigsawTiles", "Lightness", "RandomResizedCrop", "Rotate45", "Rotate90", "RotationCrop",
    "Shift", "ShorterSideCrop", "Sobel", "SobelXY", "Solarise", "Solarize", "Squashed", "WarpPair",
]  # fmt: skip
offer_only_all(__name__)
