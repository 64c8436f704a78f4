"""The choice of the path for the views' operations, and the outputs of the fused path."""

import importlib
from types import SimpleNamespace

import pytest
import torch

from fastpsl.kernels import by_kornia, fused
from fastpsl.kernels.colour import ColourDistortion, Grey, Solarise
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.kernels.filters import SOBEL_XY_STD, GaussianBlur, SobelXY
from fastpsl.kernels.fused import module_for
from fastpsl.kernels.fused_cpu import geometric as numba_geometric
from fastpsl.kernels.fused_cpu import photometric as numba_photometric
from fastpsl.kernels.fused_cpu import warped as numba_warped
from fastpsl.kernels.geometry import AllTurns, Flip, Hole, Shift, WarpPair
from fastpsl.kernels.jigsaw import JigsawTiles
from fastpsl.kernels.normalise import normalise
from fastpsl.pipelines.datasets.subset import Synthetic
from fastpsl.pipelines.loader.augment import Augment, choose_augment
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.views import ViewSpec

CPU = torch.device("cpu")
COLOUR = ColourDistortion(0.4, 0.4, 0.4, 0.1)


def is_channels_last(images: torch.Tensor) -> bool:
    return images.is_contiguous(memory_format=torch.channels_last)


def plain(images, ops, draws, mean, std, out):  # type: ignore[no-untyped-def]
    """Run the ops one by one, in place of a fused module's `run`."""
    for op, draw in zip(ops, draws, strict=True):
        images = op(images, draw)
    out.copy_(normalise(images, mean, std, out.dtype))


MODULE = SimpleNamespace(fits=lambda ops: not any(isinstance(op, JigsawTiles) for op in ops), run=plain)


def test_views_of_one_shape_are_parts_of_one_buffer() -> None:
    augment = Augment("fused", "", (MODULE,))  # type: ignore[arg-type]
    for sizes, is_one in (((16, 16), True), ((16, 24), False)):
        views = [ViewSpec(RandomResizedCrop(size), (Flip(),)) for size in sizes]
        with Loader(Synthetic(20), views, batch_size_per_rank=5) as loader:
            batch = next(loader.epoch(0))
        expected = batch.inputs(views, torch.float16)
        inputs = augment.inputs(batch, views, torch.float16)
        for fused_input, plain_input in zip(inputs, expected, strict=True):
            assert torch.equal(fused_input, plain_input) and is_channels_last(fused_input)
        first, second = inputs
        assert second.data_ptr() == first.data_ptr() + first.numel() * 2 or not is_one
        with pytest.raises(ValueError, match="1 views for a batch of 2"):
            augment.inputs(batch, views[:1], torch.float16)


def test_one_by_one_by_kornia_or_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch has the bits of the definition, which auto falls back to; Kornia is asked for each operation."""
    views = [ViewSpec(RandomResizedCrop(16), (Flip(), COLOUR, Solarise()))]
    with Loader(Synthetic(20), views, batch_size_per_rank=5) as loader:
        batch = next(loader.epoch(0))
    (expected,) = batch.inputs(views, torch.float32)
    for name in ("torch", "auto"):
        augment = choose_augment(name, views, CPU)  # type: ignore[arg-type]
        assert (augment.path, augment.modules) == ("torch", ())
        assert torch.equal(augment.inputs(batch, views, torch.float32)[0], expected)
    asked = set[type]()
    for kind, form in by_kornia.FORMS.items():

        def asks(op, images, draw, form=form):  # type: ignore[no-untyped-def]
            asked.add(type(op))
            return form(op, images, draw)

        monkeypatch.setitem(by_kornia.FORMS, kind, asks)
    augment = choose_augment("kornia", views, CPU)
    assert (augment.path, augment.modules) == ("kornia", ())
    (result,) = augment.inputs(batch, views, torch.float32)
    assert asked == {Flip, ColourDistortion, Solarise}
    assert torch.allclose(result, expected, atol=1e-5, rtol=1e-5)
    assert is_channels_last(result)


def test_what_cannot_be_fused_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    views = [ViewSpec(RandomResizedCrop(16), (Flip(),))]
    views.append(ViewSpec(RandomResizedCrop(27), (JigsawTiles(3, 9, 8),)))
    where = "fastpsl.pipelines.loader.augment.fused_modules"
    monkeypatch.setattr(where, lambda device: ((MODULE,), "by hand"))
    assert choose_augment("auto", views[:1], CPU).path == "fused"
    assert choose_augment("auto", views, CPU).reason == "no fused kernel for JigsawTiles on cpu"
    why = "-backend fused: no fused kernel for JigsawTiles on cpu; use --augment-backend kornia"
    with pytest.raises(ValueError, match=why):
        choose_augment("fused", views, CPU)
    monkeypatch.setattr(where, lambda device: ((), "there is no Triton"))
    assert choose_augment("auto", views, CPU).path == "torch"
    with pytest.raises(ValueError, match="fused: there is no Triton; use --augment-backend kornia"):
        choose_augment("fused", views[:1], CPU)


@pytest.mark.parametrize(
    ("ops", "module", "difference"),
    [
        ((Flip(), COLOUR), numba_photometric, 1e-4),
        ((Flip(), JigsawTiles(2, 8, 7)), numba_geometric, 1e-6),
        ((Shift(2), Flip(), AllTurns(4)), numba_geometric, 1e-6),
        ((Shift(2), Flip(), Hole()), numba_geometric, 1e-6),
        # Bytes may be rounded differently.
        ((Shift(2), Flip(), WarpPair(16)), numba_warped, 1.1 / (255 * 0.224)),
    ],
)
def test_on_the_cpu_numba_fuses_what_costs_there(ops, module, difference) -> None:  # type: ignore[no-untyped-def]
    views = [ViewSpec(RandomResizedCrop(16), ops)] * 2
    augment = choose_augment("auto", views, CPU)
    assert (augment.path, augment.reason) == ("fused", "numba, an image at a time")
    assert module_for(augment.modules, ops) is module
    with Loader(Synthetic(20), views, batch_size_per_rank=5) as loader:
        batch = next(loader.epoch(0))
    for fused_input, plain in zip(
        augment.inputs(batch, views, torch.float32), batch.inputs(views, torch.float32), strict=True
    ):
        assert torch.allclose(fused_input, plain, atol=difference) and is_channels_last(fused_input)


@pytest.mark.parametrize(
    "ops", [(Flip(), SobelXY()), (Flip(), COLOUR, Grey(), GaussianBlur(5), SobelXY())], ids=["weak", "strong"]
)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_gradients_are_fused(ops, device) -> None:  # type: ignore[no-untyped-def]
    """For UIC's views auto and fused choose a module with the plain path's values (in TF32 on a GPU)."""
    views = [ViewSpec(RandomResizedCrop(24), ops, (0.0, 0.0), (SOBEL_XY_STD, SOBEL_XY_STD))]
    with Loader(Synthetic(20), views, batch_size_per_rank=5, device=torch.device(device)) as loader:
        batch = next(loader.epoch(0))
    (expected,) = choose_augment("torch", views, CPU).inputs(batch, views, torch.float32)
    for name in ("auto", "fused"):
        augment = choose_augment(name, views, torch.device(device))  # type: ignore[arg-type]
        names = [module.__name__ for module in augment.modules if module.fits(ops)]
        assert augment.path == "fused" and len(names) == 1
        assert names[0].endswith("fused_cpu.photometric" if device == "cpu" else "fused_cuda.photometric")
        (fused_input,) = augment.inputs(batch, views, torch.float32)
        assert fused_input.shape == (5, 2, 24, 24) and is_channels_last(fused_input)
        assert torch.allclose(fused_input, expected, rtol=1e-5, atol=1e-3 if device == "cpu" else 5e-2)


def test_gradients_are_fused_by_triton_too() -> None:
    """The module for CUDA accepts them; tests/kernels/test_fused_photometric.py checks its values."""
    pytest.importorskip("triton", reason="triton is not installed")
    from fastpsl.kernels.fused_cuda import geometric, photometric

    for ops in ((Flip(), SobelXY()), (Flip(), COLOUR, Grey(), GaussianBlur(5), SobelXY())):
        assert module_for((photometric, geometric), ops) is photometric


@pytest.mark.parametrize(
    "device", [pytest.param("cuda", marks=pytest.mark.gpu) if torch.cuda.is_available() else "cpu"]
)
def test_every_module_is_tried_out(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first step of a run on CUDA; here in Triton's interpreter."""
    pytest.importorskip("triton", reason="triton is not installed")
    tested = set()
    if device == "cpu":
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)

    def fake_module(name: str) -> SimpleNamespace:
        module = importlib.import_module(f"fastpsl.kernels.fused_cuda.{name}")

        def run(*arguments: object) -> None:
            tested.add(name)
            module.run(*arguments)

        return SimpleNamespace(fits=module.fits, run=run)

    fused._try_out([fake_module(name) for name in fused.CUDA_MODULES], torch.device(device))  # type: ignore[misc]
    assert tested == set(fused.CUDA_MODULES)
