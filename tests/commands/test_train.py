import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fastpsl.cli import Fastpsl
from fastpsl.commands.train import Eval, Train, split
from fastpsl.scripts.recipe_files import named_path, recipe_path
from tests.cli import Cli, refused
from tests.programs import ENVIRONMENT, ROOT, newest_step, run
from tests.slow import nightly, slow
from tests.warm import Running

TINY = ("--backbone", "nin3", "--batch-size", "16", "--size-px", "16", "--short-side", "20", "--workers", "1")
ONE_STEP = ("--epochs", "1", "--max-steps-per-stage", "1")


def test_every_recipe_has_one_short_name() -> None:
    stems = [*Train.names.values(), *Eval.names.values()]
    assert sorted(stems) == sorted(path.stem for path in (ROOT / "recipes").glob("*.py"))


@pytest.mark.parametrize(
    ("arguments", "own", "rest"),
    [
        ("train jigsaw --gpus 8 --lr 1", "train jigsaw --gpus 8", "--lr 1"),
        ("train --gpus=8 jigsaw --lr 1", "train jigsaw --gpus=8", "--lr 1"),
        ("train jigsaw --lr 1 --gpus 2", "train jigsaw --gpus 2", "--lr 1"),
        ("eval knn --help", "eval knn", "--help"),
        ("train --help", "train --help", ""),
        ("train", "train", ""),
    ],
)
def test_gpus_are_the_commands_and_the_rest_is_the_recipes(arguments: str, own: str, rest: str) -> None:
    assert tuple(map(" ".join, split(arguments.split()))) == (own, rest)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("train jigsw", "no recipe jigsw; did you mean jigsaw?"),
        ("train knn", "did you mean `fastpsl eval knn`?"),
        ("eval rotation_rv50", "did you mean `fastpsl train rotation_rv50`?"),
        ("train xyz", "allowed are jigsaw, rotation, "),
        ("train none.py", "none.py: there is no such file"),
        ("train {tmp}/empty.py", "it defines no RECIPE"),
        ("train jigsaw --gpus 0", "--gpus 0: it must be 1 or more"),
        ("train jigsaw --gpus two", "--gpus"),
        ("train jigsaw --gpus 4000", "--gpus 4000: this machine has "),
        ("train jigsaw --gpu 2", "there is no option --gpu; perhaps you meant --gpus"),
        ("train jigsaw --lr 1 --num-gpus=2", "perhaps you meant --gpus"),
        ("shwo", "there is no command shwo; did you mean show?"),
        ("recipes copy jigsaw {tmp}/a.txt", "give a name that ends in .py"),
        ("recipes copy jigsaw {tmp}/empty.py", "exists already"),
        ("recipes copy jigsaw {tmp}/none/a.py", "cannot be written"),
        ("recipes copy xyz {tmp}/a.py", "no recipe xyz"),
    ],
)
def test_user_errors_are_one_line(cli: Cli, tmp_path: Path, arguments: str, words: str) -> None:
    (tmp_path / "empty.py").write_text("")
    refused(cli(*arguments.format(tmp=tmp_path).split()), words)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train jigsaw --data nothere", "nothere: no such file or folder; give a folder of im"),
        ("train jigsaw --data nothere --preset small", "nothere: no such file or folder; give "),
        ("train jigsaw --data photos/train --val photos/vall",
         "photos/vall: no such file or folder; did you mean photos/val? give a folder of images"),
        ("train jigsaw --data photos --val photos/val",
         "photos: holds parts of a data set (train, val), not classes: write each alone"),
        ("train jigsaw --data w.pt",
         "w.pt: is no dataset file, and by its name no list of images"),
        ("train jigsaw --out w.pt", "--out w.pt is a file: give a folder, or a path that does"),
        ("eval knn w.pt --data photos/train --val photos/val --out w.pt/a/b",
         "--out w.pt/a/b: {here}/w.pt is a file: give a folder"),
        ("eval knn w.pt --data nothere", "nothere: no such file or folder; give a folder"),
        ("eval knn nothere --data photos/train --val photos/val",
         "nothere: no such file or folder; give a run's folder, a checkpoint, a file of weights, timm/NAME"),
        ("eval svm w.pt --data nothere", "nothere: no such file or folder; give VOCd"),
        ("features w.pt --data nothere --out f.npy", "nothere: no such file or folder; give a folder of"),
        ("tsne w.pt --data nothere --out o", "nothere: no such file or folder; give a folder of"),
        ("retrieve w.pt --gallery photos/train --queries nothere --out o", "nothere: no such file"),
    ],
)  # fmt: skip
def test_paths_that_are_not_there_are_said_first(cli: Cli, cwd: Path, arguments: str, message: str) -> None:
    for part in ("train", "val"):
        (cwd / "photos" / part).mkdir(parents=True)
    (cwd / "w.pt").touch()
    code, out, err = cli(*arguments.split())
    words = arguments.split()[: 2 if arguments.startswith(("train", "eval")) else 1]
    start = f"fastpsl {' '.join(words)}: {message.format(here=cwd)}"
    assert (code, out, err.count("\n")) == (2, "", 1) and err.startswith(start)
    assert not (cwd / "runs").exists()


def test_the_list_names_every_recipe(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = cli("recipes")
    assert code == 0 and all(len(line) <= 80 for line in out.splitlines())
    for command, names in (("train", Train.names), ("eval", Eval.names)):
        assert all(f"fastpsl {command} {name} " in out for name in names)


def test_a_copy_is_the_script_and_starts(cli: Cli, tmp_path: Path) -> None:
    copy = tmp_path / "my_rotation.py"
    assert cli("recipes", "copy", "rotation", str(copy))[0] == 0
    path = recipe_path("rotation_rv50")
    assert path and copy.read_bytes() == path.read_bytes()
    code, out, _ = cli("train", copy, *TINY, *ONE_STEP, "--out", tmp_path / "run")
    assert code == 0 and "checkpoint " in out


def test_help_and_version(cli: Cli) -> None:
    assert "usage: fastpsl train jigsaw [-h] [OPTIONS]" in cli("train", "jigsaw", "--help")[1]
    assert cli("--version")[1].startswith("fastpsl-vision ")
    code, out, _ = cli()
    assert code == 0 and out.index("fastpsl train simclr") < out.index("commands")
    assert cli("help")[:2] == (0, out)
    assert cli("help", "eval", "knn")[:2] == (0, cli("eval", "knn", "--help")[1])
    assert cli("help", "data")[:2] == (0, cli("data", "--help")[1])


@pytest.mark.parametrize("command", ["train", "eval", "data", "launch"])
def test_without_a_name_there_is_the_list(cli: Cli, command: str) -> None:
    kind: Any = Fastpsl.commands[command]
    code, out, err = cli(command)
    assert code == 2 and err.startswith(f"fastpsl {command}: name ") and err.count("\n") == 1
    if command in ("train", "eval"):
        assert cli(command, "--gpus", "2") == (code, out, err)
    code, of_help, err = cli("help", command)
    assert (code, err) == (0, "")
    for name in getattr(kind, "names", None) or kind.commands:
        assert f"│ {name} " in out and f"│ {name} " in of_help


ROTATION = ROOT / "recipes" / "rotation_rv50.py"


@pytest.mark.slow
def test_two_processes_refuse_in_one_line(tmp_path: Path) -> None:
    bad = run(ROTATION, *TINY, "--batch-size", 7, "--out", tmp_path / "out", ranks=2)
    assert bad.returncode == 2 and "Traceback" not in bad.stderr and "multiple of 2" in bad.stderr


@pytest.mark.parametrize("number", [slow(signal.SIGINT), nightly(signal.SIGTERM)])
def test_two_processes_stop_upon_a_signal_and_go_on(tmp_path: Path, number: int) -> None:
    out = tmp_path / "out"
    arguments = [*TINY, "--epochs", "4", "--log-steps", "1", "--out", str(out)]
    begun = Running(["fastpsl", "train", "rotation", "--gpus", "2", *arguments], ENVIRONMENT, ROOT)
    metrics, limit = out / "metrics.jsonl", time.monotonic() + 240
    while not (metrics.exists() and metrics.stat().st_size):
        assert begun.code is None and time.monotonic() < limit
        time.sleep(0.05)
    os.kill(begun.pid, number)
    code, _, err = begun.wait(240)
    assert code == 75 and "Traceback" not in err
    assert json.loads((out / "status.json").read_text())["state"] == "preempted"
    more = ("--max-steps-per-stage", newest_step(out) + 2)
    done = run(ROTATION, *arguments, *more, ranks=2)
    assert done.returncode == 0 and "resuming" in done.stderr
    assert json.loads((out / "status.json").read_text())["state"] == "finished"


@pytest.mark.slow
def test_a_reader_that_goes_does_not_end_a_run(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `fastpsl train … | head -1` does."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", buffering=1) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        code, _, err = cli("train", "rotation", *TINY, *ONE_STEP, "--out", tmp_path / "out")
    assert code == 0 and err.count("stdout cannot be written") == 1
    assert json.loads((tmp_path / "out" / "status.json").read_text())["state"] == "finished"


def test_an_interruption_before_the_ranks_are_there_is_one_line(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fastpsl.scripts.local_ranks.run_ranks", interrupt)
    code, _, err = cli("train", "jigsaw", "--gpus", "2")
    assert (
        code == 75
        and err.startswith("fastpsl train jigsaw: interrupted; the same command ")
        and err.count("\n") == 1
    )


@pytest.mark.parametrize(
    ("options", "script"),
    [
        ((), "semi_supervised"), (("runs/a", "--percent", "1"), "semi_supervised"),
        (("runs/a", "--labels-per-class", "5"), "few_labels"), (("--labels_per_class=5",), "few_labels"),
        (("--help",), "few_labels"), (None, "few_labels"),
    ],
)  # fmt: skip
def test_few_labels_without_numbers_is_semi_supervised(options: Any, script: str) -> None:
    assert named_path("few-labels", Eval.names, options).stem == script
