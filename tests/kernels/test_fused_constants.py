"""Every constant of a fused kernel matters: with 2 % more the comparison with the plain path fails.

The constants are the module-level tl.constexpr floats of kernels/fused_cuda/*.py. They are collected here, so
that none is left out. Literals in the kernels are 0, 1 and integers. A module's comparison is that of its
tests, with few and small images.
"""

import ast
import importlib
import inspect
import pkgutil

import numpy as np
import pytest
import torch

tl = pytest.importorskip("triton.language", reason="triton is not installed")

import fastpsl.kernels.fused_cuda as package
from fastpsl.kernels.colour import ColourDistortion, Grey
from fastpsl.kernels.draws import Keys
from fastpsl.kernels.filters import SOBEL_XY_STD, GaussianBlur, Sobel, SobelXY
from fastpsl.kernels.fused_cuda import photometric
from fastpsl.kernels.lab import Lightness
from fastpsl.kernels.normalise import normalise, out_shape

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="compiled kernels keep their constants: moved under the interpreter"
)
# A module's comparison is a fixture. Its value is called without arguments and raises AssertionError ("off by
# ...").
COMPARISONS = {
    "colour": "compare_colour",
    "neighbourhood": "compare_neighbourhood",
}
# Modules with constants that test_fused_isotropic.py tests, which compares what bytes hide, and
# test_fused_moves.py.
ELSEWHERE = {"isotropic", "prepared", "shifted", "warped"}
NAMES = [info.name for info in pkgutil.iter_modules(package.__path__)]
# Some constants must move further. A little more changes nothing where two curves meet, nor for a bound that
# no image comes near, nor for the level that is subtracted, until it takes the differences' digits.
FACTORS = {"LINEAR_BELOW": 4, "CUBE_ABOVE": 8, "TINY": 1e33, "LEVEL": 1e4}
COLOUR, BLUR = ColourDistortion(0.8, 0.8, 0.8, 0.5, p=1.0), GaussianBlur(9, p=1.0)
STATISTICS = {
    1: ((0.449,), (0.226,)),
    2: ((0.0, 0.0), (SOBEL_XY_STD, SOBEL_XY_STD)),
    3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def module(name):
    return importlib.import_module(f"{package.__name__}.{name}")


def constants(name):
    values = vars(module(name)).items()
    return [
        key for key, value in values if isinstance(value, tl.constexpr) and isinstance(value.value, float)
    ]


@pytest.fixture
def compare(make_images, as_tensors, assert_fused_close):
    """Return a check that a fused chain equals the plain one.

    Its `argument` is an op and draw's name, or "mean" or "std", and a column. The kernels get 2 % more of it.
    """

    def run(ops, argument=(), width=13):
        images = make_images(4, 12, width, torch.uint8)
        draws = [as_tensors(op.draw(Keys(7, 2, np.arange(4, dtype=np.int64)))) for op in ops]
        batch, *shape = out_shape(ops, images.shape)
        mean, std = STATISTICS[shape[0]]
        expected = images
        for op, draw in zip(ops, draws, strict=True):
            expected = op(expected, draw)
        expected = normalise(expected, mean, std, torch.float32)
        arguments = {"mean": torch.tensor(mean), "std": torch.tensor(std)}
        arguments |= {
            f"{type(op).__name__} {k}": v for op, d in zip(ops, draws, strict=True) for k, v in d.items()
        }
        if argument:
            name, column = argument
            arguments[name] = arguments[name].clone()
            arguments[name][..., column] *= 1.02
        fused_draws = [
            {k: arguments[f"{type(op).__name__} {k}"] for k in d} for op, d in zip(ops, draws, strict=True)
        ]
        out = torch.empty(batch, *shape).contiguous(memory_format=torch.channels_last)
        photometric.run(images, ops, fused_draws, arguments["mean"].tolist(), arguments["std"].tolist(), out)
        assert_fused_close(out, expected)

    return run


@pytest.fixture
def compare_colour(compare):
    """Return the comparison of rows that are read by bytes and of rows read by words."""
    chains = (
        ((COLOUR,), 13),
        ((COLOUR,), 12),
        ((Grey(1.0),), 13),
        ((Lightness(),), 13),
        ((COLOUR, SobelXY()), 13),
    )
    return lambda: [compare(ops, width=width) for ops, width in chains]


@pytest.fixture
def compare_neighbourhood(compare):
    return lambda: [compare(ops) for ops in ((SobelXY(),), (BLUR,), (BLUR, Sobel(1.0)))]


@pytest.mark.parametrize("name", COMPARISONS)
def test_nothing_is_off_as_it_is(name, request):
    request.getfixturevalue(COMPARISONS[name])()


@pytest.mark.nightly
@pytest.mark.parametrize("name, constant", [(name, key) for name in COMPARISONS for key in constants(name)])
def test_two_percent_of_a_constant_are_seen(name, constant, request, monkeypatch):
    moved = getattr(module(name), constant).value * FACTORS.get(constant, 1.02)
    monkeypatch.setattr(module(name), constant, tl.constexpr(moved))
    with pytest.raises(AssertionError, match="off by"):
        request.getfixturevalue(COMPARISONS[name])()


@pytest.mark.nightly
@pytest.mark.parametrize(
    "ops, argument",
    [((Grey(0.5),), (statistic, channel)) for statistic in ("mean", "std") for channel in range(3)]
    + [(ops, ("std", channel)) for ops in ((SobelXY(),), (BLUR, SobelXY())) for channel in range(2)]
    + [((COLOUR,), ("ColourDistortion factors", number)) for number in range(4)]
    + [((BLUR,), ("GaussianBlur sigma", slice(None)))],
    ids=str,
)
def test_two_percent_of_an_argument_are_seen(ops, argument, compare):
    with pytest.raises(AssertionError, match="off by"):
        compare(ops, argument)


def test_no_module_is_left_out():
    assert {name for name in NAMES if constants(name)} == {*COMPARISONS, *ELSEWHERE}


@pytest.mark.parametrize("name", COMPARISONS)
def test_numbers_have_names(name):
    """A jitted function has the literals 0.0, 1.0 and integers; other constants are at the module's top."""
    tree = ast.parse(inspect.getsource(module(name)))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.decorator_list]
    numbers = {
        node.value
        for function in functions
        for node in ast.walk(function)
        if isinstance(node, ast.Constant) and isinstance(node.value, float)
    }
    assert functions and numbers <= {0.0, 1.0}
