"""Appending the images of another source to betons and to sets of shards."""

import json
from pathlib import Path

import pytest

from fastpsl.cli import main
from fastpsl.pipelines.beton import output
from fastpsl.pipelines.beton.output import journal_path
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.verify import betons_to_verify, verify
from tests.pipelines.folders import photo_tree, tree
from tests.pipelines.photos import jpeg, photo


def data(*words: object) -> None:
    main(["data", *map(str, words), "--workers", "1"])


@pytest.fixture
def beton(tmp_path: Path) -> Path:
    """Write 18 photos of ant, cat and dog, of at most 50 px, and make folders to be appended."""
    data("write", photo_tree(tmp_path / "photos"), tmp_path / "train.beton", "--max-side", 50, "--min-px", 20)
    for i, name in enumerate(("more", "again")):
        names = [f"{kind}/{name}{j}.jpg" for kind in ("dog", "cat") for j in range(2)]
        tree(tmp_path / name, {each: jpeg(photo(60 + 9 * i + j, 70, 80)) for j, each in enumerate(names)})
    return tmp_path / "train.beton"


def error_of(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    with pytest.raises(SystemExit) as end:
        data(*words)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_what_is_appended_follows_what_is_there(
    beton: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = beton.read_bytes()
    data("append", tmp_path / "more", beton)
    pattern = tmp_path / "train.*beton"
    assert f"'{pattern}' names all of it" in capsys.readouterr().out.splitlines()
    data("append", tmp_path / "again", pattern)
    assert beton.read_bytes() == before
    names = ["train.beton", "train.more-00001.beton", "train.more-00002.beton"]
    with Beton(pattern) as all_of_it, Beton(beton) as first:
        assert [path.name for path in all_of_it.paths] == names
        assert all_of_it.class_names == ["ant", "cat", "dog"] and len(all_of_it) == 26
        assert all_of_it.labels().tolist() == [*first.labels().tolist(), 1, 1, 2, 2, 1, 1, 2, 2]
        assert [all_of_it.read(i) for i in range(18)] == [first.read(i) for i in range(18)]
        assert max(all_of_it.image_sizes()) == 50  # stored as the others
        assert all_of_it.name(20).endswith("train.more-00001.beton sample 2 (dog/more0.jpg)")
    assert (
        betons_to_verify([str(pattern)])[1] == [] and betons_to_verify([str(tmp_path / "*.beton")])[1] == []
    )
    for name in names:
        assert list(verify(tmp_path / name)) == []
    line = error_of(capsys, "append", tmp_path / "more", beton)
    assert line == (
        f"fastpsl: {tmp_path}/train.more-00003.beton: holds images of {tmp_path}/more, "
        f"as {tmp_path}/train.more-00001.beton does; they are there already"
    )


@pytest.mark.parametrize("options", [["--shard-mb", 16], ["--shard"]])
def test_shards_are_appended_to(options: list[object], tmp_path: Path, beton: Path) -> None:
    if options == ["--shard"]:
        for i in range(2):
            data("write", tmp_path / "photos", tmp_path / f"set-{i}.beton", "--shard", f"{i}/2")
    else:
        data("write", tmp_path / "photos", tmp_path / "set.beton", *options)
    pattern = tmp_path / "set-*.beton"
    data("append", tmp_path / "more", pattern)
    with Beton(pattern) as shards:
        assert shards.paths[-1].name.endswith(".more-00001.beton") and len(shards) == 22
        assert shards.labels()[-4:].tolist() == [1, 1, 2, 2]
    assert betons_to_verify([str(pattern)])[1] == []


def test_an_interrupted_appending_goes_on(
    beton: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fastpsl.pipelines.beton.output.EVERY_BYTES", 0)
    monkeypatch.setattr("fastpsl.pipelines.beton.output.EVERY_S", 0)
    out, pattern = tmp_path / "train.more-00001.beton", tmp_path / "train.*beton"
    data("append", tmp_path / "more", beton)
    whole = out.read_bytes(), Path(f"{out}.json").read_bytes()
    for path in tmp_path.glob("train.more*"):
        path.unlink()
    real, num = output.Output.take, [0]

    def take(self: output.Output, *arguments: object) -> None:
        num[0] += 1
        if num[0] == 4:
            raise KeyboardInterrupt
        real(self, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(output.Output, "take", take)
        data("append", tmp_path / "more", pattern)
    err = capsys.readouterr().err
    assert f"go on with: fastpsl data append {tmp_path}/more '{pattern}' --workers 1 --resume" in err
    with Beton(pattern) as untouched:
        assert len(untouched) == 18 and journal_path(out).exists()
    assert "with 3 images; --resume goes on" in error_of(capsys, "append", tmp_path / "more", pattern)
    data("append", tmp_path / "more", pattern, "--resume")
    assert (out.read_bytes(), Path(f"{out}.json").read_bytes()) == whole and not journal_path(out).exists()


def test_what_does_not_fit_is_refused(
    beton: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree(tmp_path / "more", {"wasp/a.jpg": jpeg(photo(0, 60, 60)), "zebu/a.jpg": jpeg(photo(1, 60, 60))})
    names = sorted(path.name for path in tmp_path.iterdir())
    line = error_of(capsys, "append", tmp_path / "more", beton)
    assert f"{beton}: has no class wasp (and 1 more), which the source has; leave it out" in line
    tree(tmp_path / "flat", {"a.jpg": jpeg(photo(0, 60, 60))})
    line = error_of(capsys, "append", tmp_path / "flat", beton)
    assert f"{beton}: has class names, the source has none" in line
    other = tmp_path / "trainer.beton"
    data("write", photo_tree(tmp_path / "others"), other, "--max-side", 40, "--min-px", 20)
    line = error_of(capsys, "append", tmp_path / "again", tmp_path / "train*.beton")
    assert f"{other}: was written with --max-side 40, {beton} with --max-side 50; append to one" in line
    beside = Path(f"{beton}.json")
    record = json.loads(beside.read_text())
    for gone in ("mode", None):
        if gone:
            del record["written"][gone]
            beside.write_text(json.dumps(record))
        else:
            beside.unlink()
        assert f"{beton}: does not tell how it was written" in error_of(
            capsys, "append", tmp_path / "again", beton
        )
    assert [name for name in sorted(path.name for path in tmp_path.iterdir()) if "more" in name] == [
        name for name in names if "more" in name
    ]
