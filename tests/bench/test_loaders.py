"""bench/loaders.py at its smallest, as people call it, and what it would measure on a GPU. No figure is
judged.
"""

import json
import subprocess
from pathlib import Path

import pytest
import torch

from bench import loaders, peers
from bench.interleaved import Rates
from bench.loaders import Options, tabulate, variants
from bench.schema import validate
from fastpsl.pipelines.decoders import choose, dali, libffcv
from fastpsl.pipelines.image import libturbo
from fastpsl.pipelines.sample.betons import sample_paths
from tests.programs import ROOT, run

SMALLEST = ["--views", "2", "--batch-size", "2", "--repeats", "1", "--seconds", "0.001", "--size-px", "16"]


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run(ROOT / "bench" / "loaders.py", *arguments, environment={"COLUMNS": "120"})


@pytest.mark.nightly
def test_a_run_on_a_cpu_writes_what_can_be_measured_and_names_the_rest(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    process = call("--what", "decode", *SMALLEST, "--no-peers", "--device", "cpu", "--out", str(out))
    assert process.returncode == 0, process.stderr
    result = json.loads(out.read_text())
    validate(result)
    decoders = {"turbo"} if not libturbo.why_missing() else set()
    decoders |= {"ffcv"} if not libffcv.why_missing() else set()
    decoders |= {"dali"} if not dali.why_missing(torch.device("cpu")) else set()
    assert {(row["decoder"], row["num_views"]) for row in result["rows"]} == {(name, 2) for name in decoders}
    assert all(row["views_per_s"] == pytest.approx(2 * row["median"], rel=1e-3) for row in result["rows"])
    assert all(row["cores_used"] > 0 for row in result["rows"])
    missing = {each["what"]: each["reason"] for each in result["not_measured"]}
    assert missing["decoder dali by the hardware decoder's share"] == "no CUDA device"
    assert missing["ffcv Loader"] == "left out by --no-peers" and "device memory by epoch" in missing
    assert str(out) in process.stdout.replace("\n", "")


@pytest.mark.nightly
def test_whole_epochs_of_ours_beside_ffcvs_loader(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    process = call(
        "--views", "1", "--batch-size", "160", "--repeats", "1", "--size-px", "16", "--out", str(out)
    )
    assert process.returncode == 0, process.stderr
    result = json.loads(out.read_text())
    validate(result)
    missing = {each["what"] for each in result["not_measured"]}
    kinds = {"pillow"} | ({"turbo"} if not libturbo.why_missing() else set())
    kinds |= {"ffcv", "ffcv_loader"} if not libffcv.why_missing() else set()
    assert bool(missing) == (len(kinds) < 4)
    rows = {(row["measured"], row["decoder"]): row for row in result["rows"]}
    assert rows.keys() == {(measured, kind) for measured in ("loader", "cpu") for kind in kinds}
    for kind in kinds:
        row = rows["loader", kind]
        assert rows["cpu", kind]["median"] == pytest.approx(1e3 * row["cores_used"] / row["median"], rel=0.01)
    rates = {kind: rows["loader", kind]["median"] for kind in kinds}
    ratios = {ratio["decoder"]: ratio["median"] for ratio in result["ratios"]}
    assert {ratio["what"] for ratio in result["ratios"]} <= {"samples/s / ffcv_loader's"}
    assert ratios == {
        kind: pytest.approx(rates[kind] / rates["ffcv_loader"], rel=1e-3)
        for kind in kinds - {"ffcv_loader"}
        if not missing
    }


def test_an_error_of_the_user_is_one_line_and_exit_2(tmp_path: Path) -> None:
    process = call("--data", "absent.beton", "--out", str(tmp_path / "result.json"))
    assert process.returncode == 2
    assert "absent.beton" in process.stderr and len(process.stderr.splitlines()) == 1
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
        (Options(decoders=()), "--decoders"),
        (Options(seconds=1.0), "--seconds 1: a timed region is an epoch"),
    ],
)
def test_values_that_cannot_be_are_refused(options: Options, says: str) -> None:
    Options().check()
    with pytest.raises(ValueError, match=says):
        options.check()


def test_on_a_gpu_shares_and_threads_are_varied(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (loaders, choose):
        monkeypatch.setattr(module, "default_num_threads", lambda: 12)
    devices: list[torch.device] = []

    def why_missing(device: torch.device) -> str:
        devices.append(device)
        return ""

    monkeypatch.setattr(dali, "why_missing", why_missing)
    for library in (libturbo, libffcv):
        monkeypatch.setattr(library, "why_missing", lambda: "")
    monkeypatch.setattr(peers, "why_missing", lambda *_: None)
    work = peers.Work("dali", str(sample_paths().train), "", 256, 12, 224, "cuda:0")
    works, missing = variants(Options(what="decode"), work)
    ours = {(each.num_threads, each.hw_decoder_load) for each in works if each.kind == "dali"}
    assert ours == {(4, 0.9), (8, 0.9), (12, 0.9), (12, 0.65), (12, 1.0), (4, 1.0)}
    assert [(each.kind, each.device, each.hw_decoder_load) for each in works if each.kind != "dali"] == [
        ("turbo", "cuda:0", None),
        ("ffcv", "cuda:0", None),
        ("ffcv_loader", "cuda:0", None),
        ("dali_reader", "cuda:0", None),
        ("dali_whole", "cuda:0", 0.9),
        ("dali_reader", "cpu", None),
    ]
    assert missing == [] and set(devices) == {torch.device("cuda:0")}


def test_ratios_are_taken_repeat_by_repeat() -> None:
    ours, whole = (
        Rates(kind, peers.Work(kind, "", "", 8, 2, 224, "cpu"), 2, 1.0, list(values), list(cores))
        for kind, values, cores in (
            ("dali", (10.0, 12.0), (1.0, 2.0)),
            ("dali_whole", (5.0, 4.0), (1.0, 1.0)),
        )
    )
    rows, ratios = tabulate([ours, whole], "decode")
    assert [(row["decoder"], row["median"], row["views_per_s"], row["cores_used"]) for row in rows] == [
        ("dali", 11.0, 22.0, 1.5),
        ("dali_whole", 4.5, 9.0, 1.0),
    ]
    (ratio,) = ratios
    assert ratio["values"] == [2.0, 3.0] and "whole images" in ratio["what"]
