"""The crops and operations of views, in British and American spelling."""

from fastpsl.kernels.blur import GaussianBlur
from fastpsl.kernels.blur import GaussianBlur as Blur
from fastpsl.kernels.colour import ColourDistortion
from fastpsl.kernels.colour import ColourDistortion as ColorDistortion
from fastpsl.kernels.crops import RandomResizedCrop, ShorterSideCrop, Squashed
from fastpsl.kernels.enlarge import Enlarge
from fastpsl.kernels.flip import Flip
from fastpsl.kernels.grey import Grey
from fastpsl.kernels.grey import Grey as Gray
from fastpsl.kernels.hole import Hole
from fastpsl.kernels.jigsaw import JigsawTiles
from fastpsl.kernels.lightness import Lightness
from fastpsl.kernels.rotate45 import Rotate45
from fastpsl.kernels.rotate90 import AllTurns, Rotate90
from fastpsl.kernels.rotation_crops import RotationCrop
from fastpsl.kernels.shift import Shift
from fastpsl.kernels.sobel import Sobel
from fastpsl.kernels.sobel_xy import SobelXY
from fastpsl.kernels.solarise import Solarise
from fastpsl.kernels.solarise import Solarise as Solarize
from fastpsl.kernels.warp import WarpPair

__all__ = [
    "AllTurns", "Blur", "ColorDistortion", "ColourDistortion", "Enlarge", "Flip", "GaussianBlur", "Gray",
    "Grey", "Hole", "JigsawTiles", "Lightness", "RandomResizedCrop", "Rotate45", "Rotate90", "RotationCrop",
    "Shift", "ShorterSideCrop", "Sobel", "SobelXY", "Solarise", "Solarize", "Squashed", "WarpPair",
]  # fmt: skip
