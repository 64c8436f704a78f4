"""What a GPU refuses is one line, exit 2, and says what to change; where memory is peak, the summary says it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fastpsl import gpu_failures, launch
from fastpsl.distributed import choose_device
from fastpsl.learner import Learner
from fastpsl.options import PretrainOptions
from fastpsl.reporter import summary_line
from fastpsl.sample import sample_paths
from tests.fastpsl.test_trainer import tiny_job


def launched(out: Path, error: Exception, monkeypatch: pytest.MonkeyPatch, **options: Any) -> int:
    """The exit code of a recipe whose third step raises `error`."""
    paths, step, steps = sample_paths(), Learner.step, list[int]()

    def failing(self: Learner, *arguments: Any) -> Any:
        steps.append(1)
        if len(steps) == 3:
            raise error
        return step(self, *arguments)

    def parse() -> PretrainOptions:
        values: dict[str, Any] = {
            "batch_size": 32,
            "stage_epochs": (2, 2, 2),
            "num_threads": 1,
            "device": "cpu",
            **options,
        }
        return PretrainOptions(data=str(paths.train_32), val=str(paths.test_32), out=out, **values)

    monkeypatch.setattr(Learner, "step", failing)
    with pytest.raises(SystemExit) as left:
        launch.launch("tiny", parse, lambda options: tiny_job())
    assert isinstance(left.value.code, int)
    return left.value.code


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_out_of_memory_in_a_step_says_where_and_what_takes_less(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launched(tmp_path, error, monkeypatch) == 2
    (line,) = (x for x in capsys.readouterr().err.splitlines() if x.startswith("tiny: "))
    assert "out of GPU memory in stage 1, step 2, with 32 images a pass of each GPU in fp32" in line
    assert (
        "--accumulate 2 (the same batch, 16 images a pass), --precision fp16, or --batch-size 16 with" in line
    )
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["state"] == "failed" and "out of GPU memory" in status["reason"]
    assert type(error).__name__ in (tmp_path / "error.txt").read_text()


def test_an_error_of_ours_keeps_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launched(tmp_path, RuntimeError("shapes differ"), monkeypatch) == 1
    assert "Traceback" in capsys.readouterr().err


def test_what_cannot_be_given_is_not_offered() -> None:
    class Whole(PretrainOptions):
        def __post_init__(self) -> None:
            if self.accumulate > 1:
                raise ValueError("another loss")

    lowered = list(gpu_failures._less(Whole(batch_size=32, step="graphed"), "fp16", 1))
    assert lowered == ["--step eager", "or --batch-size 16 with the learning rate in proportion"]
    odd = list(gpu_failures._less(PretrainOptions(batch_size=3), "fp16", 1))
    assert odd == ["or --batch-size 1 with the learning rate in proportion"]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (RuntimeError("Triton Error [CUDA]: device kernel image is invalid"), "update the driver"),
        (RuntimeError("CUDA error: no kernel image is available for execution\non the device"), "--device cpu"),
        (torch._dynamo.exc.BackendCompilerFailed("inductor", RuntimeError("no such\nop"), None), "--step eager"),
    ],
)  # fmt: skip
def test_drivers_and_compilers_are_named(error: Exception, says: str) -> None:
    line = gpu_failures.explained(error, [])
    assert line is not None and says in line and "\n" not in line
    assert gpu_failures.explained(RuntimeError("shapes differ"), []) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_why_there_is_no_cuda_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    words = "The NVIDIA driver on your system is too old (found version 11040)"

    def init() -> None:
        raise RuntimeError(f"{words}. Please update your GPU driver by downloading …")

    monkeypatch.setattr(torch.cuda, "init", init)
    with pytest.raises(ValueError) as refused:
        choose_device("cuda", 0)
    assert words in str(refused.value) and "Please" not in str(refused.value)


def test_a_summary_says_its_memory() -> None:
    summary = {"stage": "S1", "level": 1, "num_steps": 2, "num_steps_planned": 2, "seconds": 3.0}
    summary |= {"loss_start": None, "loss_end": None, "held_out": {}, "chance": None}
    assert "GPU" not in summary_line(summary)
    summary |= {"peak_allocated_bytes": 5 * 2**29, "device_used_bytes": 3 * 2**30}
    assert summary_line(summary).endswith(", GPU memory 2.5 GiB at most (3.0 GiB with all else)")
