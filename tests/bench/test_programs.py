"""What all programs of bench/ share, and a run of each at its smallest, as people call it.

No figure is judged.
"""

import ast
import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bench.program import check_out
from bench.recipe_stages import Recipe, recipe_options, stage_experiment
from bench.schema import validate
from tests.engine.tiny import one_process
from tests.programs import ROOT, run
from tests.slow import nightly, slow

PROGRAMS = sorted((ROOT / "bench").glob("*.py"))
WITH_POLICY = [path for path in PROGRAMS if 'setdefault("OMP_WAIT_POLICY"' in path.read_text()]
WITH_RESULTS = [
    path.stem for path in PROGRAMS if re.search(r"(publish|save_result)\(\s*\w+\.out, ", path.read_text())
]
WITH_OPTIONS = [path.stem for path in PROGRAMS if "class Options" in path.read_text()]
ONCE = "--repeats 1 --seconds 0.001"
TINY = "--device cpu --batch-size 2 --repeats 1"
# Program → arguments, and what its rows have measured.
RUNS = {
    "throughput": (
        f"--recipe simclr --decoders pillow --stages S2 --backbone resnet18 --batch-size 2 --no-peers {ONCE}",
        {"loader", "step", "both"},
    ),
    "step": (f"--recipes rotation --stages S1 S2 --modes eager eager+fold --limit-s 1000 {TINY}", {"step"}),
    "kernels": (f"--chains grey --size-px 32 {TINY}", {"copy", "kernel"}),
    "loaders": (f"--views 2 --seconds 0.001 --size-px 16 --no-peers {TINY}", {"decode"}),
    "training": (f"--stages simclr:S1 --peers --batch-size 4 --size-px 32 --workers 1 {ONCE}", {"trained"}),
    "scaling": (
        f"--stages S3 --backbone resnet18 --decoder pillow --steps 1 {TINY}",
        {"loader", "step", "both", "gradients"},
    ),
    "detection": (f"--size 64 --limit-s 0.001 {TINY}", {"step"}),
    "sizes": (
        f"--sizes originals --data FOLDER --crops 1 --num 2 --decoders pillow --peers image_folder {TINY}",
        {"loader", "peer", "cpu"},
    ),
    "stage_sizes": (f"--sizes 32 48 --seconds 0.001 {TINY}", {"loader", "step"}),
    "time_to_accuracy": (
        "--seeds 0 --device cpu", {"training", "training and looks", "accuracy"}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", [*map(slow, ("throughput", "step", "kernels")), *map(nightly, [*RUNS][3:])])
def test_a_run_writes_its_result(name: str, tmp_path: Path) -> None:
    (tmp_path / "own" / "a").mkdir(parents=True)
    for number in range(6):
        Image.new("RGB", (90, 70 + number)).save(tmp_path / "own" / "a" / f"{number}.jpg")
    arguments, measured = RUNS[name]
    out = tmp_path / "result.json"
    words = arguments.replace("FOLDER", str(tmp_path / "own")).split()
    process = run(ROOT / "bench" / f"{name}.py", *words, "--out", str(out))
    assert process.returncode == 0, process.stderr
    result = json.loads(out.read_text())
    validate(result)
    assert measured <= {row["measured"] for row in result["rows"]}
    assert all(set(missing) == {"what", "reason"} for missing in result["not_measured"])
    assert str(out) in process.stdout.replace("\n", "")


def test_every_program_has_a_run() -> None:
    assert {*WITH_RESULTS} == {*RUNS}


@pytest.mark.parametrize("path", WITH_POLICY, ids=lambda path: path.stem)
def test_barriers_are_told_to_sleep_before_torch_comes(path: Path) -> None:
    """libgomp reads the variable once; set later, the result would say PASSIVE while threads spin."""
    for node in ast.parse(path.read_text()).body:
        if "OMP_WAIT_POLICY" in ast.unparse(node):
            break
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        third_party = [name for name in names if name.split(".")[0] not in sys.stdlib_module_names]
        assert not third_party, f"{path.name} imports {third_party} first"


@pytest.mark.parametrize("name", WITH_RESULTS)
def test_what_cannot_be_written_is_refused_before_anything_is_measured(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = importlib.import_module(f"bench.{name}")
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "result.json"
    monkeypatch.setattr(sys, "argv", [name, "--out", str(out)])

    def measures() -> None:
        raise AssertionError("it has begun")

    for first in ("environment", "join_world", "choose_device"):
        monkeypatch.setattr(program, first, lambda *_, **__: measures(), raising=False)
    with pytest.raises(ValueError, match=f"--out {out}: cannot be written"):
        program.main()


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("throughput", {"batch_size": 0}, "--batch-size 0"),
    ("throughput", {"recipe": (), "peers": False}, "nothing is left"),
    ("step", {"modes": ()}, "--modes"),
    ("kernels", {"chains": ("SimCLR T4",)}, "--chains 'SimCLR T4'"),
    ("loaders", {"shares": (0.5, 1.1)}, "--shares 0.5 1.1"),
    ("training", {"stages": ("simclr",)}, "--stages simclr"),
    ("scaling", {"ranks": (0,)}, "--ranks"),
    ("detection", {"size": 0}, "--size 0"),
    ("sizes", {"num": 3, "batch_size": 4}, "--num 3"),
    ("stage_sizes", {"sizes": ()}, "--sizes and --seeds"),
    ("time_to_accuracy", {"accuracy": 1.0}, "--accuracy 1"),
]


@pytest.mark.parametrize(("name", "values", "says"), WRONG)
def test_values_that_cannot_be_are_refused(name: str, values: dict[str, Any], says: str) -> None:
    assert {name for name, *_ in WRONG} == {*WITH_OPTIONS}
    options = importlib.import_module(f"bench.{name}").Options
    options().check()
    with pytest.raises(ValueError, match=re.escape(says)):
        options(**values).check()


def test_a_file_that_is_tried_does_not_remain(tmp_path: Path) -> None:
    check_out(tmp_path / "new" / "folder" / "result.json")
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "folder"]


@pytest.mark.parametrize("recipe", ["jigsaw", "rotation", "simclr", "moco"])
def test_every_recipe_has_its_stages(recipe: Recipe) -> None:
    """The options have the paper's values with a small batch, to which MoCo's key groups shrink."""
    options = recipe_options(recipe, is_sample=False, batch_size=16, backbone="resnet18", device=None)
    for name, last in (("S2", 4), ("E", 5)):
        experiment, number = stage_experiment(recipe, name, options, one_process())
        assert (experiment.stages[number].name, experiment.stages[number].last_block) == (name, last)
    with pytest.raises(ValueError, match="S1, S2, S3, E"):
        stage_experiment(recipe, "S4", options, one_process())
