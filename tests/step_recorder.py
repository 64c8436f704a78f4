"""A record of a training step as a stream of operations, and in what two steps differ.

A CUDA graph replays one step. What differs between steps, except the values of tensors that are the same in
each step, would be wrong in every replay. So would be Python values that a step changes, because a replay
runs no Python.
"""

import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from typing_extensions import override

from fastpsl.engine.blockwise import Blockwise
from fastpsl.engine.stage_blocks import StepMetrics
from fastpsl.engine.train_step import TrainStep
from fastpsl.pipelines.loader.batch import Batch

INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")


@dataclass
class Step:
    """A step's operations as texts, those refused by a capture, those that draw, and what it changed."""

    ops: list[tuple[str, ...]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    random: list[str] = field(default_factory=list)
    host: dict[str, str] = field(default_factory=dict)
    written: dict[str, str] = field(default_factory=dict)


@cache
def _own_name(file: str) -> str | None:
    path = Path(file)
    return path.name if "fastpsl" in path.parts and "site-packages" not in path.parts else None


def own_line() -> str:
    """Return the innermost line of fastpsl on the stack."""
    frame: Any = sys._getframe(1)
    while frame:
        if name := _own_name(frame.f_code.co_filename):
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"


class Recorder(TorchDispatchMode):
    """A mode that records a step's operations. Tensors are named by their storage.

    "new 7" is the step's seventh, "batch 0.2" is of the first static batch, and "kept 3" was there before the
    step. A kept tensor that was replaced since the last step has another number.
    """

    def __init__(self) -> None:
        super().__init__()
        # By a storage's address, its name, and the storage itself, so that no other takes the address.
        self.kept: dict[int, tuple[str, Any]] = {}
        self.new: dict[int, tuple[str, Any]] = {}
        self.step, self.num_new = Step(), 0
        self.is_recording = False

    @contextmanager
    def record(self, batches: Iterable[Batch], **roots: Any) -> Iterator[Step]:
        """Record what runs within the context, in which the Python values of `roots` must not change."""
        self.step, self.new, self.num_new = Step(), {}, 0
        for place, batch in enumerate(batches):
            for number, tensor in enumerate(batch.tensors()):  # what `loss` has added comes last
                key, storage = _storage(tensor)
                self.new.setdefault(key, (f"batch {place}.{number}", storage))
        before = host_state(roots)
        self.is_recording = True
        try:
            with self:
                yield self.step
        finally:
            self.is_recording = False
        after = host_state(roots)
        changed = (key for key in {**before, **after} if before.get(key) != after.get(key))
        self.step.host = {key: f"{before.get(key)} -> {after.get(key)}" for key in changed}

    def _text(self, value: Any, is_output: bool = False) -> str:
        if not isinstance(value, Tensor):
            return repr(value)
        key, storage = _storage(value)
        if key not in self.new:
            if is_output:
                self.num_new += 1
                name = f"new {self.num_new}"
            else:
                name, _ = self.kept.setdefault(key, (f"kept {len(self.kept)}", storage))
            self.new[key] = (name, storage)
        place = f"{tuple(value.shape)} {value.stride()} +{value.storage_offset()}"
        return f"<{self.new[key][0]}> {value.dtype} {value.device} {place}"

    @override
    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, name = kwargs or {}, func._schema.name.removeprefix("aten::")
        if name.startswith("profiler::"):
            return func(*args, **kwargs)
        where, leaves = own_line(), tree_leaves((args, kwargs))
        texts = [self._text(leaf) for leaf in leaves]
        self._refuse(func, name, args, kwargs, where)
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self._write(value, where)
        result = func(*args, **kwargs)
        texts += [self._text(leaf, is_output=True) for leaf in tree_leaves(result)]
        self.step.ops.append((f"{name} at {where}", *texts))
        return result

    def _write(self, value: Any, where: str) -> None:
        for tensor in tree_leaves(value):
            if isinstance(tensor, Tensor) and (name := self.new[_storage(tensor)[0]][0]).startswith("kept"):
                self.step.written[name] = where

    def _refuse(self, func: Any, name: str, args: Sequence[Any], kwargs: dict[str, Any], where: str) -> None:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        booleans = (torch.bool, torch.uint8)
        if name in INDEXING:
            if any(index is not None and index.dtype in booleans for index in args[1]):
                self.step.refused.append(f"boolean index at {where}")
        elif {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags):
            self.step.refused.append(f"{name} reads values at {where}")
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.step.random.append(f"{name} at {where}")
        devices = {tensor.device.type for tensor in tensors if tensor.dim() or name in ("_to_copy", "copy_")}
        if kwargs.get("device"):
            devices.add(torch.device(kwargs["device"]).type)
        if tensors and len(devices) > 1:
            self.step.refused.append(f"{name} between host and device at {where}")

    def launched(self, kernel: Any, *args: Any, grid: Any, warmup: bool = False, **more: Any) -> None:
        """Record a launch of a Triton kernel, which may write every tensor that it gets."""
        if self.is_recording:
            where = own_line()
            leaves = tree_leaves((args, more, grid if isinstance(grid, tuple) else None))
            self.step.ops.append((f"{kernel.fn.__name__} at {where}", *map(self._text, leaves)))


def _storage(tensor: Tensor) -> tuple[int, Any]:
    storage = tensor.untyped_storage()
    return storage._cdata, storage


def host_state(roots: dict[str, Any]) -> dict[str, str]:
    """Return the Python values and the tensors' storages that objects of fastpsl and torch hold, by place."""
    found: dict[str, str] = {}
    seen: set[int] = set()

    def walk(place: str, value: Any) -> None:
        if isinstance(value, Tensor):
            found[place] = f"tensor {value.untyped_storage()._cdata:x}+{value.storage_offset()}"
        elif value is None or isinstance(value, bool | int | float | str | torch.Size):
            found[place] = repr(value)
        elif id(value) in seen or isinstance(value, type | FunctionType | MethodType):
            return
        elif isinstance(value, dict):
            seen.add(id(value))
            found[f"len({place})"] = str(len(value))
            for number, (key, each) in enumerate(value.items()):
                walk(f"{place}[{key if isinstance(key, str) else number}]", each)
        elif isinstance(value, list | tuple | deque):
            seen.add(id(value))
            found[f"len({place})"] = str(len(value))
            for number, each in enumerate(value):
                walk(f"{place}[{number}]", each)
        elif hasattr(value, "__dict__") and type(value).__module__.partition(".")[0] in OWNERS:
            seen.add(id(value))
            for name, each in vars(value).items():
                walk(f"{place}.{name}", each)

    for name, root in roots.items():
        walk(name, root)
    return found


OWNERS = ("fastpsl", "recipes", "tests", "torch")


def differences(one: Step, other: Step) -> list[str]:
    """Return in what two steps differ, what a capture would refuse, and what Python values changed."""
    told: Counter[str] = Counter()
    for a, b in zip(one.ops, other.ops, strict=False):
        if a[0] != b[0] or len(a) != len(b):
            told[f"other operations from {a[0]} / {b[0]} on"] += 1
            break
        for x, y in zip(a[1:], b[1:], strict=True):
            if x != y:
                told[f"{a[0]}: {x} / {y}"] += 1
    if len(one.ops) != len(other.ops):
        told[f"{len(one.ops)} / {len(other.ops)} operations"] += 1
    told.update(other.refused)
    told.update(f"changes {place}: {change}" for place, change in other.host.items())
    return [f"{text} ({count} times)" if count > 1 else text for text, count in told.items()]


def record_steps(train_step: TrainStep, recorder: Recorder) -> list[Step]:
    """Record the further steps of `train_step`, which copies batches to static ones, in the returned list."""
    steps, task, compute = list[Step](), train_step.module.task, train_step.compute

    def recorded(batches: Iterable[Batch], num_batches: int) -> StepMetrics:
        batches = list(batches)
        with recorder.record(batches, task=task, train_step=train_step) as step:
            metrics = compute(batches, num_batches)
        steps.append(step)
        return metrics

    train_step.compute = recorded  # type: ignore[method-assign]
    return steps


def not_restored(train_step: TrainStep, recorder: Recorder, step: Step) -> list[str]:
    """Return the lines that write a tensor which a skipped step would leave changed.

    What a task keeps by itself is tested by values (tests/tasks/test_step_state.py).
    """
    task = train_step.module.task
    tasks = [own for _, own in task.tasks] if isinstance(task, Blockwise) else [task]
    casts = [getattr(getattr(each, "key_encoder", None), "_cast", None) or () for each in tasks]
    cast = [p for parts in casts for part in parts for p in part.parameters()]  # written anew
    scaler, state = train_step.scaler, train_step._state
    kept = [
        *train_step.module.parameters(), *tree_leaves(dict(train_step.optimiser.state)), scaler._scale,
        scaler._growth_tracker, train_step.num_skipped, *tree_leaves((state._tensors, state._before)), *cast,
        *(tensor for each in tasks if not [*each.kept_state()] for tensor in each.step_state()),
    ]  # fmt: skip
    known = {_storage(tensor)[0] for tensor in kept if isinstance(tensor, Tensor)}
    names = {name for key, (name, _) in recorder.kept.items() if key in known}
    return [where for name, where in step.written.items() if name not in names]


def plain_capture(compute: Callable[[], StepMetrics], *_: Any) -> Callable[[], StepMetrics]:
    """Stand in for `step_graph.capture`: a replay computes the step again."""
    return compute
