"""RevNet-50: a residual network that recomputes activations in the backward pass instead of storing them.

One source is Gomez, Ren, Urtasun and Grosse, "The Reversible Residual Network", 2017. The other is PSL,
section 4.1 and Tables 4 and 6 ("Rv50", 24 M parameters), which do not state the widths.
"""

import contextlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import override

from fastpsl.kernels.autocast import autocast
from fastpsl.models.backbone import Backbone
from fastpsl.models.convolutional import normal_weights, resnet_blocks

CHANNELS = (64, 256, 512, 1024, 2048)
UNITS = (3, 4, 6, 3)
# 13/64 of the output width (0.203), rounded up to a multiple of 8 for half-precision matrix units. This gives
# 24,313,088 parameters without a classifier. Table 4 of PSL counts ResNet-50's 23,508,032 as "24" in the
# same way.
WIDTHS = (56, 104, 208, 416)


class RevNet(Backbone):
    """A RevNet in blocks like ResNet-50's: B1 is conv1, and B2…B5 are groups of units.

    The groups have 256, 512, 1024 and 2048 output channels. B2 starts with a max-pool. A unit works on two
    halves of the channels (equation 6): y1 = x1 + F(x2), y2 = x2 + G(y1). The first unit of a group changes
    size and width and is not reversible: y1 = P1 x1 + F(x2), y2 = P2 x2 + G(y1). P1 and P2 are strided 1x1
    convolutions, as in the original. F has its stride in the 3x3 convolution, as in torchvision's ResNet-50.
    The pre-activation of that unit (BatchNorm and ReLU) is at the end of the block before it. So each
    block's output is normalised and not negative, as in ResNet. After the last block, it is the original's
    final BatchNorm and ReLU.

    Under autocast, the two streams inside a group stay float32. There is no dropout, because recomputation
    would draw another mask.

    Args:
        channels: The output width of each block.
        units: The number of units of each group.
        widths: The width of the bottlenecks of each group.
    """

    block_names = ("conv1", "conv2_x", "conv3_x", "conv4_x", "conv5_x")
    why_untraceable = (
        "RevNet recomputes its blocks in the backward pass, which torch.compile and torch.fx cannot follow"
    )

    def __init__(
        self, channels: Sequence[int] = CHANNELS, units: Sequence[int] = UNITS, widths: Sequence[int] = WIDTHS
    ):
        super().__init__()
        self.name = "revnet50"
        self.channels = tuple(channels)
        self.conv1 = nn.Conv2d(3, channels[0], 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            Group(channels[i], channels[i + 1], widths[i], units[i], stride=1 if i == 0 else 2)
            for i in range(4)
        )
        normal_weights(self)  # as torchvision's ResNet

    @override
    def blocks(self) -> list[nn.Module]:
        return resnet_blocks(self)


class Group(nn.Module):
    """A first unit, then reversible units, BatchNorm and ReLU.

    It maps [B,inputs,H,W] to [B,outputs,H/stride,W/stride].
    Autograd stores the activations of the first unit and the output, so its memory does not depend on
    `num_units`.
    """

    def __init__(self, inputs: int, outputs: int, width: int, num_units: int, stride: int):
        super().__init__()
        self.first = FirstUnit(inputs // 2, outputs // 2, width, stride)
        self.units = ReversibleUnits(Unit(outputs // 2, width) for _ in range(num_units - 1))
        self.bn = nn.BatchNorm2d(outputs)
        self.relu = NarrowReLU(inplace=True)

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.units(*self.first(x))))


class FirstUnit(nn.Module):
    """A unit that changes the size and width of both halves, with ordinary autograd."""

    def __init__(self, inputs: int, outputs: int, width: int, stride: int):
        super().__init__()
        self.skip1 = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
        self.skip2 = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
        self.f = bottleneck(inputs, width, outputs, stride, activated=True)
        self.g = bottleneck(outputs, width, outputs)

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x1, x2 = x.chunk(2, dim=1)
        y1 = _to_float32(self.skip1(x1)) + self.f(x2)
        y2 = _to_float32(self.skip2(x2)) + self.g(y1)
        return y1, y2


class Unit(nn.Module):
    """A reversible unit with its functions F and G, each on half of the channels."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.f = bottleneck(channels, width, channels)
        self.g = bottleneck(channels, width, channels)


class ReversibleUnits(nn.ModuleList):
    """A sequence of `Unit`s: reads the halves x1 and x2, and returns y1 and y2 concatenated, [B,C,H,W].

    If gradients are needed, only the output is stored. It is differentiable once. A hook on a parameter
    (`register_hook`) is called twice with its gradient: in the recomputation, and when autograd accumulates
    it. `register_post_accumulate_grad_hook` and DDP's hooks are called once.
    """

    @override
    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            output: Tensor = _Recomputed.apply(self, x1, x2, *self.parameters())
            return output
        return self.run(x1, x2)

    def run(self, x1: Tensor, x2: Tensor) -> Tensor:
        """Run the units with ordinary autograd."""
        for unit in self:
            assert isinstance(unit, Unit)
            x1 = x1 + unit.f(x2)
            x2 = x2 + unit.g(x1)
        return torch.cat((x1, x2), dim=1)


class _Recomputed(Function):
    """A version of ReversibleUnits.run with Gomez et al.'s Algorithm 1 as its backward pass.

    The parameters are inputs for two reasons: units train even behind a frozen block, whose output needs no
    gradient, and their gradients pass through autograd's accumulation, where DDP waits for them.
    """

    @staticmethod
    @override
    def forward(ctx: Any, units: ReversibleUnits, x1: Tensor, x2: Tensor, *parameters: Tensor) -> Tensor:
        output = units.run(x1, x2)
        # Parameters are saved so that autograd raises an error if one was changed before the backward pass.
        ctx.save_for_backward(output, *parameters)
        ctx.units, ctx.training = units, [module.training for module in units.modules()]
        device_type = output.device.type
        enabled = torch.is_autocast_enabled(device_type)
        ctx.dtype = torch.get_autocast_dtype(device_type) if enabled else torch.float32
        return output

    @staticmethod
    @once_differentiable
    @override
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        output, *_ = ctx.saved_tensors
        if ctx.training != [module.training for module in ctx.units.modules()]:
            raise RuntimeError(
                "train() or eval() was called between RevNet's forward and backward pass; call it before or "
                "after both"
            )
        y1, y2 = (half.clone() for half in output.chunk(2, dim=1))
        dy1, dy2 = gradient.chunk(2, dim=1)
        gradients: dict[Tensor, Tensor] = {}
        with _frozen_statistics(ctx.units):
            for unit in reversed(ctx.units):
                value, through_g = _pull_back(unit.g, y1, dy2, ctx.dtype, gradients)
                y2, dy1 = y2 - value, dy1 + through_g
                value, through_f = _pull_back(unit.f, y2, dy1, ctx.dtype, gradients)
                y1, dy2 = y1 - value, dy2 + through_f
        return None, dy1, dy2, *(gradients.get(parameter) for parameter in ctx.units.parameters())


def _pull_back(
    function: nn.Module, x: Tensor, dy: Tensor, dtype: torch.dtype, gradients: dict[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return function(x) and the gradient of x, given the gradient dy of function(x).

    The gradients of the function's parameters are added to the dict `gradients`.
    """
    x = x.detach().requires_grad_()
    # The cache holds weights that the forward pass cast without a graph.
    with torch.enable_grad(), autocast(x.device, dtype, caches=False):
        value = function(x)
    learning = [parameter for parameter in function.parameters() if parameter.requires_grad]
    # Backward passes run outside autocast.
    dx, *parameter_gradients = torch.autograd.grad(value, (x, *learning), dy.to(value.dtype))
    gradients.update(zip(learning, parameter_gradients, strict=True))
    return value.detach(), dx


@contextlib.contextmanager
def _frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Freeze the running statistics of BatchNorms, because the forward pass has already updated them."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def bottleneck(
    inputs: int, width: int, outputs: int, stride: int = 1, activated: bool = False
) -> nn.Sequential:
    """Build F or G: three times BatchNorm, ReLU and convolution (1x1, 3x3, 1x1)."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if not activated:
        layers["bn1"], layers["relu1"] = nn.BatchNorm2d(inputs), NarrowReLU(inplace=True)
    layers["conv1"] = nn.Conv2d(inputs, width, 1, bias=False)
    layers["bn2"], layers["relu2"] = nn.BatchNorm2d(width), nn.ReLU(inplace=True)
    layers["conv2"] = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
    layers["bn3"], layers["relu3"] = nn.BatchNorm2d(width), nn.ReLU(inplace=True)
    layers["conv3"] = nn.Conv2d(width, outputs, 1, bias=False)
    return nn.Sequential(layers)


class NarrowReLU(nn.ReLU):
    """A ReLU that casts a float32 stream to autocast's type, so that autograd need not store float32.

    The convolution behind it would round the values anyway.
    """

    @override
    def forward(self, x: Tensor) -> Tensor:
        device_type = x.device.type
        if torch.is_autocast_enabled(device_type):
            x = x.to(torch.get_autocast_dtype(device_type))
        return super().forward(x)


def _to_float32(x: Tensor) -> Tensor:
    """Cast to float32 under autocast, because bfloat16 sums cannot be undone and lose small addends."""
    return x.float() if torch.is_autocast_enabled(x.device.type) else x
