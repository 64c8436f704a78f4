"""The card of a machine: its comparisons, parts that go wrong, its file and its text."""

import importlib
import json
import math
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from fastpsl.doctor import card as module
from fastpsl.doctor import proof
from fastpsl.doctor import two_cards as ranks_module
from fastpsl.doctor.card import (
    Card,
    LeftOut,
    Part,
    clocks,
    crops,
    judged,
    make_card,
    norms,
    optimiser,
    parts_of,
    queue,
    steps,
    two_cards,
    views,
)
from fastpsl.doctor.facts import clocks_in_words, read_clocks
from fastpsl.doctor.proof import (
    CHAINS,
    Trained,
    chain_apart,
    crops_apart,
    lars_apart,
    steps_apart,
    trained,
    views_apart,
)
from fastpsl.doctor.report import Limit
from fastpsl.doctor.two_cards import measured_on_two
from fastpsl.engine import gpu
from fastpsl.engine.optim import optimisers
from fastpsl.kernels.fused_cpu import geometric
from fastpsl.pipelines.decoders.choose import card_file, fastest_step
from tests import cheaper
from tests.cli import Cli, refused
from tests.doctor.measured import no_limit
from tests.fake_nvml import Nvml
from tests.programs import ROOT, run

CPU = torch.device("cpu")


def test_a_broken_kernel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """All agree, until the kernel of moves gives one value of one image another level."""
    part = views(CPU)
    assert part.state == "ok" and part.values["num"] >= 3 * 2 * 6 and 0 < part.values["worst"] <= 1
    run = geometric.run

    def broken(images: Any, ops: Any, draws: Any, mean: Any, std: Any, out: torch.Tensor) -> None:
        run(images, ops, draws, mean, std, out)
        out[2, 0, 3, 3] += 1 / 255 / std[0]

    monkeypatch.setattr(geometric, "run", broken)
    part = views(CPU)
    assert part.state == "differs" and part.text.count(" bounds") == 3 and " more" in part.text
    assert any("all turns, 48 px, float32" in case for case in part.values["differ"])


def test_no_number_is_near_to_nothing() -> None:
    one = torch.zeros(1, 3, 2, 2)
    assert views_apart(one, one) == 0
    assert views_apart(one.fill_(torch.nan), torch.zeros(1, 3, 2, 2)) == torch.inf
    assert chain_apart("UIC", 45, torch.float32, CPU) is not None
    assert {name for name in CHAINS if chain_apart(name, 48, torch.float32, CPU) is None} <= {
        "SSL++, colorization", "enlarged",
    }  # fmt: skip


def test_crops_and_lars_by_kernels_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter runs the kernels."""
    area = pytest.importorskip("fastpsl.kernels.fused_cuda.area", exc_type=ImportError)
    for side in (97, 128):
        assert max(crops_apart(side, CPU).values()) <= 1
    crop = area.crop
    monkeypatch.setattr(area, "crop", lambda *arguments: crop(*arguments) + 1)
    assert crops_apart(97, CPU)["by area, 97 px"] == torch.inf
    assert lars_apart(CPU) == 0
    kernels = importlib.import_module("fastpsl.kernels.fused_cuda.lars")
    makes, make = iter([None, kernels]), proof.lars  # torch's operations first, then the kernels

    def made(*arguments: Any, **values: Any) -> Any:
        module = next(makes)
        monkeypatch.setattr(optimisers, "_lars_kernels", lambda device: module)
        return make(*arguments, **values)

    monkeypatch.setattr(proof, "lars", made)
    assert 0 < lars_apart(CPU) <= 1


def test_steps_agree_and_a_folded_block_that_does_not_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    part = steps("rotation", "fp32", CPU)
    assert part.state == "ok" and "folded" in part.text, part
    assert part.values["changed_by_infinite_gradients"] == [] and len(part.values["losses"]) == 6

    def wrong(recipe: str, precision: str, way: Any) -> Trained:
        end = trained_before[bool(way)]
        return end._replace(after=1.01 * end.after, is_kept=False) if way else end

    trained_before = {False: trained("rotation", "fp32", ())}
    trained_before[True] = trained_before[False]
    monkeypatch.setattr(proof, "trained", wrong)
    part = steps("rotation", "fp32", CPU)
    assert part.state == "differs" and "folded" in part.text
    eager = trained_before[False]
    assert steps_apart(eager, eager, "fp32") == 0 and torch.equal(eager.after, eager.resumed)
    assert (eager.after - eager.before).abs().max() > 1e-3 and proof.STEP_BOUNDS["fp32"] == 1e-3


def test_what_needs_cuda_is_left_out() -> None:
    for part in (crops, norms, optimiser, clocks, queue, two_cards):
        with pytest.raises(LeftOut, match="CUDA|GPU"):
            part(CPU)
    assert list(parts_of(CPU)) == [
        "views", "crops", "norms", "LARS", "steps, rotation, fp32", "steps, simclr, fp32", "speed", "clocks",
        "loader", "queue", "two cards",
    ]  # fmt: skip


class Clocks(Nvml):
    """An NVML of a GPU that its power limit slows; it knows nothing of MIG."""

    def nvmlDeviceGetClockInfo(self, handle: Any, kind: int, number: Any) -> int:
        self.check(handle)
        number._obj.value = {1: 1410}[kind]
        return self.status

    def nvmlDeviceGetMaxClockInfo(self, handle: Any, kind: int, number: Any) -> int:
        number._obj.value = {1: 1980}[kind]
        return self.status

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: Any, number: Any) -> int:
        number._obj.value = 400_500
        return self.status

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: Any, reasons: Any) -> int:
        reasons._obj.value = 0x4 | 0x20 | 0x1
        return self.status


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0, "SM at 1,410 MHz of at most 1,980, power limit 400.5 W, slowed by the power limit and heat"),
        (3, "untold"),
    ],
)
def test_clocks_are_told(status: int, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    library = Clocks(status)
    monkeypatch.setattr(gpu, "_nvml", lambda: library)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: library)
    assert clocks_in_words(read_clocks(torch.device("cuda"))) == words
    assert read_clocks(CPU) == {}
    assert clocks_in_words({"is_mig": True, "slowed_by": []}) == "slowed by nothing, MIG on"


def found_by_ranks(folder: Path, prepare: Callable[[], None]) -> dict[str, Any]:
    """Return what two ranks of Gloo find on this CPU."""
    path = folder / "found.json"
    done = run(ROOT / "fastpsl/doctor/two_cards.py", path, "cpu", ranks=2, prepare=prepare)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(path.read_bytes()))


def test_two_ranks_agree_and_what_differs_is_named(tmp_path: Path) -> None:
    found = found_by_ranks(tmp_path, cheaper.for_good)
    part = judged(found)
    assert part.state == "ok" and not found["sum_differs"] and not found["weights_differ"], part
    one, other = found["losses"].values()
    assert len(one) == len(other) == 20 and len(set(one)) == 20 and found["images_per_s"]["2"] > 0
    for wrong, words in (
        ({"sum_differs": True}, "a sum"),
        ({"weights_differ": ["folded"]}, "after folded steps"),
        (
            {"losses": {"eager": one, "folded": [*other[:-1], math.nan]}},
            "1 of 20 losses of folded steps are nan",
        ),
    ):
        part = judged(found | wrong)
        assert part.state == "differs" and part.text.startswith(words)


def own_gradients(_: object, bucket: torch.distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
    future = torch.futures.Future[torch.Tensor]()
    future.set_result(bucket.buffer())
    return future


def exchange_nothing() -> None:
    cheaper.for_good()
    begin = DistributedDataParallel.__init__

    def begin_without(parallel: Any, *arguments: Any, **values: Any) -> None:
        begin(parallel, *arguments, **values)
        parallel.register_comm_hook(None, own_gradients)

    DistributedDataParallel.__init__ = begin_without  # type: ignore[assignment, method-assign]


def test_ranks_without_an_exchange_have_other_weights(tmp_path: Path) -> None:
    found = found_by_ranks(tmp_path, exchange_nothing)
    assert found["weights_differ"] == ["eager", "folded"] and judged(found).state == "differs"


@pytest.mark.parametrize(
    ("script", "limit_s", "words"),
    [
        ("[ $RANK = 0 ] || exec sleep 60; echo an error; exit 3", 60.0, "a rank ended with 3: an error"),
        ("exec sleep 60", 0.1, "did not end within"),
    ],
)  # fmt: skip
def test_no_rank_stays(
    script: str, limit_s: float, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program, started = tmp_path / "python", list[subprocess.Popen[bytes]]()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)

    class Noted(subprocess.Popen[bytes]):
        def __init__(self, *words: Any, **options: Any) -> None:
            super().__init__(*words, **options)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Noted)
    monkeypatch.setattr(ranks_module.sys, "executable", str(program))
    monkeypatch.setattr(ranks_module, "_LIMIT_S", limit_s)
    with pytest.raises(RuntimeError, match=words):
        measured_on_two("cpu")
    assert len(started) == 2 and all(process.returncode is not None for process in started)
    program.write_text('#!/bin/sh\nif [ $RANK = 0 ]; then echo "{\\"port\\": $MASTER_PORT}" > $3; fi\n')
    monkeypatch.setattr(ranks_module, "_LIMIT_S", 60.0)
    assert list(measured_on_two("cpu")) == ["port"]


def failing() -> Part:
    raise RuntimeError("no kernel\nimage")


PARTS = {
    "views": lambda: Part("views", "ok", "all agree", {"num": 3, "worst": 0.5}),
    "norms": failing,
    "speed": lambda: Part("speed", "ok", "fast", {"images_per_s": {
        "jigsaw S1": {"num_views": 1, "is_fastest": True, "default": 90.0},
        "jigsaw E": {"num_views": 1, "is_fastest": False, "default": 50.0},
        "simclr S1": {"num_views": 2, "is_fastest": True, "default": 40.0},
    }}),
}  # fmt: skip


def test_a_part_that_fails_is_a_line(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "parts_of", lambda device: PARTS)
    path = tmp_path / "card.json"
    code, out, err = cli("doctor", "--card", path)
    assert code == 2 and not err
    card = json.loads(path.read_text())
    assert card["exit_code"] == 2 and card["fastest_step"] == {"1": 90.0, "2": 40.0}
    assert [part["state"] for part in card["parts"]] == ["ok", "failed", "ok"]
    lines = out.splitlines()
    assert lines[0] == "```text" and lines[-1] == "```" and lines[1].startswith("fastpsl card 1 | 20")
    assert lines[3:-1] == ["views: all agree", "norms: failed: RuntimeError: no kernel image", "speed: fast"]


def test_what_was_done_before_an_interruption_is_in_the_file(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted() -> Part:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "parts_of", lambda device: PARTS | {"speed": interrupted})
    path = tmp_path / "card.json"
    code, out, err = cli("doctor", "--card", path)
    assert code == 130 and not out and str(path) in err
    assert [part["name"] for part in json.loads(path.read_text())["parts"]] == ["views", "norms"]


def test_after_the_limit_parts_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "parts_of", lambda device: PARTS)
    *_, card = make_card(CPU, Limit(1.0, 0.0), lambda _: None)
    assert {part.state for part in card.parts} == {"left out"} and card.exit_code == 1
    assert "--limit-s" in card.text() and Card({}, (), no_limit()).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--card {folder}", "give a file in a folder that is there"),
        ("--card {folder}/none/card.json", "give a file in a folder that is there"),
        ("--card {folder}/card.json simclr", "it takes no NAME"),
        ("--card {folder}/card.json --json --stages S1", "it takes no --stages and no --json"),
        ("--card {folder}/card.json --limit-s -1", "--limit-s -1: it must be above 0"),
    ],
)
def test_user_errors(cli: Cli, tmp_path: Path, arguments: str, words: str) -> None:
    refused(cli("doctor", *arguments.format(folder=tmp_path).split()), words)


def test_the_fastest_step_of_a_card_comes_before_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    table = fastest_step(1, "NVIDIA RTX 4090", (8, 9))
    assert table == (3419, "the fastest step")
    path = card_file("NVIDIA RTX 4090")
    path.parent.mkdir(parents=True)
    path.write_text('{"fastest_step": {"1": 5000.4, "2": 2000}}')
    steps = [fastest_step(num, "NVIDIA RTX 4090", (8, 9))[0] for num in (1, 2, 8)]
    assert steps == [5000, 2000, 500] and fastest_step(1, "another", (8, 9)) == table
    for damaged in (
        "{}",
        "[",
        '{"fastest_step": {"1": "x", "2": 1}}',
        '{"fastest_step": {"1": NaN, "2": 1}}',
    ):
        path.write_text(damaged)
        assert fastest_step(1, "NVIDIA RTX 4090", (8, 9)) == table
