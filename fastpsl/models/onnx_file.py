"""A backbone as an ONNX file: traced by torch, compared with torch by onnxruntime, described in metadata."""

import contextlib
import copy
import io
import json
import logging
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from fastpsl.console.installed import install
from fastpsl.models.backbone import Backbone
from fastpsl.models.factory import OF_VECTORS
from fastpsl.models.weights import Pretrained

NEEDS = ("onnx", "onnxscript", "onnxruntime")
# Of the largest value of an output. Libraries add in another order; a wrong layer is off by far more.
TOLERANCE = 1e-4
INPUT = "images"
OUTPUTS = ("features", "map")


def onnx_bytes(pretrained: Pretrained, record: dict[str, Any]) -> tuple[bytes, list[str]]:
    """Return an ONNX file with `record` in its metadata, and lines for the terminal.

    The input `images` is float32 [batch, C, height, width]. The output `features` is [batch, width], the
    last block's output averaged over its positions. The output `map` is the last block's output, which
    fully-connected blocks have not. The batch is free, and so are height and width where the network allows.
    The network is in evaluation mode, and onnxruntime must compute what torch does.
    """
    missing = [name for name in NEEDS if find_spec(name) is None]
    if missing:
        raise ValueError(f"--to onnx needs {' and '.join(missing)}, not installed: {install('onnx')}")
    name = pretrained.record["backbone"]
    network = _Outputs(pretrained.backbone, with_map=name not in OF_VECTORS).eval()
    side = max(pretrained.input.size_px, pretrained.backbone.min_px)
    program, is_free = _trace(network, pretrained.input.num_channels, side, name)
    graph = program.model.graph
    # torch notes for each node the lines of Python that made it, with their folders on this machine.
    for node in graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
    smallest = pretrained.backbone.min_px
    size = f"height and width of {smallest} px or more" if is_free else f"{side} x {side} px alone"
    outputs = OUTPUTS[: len(graph.outputs)]
    told = {"fastpsl": json.dumps(record | {"outputs": [*outputs]})}
    program.model.metadata_props.update({**told, INPUT: f"{pretrained.input.in_words()}; {size}"})
    data: bytes = program.model_proto.SerializeToString()
    shapes = [(1, side, side), (3, side, side), *([(2, side + 19, side + 6)] if is_free else [])]
    difference = _largest_difference(network, data, shapes, pretrained.input.num_channels)
    agreement = (
        f"  onnxruntime differs from torch by {difference:.1e} of an output's largest value at most, "
        f"where {TOLERANCE:.0e} is allowed"
    )
    return data, [f"  input {INPUT}: float32, any batch, {size}; outputs {' and '.join(outputs)}", agreement]


class _Outputs(nn.Module):
    """A backbone's blocks, which return its features, and its last map if `with_map`."""

    def __init__(self, backbone: Backbone, with_map: bool):
        super().__init__()
        self.blocks, self.with_map = nn.Sequential(*backbone.blocks()), with_map

    @override
    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps = self.blocks(images)
        features = maps.mean((2, 3))
        return (features, maps) if self.with_map else (features,)


class _Pool(nn.Module):
    """An AdaptiveAvgPool2d to `side` x `side` as two matrix products, which ONNX computes for any size."""

    def __init__(self, side: int):
        super().__init__()
        self.side = side

    @override
    def forward(self, maps: Tensor) -> Tensor:
        rows, columns = self._weights(maps.shape[2], maps), self._weights(maps.shape[3], maps)
        return rows @ maps @ columns.T

    def _weights(self, size: int, maps: Tensor) -> Tensor:
        """Return [side, size]: bin i averages positions floor(i size / side) to ceil((i + 1) size / side)."""
        place = torch.arange(size, device=maps.device)[None]
        index = torch.arange(self.side, device=maps.device)[:, None]
        starts = index * size // self.side
        ends = ((index + 1) * size + self.side - 1) // self.side
        inside = (place >= starts) & (place < ends)
        return inside.to(maps.dtype) / (ends - starts).to(maps.dtype)


def _trace(
    network: nn.Module, num_channels: int, side: int, name: str
) -> tuple[torch.onnx.ONNXProgram, bool]:
    """Trace with free height and width, else, as of a vision transformer, with `side` alone."""
    free = {0: "batch", 2: "height", 3: "width"}
    with _quiet(), torch.no_grad():
        try:
            # Not square and not small: torch takes sides that are equal, or maps of one position, for a rule.
            return _program(_with_free_pools(network), torch.zeros(2, num_channels, 224, 256), free), True
        except torch.onnx.errors.OnnxExporterError:
            pass
        try:
            return _program(network, torch.zeros(2, num_channels, side, side), {0: "batch"}), False
        except torch.onnx.errors.OnnxExporterError as error:
            reason = " ".join(str(error.__cause__ or error).split())[:200]
            raise ValueError(
                f"--to onnx: torch {torch.__version__} cannot trace {name} ({reason}); --to safetensors "
                "writes its weights"
            ) from error


def _program(network: nn.Module, images: Tensor, free: dict[int, str]) -> torch.onnx.ONNXProgram:
    outputs = OUTPUTS[: 1 + network.with_map]  # type: ignore[operator]
    program = torch.onnx.export(
        network, (images,), dynamo=True, verbose=False, input_names=[INPUT], output_names=outputs,
        dynamic_shapes=(free,),
    )  # fmt: skip
    assert program is not None
    return program


def _with_free_pools(network: nn.Module) -> nn.Module:
    network = copy.deepcopy(network)
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d):
                size: Any = child.output_size
                height, width = (size, size) if isinstance(size, int) else size
                if height == width and isinstance(height, int) and height > 1:
                    setattr(parent, name, _Pool(height))  # torch itself traces a pool to 1 x 1 for any size
    return network


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's progress and advice off the terminal."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


@torch.no_grad()
def _largest_difference(
    network: nn.Module, data: bytes, shapes: list[tuple[int, int, int]], num_channels: int
) -> float:
    """Return the largest difference of any output, as a share of the output's largest value."""
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    largest = 0.0
    for batch, height, width in shapes:
        random = torch.Generator().manual_seed(batch)
        images = torch.randn((batch, num_channels, height, width), generator=random)
        theirs = session.run(None, {INPUT: images.numpy()})
        for expected, value in zip((part.numpy() for part in network(images)), theirs, strict=True):
            if expected.shape != value.shape:
                raise ValueError(
                    f"--to onnx: onnxruntime returns {value.shape} where torch returns {expected.shape}, for "
                    f"{batch} images of {width} x {height} px; nothing was written; try another version of "
                    "torch, onnxscript or onnxruntime"
                )
            scale = float(np.abs(expected).max()) or 1.0
            difference = float(np.abs(expected - value).max()) / scale
            if not difference <= TOLERANCE:
                raise ValueError(
                    f"--to onnx: onnxruntime differs from torch by {difference:.1e} of the largest value, "
                    f"for {batch} images of {width} x {height} px ({TOLERANCE:.0e} is allowed); nothing was "
                    "written; try another version of torch, onnxscript or onnxruntime"
                )
            largest = max(largest, difference)
    return largest
