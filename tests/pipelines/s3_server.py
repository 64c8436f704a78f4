"""An S3 server on the loopback (moto's), whose answers can be delayed, refused, broken off or falsified."""

import logging
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import boto3
import fsspec
import pytest
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import BaseWSGIServer, make_server

from tests.warm import reserved_port

BUCKET = "images"
_CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
}


class S3Server:
    """The server, and the faults of its answers to GET.

    Attributes:
        latency_s: A pause before each answer.
        ranges: The key and the range of each GET of an object that was answered.
        fault: Called with each GET's key before it is answered. It may return "503", "reset", "wrong" or
            "expired".
        put_fault: The same of each PUT and POST.
    """

    def __init__(self) -> None:
        self.latency_s = 0.0
        self.ranges: list[tuple[str, str]] = []
        self.fault: Callable[[str], str | None] = lambda key: None
        self.put_fault: Callable[[str], str | None] = lambda key: None
        self._app = DomainDispatcherApplication(create_backend_app)
        self._lock = threading.Lock()
        with reserved_port() as reserved:
            # A port that is bound by its number stays bound while nobody listens.
            self._listener = socket.create_server(reserved.getsockname())
        self.port: int = self._listener.getsockname()[1]
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Serve, on the same port as before."""
        self._listener.listen(128)
        self._server: BaseWSGIServer = make_server(
            "127.0.0.1", self.port, self._answer, threaded=True, fd=self._listener.fileno()
        )
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections, of whatever process has a copy of the socket."""
        self._server.shutdown()
        self._listener.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Stop for good."""
        self._server.shutdown()
        self._listener.close()

    def client(self) -> Any:
        return boto3.client("s3", endpoint_url=self.url)

    def put(self, key: str, data: bytes) -> None:
        self.client().put_object(Bucket=BUCKET, Key=key, Body=data)

    def all_keys(self) -> list[str]:
        return [item["Key"] for item in self.client().list_objects_v2(Bucket=BUCKET).get("Contents", [])]

    def get(self, key: str) -> bytes:
        return bytes(self.client().get_object(Bucket=BUCKET, Key=key)["Body"].read())

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        key = environ["PATH_INFO"].removeprefix(f"/{BUCKET}/")
        is_read = environ["REQUEST_METHOD"] == "GET" and key != environ["PATH_INFO"] and key != ""
        time.sleep(self.latency_s)
        is_written = environ["REQUEST_METHOD"] in ("PUT", "POST")
        fault = self.fault(key) if is_read else self.put_fault(key) if is_written else None
        if fault == "503":
            start_response("503 Slow Down", [("Content-Type", "application/xml")])
            return [b"<Error><Code>SlowDown</Code><Message>Reduce your request rate</Message></Error>"]
        if fault == "expired":
            start_response("403 Forbidden", [("Content-Type", "application/xml")])
            return [b"<Error><Code>ExpiredToken</Code><Message>The token has expired.</Message></Error>"]
        if fault == "reset":
            connection = environ["werkzeug.socket"]
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()
            return []
        if is_read:
            with self._lock:
                self.ranges.append((key, environ.get("HTTP_RANGE", "")))
        parts = self._app(environ, start_response)
        if fault == "wrong":
            data = bytearray(b"".join(parts))
            data[len(data) // 2] ^= 0xFF
            return [bytes(data)]
        return parts  # type: ignore[no-any-return]


@contextmanager
def s3_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """Start a server with an empty bucket, and set the environment by which clients find it."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    for name, value in _CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    server = S3Server()
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    try:
        client = server.client()
        client.create_bucket(Bucket=BUCKET)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        yield server
        for key in server.all_keys():
            client.delete_object(Bucket=BUCKET, Key=key)
        client.delete_bucket(Bucket=BUCKET)
    finally:
        server.close()
        fsspec.get_filesystem_class("s3").clear_instance_cache()
