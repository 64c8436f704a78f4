"""Detection of torch operations for which the host would wait: reads of values and blocking copies."""

import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from typing_extensions import override

ROOT = Path(__file__).resolve().parents[1]
OWN = [ROOT / "tests" / f"{name}.py" for name in ("host_waits", "fake_cuda", "python_backward")]
# Operations that return a number to the host, or a tensor with a size that depends on values.
LOOKS = (
    "_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "bincount", "histc",
    "unique_dim", "unique_consecutive", "unique_dim_consecutive", "_unique", "_unique2",
)  # fmt: skip
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put")


@dataclass
class Seen:
    """A record of waits and launches.

    Attributes:
        waits: The operations for which the host would wait, each with the line that calls it.
        kernels: The number of launches of each Triton kernel.
    """

    waits: list[str] = field(default_factory=list)
    kernels: Counter[str] = field(default_factory=Counter)

    def waits_for(self, what: str) -> None:
        self.waits.append(f"{what} at {_own_line()}")


def _own_line() -> str:
    """Return the innermost line of this repository on the stack."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if path.is_relative_to(ROOT) and ".venv" not in path.parts and path not in OWN:
            return f"{path.relative_to(ROOT)}:{frame.lineno}: {frame.line}"
    return "?"


class Watch(TorchDispatchMode):
    """A dispatch mode that checks each torch operation before it runs."""

    def __init__(self, seen: Seen):
        super().__init__()
        self.seen = seen

    @override
    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        on_cuda = any(tensor.is_cuda for tensor in tensors)
        if name == "_to_copy":
            device = torch.device(kwargs.get("device") or args[0].device)
            self._copy(args[0], device, kwargs.get("non_blocking", False), None)
        elif name == "copy_":
            to, source = args[:2]
            self._copy(source, to.device, kwargs.get("non_blocking", len(args) > 2 and args[2]), to)
        elif name in INDEXING:
            self._index(args[0], [index for index in args[1] if isinstance(index, Tensor)])
            if on_cuda and any(not value.is_cuda for value in args[2:3]):
                self.seen.waits_for(f"copy of the value of {func} from cpu")
        elif on_cuda and (
            name in LOOKS or (name == "repeat_interleave" and func._schema.overload_name != "self_int")
        ):
            self.seen.waits_for(f"{func}")
        elif on_cuda and any(not tensor.is_cuda and tensor.dim() for tensor in tensors):
            raise RuntimeError(
                f"{func} of tensors on {' and '.join(str(x.device) for x in tensors)} at {_own_line()}"
            )
        return func(*args, **kwargs)

    def _copy(self, source: Tensor, device: torch.device, non_blocking: bool, to: Tensor | None) -> None:
        if source.device.type == device.type:
            return
        # A non-blocking copy to the host that allocates its tensor pins it.
        host = source if device.type == "cuda" else to
        if not non_blocking or (host is not None and not host.is_pinned()):
            why = "blocks" if not non_blocking else "is of memory that is not pinned"
            self.seen.waits_for(f"copy of {list(source.shape)} from {source.device} to {device} {why}")

    def _index(self, source: Tensor, indices: Sequence[Tensor]) -> None:
        for index in indices:
            if source.is_cuda and index.dtype in (torch.bool, torch.uint8):
                self.seen.waits_for(f"boolean index {list(index.shape)}")
            if source.is_cuda and not index.is_cuda:
                self.seen.waits_for(f"copy of an index {list(index.shape)} from {index.device}")
