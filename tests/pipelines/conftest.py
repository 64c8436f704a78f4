"""Fixtures of several files of this folder."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.pipelines.s3_server import S3Server


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the test a cache of its own, and return the folder of its indices."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fastpsl" / "folders"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Write 18 photos in three classes."""
    from tests.pipelines.written import photo_tree

    return photo_tree(tmp_path / "photos")


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the journal of a dataset file after each image."""
    monkeypatch.setattr("fastpsl.pipelines.beton.output.EVERY_BYTES", 0)
    monkeypatch.setattr("fastpsl.pipelines.beton.output.EVERY_S", 0)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> "Iterator[S3Server]":
    """Start an S3 server, for clients that pause briefly."""
    from tests.pipelines.s3_server import s3_server

    monkeypatch.setattr("fastpsl.files.remote.failures._FIRST_PAUSE_S", 0.01)
    with s3_server(monkeypatch) as server:
        yield server
