"""CUDA without a GPU: tensors without values on device cuda, and a record of the host's waits.
    with fake_cuda() as cuda:
        learner = ...                   # as with a GPU; nothing is computed
        with cuda.watched() as seen:
            learner.step(...)
        assert not seen.waits and seen.kernels["jigsaw_kernel"] == 1

Operations on tensors of two devices raise errors. Shapes, dtypes, devices and layouts are correct. Triton's
kernels do not run, and their outputs count as written. An existing GPU is not used, and the context restores
everything.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction
from typing_extensions import override

from fastpsl.engine import step_modes
from fastpsl.engine.optim import optimisers
from fastpsl.kernels import device_crops
from fastpsl.kernels.fused import fused_modules
from tests.host_waits import Seen, Watch
from tests.python_backward import python_backward

DEVICE = torch.device("cuda", 0)
H200 = SimpleNamespace(
    name="NVIDIA H200", major=9, minor=0, total_memory=140 * 2**30, multi_processor_count=132,
    max_threads_per_multi_processor=2048, warp_size=32,
)  # fmt: skip
# torch's fused optimisers do not support tensors without values. They change no shapes, so they are skipped.
IN_PLACE_WITHOUT_META = ("aten::_fused_sgd_", "aten::_fused_adam_", "aten::_fused_adamw_")
# Nor do these. Their results have the shapes of plain convolutions.
CUDNN_JOINED = ("aten::cudnn_convolution_relu", "aten::cudnn_convolution_add_relu")


class FakeTensors(FakeTensorMode):
    """A mode of fake tensors in which `torch.tensor(…, device="cuda")` copies from the host on every machine.

    Otherwise torch would make a real tensor if there is a GPU.
    """

    @property
    @override
    def avoid_device_init(self) -> bool:
        return True

    def __deepcopy__(self, memo: dict[int, Any]) -> "FakeTensors":
        """Return this mode, because freeing a copy would free torch's weak references a second time."""
        return self

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name in IN_PLACE_WITHOUT_META:
            return None
        if func._schema.name == "aten::is_set_to":
            return _is_set_to(*args)
        if func._schema.name in CUDNN_JOINED:
            func, args = torch.ops.aten.convolution.default, _plain_convolution(*args)
        return super().__torch_dispatch__(func, types, args, kwargs or {})


def _plain_convolution(x: Tensor, weight: Tensor, *more: Any) -> tuple[Any, ...]:
    """Return a plain convolution's arguments for cuDNN's fused one. Its z, alpha and ReLU change no shape."""
    bias, stride, padding, dilation, groups = more[-5:]
    return x, weight, bias, stride, padding, dilation, False, [0] * len(stride), groups


def _is_set_to(one: Tensor, other: Tensor) -> bool:
    """Compute `Tensor.is_set_to`, which torch lacks for tensors without values."""
    places = [
        (tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.shape, tensor.stride())
        for tensor in (one, other)
    ]
    return places[0] == places[1]


class FakeCuda:
    """A fake GPU, cuda:0."""

    device = DEVICE

    def __init__(self) -> None:
        self._watching: list[Seen] = []

    @contextmanager
    def watched(self) -> Iterator[Seen]:
        """Record the host's waits and kernels within the context."""
        seen = Seen()
        self._watching.append(seen)
        try:
            with Watch(seen):
                yield seen
        finally:
            self._watching.remove(seen)

    def synchronized(self, *_: object) -> None:
        for seen in self._watching:
            seen.waits_for("synchronize")

    def launched(self, kernel: Any, *args: Any, grid: Any, warmup: bool, **more: Any) -> None:
        """Check and record a launch, instead of Triton's `run`."""
        name = kernel.fn.__name__
        for place, value in [*enumerate(args), *more.items()]:
            assert not isinstance(value, Tensor) or value.is_cuda, (
                f"{name}: argument {place} lies on {value.device}"
            )
        for seen in self._watching:
            seen.kernels[name] += 1


@contextmanager
def fake_cuda(*, has_pinned: bool = True) -> Iterator[FakeCuda]:
    """Pretend that there is one H200, as far as torch and fastpsl need; see the module's docstring.

    Without `has_pinned`, pinned memory is exhausted.
    """
    cuda = FakeCuda()
    caches = (
        fused_modules, device_crops.fused_form, device_crops.area_form, device_crops._tried,
        optimisers._lars_kernels, step_modes._side_stream,
    )  # fmt: skip
    with (
        pytest.MonkeyPatch.context() as patch,
        python_backward(),
        FakeTensors(allow_fallback_kernels=False, allow_non_fake_inputs=True),
        _cleared(caches),
    ):
        for name, value in _driver(cuda).items():
            patch.setattr(torch.cuda, name, value)
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        patch.setattr(fake_tensor, "init_gpu_context", lambda device: None)  # of older torch, which asks cuda
        _patch_pinned_memory(patch, has_pinned)
        for kind in (JITFunction, InterpretedFunction):
            patch.setattr(kind, "run", lambda kernel, *args, **more: cuda.launched(kernel, *args, **more))
        patch.setattr(Tensor, "record_stream", lambda tensor, stream: None)
        patch.setattr(nn.Module, "_apply", _apply)
        yield cuda


def _apply(module: nn.Module, change: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """Replace parameters in `nn.Module.to`, because assignment to `param.data` needs tensors of one kind."""
    for child in module.children() if recurse else ():
        child._apply(change)
    for name, parameter in module._parameters.items():
        if parameter is not None:
            with torch.no_grad():
                module._parameters[name] = nn.Parameter(change(parameter), parameter.requires_grad)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = change(buffer)
    return module


@contextmanager
def _cleared(caches: Sequence[Any]) -> Iterator[None]:
    """Clear functions' caches before and after, because they hold results for another device."""
    for cache in caches:
        cache.cache_clear()
    try:
        yield
    finally:
        for cache in caches:
            cache.cache_clear()


def _driver(cuda: FakeCuda) -> dict[str, Any]:
    """Return replacements for attributes of torch.cuda."""

    class Stream:
        cuda_stream = 1
        device = DEVICE

        def __init__(self, *_: object, **__: object):
            pass

        def nothing(self, *_: object) -> None:
            pass

        wait_event = wait_stream = nothing
        synchronize = cuda.synchronized

        def record_event(self, *_: object) -> "Event":
            return Event()

    class Event:
        def __init__(self, *_: object, **__: object):
            pass

        def nothing(self, *_: object) -> None:
            pass

        # Waiting for an event is no wait for the device, because its work was launched long before.
        record = synchronize = wait = nothing

        def query(self) -> bool:
            return True

    def constant(value: object) -> Any:
        return lambda *_, **__: value

    answers = {
        "is_available": True, "is_current_stream_capturing": False, "is_initialized": True,
        "is_bf16_supported": True, "device_count": 1, "current_device": 0, "current_stream": Stream(),
        "get_device_name": H200.name, "get_device_capability": (9, 0), "get_device_properties": H200,
        "mem_get_info": (100 * 2**30, H200.total_memory), "memory_reserved": 2**30,
        "max_memory_allocated": 2**30,
    }  # fmt: skip
    silent = "init _lazy_init set_device manual_seed manual_seed_all empty_cache reset_peak_memory_stats"
    scopes = ("stream", "device", "device_of")
    return (
        {name: constant(value) for name, value in answers.items()}
        | dict.fromkeys(silent.split(), constant(None))
        | {name: lambda *_: nullcontext() for name in scopes}
        | {"Stream": Stream, "Event": Event, "synchronize": cuda.synchronized}
    )


def _patch_pinned_memory(patch: pytest.MonkeyPatch, has_pinned: bool) -> None:
    """Mark pinned tensors by an attribute; raise torch's error if there are none."""

    def pinned(tensor: Tensor) -> Tensor:
        if not has_pinned:
            raise RuntimeError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`.")
        tensor.stands_pinned = True  # type: ignore[attr-defined]
        return tensor

    def pinning(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @functools.wraps(make)
        def make_pinned(*args: Any, pin_memory: bool = False, **more: Any) -> Tensor:
            tensor_made = make(*args, **more)
            return pinned(tensor_made) if pin_memory else tensor_made

        return make_pinned

    def is_pinned(tensor: Tensor, *_: object) -> bool:
        return getattr(tensor._base if tensor._base is not None else tensor, "stands_pinned", False)

    for make in (torch.empty, torch.empty_like):
        patch.setattr(torch, make.__name__, pinning(make))
    patch.setattr(Tensor, "pin_memory", lambda tensor, *_: pinned(tensor.clone()))
    patch.setattr(Tensor, "is_pinned", is_pinned)
