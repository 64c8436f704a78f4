"""A backward pass in Python, because autograd's engine needs a thread per GPU, which fake CUDA lacks."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.graph import get_gradient_edge

Slot = tuple[Any, int]
"""A node of the graph, and the index of one of its inputs."""


@contextmanager
def python_backward() -> Iterator[None]:
    """Replace `Tensor.backward` and `torch.autograd.grad` by `gradients`; no hooks or second derivatives."""

    def backward(output: Tensor, gradient: Tensor | None = None) -> None:
        gradients([output], [gradient], None)

    def grad(outputs: Any, inputs: Any, grad_outputs: Any = None, allow_unused: bool = False) -> Any:
        outputs, inputs = as_list(outputs), as_list(inputs)
        result = gradients(
            outputs, as_list(grad_outputs) if grad_outputs is not None else [None] * len(outputs), inputs
        )
        assert allow_unused or all(gradient is not None for gradient in result)
        return tuple(result)

    def apply(kind: type[Function], *args: Any) -> Any:
        """Call the function, and note which arguments are tensors, because only these are in the graph."""
        outputs = super(Function, kind).apply(*args)  # type: ignore[misc]
        for output in as_list(outputs):
            if isinstance(output, Tensor) and output.grad_fn is not None:
                node: Any = output.grad_fn
                node.places = [i for i, value in enumerate(args) if isinstance(value, Tensor)]
        return outputs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Function, "apply", classmethod(apply))
        patch.setattr(Tensor, "backward", backward)
        patch.setattr(torch.autograd, "grad", grad)
        yield


def as_list(tensors: Any) -> list[Any]:
    return [tensors] if isinstance(tensors, Tensor) else list(tensors)


@torch.no_grad()
def gradients(
    outputs: Sequence[Tensor], given: Sequence[Tensor | None], inputs: Sequence[Tensor] | None
) -> list[Tensor | None]:
    """Return the gradients of `inputs`, or add those of all leaves to `.grad` if `inputs` is None.

    `given` has the gradients of the outputs, where None stands for ones.
    """
    slots = [get_gradient_edge(tensor)[:2] for tensor in inputs or ()]
    coming: dict[Any, dict[int, Tensor]] = {}
    for output, gradient in zip(outputs, given, strict=True):
        _add(coming, get_gradient_edge(output)[:2], torch.ones_like(output) if gradient is None else gradient)
    results: dict[Slot, Tensor] = {}
    to_come = _num_users(coming)
    ready = [node for node in coming if not to_come[node]]
    while ready:
        node = ready.pop()
        node_gradients = coming.pop(node, {})
        results |= {
            (node, place): node_gradients[place]
            for which, place in slots
            if which is node and place in node_gradients
        }
        gradients_of_inputs: Sequence[Tensor | None] = [None] * len(node.next_functions)
        if node_gradients and not node.next_functions:
            if inputs is None:
                _accumulate(node.variable, node_gradients[0])
        elif node_gradients:
            gradients_of_inputs = as_list(_call(node, node_gradients))
        for (following, place), gradient in zip(node.next_functions, gradients_of_inputs, strict=False):
            if following is None:
                continue
            if gradient is not None:
                _add(coming, (following, place), gradient)
            to_come[following] -= 1
            if not to_come[following]:
                ready.append(following)
    return [results.get(slot) for slot in slots]


def _num_users(roots: Sequence[Any] | dict[Any, Any]) -> Counter[Any]:
    """Count the uses of each node below `roots`."""
    num_users: Counter[Any] = Counter()
    visited, pending = set(roots), list(roots)
    while pending:
        for following, _ in pending.pop().next_functions:
            if following is not None:
                num_users[following] += 1
                if following not in visited:
                    visited.add(following)
                    pending.append(following)
    return num_users


def _add(coming: dict[Any, dict[int, Tensor]], slot: Slot, gradient: Tensor) -> None:
    """Add a gradient to a slot as the engine does: in the input's shape and dtype, and on its device."""
    node, place = slot
    like = node._input_metadata[place]
    if gradient.shape != like.shape:
        gradient = gradient.sum_to_size(like.shape)
    assert gradient.device == like.device, f"a gradient on {gradient.device} of what lies on {like.device}"
    gradient = gradient.to(like.dtype)
    arrived = coming.setdefault(node, {})
    arrived[place] = arrived[place] + gradient if place in arrived else gradient


def _call(node: Any, arrived: dict[int, Tensor]) -> Any:
    inputs = [arrived.get(place) for place in range(len(node._input_metadata))]
    if not hasattr(node, "apply"):
        return node(*inputs)
    # A torch.autograd.Function gets zeros instead of None.
    like = node._input_metadata
    node_gradients = [
        torch.zeros(like[i].shape, dtype=like[i].dtype, device=like[i].device) if x is None else x
        for i, x in enumerate(inputs)
    ]
    results = as_list(node.apply(*node_gradients))
    return [results[place] for place in node.places]


def _accumulate(leaf: Tensor, gradient: Tensor) -> None:
    leaf.grad = gradient if leaf.grad is None else leaf.grad.add_(gradient)
