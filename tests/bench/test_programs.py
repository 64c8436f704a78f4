"""What all programs of bench/ share, and a run of each at its smallest, as people call it.

No figure is judged.
"""

import ast
import importlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bench import peers
from bench.performance import RESULTS
from bench.program import check_out, counted, progress
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
    ("throughput", {"views": (1, 0)}, "--views"),
    ("throughput", {"recipe": (), "peers": False}, "nothing is left"),
    ("throughput", {"stages": ("sim:S1",)}, "--stages sim:S1"),
    ("step", {"modes": ()}, "--modes"),
    ("kernels", {"chains": ("SimCLR T4",)}, "--chains 'SimCLR T4'"),
    ("kernels", {"size_px": 8}, "--size-px 8"),
    ("loaders", {"shares": (0.5, 1.1)}, "--shares 0.5 1.1"),
    ("training", {"stages": ("simclr",)}, "--stages simclr"),
    ("scaling", {"ranks": (0,)}, "--ranks"),
    ("detection", {"size": 0}, "--size 0"),
    ("sizes", {"peers": ("nobody",)}, "--peers nobody"),
    ("sizes", {"data": "a", "sizes": ("64",)}, "--data a"),
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


def test_an_error_of_the_user_is_one_line_and_exit_2(tmp_path: Path) -> None:
    process = run(
        ROOT / "bench" / "throughput.py", "--data", "absent.beton", "--out", str(tmp_path / "result.json")
    )
    assert process.returncode == 2
    assert "absent.beton" in process.stderr and len(process.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_where_a_result_may_go(tmp_path: Path) -> None:
    check_out(tmp_path / "new" / "folder" / "result.json")
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "folder"]  # no file remains
    for path in (tmp_path / "new", Path("/proc/self/result.json")):
        with pytest.raises(ValueError, match=rf"--out {path}: cannot be written"):
            check_out(path)


def test_without_a_terminal_progress_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter((100.0, 100.0, 103.0, 112.0, 113.0))
    monkeypatch.setattr("bench.program.time.monotonic", lambda: next(clock))
    with progress() as log:
        for phase in ("first", "second", "third", "fourth"):
            log(phase)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(", ", 1)[1] for line in lines] == ["after 0 s: first", "after 12 s: third"]
    assert [counted(num, "rank") for num in (1, 1000)] == ["1 rank", "1,000 ranks"]


def test_sigterm_leaves_no_folder(tmp_path: Path) -> None:
    program = (
        "import tempfile, time\nfrom bench.program import run_program\n"
        "def main():\n    with tempfile.TemporaryDirectory():\n        print('ready', flush=True)\n        "
        "time.sleep(1000)\n"
        "run_program(main)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        assert len(list(tmp_path.iterdir())) == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(240) == 143
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("recipe", ["jigsaw", "rotation", "simclr", "moco"])
def test_every_recipe_has_its_stages(recipe: Recipe) -> None:
    """The options have the paper's values with a small batch, to which MoCo's key groups shrink."""
    options = recipe_options(recipe, is_sample=False, batch_size=16, backbone="resnet18", device=None)
    for name, last in (("S2", 4), ("E", 5)):
        experiment, number = stage_experiment(recipe, name, options, one_process())
        assert (experiment.stages[number].name, experiment.stages[number].last_block) == (name, last)
    with pytest.raises(ValueError, match="S1, S2, S3, E"):
        stage_experiment(recipe, "S4", options, one_process())


def test_a_killed_run_ended_as_if_it_had_not_been() -> None:
    """The committed result says so."""
    rows = json.loads((RESULTS / "determinism.json").read_text())["rows"]
    first, *_, killed = (row for row in rows if (row["measured"], row["network"]) == ("loss", "batch_norm"))
    assert killed["killed_at"] and all(killed[key] == first[key] for key in ("weights", "values"))


def test_peers_that_are_missing_have_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.peers.peer._is_installed", lambda package: False)
    assert peers.why_missing("lightly", "") == "not installed"
