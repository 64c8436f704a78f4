"""Odd names (scripts, glob characters, spaces, a newline, a leading dash), and places where no run can be."""

from functools import partial
from pathlib import Path

from tests.faults.changed_data import beton
from tests.faults.disk import write_images
from tests.faults.trials import Outcome, Trial, fastpsl, recipe

NAMES = (
    "ünï 中文 🐦",
    "stars *?[x] {a,b}",
    "a newline\nin it",
    "-a dash",
    "quotes '\" $HOME `x` \\",
    "%s {0} %(a)d",
)


def _everywhere(name: str, folder: Path) -> Outcome:
    """Use a name in the names of a source, a beton and a run."""
    (folder / name).mkdir()
    source, data = write_images(folder / name / f"source {name}"), folder / name / f"{name}.beton"
    for outcome in (
        fastpsl(folder, "data", "write", source, data),
        fastpsl(folder, "data", "verify", data),
        recipe(folder, "--data", data, out=folder / name / f"run {name}"),
        recipe(folder, "--data", source, out=folder / name / f"run of the folder {name}"),
    ):
        if outcome[0] != "goes on":
            return outcome
    return outcome


def _of_bytes(folder: Path) -> Outcome:
    """Use a name that is no UTF-8."""
    return _everywhere("latin \udce4\udcff", folder)


def out_is_a_file(folder: Path) -> Outcome:
    (folder / "x").write_text("")
    return recipe(folder, out=folder / "x", words=("--out",))


def out_below_a_file(folder: Path) -> Outcome:
    (folder / "x").write_text("")
    return recipe(folder, out=folder / "x" / "run", words=("choose a folder",))


def out_in_proc(folder: Path) -> Outcome:
    return recipe(folder, out=Path("/proc/x"), words=("choose a folder",))


def out_with_a_long_name(folder: Path) -> Outcome:
    return recipe(folder, out=folder / ("a" * 300), words=("name too long",))


def _occupied(name: str, folder: Path) -> Outcome:
    """Put a folder where the run has a file, or a file where it has a folder."""
    path = folder / "run" / name
    path.parent.mkdir(parents=True)
    if name == "checkpoints":
        path.write_text("")
    else:
        path.mkdir()
    return recipe(folder, words=(name,))


def dangling_link_for_data(folder: Path) -> Outcome:
    (folder / "x.beton").symlink_to(folder / "nowhere.beton")
    return recipe(folder, "--data", folder / "x.beton", words=("x.beton",))


def data_by_a_link(folder: Path) -> Outcome:
    (folder / "y.beton").symlink_to(beton(folder / "x.beton"))
    return recipe(folder, "--data", folder / "y.beton")


def _named(name: str, trial: Trial) -> Trial:
    trial.__name__ = name
    return trial


TRIALS: tuple[Trial, ...] = (
    *(_named(f"names with {name!a}", partial(_everywhere, name)) for name in NAMES),
    _named("names that are no UTF-8", _of_bytes),
    out_is_a_file, out_below_a_file, out_in_proc, out_with_a_long_name,
    *(
        _named(f"{name} occupied", partial(_occupied, name))
        for name in ("checkpoints", "status.json", "metrics.jsonl", ".lock")
    ),
    dangling_link_for_data, data_by_a_link,
)  # fmt: skip
