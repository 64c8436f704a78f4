"""Errors for data that is not there, or is of no known kind."""

from collections.abc import Callable
from pathlib import Path

import pytest

import fastpsl
from fastpsl.files.paths import FORMS, require_existing
from fastpsl.pipelines.beton.sidecar import shard_paths
from fastpsl.pipelines.datasets.open import open_data, open_source
from tests.pipelines.folders import tree
from tests.pipelines.photos import jpeg, photo


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    picture = jpeg(photo(0, 30, 30))
    names = ("train/cat/a.jpg", "val/cat/a.jpg")
    tree(
        tmp_path,
        {f"photos/{name}": picture for name in names} | {"notes.md": b"words", ".nothere": b""},
    )
    (tmp_path / "dangling").symlink_to("gone")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nothere", "nothere: no such file or folder; give"),
        ("phots", "phots: no such file or folder; did you mean photos? give"),
        ("phtos/train", "phtos/train: no such file or folder; did you mean photos/train? give"),
        ("phtos/nothere/cat", "phtos/nothere/cat: no such file or folder; give"),
        ("x-*.beton", "x-*.beton: no file matches; give"),
        ("dangling", "dangling: is a link to nothing; give"),
        ("", "the data's name is empty; give"),
    ],
)
def test_what_is_not_there_is_said_and_what_may_be_given(here: Path, source: str, words: str) -> None:
    for look, allowed in (
        (lambda: require_existing(source, "tea"), "tea"),
        (lambda: open_data(source), FORMS),
        (
            lambda: shard_paths(source),
            "a .beton file or a quoted glob of them; `fastpsl data write` makes one",
        ),
        (
            lambda: open_source(source),
            "a folder of images, a quoted glob, or a file of a known kind (https://fastpsl.github.io/fastpsl/how",
        ),
        (lambda: fastpsl.loader(source, batch_size=1), FORMS),
    ):
        with pytest.raises(ValueError) as caught:
            look()
        assert str(caught.value).startswith(f"{words} {allowed}")


def test_what_is_not_whole_is_said(here: Path) -> None:
    (here / ".train.beton.partial").touch()
    words = "train.beton: is not whole, only .train.beton.partial is there; wait until it is written, "
    for look in (lambda: require_existing("train.beton", "tea"), lambda: open_data("train.beton")):
        with pytest.raises(ValueError) as caught:
            look()
        assert str(caught.value) == f"{words}or give the command again that was interrupted"


@pytest.mark.parametrize("source", ["photos", "phot*", "photos/*/cat/a.jpg"])
def test_files_folders_and_globs_pass(here: Path, source: str) -> None:
    require_existing(source, "tea")


@pytest.mark.parametrize("look", [open_data, lambda source: fastpsl.loader(source, batch_size=1)])
@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("notes.md", f"notes.md: is no dataset file, and by its name no list of images; give {FORMS}"),
        ("empty", "empty: holds no images (.jpg, .jpeg, "),
        (
            "photos",
            "photos: holds parts of a data set (train, val), not classes: write each alone, as in",
        ),
    ],
)
def test_other_files_and_folders_are_refused(
    here: Path, look: Callable[[str], object], source: str, words: str
) -> None:
    with pytest.raises(ValueError) as caught:
        look(source)
    assert str(caught.value).startswith(words)
