import ast
import inspect
import math
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from fastpsl.engine import gpu
from fastpsl.engine.options import PretrainOptions, RunOptions, TrainingOptions
from fastpsl.evaluation.options import ProbeOptions
from fastpsl.scripts import recipe_process
from fastpsl.scripts.recipe_files import find_recipe
from tests.engine.tiny import tiny_recipe

ROOT = Path(__file__).resolve().parents[2]


def source_of_options(recipe: Path) -> Path:
    """Return the file that defines a recipe's options: its own, or one shared by several recipes."""
    return Path(inspect.getfile(find_recipe(recipe.stem).options))


def bodies_of(path: Path) -> list[list[ast.stmt]]:
    """Return the bodies of a file's classes of options."""
    classes = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
    return [node.body for node in classes if node.name.endswith("Options")]


def fields_of(path: Path) -> list[ast.AnnAssign]:
    return [field for body in bodies_of(path) for field in body if isinstance(field, ast.AnnAssign)]


SOURCES = set(map(source_of_options, (ROOT / "recipes").glob("*.py")))
SOURCES.add(ROOT / "fastpsl" / "engine" / "options.py")


@pytest.mark.parametrize("path", sorted(SOURCES), ids=lambda p: p.stem)
def test_every_option_has_a_help_text(path: Path) -> None:
    """--help shows the string below a field, or the text of its `arg`."""
    bodies = bodies_of(path)
    assert bodies
    bare = [
        ast.unparse(field.target)
        for body in bodies
        for field, below in zip(body, [*body[1:], None], strict=True)
        if isinstance(field, ast.AnnAssign)
        and not re.search("help=|AnyBackbone", ast.unparse(field.annotation))
        and "ClassVar" not in ast.unparse(field.annotation)
        and not (isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant))
    ]
    assert not bare


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 0), ("accumulate", -1), ("max_steps_per_stage", 0), ("workers", 0), ("timeout_s", 0.0),
        ("checkpoint_minutes", -1.0), ("checkpoint_steps", -1), ("keep_checkpoints", 0), ("log_steps", 0),
        ("prefetch_batches", 0), ("lanes", 0), ("probe_every", -1), ("hw_decoder_load", -0.1),
        ("hw_decoder_load", 1.5), ("hw_decoder_load", math.nan),
        ("timeout_s", math.nan), ("cache_gb", math.inf), ("checkpoint_minutes", math.nan),
    ],
)  # fmt: skip
def test_impossible_values_name_their_flag(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} "):
        PretrainOptions(**{name: value})


def test_a_run_goes_on_from_checkpoints_alone(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    options = PretrainOptions(out=tmp_path)
    for name in ("step-best.pt", "step-00000009-copy.pt", "step-00000009.pt"):
        (tmp_path / "checkpoints" / name).touch()
        assert options.goes_on() == (name == "step-00000009.pt")


def test_ranks_must_divide_the_batch() -> None:
    assert TrainingOptions(batch_size=24, accumulate=2).rank_batch(3) == 4
    with pytest.raises(ValueError, match="multiple of 10"):
        TrainingOptions(batch_size=24, accumulate=2).rank_batch(5)
    with pytest.raises(ValueError, match="divide"):
        TrainingOptions(batch_size=2).rank_batch(4)


@pytest.mark.parametrize("name", ["compile", "graph", "fold_frozen"])
def test_a_value_of_python_that_no_command_line_gives_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"^unknown value True of {name}: allowed are auto, o"):
        TrainingOptions(**{name: True})  # type: ignore[arg-type]


def test_precision_follows_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    assert RunOptions().resolved_precision(torch.device("cpu")) == "fp32"
    assert RunOptions().resolved_precision(torch.device("cuda")) == "fp16"
    assert RunOptions(precision="bf16").resolved_precision(torch.device("cuda")) == "bf16"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    for options in (RunOptions(precision="bf16"), PretrainOptions(precision="bf16")):
        assert options.resolved_precision(torch.device("cpu")) == "bf16"
        with pytest.raises(ValueError, match=r"^--precision bf16: .*8\.0 on, and this one is of 7\.5; use"):
            options.resolved_precision(torch.device("cuda"))


@pytest.mark.parametrize(
    ("vendor", "flags", "limit", "expected"),
    [
        ("AuthenticAMD", "fpu avx512f avx512_bf16 avx512_vnni", "", "bf16"),
        ("GenuineIntel", "fpu avx512f avx512_bf16 avx512_vnni", "", "fp32"),
        ("GenuineIntel", "fpu amx_bf16 amx_tile", "ALL", "bf16"),
        ("AuthenticAMD", "fpu avx512_bf16", "AVX512_CORE_BF16", "bf16"),
        ("AuthenticAMD", "fpu avx512_bf16", "AVX512_CORE", "fp32"),
        ("GenuineIntel", "fpu amx_bf16", "avx2", "fp32"),
        ("AuthenticAMD", "fpu avx2 avx512f avx512_vnni amx_tile", "", "fp32"),
        ("AuthenticAMD", None, "", "fp32"),
    ],
)
def test_pre_training_takes_bf16_where_it_is_faster(
    vendor: str, flags: str | None, limit: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays fp32 where oneDNN may not use them, for others' networks, and where a network is evaluated."""
    monkeypatch.setattr(gpu, "_CPU_FILE", tmp_path / "cpuinfo")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    if flags is not None:
        of_core = f"processor\t: 0\nvendor_id\t: {vendor}\nmodel name\t: bf16\nflags\t\t: {flags}\n\n"
        (tmp_path / "cpuinfo").write_text(of_core)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert PretrainOptions().resolved_precision(cpu) == "fp32"  # without the name of a network
    assert PretrainOptions().resolved_precision(cuda) == "fp16"
    assert ProbeOptions().resolved_precision(cpu) == "fp32"
    for backbone in ("resnet18", "timm/tf_efficientnet_lite0", "net.py:Net"):
        options = find_recipe("simclr_r50").with_paper(backbone=backbone)
        assert options.resolved_precision(cpu) == (expected if backbone == "resnet18" else "fp32")


@pytest.mark.parametrize("recipe", sorted(p.name for p in (ROOT / "recipes").glob("*.py")))
def test_every_field_is_read_somewhere(recipe: str) -> None:
    """A flag that no code reads would mislead."""
    names = [f.name for f in fields(PretrainOptions)]
    source = ROOT / "recipes" / recipe
    recipe_fields = [ast.unparse(field.target) for field in fields_of(source_of_options(source))]
    text = "\n".join(path.read_text() for path in (*(ROOT / "fastpsl").rglob("*.py"), source))
    assert recipe_fields
    assert [name for name in names + recipe_fields if not re.search(rf"(options|self)\.{name}\b", text)] == []


def test_values_that_no_option_gives_stay() -> None:
    """A run without a flag must find its checkpoint again. Only these values decide whether it may resume."""
    assert PretrainOptions().science() == {
        "batch_size": 256, "seed": 0, "precision": "auto", "order": "random", "lanes": 64,
        "sync_batchnorm": False, "plan": "psl", "epochs": [60, 60, 60], "partition": [], "levels": [],
        "frozen_batchnorm": "eval", "crop_scale": None,
    }  # fmt: skip


@pytest.mark.parametrize(("values", "seconds"), [({}, 1200.0), ({"timeout_s": 7.0}, 70.0)])
def test_another_rank_is_waited_for_ten_times_as_long_as_a_batch(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, Any], seconds: float
) -> None:
    """By default these are the twenty minutes of docs/how_to/several_gpus.md."""
    asked = list[tuple[str, float]]()

    def join(device: str, timeout_s: float) -> None:
        asked.append((device, timeout_s))
        raise ValueError("no ranks")

    monkeypatch.setattr(recipe_process, "join_world", join)
    options = PretrainOptions(device="cpu", **values)
    with pytest.raises(ValueError, match="no ranks"):
        recipe_process.train(tiny_recipe(PretrainOptions, None), options, [])
    assert asked == [("cpu", seconds)]
