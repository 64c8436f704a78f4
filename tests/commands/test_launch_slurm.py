"""`fastpsl launch slurm`, whose script finds shell scripts as programs. tests/cluster has a real Slurm."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from fastpsl.commands.launch import Slurm, split
from fastpsl.commands.train import Eval, Train
from fastpsl.engine.options import PretrainOptions
from fastpsl.scripts.recipe_files import find_recipe
from tests.cli import Cli, refused
from tests.programs import ROOT

JIGSAW = ("launch", "slurm", "jigsaw", "--out", "runs/j")


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of programs, the first of PATH, in an empty working directory."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    program(folder, "fastpsl", "")
    return folder


def bash(script: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | variables
    return subprocess.run(
        ["bash"], input=script, env=environment, capture_output=True, text=True, check=False, timeout=60
    )


def program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/bash\n{text}\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    ("words", "own", "rest"),
    [
        ("jigsaw --data x --nodes 2 --lr 1", "launch slurm jigsaw --nodes 2", "--data x --lr 1"),
        (
            "--nodes 3 jigsaw --epochs 1 2 3 --gpus=8",
            "launch slurm jigsaw --nodes 3 --gpus=8",
            "--epochs 1 2 3",
        ),
        ("--data x jigsaw", "launch slurm --data x jigsaw", ""),
        ("jigsaw --data x --help", "launch slurm --help", ""),
        ("jigsaw --lr 1 --nodes", "launch slurm jigsaw --nodes", "--lr 1"),
    ],
)
def test_options_of_the_launch_stand_anywhere(words: str, own: str, rest: str) -> None:
    assert tuple(map(" ".join, split(["launch", "slurm", *words.split()]))) == (own, rest)


def test_no_recipe_has_an_option_of_the_launch() -> None:
    recipes = [find_recipe(stem) for stem in (*Train.names.values(), *Eval.names.values())]
    names = {name for recipe in recipes for name in recipe.options.__dataclass_fields__}
    assert not names & (Slurm.__dataclass_fields__.keys() - {"recipe"})
    assert "lr" in names and PretrainOptions.__dataclass_fields__.keys() <= names


def test_the_script_of_two_nodes(cli: Cli, programs: Path) -> None:
    given = """--nodes 2 --gpus 8 --cpus 12 --time 1-00:00:00 --signal-s 90 --container i.sif
        --sbatch="--partition=gpu --comment='a b'" --setup "source a/bin/activate"
        --data s3://a/train-*.beton --epochs 1 2 3"""
    code, out, err = cli(*JIGSAW, *shlex.split(given))
    lines = out.splitlines()
    assert (code, err) == (0, "") and not [*(programs.parent / "runs/j").iterdir()]
    assert subprocess.run(["bash", "-n"], input=out, text=True, check=False).returncode == 0
    options = [word for line in lines if line.startswith("#SBATCH ") for word in shlex.split(line)[1:]]
    assert options == [
        "--job-name=j", "--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8", "--cpus-per-task=12",
        "--time=1-00:00:00", "--signal=TERM@90", "--requeue", "--open-mode=append",
        "--output=runs/j/slurm-%j.log", "--partition=gpu", "--comment=a b",
    ]  # fmt: skip
    assert lines.index("source a/bin/activate") == lines.index("set -e") + 1
    (command,) = (line for line in lines if "fastpsl train" in line)
    assert command == (
        "    env NVIDIA_DRIVER_CAPABILITIES=compute,utility,video apptainer exec --nv i.sif "
        "fastpsl train jigsaw --out runs/j --data 's3://a/train-*.beton' --epochs 1 2 3 || code=$?"
    )


@pytest.mark.parametrize(("gpus", "ranks"), [("0", 1), ("1", 1), ("2", 2)])
@pytest.mark.parametrize(("code", "requeues"), [(0, False), (1, False), (75, True), (143, False)])
def test_each_rank_knows_its_place_and_a_stopped_run_alone_is_requeued(
    cli: Cli, programs: Path, gpus: str, ranks: int, code: int, requeues: bool
) -> None:
    """srun starts the processes of one node, and the run's exit code is srun's."""
    places = f"for i in $(seq 0 {ranks - 1}); do SLURM_PROCID=$((4 + i)) SLURM_LOCALID=$i"
    program(programs, "srun", f'while [ "$1" != bash ]; do shift; done\n{places} "$@"; done\nexit {code}')
    program(programs, "scontrol", 'echo "scontrol $@"')
    variables = "$RANK $LOCAL_RANK of $WORLD_SIZE $LOCAL_WORLD_SIZE at $MASTER_PORT"
    program(programs, "fastpsl", f'echo "$@ as {variables}"')
    _, script, _ = cli(*JIGSAW[:-1], "a run's", "--gpus", gpus)
    folder = programs.parent / "a run's"
    (folder / "status.json").write_text("old")
    done = bash(script, SLURM_JOB_ID="31234", SLURM_NTASKS="6")
    expected = [f"train jigsaw --out a run's as {4 + i} {i} of 6 {ranks} at 21234" for i in range(ranks)]
    assert done.stdout.splitlines() == expected + ["scontrol requeue 31234"] * requeues
    assert done.returncode == code and not (folder / "status.json").exists()


@pytest.mark.parametrize("out", ["-dash", "a $(touch ran)`touch ran`;touch ran", "\"'%j {{ 7 }} ünï 中"])
def test_names_reach_the_recipe_as_they_are(cli: Cli, programs: Path, out: str) -> None:
    program(programs, "srun", 'while [ "$1" != bash ]; do shift; done\nSLURM_PROCID=0 SLURM_LOCALID=0 "$@"')
    program(programs, "fastpsl", 'printf "%s\\n" "$@"')
    code, script, _ = cli(*JIGSAW[:3], f"--out={out}")
    folder = programs.parent / out
    (folder / "status.json").write_text("old")
    done = bash(script, SLURM_JOB_ID="1", SLURM_NTASKS="1")
    assert code == done.returncode == 0 and done.stdout.splitlines() == ["train", "jigsaw", f"--out={out}"]
    assert sorted(path.name for path in programs.parent.iterdir()) == sorted(["bin", out])
    assert not (folder / "status.json").exists()


@pytest.mark.parametrize("name", ["--out", "--data", "--sbatch", "--container", "--setup", "--time"])
@pytest.mark.parametrize("letter", ["\n", "\r", "\t", "\x1b", "\u2028", "\u202e", "\udcff"])
def test_characters_that_steer_are_refused(cli: Cli, programs: Path, name: str, letter: str) -> None:
    value = f"a{letter}touch ran"
    outcome = cli(*JIGSAW, f"{name}={value}")
    if name == "--setup" and letter in "\n\t":  # a command of several lines
        assert outcome.code == 0 and f"\n{value}\n" in outcome.out
    else:
        refused(outcome, "--time" if name == "--time" else f"cannot hold the character {letter!a}; ")


@pytest.mark.parametrize("time", ["90", "24:00:00", "1:30", "1-12", "1-00:00", "2-00:00:00", "UNLIMITED"])
def test_forms_of_a_time_limit(cli: Cli, programs: Path, time: str) -> None:
    code, out, _ = cli(*JIGSAW, "--time", time)
    assert code == 0 and f" --time={time}\n" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("slurm jigsaw", "--out is missing"),
        ("slurm jigsaw --out x --lrr 1", "--lrr: there is no such option; perhaps you meant --lr"),
        ("slurm jigsaw --out x --gpus -1", "--gpus -1"),
        ("slurm jigsaw --out x --nodes 0", "--nodes 0"),
        ("slurm jigsaw --out x --time 1:00:00:00", "--time '1:00:00:00'"),
        ("slurm jigsaw --out x --time=1:00--wrap=x", "--time '1:00--wrap=x'"),
        ("slurm jigsaw --out x --time=\u0661:00", " --time "),
        ("slurm jigsaw --out x --container=-x.sif", " --container "),
        ("slurm jigsaw --out x --sbatch=--comment='a", "No closing quotation"),
        ("slurm jigsaw --out x --signal-s 0", "--signal-s 0"),
        ("slurm jigsw --out x", "did you mean jigsaw?"),
        ("slurm knn y --out x", "knn: it does not train"),
        ("slurm", "NAME is missing"),
    ],
)
def test_user_errors_are_one_line(cli: Cli, programs: Path, arguments: str, message: str) -> None:
    refused(cli("launch", *arguments.split()), message)
    assert not Path("runs").exists()


def test_the_page_has_the_script_of_its_command(cli: Cli, programs: Path) -> None:
    blocks = (ROOT / "docs" / "how_to" / "clusters.md").read_text().split("```bash\n")
    command, script = (block.partition("```")[0] for block in blocks[1:3])
    words = shlex.split(command.replace("\\\n", " "))
    assert cli(*words[1 : words.index(">jigsaw.sh")]) == (0, script, "")
