"""Dataset files that are written to an S3 server, and sources that are read from there, equal local ones."""

import os
from pathlib import Path

import pytest

from fastpsl.commands.data import Write
from fastpsl.files.remote.cache import Cache
from fastpsl.pipelines.beton.output import Output
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.sidecar import sidecar_path
from fastpsl.pipelines.beton.upload import StagedUpload
from fastpsl.pipelines.datasets.open import open_source
from tests.pipelines.photos import jpeg, photo
from tests.pipelines.s3_server import BUCKET, S3Server
from tests.pipelines.written import make_tar, parquet_bytes, tar_bytes

pytest.importorskip("s3fs")

OUT = f"s3://{BUCKET}/sets/train.beton"


def write(src: object, tmp_path: Path, out: str = OUT, **options: object) -> None:
    Write(str(src), out, workers=1, cache_dir=tmp_path / "uploads", **options).run()  # type: ignore[arg-type]


def written(folder: Path, src: object, name: str = "local.beton", **options: object) -> bytes:
    """Write a local dataset file and return its bytes."""
    Write(str(src), str(folder / name), workers=1, **options).run()  # type: ignore[arg-type]
    return (folder / name).read_bytes()


def test_what_is_uploaded_is_what_would_be_written(
    server: S3Server, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(photos, tmp_path)
    assert server.all_keys() == ["sets/train.beton", "sets/train.beton.json"]
    assert server.get("sets/train.beton") == written(tmp_path, photos)
    assert f"{OUT}: 1 file uploaded, 8.4 MB" in capsys.readouterr().out
    assert not list((tmp_path / "uploads").iterdir())
    with Beton(OUT, Cache(tmp_path / "cache", 0.1)) as data:
        assert data.class_names == ["ant", "cat", "dog"] and data.num_samples == 18
    with pytest.raises(ValueError, match=f"{OUT}: exists already; remove it, give --overwrite"):
        write(photos, tmp_path)
    write(photos, tmp_path, overwrite=True, short_side=40)
    assert server.get("sets/train.beton") == written(tmp_path, photos, "small.beton", short_side=40)


def test_an_interrupted_writing_goes_on(
    server: S3Server, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent, send = list[str](), StagedUpload._send

    def interrupt(self: StagedUpload, path: Path) -> int:
        if len(sent) == 1:
            raise KeyboardInterrupt
        sent.append(path.name)
        return send(self, path)

    monkeypatch.setattr(StagedUpload, "_send", interrupt)
    with pytest.raises(KeyboardInterrupt, match=f"go on with: fastpsl data write .*{OUT} .*--resume"):
        write(photos, tmp_path)
    assert server.all_keys() == ["sets/train.beton"]
    monkeypatch.setattr(StagedUpload, "_send", send)
    with pytest.raises(ValueError, match="an interrupted upload of it is here; --resume goes on with it"):
        write(photos, tmp_path)
    write(tmp_path / "is not read any more", tmp_path, resume=True)
    assert server.all_keys() == ["sets/train.beton", "sets/train.beton.json"]
    assert server.get("sets/train.beton") == written(tmp_path, photos)


def test_what_is_not_whole_here_is_not_uploaded(
    server: S3Server, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writing may end between two files of it, or leave the list of too many bad images alone."""
    publish = Output._publish

    def interrupt(self: Output, partial: Path, final: Path, shard: str) -> None:
        sidecar_path(final).write_bytes(sidecar_path(partial).read_bytes())
        raise KeyboardInterrupt

    monkeypatch.setattr(Output, "_publish", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(photos, tmp_path)
    monkeypatch.setattr(Output, "_publish", publish)
    write(photos, tmp_path, resume=True)
    assert server.get("sets/train.beton") == written(tmp_path, photos)

    (photos / "ant" / "bad.jpg").write_bytes(b"x")
    other = f"s3://{BUCKET}/sets/other.beton"
    for out in (other, OUT):
        with pytest.raises(ValueError, match=r".beton.bad.csv: lists 1 bad image"):
            write(photos, tmp_path, out, max_bad="0", overwrite=out == OUT)
    write(photos, tmp_path, other, max_bad="1")
    assert server.get("sets/other.beton") == server.get("sets/train.beton")
    assert b"ant/bad.jpg" in server.get("sets/other.beton.bad.csv")
    with pytest.raises(ValueError, match=f"{OUT}: exists already"):
        write(photos, tmp_path)


def test_what_fails_for_a_while_is_sent_again(server: S3Server, photos: Path, tmp_path: Path) -> None:
    num = 0

    def strike(key: str) -> str | None:
        nonlocal num
        num += 1
        return "503" if num % 2 else None

    server.put_fault = strike
    write(photos, tmp_path)
    assert server.get("sets/train.beton") == written(tmp_path, photos) and num >= 4


def test_shards_of_an_older_writing_are_removed(server: S3Server, photos: Path, tmp_path: Path) -> None:
    server.put("sets/train-00001-of-00002.beton", b"old")
    server.put("sets/train-00001-of-00002.beton.json", b"old")
    with pytest.raises(ValueError, match=r"train-00001-of-00002.beton: exists already"):
        write(photos, tmp_path, shard_mb=16)
    write(photos, tmp_path, shard_mb=16, overwrite=True)
    assert server.all_keys() == [f"sets/train-00000-of-00001.beton{end}" for end in ("", ".json")]


@pytest.mark.parametrize(
    "out, message",
    [
        ("https://host/train.beton", "https://host/train.beton: is read only; give an OUT at s3://"),
        (f"s3://{BUCKET}/sets/", "is no address of a .beton file; give one, as s3://bucket/train.beton"),
        ("s3://no-such-bucket/a.beton",
         "s3://no-such-bucket/a.beton: cannot be reached .no such file or bucket.*"),
        ("ftp://host/a.beton",
         "ftp://…: data of this kind are not read; give s3://, gs://, hf:// or https://"),
    ],
)  # fmt: skip
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
    images = [{"bytes": jpeg(photo(i, 50, 40)), "path": f"{i}.jpg"} for i in range(6)]
    data = parquet_bytes({"image": images, "label": [0, 1] * 3})
    (tmp_path / "a.parquet").write_bytes(data)
    server.put("raw/a.parquet", data)
    local = written(tmp_path, tmp_path / "a.parquet")
    assert written(tmp_path, f"s3://{BUCKET}/raw/*.parquet", "b.beton") == local


def test_folders_of_hive_elsewhere_tell_the_labels(server: S3Server) -> None:
    data = parquet_bytes({"image": [jpeg(photo(0, 50, 40))]})
    for folder in ("label=dog/", "label=a%20b/", "label=dog/_", "_temporary/label=emu/"):
        server.put(f"hive=1/{folder}0.parquet", data)
    source = open_source(f"s3://{BUCKET}/hive=1/**/*.parquet")
    assert source.class_names == ["a b", "dog"]
    assert [(sample.name, sample.label) for sample in source.samples()] == [
        ("label=a%20b/0.parquet row 0", 0), ("label=dog/0.parquet row 0", 1)
    ]  # fmt: skip


def test_sources_that_are_read_from_this_machine_alone(server: S3Server, tmp_path: Path) -> None:
    server.put("raw/a.npz", b"x")
    with pytest.raises(ValueError, match="a npz is read from this machine alone; copy it here"):
        written(tmp_path, f"s3://{BUCKET}/raw/a.npz")
    assert not os.listdir(tmp_path)
