"""Writing dataset files to an S3 server, and from tars and Parquet files on one."""

import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("s3fs")
pytest.importorskip("moto.server", reason="the extra dev has moto")

from fastpsl.commands.data import Write
from fastpsl.files.remote.cache import Cache
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.upload import StagedUpload
from tests.pipelines.folders import photo_tree
from tests.pipelines.photos import jpeg, photo
from tests.pipelines.s3_server import BUCKET, S3Server, s3_server
from tests.pipelines.tars import make_tar, tar_bytes

OUT = f"s3://{BUCKET}/sets/train.beton"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with s3_server(monkeypatch) as server:
        yield server


def write(src: object, tmp_path: Path, out: str = OUT, **options: object) -> None:
    Write(str(src), out, workers=1, cache_dir=tmp_path / "uploads", **options).run()  # type: ignore[arg-type]


def written(folder: Path, src: object, name: str = "local.beton", **options: object) -> bytes:
    """Write a local dataset file and return its bytes."""
    Write(str(src), str(folder / name), workers=1, **options).run()  # type: ignore[arg-type]
    return (folder / name).read_bytes()


def test_what_is_uploaded_is_what_would_be_written(
    server: S3Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = photo_tree(tmp_path / "photos")
    write(folder, tmp_path)
    assert server.all_keys() == ["sets/train.beton", "sets/train.beton.json"]
    assert server.get("sets/train.beton") == written(tmp_path, folder)
    assert f"{OUT}: 1 file uploaded, 8.4 MB" in capsys.readouterr().out
    assert not list((tmp_path / "uploads").iterdir())
    with Beton(OUT, Cache(tmp_path / "cache", 0.1)) as data:
        assert data.class_names == ["ant", "cat", "dog"] and data.num_samples == 18
    with pytest.raises(ValueError, match=f"{OUT}: exists already; remove it, give --overwrite"):
        write(folder, tmp_path)
    write(folder, tmp_path, overwrite=True, short_side=40)
    assert server.get("sets/train.beton") == written(tmp_path, folder, "small.beton", short_side=40)


def test_an_interrupted_writing_goes_on(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, send = photo_tree(tmp_path / "photos"), StagedUpload._send
    sent: list[str] = []

    def interrupt(self: StagedUpload, path: Path) -> int:
        if len(sent) == 1:
            raise KeyboardInterrupt
        sent.append(path.name)
        return send(self, path)

    monkeypatch.setattr(StagedUpload, "_send", interrupt)
    with pytest.raises(KeyboardInterrupt, match=f"go on with: fastpsl data write .*{OUT} .*--resume"):
        write(folder, tmp_path)
    assert server.all_keys() == ["sets/train.beton"]
    monkeypatch.setattr(StagedUpload, "_send", send)
    with pytest.raises(ValueError, match="an interrupted upload of it is here; --resume goes on with it"):
        write(folder, tmp_path)
    write(tmp_path / "is not read any more", tmp_path, resume=True)
    assert server.all_keys() == ["sets/train.beton", "sets/train.beton.json"]
    assert server.get("sets/train.beton") == written(tmp_path, folder)


def test_what_fails_for_a_while_is_sent_again(server: S3Server, tmp_path: Path) -> None:
    folder, num = photo_tree(tmp_path / "photos"), 0

    def strike(key: str) -> str | None:
        nonlocal num
        num += 1
        return "503" if num % 2 else None

    server.put_fault = strike
    write(folder, tmp_path)
    assert server.get("sets/train.beton") == written(tmp_path, folder) and num >= 4


def test_shards_of_an_older_writing_are_removed(server: S3Server, tmp_path: Path) -> None:
    server.put("sets/train-00001-of-00002.beton", b"old")
    server.put("sets/train-00001-of-00002.beton.json", b"old")
    with pytest.raises(ValueError, match=r"train-00001-of-00002.beton: exists already"):
        write(photo_tree(tmp_path / "photos"), tmp_path, shard_mb=16)
    write(tmp_path / "photos", tmp_path, shard_mb=16, overwrite=True)
    assert server.all_keys() == [f"sets/train-00000-of-00001.beton{end}" for end in ("", ".json")]


@pytest.mark.parametrize(
    "out, message",
    [
        ("https://host/train.beton", "https://host/train.beton: is read only; give an OUT at s3://"),
        (f"s3://{BUCKET}/sets/", "is no address of a .beton file; give one, as s3://bucket/train.beton"),
        (
            "s3://no-such-bucket/a.beton",
            "s3://no-such-bucket/a.beton: cannot be reached .no such file or bucket.*",
        ),
        (
            "ftp://host/a.beton",
            "ftp://…: data of this kind are not read; give s3://, gs://, hf:// or https://",
        ),
    ],
)
def test_where_nothing_can_be_written_is_known_before_images_are_read(
    out: str, message: str, server: S3Server, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "no images", tmp_path, out)


def test_tars_elsewhere_are_read_as_local_ones(server: S3Server, tmp_path: Path) -> None:
    for number in range(2):
        members = {f"{kind}/{i}.jpg": jpeg(photo(9 * number + i, 50, 40)) for kind in "ab" for i in range(4)}
        make_tar(tmp_path / f"t{number}.tar", members)
        server.put(f"raw/t{number}.tar", tar_bytes(members))
    server.put("raw/._t0.tar", b"of macOS")
    num = 0

    def strike(key: str) -> str | None:
        nonlocal num
        num += 1
        return "reset" if num % 3 == 1 else None

    server.fault = strike
    local = written(tmp_path, tmp_path / "t*.tar")
    assert written(tmp_path, f"s3://{BUCKET}/raw/*.tar", "b.beton") == local and num >= 4
    server.fault = lambda key: "expired" if "t1" in key else None
    with pytest.raises(ValueError, match=r"s3://images/raw/t1.tar: cannot be reached .*expired"):
        written(tmp_path, f"s3://{BUCKET}/raw/*.tar", "c.beton")


def test_parquet_files_elsewhere_are_read_as_local_ones(server: S3Server, tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    images = [{"bytes": jpeg(photo(i, 50, 40)), "path": f"{i}.jpg"} for i in range(6)]
    stream = io.BytesIO()
    parquet.write_table(pyarrow.table({"image": images, "label": [0, 1] * 3}), stream)
    (tmp_path / "a.parquet").write_bytes(stream.getvalue())
    server.put("raw/a.parquet", stream.getvalue())
    local = written(tmp_path, tmp_path / "a.parquet")
    assert written(tmp_path, f"s3://{BUCKET}/raw/*.parquet", "b.beton") == local


def test_sources_that_are_read_from_this_machine_alone(server: S3Server, tmp_path: Path) -> None:
    server.put("raw/a.npz", b"x")
    with pytest.raises(ValueError, match="a npz is read from this machine alone; copy it here"):
        written(tmp_path, f"s3://{BUCKET}/raw/a.npz")
    assert not os.listdir(tmp_path)
