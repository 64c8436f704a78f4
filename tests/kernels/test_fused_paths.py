"""The paths of the fused colour, blur and Sobel chain, each of which equals the operations.

Rows are read by words or by bytes. Blur and Sobel run by strips or by tiles.
"""

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from fastpsl.kernels.colour import ORDERS, ColourDistortion
from fastpsl.kernels.filters import GaussianBlur, Sobel
from fastpsl.kernels.fused_cuda import photometric
from tests.kernels.test_fused_photometric import DEVICE, SIMCLR, XY, fused, make_draws, plain
from tests.slow import slow

pytestmark = [pytest.mark.gpu] if DEVICE.type == "cuda" else []


@pytest.fixture
def launched(monkeypatch):
    """Return a dictionary of kernel names and the constants of their last launches."""
    constants = {}

    class Kernel:
        def __init__(self, name):
            self.name, self.kernel = name, getattr(photometric, name)

        def __getitem__(self, grid):
            def launch(*args, **kwargs):
                constants[self.name] = kwargs
                return self.kernel[grid](*args, **kwargs)

            return launch

    for name in ("mean_pass", "colour_pass", "strip_pass", "neighbourhood_pass"):
        monkeypatch.setattr(photometric, name, Kernel(name))
    return constants


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("factors", [(0.2, 0.2, 0.2, -0.41), (1.8, 1.8, 1.8, 0.5)], ids=["down", "up"])
def test_each_order_of_hard_colours(factors, dtype, launched, as_tensors, assert_fused_close):
    """Greys, pure colours, ties and their neighbours, with clamps and hues across the ends.

    Rows are read by words.
    """
    levels = torch.tensor([0, 1, 128, 254, 255], dtype=torch.uint8)
    images = torch.cartesian_prod(levels, levels, levels)[:124].T.reshape(1, 3, 31, 4).repeat(24, 1, 1, 1)
    ops = (ColourDistortion(0.8, 0.8, 0.8, 0.5, p=1.0),)
    draws = make_draws(ops, 24, as_tensors)
    draws[0]["order"] = torch.from_numpy(ORDERS)
    draws[0]["factors"] = torch.tensor([factors]).repeat(24, 1)
    assert_fused_close(fused(images, ops, draws, dtype), plain(images, ops, draws))
    assert launched["colour_pass"]["PIXELS"] == launched["mean_pass"]["PIXELS"] == 4


@pytest.mark.parametrize(
    "width, start, pixels, last",
    [(36, 0, 4, ()), (36, 1, 1, ()), slow(36, 4, 4, (XY,)), (37, 0, 1, ()), (38, 0, 1, ())],
    ids=str,
)
def test_rows_by_words_and_by_bytes(
    width, start, pixels, last, launched, make_images, as_tensors, assert_fused_close
):
    """Four pixels at a time if rows and the image are aligned to words; mirrored and not."""
    images, ops = make_images(4, 34, width, torch.uint8), (*SIMCLR[:3], *last)
    apart = torch.empty(start + images.numel(), dtype=torch.uint8, device=DEVICE)[start:]
    apart = apart.view(4, 34, width, 3).copy_(images.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    draws = make_draws(ops, 4, as_tensors)
    draws[0]["flip"] = torch.tensor([True, False, True, False])
    draws[1]["apply"] = torch.tensor([True, True, False, False])
    assert_fused_close(fused(apart, ops, draws, torch.float16), plain(images, ops, draws))
    assert launched["colour_pass"]["PIXELS"] == pixels


@pytest.mark.parametrize(
    "kernel_px, shape, dtype, path",
    [
        (31, (35, 70), torch.float16, "strip_pass"),
        slow(31, (70, 33), torch.float16, "strip_pass"),
        (15, (18, 40), torch.float32, "strip_pass"),
        slow(33, (35, 36), torch.float16, "neighbourhood_pass"),
        slow(17, (18, 40), torch.float32, "neighbourhood_pass"),
    ],
    ids=str,
)
def test_tiles_side_by_side(
    kernel_px, shape, dtype, path, launched, make_images, as_tensors, assert_fused_close
):
    """Two tiles both see what they share, up to the last tap that half a tile holds; each border mirrors."""
    images = make_images(2, *shape, torch.uint8)
    ops = (GaussianBlur(kernel_px, sigma=(6.0, 9.0), p=1.0), Sobel(0.5))
    draws = make_draws(ops, 2, as_tensors)
    draws[1]["apply"] = torch.tensor([False, True])
    assert_fused_close(fused(images, ops, draws, dtype), plain(images, ops, draws))
    assert set(launched) == {"colour_pass", path}
