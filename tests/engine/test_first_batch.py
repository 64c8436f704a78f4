"""Each machine's first process reads a batch before the others, so that numba compiles the loader once."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastpsl.engine.distributed import World
from fastpsl.engine.plan import make_plan
from fastpsl.engine.run import Position
from fastpsl.engine.task import Task
from fastpsl.engine.trainer import warm_up_loader


@pytest.mark.parametrize(("rank", "local_rank", "reads"), [(1, 1, False), (2, 0, True)])
def test_one_process_of_each_machine_reads_a_batch(rank: int, local_rank: int, reads: bool) -> None:
    """The stage begins in epoch 4. Others than rank 0 draw nothing."""
    read, told = list[int](), list[tuple[str, str]]()

    def epoch(number: int) -> Iterator[Any]:
        read.append(number)
        yield SimpleNamespace()

    run: Any = SimpleNamespace(
        world=World(rank, 1, local_rank, 2, torch.device("cpu")), position=Position(first_epoch=4),
        reporter=SimpleNamespace(log_choice=lambda *words: told.append(words)),
    )  # fmt: skip
    loader: Any = SimpleNamespace(decoder_name="turbo", decoder_reason="it is fastest", epoch=epoch)
    warm_up_loader(run, Task(), make_plan("psl", (1, 1, 1))[0], loader)
    assert read == ([4] if reads else []) and told == [("decoder", "turbo: it is fastest")]
