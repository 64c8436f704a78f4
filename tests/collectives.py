"""The calls of torch.distributed that a rank makes, in their order: of real ranks, and of one of many.

TORCH_DISTRIBUTED_DEBUG=DETAIL would compare them, but torch 2.15 crashes then in DDP's logger over Gloo.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore
from typing_extensions import override

from fastpsl.engine import train_step
from fastpsl.engine.distributed import World
from tests import cheaper

CALLS = (
    "all_gather", "all_gather_into_tensor", "all_gather_object", "all_reduce", "all_to_all_single",
    "barrier", "broadcast", "broadcast_object_list", "isend", "recv",
)  # fmt: skip
_PEERS = {"isend": "dst", "recv": "src"}
Write = Callable[[str], object]


def in_words(name: str, values: tuple[Any, ...], named: dict[str, Any]) -> str:
    """Return a call as a line that must be the same on all ranks."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    # How many rows go to each rank differs.
    shapes = [tuple(each.shape[name == "all_to_all_single" :]) for each in tensors]
    kinds = [str(each.dtype) for each in tensors]
    line = f"{name} {shapes} {kinds} {named.get('op', '')}"
    if name in _PEERS:
        peer = values[1] if len(values) > 1 else named[_PEERS[name]]
        line += f" {(peer - dist.get_rank()) % dist.get_world_size()} ranks on"
    return line


def of_module(module: nn.Module) -> str:
    """Return the gradients that DDP exchanges, in their order."""
    shapes = [(tuple(p.shape), str(p.dtype)) for p in module.parameters() if p.requires_grad]
    return f"DDP of {len(shapes)} gradients, {hash(str(shapes)):x}"


def record_calls(folder: Path) -> None:
    """Write this process's calls to a file of its rank, from now on."""
    cheaper.for_good()
    file = (folder / f"rank-{os.environ['RANK']}.txt").open("w", buffering=1)

    def recorded(name: str) -> Any:
        call = getattr(dist, name)

        def record(*values: Any, **named: Any) -> Any:
            file.write(f"{in_words(name, values, named)}\n")
            return call(*values, **named)

        return record

    for name in CALLS:
        setattr(dist, name, recorded(name))
    begin, forward = DistributedDataParallel.__init__, DistributedDataParallel.forward

    def begin_recorded(parallel: Any, module: nn.Module, *values: Any, **named: Any) -> None:
        file.write(f"{of_module(module)}\n")
        begin(parallel, module, *values, **named)

    def forward_recorded(parallel: Any, *values: Any, **named: Any) -> Any:
        file.write("DDP forward\n")
        return forward(parallel, *values, **named)

    DistributedDataParallel.__init__ = begin_recorded  # type: ignore[assignment, method-assign]
    DistributedDataParallel.forward = forward_recorded  # type: ignore[assignment, method-assign]


class FakeParallel(nn.Module):
    """A stand-in for DDP, whose reducer wants futures that torch's fake group does not give."""

    def __init__(self, write: Write, module: nn.Module, **_: Any):
        super().__init__()
        self.module, self._write = module, write
        nothing = lambda: None
        self.reducer = SimpleNamespace(_push_all_rebuilt_params=nothing, _rebuild_buckets=nothing)
        write(of_module(module))

    @override
    def forward(self, *values: Any) -> Any:
        self._write("DDP forward")
        return self.module(*values)

    def no_sync(self) -> Any:
        return nullcontext()


class FakeRanks:
    """The ranks of a large world, of which one at a time runs here; the others agree with it.

    Rank 0 comes first, because others are told what it shares.
    """

    def __init__(self, size: int):
        self.size = size
        self.shared: list[Any] = []
        self.fails_at: int | None = None  # the number of the message that brings rank 1's failure
        self.failure: Any = None  # what rank 1 tells of it

    @contextmanager
    def rank(self, number: int) -> Iterator[tuple[World, list[str]]]:
        """Yield the world of a rank, and a list that gets its calls."""
        lines, told, sent = list[str](), iter(deepcopy(self.shared)), list[Tensor]()

        def fake(name: str, do: Callable[..., Any]) -> Any:
            def call(*values: Any, **named: Any) -> Any:
                lines.append(in_words(name, values, named))
                return do(*values, **named)

            return call

        def broadcast_objects(box: list[Any], **_: Any) -> None:
            if number == 0:
                self.shared.append(deepcopy(box))
            else:
                box[:] = next(told)

        def gather_objects(values: list[Any], value: Any, **_: Any) -> None:
            values[:] = [value] * len(values)
            if self.fails_at is not None:
                values[1] = self.failure
            elif sent and sent[-1].any():
                self.failure = value

        def send(flag: Tensor, dst: int) -> Any:
            sent.append(flag.clone())
            return SimpleNamespace(wait=lambda: None)

        def receive(flag: Tensor, src: int) -> None:
            fails = self.fails_at is not None and len(sent) > self.fails_at
            flag.fill_(1.0 if fails and flag.dim() == 0 else 0.0)

        def gather(whole: Tensor, part: Tensor, **_: Any) -> None:
            whole.copy_(part.repeat(self.size, *[1] * (part.dim() - 1)))

        def nothing(*_: Any, **__: Any) -> None:
            pass

        doing = dict.fromkeys(CALLS, nothing) | {
            "all_gather_into_tensor": gather, "all_gather_object": gather_objects,
            "broadcast_object_list": broadcast_objects, "isend": send, "recv": receive,
            "all_to_all_single": lambda received, sent, *_: received.copy_(sent),
        }  # fmt: skip
        dist.init_process_group("fake", store=FakeStore(), rank=number, world_size=self.size)
        try:
            with pytest.MonkeyPatch.context() as patch:
                for name, do in doing.items():
                    patch.setattr(dist, name, fake(name, do))
                parallel = lambda module, **named: FakeParallel(lines.append, module, **named)
                patch.setattr(train_step, "DistributedDataParallel", parallel)
                yield World(number, self.size, number % 8, 8, torch.device("cpu")), lines
        finally:
            dist.destroy_process_group()
        self.first_failure = next((i for i, flag in enumerate(sent) if flag.dim() == 0 and flag), None)
