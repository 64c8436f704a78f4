"""Copies of a run's state in the host's memory: later changes are not seen, and no GPU is waited for."""

from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastpsl.engine.last_step import Snapshot
from tests.fake_cuda import DEVICE, fake_cuda


def some_state() -> tuple[dict[str, Any], nn.Module]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).to(memory_format=torch.channels_last)
    labels = torch.arange(10, dtype=torch.int32)
    state = {
        "backbone": module.state_dict(),
        "labels": labels[1:-1],
        "wide": torch.ones(1).expand(5),
        "half": torch.randn(3, 2).half().T,
        "empty": torch.zeros(0, 4),
        "count": torch.tensor(3),
        "parameter": nn.Parameter(torch.ones(2)),
        "array": np.arange(4),
        "list": [1, [2.5, torch.zeros(2)], ("a", None)],
        "position": {"step": 7, "summaries": [{"loss": 1.0}]},
    }
    return state, module


def leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for name, part in value.items() for leaf in (name, *leaves(part))]
    if isinstance(value, (list, tuple)):
        return [type(value), *(leaf for part in value for leaf in leaves(part))]
    if isinstance(value, Tensor):
        return [value.dtype, value.shape, value.stride(), value.requires_grad, value.tolist()]
    return [value.tolist() if isinstance(value, np.ndarray) else value]


def change(value: Any) -> None:
    """Change all that can be changed in place."""
    if isinstance(value, dict):
        for part in value.values():
            change(part)
        if "step" in value:
            value["step"] = -1
    elif isinstance(value, list):
        for part in value:
            change(part)
        value.append(-1)
    elif isinstance(value, tuple):
        for part in value:
            change(part)
    elif isinstance(value, Tensor) and value.stride() != (0,):
        value.detach().add_(1)
    elif isinstance(value, np.ndarray):
        value += 1


def test_what_changes_later_is_not_seen() -> None:
    state, module = some_state()
    expected = leaves(state | {"parameter": state["parameter"].detach()})
    i = expected.index("wide") + 3
    assert expected[i] == (0,)
    expected[i] = (1,)  # a copy has all values
    copied = Snapshot().take(state)
    assert leaves(copied) == expected
    change(state)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    assert leaves(copied) == expected
    for tensor in (copied["labels"], copied["half"]):
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
    backbone = copied["backbone"]
    assert isinstance(backbone, OrderedDict) and backbone._metadata["1"] == {"version": 2}  # type: ignore[attr-defined]


def test_memory_is_used_again_where_it_fits() -> None:
    snapshot = Snapshot()
    first = snapshot.take({"same": torch.zeros(4), "other": torch.zeros(4), "gone": torch.zeros(9)})
    second = snapshot.take({"same": torch.ones(4), "other": torch.ones(5)})
    assert second["same"].data_ptr() == first["same"].data_ptr() and second["same"].tolist() == [1] * 4
    assert second["other"].tolist() == [1] * 5
    assert len(snapshot._buffers) == 2


def test_the_host_does_not_wait_for_a_gpu() -> None:
    with fake_cuda() as cuda:
        state = {"weights": torch.zeros(4, 3, device=DEVICE), "labels": torch.zeros(5, dtype=torch.int32)}
        snapshot, synchronized = Snapshot(), list[object]()
        with cuda.watched() as seen:
            copied = snapshot.take(state)
            assert not seen.waits
            assert copied["weights"].device.type == "cpu" and copied["weights"].is_pinned()
            assert not copied["labels"].is_pinned()
        assert snapshot._arrived is not None
        snapshot._arrived.synchronize = lambda: synchronized.append(1)  # type: ignore[method-assign]
        snapshot.wait()
        assert synchronized == [1]
        snapshot.take({"labels": torch.zeros(5)})
        snapshot.wait()
        assert synchronized == [1]
