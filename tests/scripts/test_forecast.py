"""Forecasts: steps with fewer images, scaled; the command that fits; and what blocks cost on a CPU."""

import shlex
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typing_extensions import override

from bench.recipe_stages import recipe_options, stage_experiment
from fastpsl.engine.distributed import NCCL_FLAG, World
from fastpsl.engine.plan import Stage
from fastpsl.engine.time_left import forward_cost, step_cost, timed_costs
from fastpsl.models.factory import make_backbone
from fastpsl.scripts import forecast, launch, presets
from fastpsl.scripts.command_line import COMMAND
from fastpsl.scripts.forecast import choice_lines
from fastpsl.scripts.presets import CPU_PRESETS
from fastpsl.scripts.recipe_files import find_recipe
from tests.engine.tiny import one_process
from tests.fake_cuda import fake_cuda
from tests.pipelines.photos import jpeg, photo
from tests.pipelines.written import tree
from tests.scripts.test_presets import WITH_PRESETS

WORDS = ("--plan", "end_to_end", "--workers", "1", "--device", "cpu", "--precision", "fp32")


def dry(monkeypatch: pytest.MonkeyPatch, *words: object) -> Any:
    given = [str(word) for word in (*words, *WORDS, "--dry-run")]
    monkeypatch.setattr(sys, "argv", ["/usr/bin/fastpsl", "train", "simclr", *given])
    recipe: Any = find_recipe("simclr_r50")
    forecast.dry_run(recipe, recipe.parse(given, log=print))


def test_a_long_step_is_measured_with_fewer_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A step of four images takes 40 s, so of 64 it takes 640 s. Two of 24 fit into half an hour."""
    photos = tree(tmp_path / "photos", {f"{i}.jpg": jpeg(photo(i, 40, 44)) for i in range(130)})
    batches = list[int]()

    def measured(opened: Any, number: int, *_: Any, **more: Any) -> tuple[float, float, str]:
        batches.append(opened.data.options.batch_of())
        return 10.0 * batches[-1], 0.0, ""

    def last(*more: object) -> str:
        dry(monkeypatch, *words, *more)
        return capsys.readouterr().out.splitlines()[-1]

    monkeypatch.setattr(forecast, "_measured", measured)
    words = ("--data", photos, "--backbone", "resnet18", "--size-px", 32, "--batch-size", 64)
    dry(monkeypatch, *words, "--preset", "sample", "--epochs", 4)
    *_, line, end = capsys.readouterr().out.splitlines()
    assert batches == [4, 4] and line.startswith("E: 8 steps of 640 s; it ends about 1:25:20")
    assert "few steps, which had 4 images, without" in end
    command = f"fastpsl train simclr {shlex.join(map(str, (*words, '--epochs', 12, *WORDS)))}"
    assert last("--epochs", 12) == f"for about half an hour: {command} --max-steps-per-stage 2"
    limited = last("--epochs", 12, "--max-steps-per-stage", 20)
    assert limited == f"for about half an hour: {command} --max-steps-per-stage 2"
    assert last("--epochs", 12, "--max-steps-per-stage", 4).startswith("dry run: nothing was written")


@pytest.mark.parametrize(
    ("typed", "argv", "expected"),
    [
        ("", ["/bin/fastpsl", "train", "uic", "--dry_run"], "fastpsl train uic"),
        ("", ["/lib/fastpsl/__main__.py", "train", "uic", "--dry-run"], "fastpsl train uic"),
        ("", ["recipes/uic_r50.py", "--out", "a b", "--dry-run"], "python recipes/uic_r50.py --out 'a b'"),
        ("fastpsl train uic", ["/x/uic_r50.py", "--dry-run"], "fastpsl train uic --gpus 1"),
        (
            "",
            ["/bin/fastpsl", "train", "uic", "--max_steps_per_stage", "7", "--dry-run", "--seed=1"],
            "fastpsl train uic --seed=1",
        ),
        (
            "",
            ["/bin/fastpsl", "train", "uic", "--max-steps-per-stage=7", "--seed", "1"],
            "fastpsl train uic --seed 1",
        ),
    ],
)
def test_the_command_is_as_it_was_typed(
    typed: str, argv: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setenv(COMMAND, typed)
    assert shlex.join(forecast._command(one_process())) == expected


@pytest.mark.parametrize("recipe", WITH_PRESETS)
def test_the_step_of_each_recipe_is_timed(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is timed is a real step of the task, with all that precedes it."""
    files = {f"{'ab'[i % 2]}/{i}.jpg": jpeg(photo(i, 200, 210)) for i in range(60)}
    photos, script = tree(tmp_path / "photos", files), find_recipe(recipe)
    words = ["--data", str(photos), "--batch-size", "4", "--workers", "1", "--device", "cpu"]
    if recipe == "distill":
        torch.save(make_backbone("resnet18").state_dict(), tmp_path / "theirs.pth")
        words += ["--teacher", str(tmp_path / "theirs.pth"), "--teacher-backbone", "resnet18"]
    monkeypatch.setattr(presets, "_has_gpu", lambda options: False)
    options: Any = launch.parsed(script, words, "fastpsl train NAME")
    assert options.preset in CPU_PRESETS and options.batch_size == 4


def test_a_preset_is_timed_whose_images_the_network_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AlexNet reads images of 63 px and more, which the largest preset alone has."""
    photos = tree(tmp_path / "photos", {f"{i}.jpg": jpeg(photo(i, 80, 90)) for i in range(60)})
    monkeypatch.setattr(presets, "_has_gpu", lambda options: False)
    monkeypatch.setattr(forecast, "_measured", lambda *_, **more: (100.0, 0.0, ""))
    words = ["--data", str(photos), "--backbone", "alexnet", "--device", "cpu"]
    options: Any = launch.parsed(find_recipe("simclr_r50"), words, "fastpsl train simclr")
    assert (options.preset, options.size_px) == ("cpu-large", 64)
    with pytest.raises(ValueError, match="this backbone reads 63 px and more"):
        launch.parsed(find_recipe("simclr_r50"), [*words, "--size-px", "32"], "fastpsl train simclr")


class Slow(nn.Module):
    """A block whose passes take the seconds that are given, by a clock of its own."""

    now = 0.0

    def __init__(self, forward_s: float, backward_s: float):
        super().__init__()
        self.forward_s, self.backward_s = forward_s, backward_s
        self.conv, self.norm = nn.Conv2d(3, 3, 1).requires_grad_(False), nn.BatchNorm2d(3)

    @override
    def forward(self, images: Tensor) -> Tensor:
        Slow.now += self.forward_s
        maps: Tensor = self.norm(self.conv(images))
        maps.register_hook(self.pass_back)
        return maps

    def pass_back(self, _: Tensor) -> None:
        Slow.now += self.backward_s


def test_what_blocks_cost_is_timed_by_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, statistics, gradients and modes stay as they are."""
    monkeypatch.setattr("fastpsl.engine.time_left.time.perf_counter", lambda: Slow.now)
    blocks = [Slow(1.0, 2.0), Slow(4.0, 16.0)]
    before = [value.clone() for block in blocks for value in block.state_dict().values()]
    costs = timed_costs(blocks, torch.randn(2, 3, 4, 4), nullcontext)
    assert (costs.forward, costs.backward, costs.head) == ([1.0, 4.0], [2.0, 16.0], (0, 0))
    after = [value for block in blocks for value in block.state_dict().values()]
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))
    for block in blocks:
        assert block.training and not block.conv.weight.requires_grad and block.norm.weight.requires_grad
        assert all(weights.grad is None for weights in block.parameters())
    assert step_cost(costs, Stage("S", 1, 2, 2, 1)) == 1 + 4 + 16
    assert forward_cost(costs, Stage("S", 1, 1, 1, 1)) == 1


FASTEST = ["fused on off", "fused on on", "fused on on"]  # of stages S1 to S3
LAUNCHED = ["fused off off", "off off off", "off off off"]


@pytest.mark.parametrize(
    ("recipe", "num_ranks", "flag", "expected"),
    [
        ("simclr", 1, None, FASTEST), ("simclr", 2, "0", FASTEST), ("simclr", 2, "1", LAUNCHED),
        ("moco", 1, None, FASTEST), ("moco", 2, "0", LAUNCHED),
    ],
)  # fmt: skip
def test_a_gpu_takes_the_fastest_way_on_any_number_of_ranks(
    recipe: str, num_ranks: int, flag: str | None, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of --compile, --graph and --fold-frozen. Ranks that cannot capture choose by the launched steps."""
    pytest.importorskip("triton")
    if flag is None:
        monkeypatch.delenv(NCCL_FLAG, raising=False)
    else:
        monkeypatch.setenv(NCCL_FLAG, flag)
    with fake_cuda() as cuda:
        world = World(0, num_ranks, 0, num_ranks, cuda.device)
        options = recipe_options(recipe, is_sample=False, batch_size=256)
        experiment, _ = stage_experiment(recipe, "S1", options, world)
        told = [*choice_lines(experiment, options, world)]
    names = ("compile", "graph", "fold-frozen")
    chosen = [[line.split(f"--{name} ")[1].split()[0] for name in names] for line in told]
    assert [" ".join(values) for values in chosen] == expected
    assert all((f"{NCCL_FLAG} is 0" in line) == (flag == "0" and expected is FASTEST) for line in told)
