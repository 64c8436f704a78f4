"""bench/decode.py at its smallest, as people call it, and what it would measure on a GPU; no figure is judged."""

import json
import subprocess
from pathlib import Path

import pytest
import torch

from bench import decode, peers
from bench.decode import WHOLE, Options, tabulate, variants
from bench.schema import validate
from fastpsl.pipelines.decoders import dali, libffcv
from tests.programs import ROOT, run

SMALLEST = ["--views", "2", "--batch-size", "2", "--repeats", "1", "--seconds", "0.001", "--size-px", "16"]


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run(ROOT / "bench" / "decode.py", *arguments, environment={"COLUMNS": "120"})


@pytest.mark.slow
def test_a_run_on_a_cpu_writes_what_can_be_measured_and_names_the_rest(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    done = call(*SMALLEST, "--no-peers", "--device", "cpu", "--out", str(out))
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    validate(result)
    here = {"ffcv"} if not libffcv.why_missing() else set()
    here |= {"dali"} if not dali.why_missing(decode.choose_device("cpu", 0)) else set()
    assert {(row["decoder"], row["num_views"]) for row in result["rows"]} == {(name, 2) for name in here}
    assert all(row["views_per_s"] == pytest.approx(2 * row["median"], rel=1e-3) for row in result["rows"])
    assert all(row["cores_used"] > 0 for row in result["rows"])
    missing = {each["what"]: each["reason"] for each in result["not_measured"]}
    assert missing["decoder dali by the hardware decoder's share"] == "no CUDA device"
    assert missing["ffcv Loader"] == "left out by --no-peers" and "device memory by epoch" in missing
    assert str(out) in done.stdout.replace("\n", "")


def test_an_error_of_the_user_is_one_line_and_exit_2(tmp_path: Path) -> None:
    done = call("--data", "absent.beton", "--out", str(tmp_path / "result.json"))
    assert done.returncode == 2
    assert "absent.beton" in done.stderr and len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (Options(views=()), "--views"),
        (Options(views=(0,)), "--views"),
        (Options(threads=(0,)), "--threads"),
        (Options(threads=()), "--threads"),
        (Options(shares=(0.5, 1.1)), "--shares 0.5 1.1"),
        (Options(batch_size=0), "--batch-size 0"),
    ],
)
def test_values_that_cannot_be_are_refused(options: Options, says: str) -> None:
    Options().check()
    with pytest.raises(ValueError, match=says):
        options.check()


def test_on_a_gpu_shares_and_threads_are_varied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "default_num_threads", lambda: 12)
    asked: list[torch.device] = []

    def why_missing(device: torch.device) -> str:
        asked.append(device)
        return ""

    monkeypatch.setattr(dali, "why_missing", why_missing)
    monkeypatch.setattr(libffcv, "why_missing", lambda: "")
    monkeypatch.setattr(peers, "why_missing", lambda *_: None)
    work = peers.Work("dali", "a.beton", "", 256, 12, 224, "cuda:0")
    found, missing = variants(Options(), work)
    ours = {(each.num_threads, each.hw_decoder_load) for each in found if each.kind == "dali"}
    assert ours == {(4, 0.9), (8, 0.9), (12, 0.9), (12, 0.65), (12, 1.0), (4, 1.0)}
    assert [(each.kind, each.device, each.hw_decoder_load) for each in found if each.kind != "dali"] == [
        ("ffcv", "cuda:0", None),
        ("ffcv_loader", "cuda:0", None),
        ("dali_reader", "cuda:0", None),
        (WHOLE, "cuda:0", 0.9),
        ("dali_reader", "cpu", None),
    ]
    assert missing == [] and asked == [torch.device("cuda:0")]


def test_ratios_are_taken_repeat_by_repeat() -> None:
    ours, whole = (peers.Work(kind, "", "", 8, 2, 224, "cpu") for kind in ("dali", WHOLE))
    rows, ratios = tabulate({(ours, 2): [(10.0, 1.0), (12.0, 2.0)], (whole, 2): [(5.0, 1.0), (4.0, 1.0)]})
    assert [(row["decoder"], row["median"], row["views_per_s"], row["cores_used"]) for row in rows] == [
        ("dali", 11.0, 22.0, 1.5),
        (WHOLE, 4.5, 9.0, 1.0),
    ]
    (ratio,) = ratios
    assert ratio["values"] == [2.0, 3.0] and "whole pictures" in ratio["what"]
