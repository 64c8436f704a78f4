"""bench/jpeg_engines.py: what it reads from nvImageCodec's log, and its verdict. No figure is judged."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import jpeg_engines
from bench.interleaved import Rates
from bench.jpeg_engines import Options, Timed, first_number, measure, ratios_of, told_lines, verdict
from bench.peers import Work
from bench.schema import validate
from tests.pipelines.photos import needs_dali
from tests.programs import ROOT, run

# As nvImageCodec 0.9 writes it; the line on the hardware decoder by its source.
LOG = """\x1b[0;32m[INFO] \x1b[0m[nvimgcodec] Codec jpeg not yet registered, registering for first time
\x1b[0;32m[INFO] \x1b[0m[nvimgcodec] create nvjpeg_hw_decoder load_hint 0.9 load_hint_policy 2
\x1b[0;32m[INFO] \x1b[0m[nvimgcodec] ImageGenericDecoder::decode num_samples=256
\x1b[0;32m[INFO] \x1b[0m[nvimgcodec] decode num_samples=256
\x1b[0;32m[INFO] \x1b[0m[nvimgcodec] nvjpeg_hw_decoder selecting max batch size to 231 mini_bs=7
\x1b[0;32m[INFO] \x1b[0m[nvimgcodec] 1: nvjpeg_cuda_decoder decode #106
\x1b[0;32m[INFO] \x1b[0m[nvimgcodec] decode num_samples=1
\x1b[0;32m[INFO] \x1b[0m[nvimgcodec] decode num_samples=256
"""
LINES = [
    "create nvjpeg_hw_decoder load_hint 0.9 load_hint_policy 2",
    "decode num_samples=256",
    "nvjpeg_hw_decoder selecting max batch size to 231 mini_bs=7",
    "decode num_samples=1",
]
NO_ENGINES = "\x1b[0;32m[INFO] \x1b[0m[nvjpeg-ext] HW decoder not supported by this platform. Skip.\n"


def work(kind: str, share: float | None = 0.9) -> Work:
    return Work(kind, "a.beton", "files", 256, 8, 224, "cuda:0", hw_decoder_load=share)


def timed(kind: str, busy: list[int], share: float = 0.9, values: tuple[float, ...] = (1.0,)) -> Timed:
    return Timed(Rates(kind, work(kind, share), 1, 1.0, list(values), [1.0] * len(values)), busy)


def test_the_log_tells_of_decoders_and_batches() -> None:
    assert told_lines(LOG) == LINES
    assert told_lines(NO_ENGINES) == ["HW decoder not supported by this platform. Skip."]
    assert first_number(jpeg_engines._FIRST_BATCH, LINES) == 256
    assert first_number(jpeg_engines._OF_ENGINES, LINES) == 231
    assert first_number(jpeg_engines._OF_ENGINES, LINES[:2]) is None


@pytest.mark.parametrize(
    ("why", "lines", "busy", "works"),
    [
        ("", LINES, [60, 70], True),
        ("", LINES, [0, 3], False),
        ("", LINES, [], True),  # NVML does not tell
        ("no video: add it", LINES, [70], False),
        ("", ["decode num_samples=1", *LINES], [70], False),  # a small first batch
        ("", [], [70], False),
    ],
)
def test_engines_work_if_they_are_busy_and_the_first_batch_is_full(
    why: str, lines: list[str], busy: list[int], works: bool
) -> None:
    idle = timed("dali_whole", [99])  # others' engines prove nothing of ours
    text, found = verdict(7, why, lines, [timed("dali", busy), idle], 256)
    assert found == works and "\n" not in text and text.startswith("7 JPEG engines")
    assert why in text


def test_loaders_take_turns_and_those_that_fail_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float | None] = []

    class Process:
        first_batch_s = 2.0

        def __init__(self, work: Work) -> None:
            if work.kind != "dali":
                raise RuntimeError("no DALI")
            self.work = work

        def measure(self, num_views: int, seconds: float) -> tuple[float, float, float]:
            asked.append(self.work.hw_decoder_load)
            return 100.0, 2.0, 0.0

        def close(self) -> None:
            asked.append(None)

    @contextmanager
    def sampled(read: Any) -> Iterator[list[int]]:
        yield [10, 80] if len(asked) else []

    monkeypatch.setattr(jpeg_engines, "Process", Process)
    monkeypatch.setattr(jpeg_engines, "sampled", sampled)
    works = [work("dali", 0.65), work("dali_whole", 0.65), work("dali", 0.9)]
    found, missing = measure(works, Options(repeats=2), torch.device("cpu"), float("inf"), lambda _: None)
    assert asked == [0.65, 0.9, 0.9, 0.65, None, None]
    assert [each.busy_percent for each in found] == [[80], [80, 80]]
    assert [each.row()["hw_decoder_load"] for each in found] == [0.65, 0.9]
    assert [each["reason"] for each in missing] == ["failed: no DALI"]


def test_ratios_are_of_equal_shares() -> None:
    values = {0.65: (30.0, 20.0), 0.9: (40.0, 40.0)}
    ours = [timed("dali", [], share, each) for share, each in values.items()]
    theirs = [timed("dali_whole", [], share, (10.0, 20.0)) for share in values]
    ratios = ratios_of([*ours, *theirs])
    assert [(each["hw_decoder_load"], each["values"]) for each in ratios] == [
        (0.65, [3.0, 1.0]), (0.9, [4.0, 2.0]),
    ]  # fmt: skip


@pytest.mark.parametrize("values", [{"shares": ()}, {"shares": (1.5,)}, {"repeats": 0}, {"limit_s": 0.0}])
def test_impossible_options(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"--{next(iter(values)).replace('_', '-')} "):
        Options(**values).check()


@pytest.mark.slow
@needs_dali("its log")
def test_on_a_cpu_nvimagecodec_itself_tells_that_the_first_batch_is_full(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    options = [
        "--batch-size",
        "12",
        "--threads",
        "1",
        "--repeats",
        "1",
        "--seconds",
        "0.01",
        "--size-px",
        "16",
    ]
    process = run(ROOT / "bench" / "jpeg_engines.py", *options, "--no-peers", "--out", str(out))
    assert process.returncode == 0, process.stderr
    result = json.loads(out.read_text())
    validate(result)
    assert result["settings"]["first_batch"] == 12 or torch.cuda.is_available()
    assert [row["decoder"] for row in result["rows"]] == ["dali"]
