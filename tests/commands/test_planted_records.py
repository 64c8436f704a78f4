"""Runs and weights of strangers, whose records name a Python file and a folder elsewhere in every string."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fastpsl
from fastpsl.cli import main
from tests.cli import Cli
from tests.pipelines.photos import jpeg, photo
from tests.pipelines.written import tree
from tests.recipes.in_process import start
from tests.recorded import Place, planted, read, strings, write
from tests.slow import nightly

TINY = (
    "--backbone resnet18 --size-px 32 --epochs 1 --batch-size 4 --workers 1 --plan end_to_end "
    "--max-steps-per-stage 1 --val 20% --no-tensorboard"
)
MARK = "ran"
CODE = f"import pathlib; pathlib.Path(__file__).with_name('{MARK}').touch()\nclass Net: pass\nRECIPE = None\n"
# What a run read is read again by who repeats it: its images, and the weights of --init, each by its reader.
READ_AGAIN = (("options", "data"), ("options", "val"), ("options", "init"))


@pytest.fixture
def seen() -> Iterator[list[str]]:
    """Yield a list that gets the files which Python opens or lists, until the test ends."""
    found = list[str]()
    is_listening = True  # a hook stays in the process

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        is_look = is_listening and event in ("open", "os.listdir", "os.scandir")
        if is_look and isinstance(arguments[0], (str, bytes, os.PathLike)):
            found.append(os.path.abspath(os.fsdecode(arguments[0])))

    sys.addaudithook(note)
    yield found
    is_listening = False


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run, and exported weights with their record beside it."""
    here = tmp_path_factory.mktemp("planted")
    tree(here / "photos", {f"class{i % 2}/{i:02d}.jpg": jpeg(photo(i, 60, 60)) for i in range(12)})
    runs = here / "runs"
    start("simclr_r50", TINY, "--data", here / "photos", "--out", runs / "run").ok()
    main(["export", str(runs / "run"), str(runs / "weights.pth"), "--to", "timm"])
    return runs


Look = Callable[[Path], object]  # at a run, beside which lie exported weights


def looks(cli: Cli, out: Path, photos: Path) -> dict[str, Look]:
    """Return the commands that take a run or weights."""

    def recipe(name: str, *arguments: object) -> int:
        return start(name, *arguments, "--workers 1").code

    return {
        "runs": lambda run: cli("runs", run.parent).code,
        "compare": lambda run: cli("compare", run, run, "--out", out / "compared").code,
        "table": lambda run: cli("table", "psl/4", "--runs", run.parent, "--out", out / "table").code,
        "replay": lambda run: cli("replay", run, "--step", "1", "--out", out / "replay", "--workers", 1).code,
        "export": lambda run: cli("export", run, out / "w.pth", "--to", "timm", "--overwrite").code,
        "load": lambda run: 0 if fastpsl.load(run) else 1,
        "load weights": lambda run: 0 if fastpsl.load(run.with_name("weights.pth")) else 1,
        "knn": lambda run: recipe("knn", run, "--k 3", "--out", out / "knn"),
        "--config": lambda run: recipe("simclr_r50", "--dry-run --config", run, "--out", out / "again"),
        "--out": lambda run: recipe("simclr_r50", TINY, "--data", photos, "--out", run),
        "--init": lambda run: recipe(
            "simclr_r50", TINY, "--dry-run --data", photos, "--init", run, "--out", out / "init"
        ),
    }


# Who reads a record, by its name; of other records of a run, `OTHERS`.
READERS = {
    "config.json": ("runs", "compare", "replay", "export", "knn", "--config", "--out"),
    "step-00000001.pt": ("replay", "export", "load", "knn", "--out", "--init"),
    "weights.pth.json": ("load weights",),
}
OTHERS = ("runs", "compare", "table", "replay", "--out")
# Their strings are planted one by one, since a refused one hides those after it. Others are all at once.
ALONE = ("options", "science", "machine", "position", "input", "backbone")


def groups(runs: Path) -> Iterator[tuple[Path, list[Place]]]:
    """Yield each record below a folder with the places that are planted together."""
    for path in sorted(path for path in runs.rglob("*") if ".json" in path.name or path.suffix == ".pt"):
        places = [place for place in strings(read(path)) if place != ("sha256",)]
        alone = [place for place in places if place[0] in ALONE]
        yield from ((path, [place]) for place in alone)
        if rest := [place for place in places if place not in alone]:
            yield path, rest


@pytest.mark.slow
@pytest.mark.parametrize("turn", [0, *map(nightly, (1, 2, 3))])
def test_no_record_runs_a_file_or_leads_out(
    turn: int, trained: Path, seen: list[str], tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside, here = tmp_path / "outside", tmp_path / "here"
    (outside / "folder").mkdir(parents=True)
    (outside / "planted.py").write_text(CODE)
    (outside / "folder" / "note.txt").write_text("private")
    texts = ("planted.py", str(outside / "planted.py"), f"{outside}/planted.py:Net", str(outside / "folder"))
    before = sorted(outside.rglob("*"))
    monkeypatch.chdir(outside)
    commands, faults = looks(cli, here, trained.with_name("photos")), list[str]()
    shutil.copytree(trained, here / "runs")
    assert not [name for name, look in commands.items() if look(here / "runs" / "run")]
    for number, (record, places) in enumerate(groups(trained)):
        shutil.rmtree(here)
        shutil.copytree(trained, here / "runs")
        path, text = here / "runs" / record.relative_to(trained), texts[(number + turn) % len(texts)]
        value = read(path)
        for place in places:
            value = planted(value, place, text)
        write(path, value)
        for name in READERS.get(path.name, OTHERS):
            seen.clear()
            where = f"{name} of {path.name} with {text} as {'.'.join(map(str, places[0]))}"
            try:
                commands[name](here / "runs" / "run")
            except ValueError:
                pass
            except Exception as error:  # noqa: BLE001 - each is a fault
                faults.append(f"{where}: {type(error).__name__}: {error}")
            opened = [each for each in seen if Path(each).is_relative_to(outside) and each != str(outside)]
            if opened and places[0] not in READ_AGAIN:
                faults.append(f"{where} read {opened[0]}")
            if sorted(outside.rglob("*")) != before:
                faults.append(f"{where} ran it, or wrote there")
                (outside / MARK).unlink(missing_ok=True)
    assert not faults, "\n".join(faults)
