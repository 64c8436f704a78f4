"""What is wrong with an address or a cache is one line with the remedy, before anything is read."""

import json
import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("s3fs")
pytest.importorskip("moto.server", reason="the extra dev has moto")

import fsspec

from fastpsl.engine.options import RunOptions
from fastpsl.files.remote import address
from fastpsl.files.remote.cache import Cache
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.datasets.open import open_data
from fastpsl.pipelines.sample.betons import sample_paths
from tests.pipelines.s3_server import BUCKET, S3Server, s3_server


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with s3_server(monkeypatch) as server:
        yield server


@pytest.mark.parametrize(
    "source, message",
    [
        ("ftp://host/a.beton", "ftp://…: data of this kind are not read; give s3://, gs://, hf:// or https://"),
        ("s3://key:secret@bucket/a.beton", "s3://…: the address holds a password or a signature, which"),
        ("https://h/a.beton?X-Amz-Signature=secret", "https://…: the address holds a password or a signatur"),
        ("s3://images/none.beton", "s3://images/none.beton: cannot be reached (no such file or bucket); g"),
        ("s3://other/a.beton", "s3://other/a.beton: cannot be reached (no such file or bucket); give the"),
        ("s3://images/none-*.beton", "s3://images/none-*.beton: no file matches; give the address of a"),
        ("s3://images/text.beton", "s3://images/text.beton: is no dataset file of FFCV's format 2, as its"),
        ("s3://images/cut.beton", "s3://images/cut.beton: is not whole, or damaged (20,000 bytes do not"),
        ("s3://images/part-*.beton", "s3://images/part-*.beton: is incomplete; s3://images: shard 1/2 of"),
    ],
)  # fmt: skip
def test_addresses(source: str, message: str, server: S3Server, tmp_path: Path) -> None:
    server.put("text.beton", b"no beton")
    server.put("cut.beton", sample_paths().test_32.read_bytes()[:20000])
    put_a_shard_of_two(server)
    with pytest.raises(ValueError) as caught:
        open_data(source, tmp_path, 0.1)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def put_a_shard_of_two(server: S3Server) -> None:
    sidecar: dict[str, Any] = json.loads(Path(f"{sample_paths().test_32}.json").read_bytes())
    sidecar["written"] |= {"shard": "0/2", "source": "/photos"}
    server.put("part-0.beton", sample_paths().test_32.read_bytes())
    server.put("part-0.beton.json", json.dumps(sidecar).encode())


def test_one_shard_may_be_named_alone(server: S3Server, tmp_path: Path) -> None:
    put_a_shard_of_two(server)
    with Beton(f"s3://{BUCKET}/part-0.beton", Cache(tmp_path, 0.1)) as data:
        assert data.num_samples == 160


def test_a_web_server_without_ranges_is_a_line(tmp_path: Path) -> None:
    handler = partial(SimpleHTTPRequestHandler, directory=sample_paths().test_32.parent)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/{sample_paths().test_32.name}"
        with pytest.raises(ValueError, match=f"{address}: its server sends whole files, not the part"):
            open_data(address, tmp_path, 0.1)
        server.shutdown()


def test_credentials_are_asked_for(server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_") and name != "AWS_ENDPOINT_URL"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    message = "s3://images/a-.*: cannot be reached .*redentials.*; log in anew, or give credentials"
    with pytest.raises(ValueError, match=message):
        open_data(f"s3://{BUCKET}/a-*.beton", tmp_path / "cache", 0.1)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(address, "find_spec", lambda name: None)
    message = r"s3://images/a.beton: needs the package s3fs; pip install 'fastpsl-vision\[remote\]'"
    with pytest.raises(ValueError, match=message):
        open_data(f"s3://{BUCKET}/a.beton", tmp_path)


def test_caches(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"--cache-dir .*file: cannot be used \(.*\); give a folder on"):
        Cache(tmp_path / "file")
    with pytest.raises(ValueError, match=r"--cache-dir /proc/none: cannot be used"):
        Cache(Path("/proc/none"))
    with pytest.raises(ValueError, match=r"--cache-gb 1e\+09: .* has .* GB; give at most --cache-gb \d+, or"):
        Cache(tmp_path, 1e9)
    with pytest.raises(ValueError, match="--cache-gb -1: it must be above 0"):
        Cache(tmp_path, -1)
    assert 0 < Cache(tmp_path).max_bytes < 1e15


def test_a_cache_for_local_data_is_refused() -> None:
    with pytest.raises(
        ValueError, match="--cache-gb 5: it is for data that live elsewhere, such as s3://bucket"
    ):
        RunOptions(data="train.beton", cache_gb=5)
