"""Addresses of data that live elsewhere, and the file systems of fsspec that read them.

Credentials come from where the ecosystem keeps them (AWS's environment and ~/.aws, Google's default
credentials, Hugging Face's token, ~/.netrc for https). An address holds none, because it gets into logs and
checkpoints.
"""

import logging
import re
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from fastpsl.pipelines.remote.failures import HELP

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

ALLOWED = "s3://, gs://, hf:// or https://"
_CONNECT_S, _READ_S = 10, 30  # waits for a connection, and for the next bytes of an answer
_ANSWER_S = 60.0  # a single answer; several are under way at a time


class _Scheme(NamedTuple):
    package: str  # what fsspec needs for it
    options: dict[str, Any]  # of fsspec's file system


_SCHEMES = {
    "s3": _Scheme(
        "s3fs",
        {
            "config_kwargs": {
                "connect_timeout": _CONNECT_S,
                "read_timeout": _READ_S,
                "retries": {"total_max_attempts": 1},
            }
        },
    ),
    "gs": _Scheme("gcsfs", {}),
    "hf": _Scheme("huggingface_hub", {}),
    "https": _Scheme("aiohttp", {"client_kwargs": {"trust_env": True}}),
    "http": _Scheme("aiohttp", {"client_kwargs": {"trust_env": True}}),
}


def is_remote(source: object) -> bool:
    """Return whether `source` is an address, such as s3://bucket/train.beton, and no path."""
    return not isinstance(source, Path) and re.match("[A-Za-z][A-Za-z0-9+.-]*://", str(source)) is not None


def check_address(address: str) -> None:
    """Check an address without a look at the network.

    Raises:
        ValueError: Its scheme is unknown, a package is missing, or it holds credentials.
    """
    parts = urlsplit(address)
    scheme = _SCHEMES.get(parts.scheme.lower())
    if scheme is None:
        raise ValueError(f"{parts.scheme}://…: data of this kind are not read; give {ALLOWED}, or a path")
    if "@" in parts.netloc or (parts.query and parts.scheme in ("http", "https")):
        # The address itself is not repeated.
        raise ValueError(
            f"{parts.scheme}://…: the address holds a password or a signature, which would get into logs; "
            f"give it without, and credentials by the environment ({HELP})"
        )
    if find_spec("fsspec") is None or find_spec(scheme.package) is None:
        raise ValueError(
            f"{address}: needs the package {scheme.package}; pip install 'fastpsl-vision[remote]'"
        )


def file_system(address: str) -> "AbstractFileSystem":
    """Return fsspec's file system for an address; those of one process share its connections.

    Raises:
        ValueError: The address cannot be read; see `check_address`.
    """
    check_address(address)
    import fsspec

    scheme = urlsplit(address).scheme.lower()
    options = _SCHEMES[scheme].options
    if scheme in ("http", "https"):  # anybody has such a server
        from fastpsl.pipelines.remote.bounded_answer import BoundedAnswer

        options = {"client_kwargs": options["client_kwargs"] | {"response_class": BoundedAnswer}}
    # Its tracebacks would come before our line.
    logging.getLogger(_SCHEMES[scheme].package).addHandler(logging.NullHandler())
    files = fsspec.filesystem(scheme, use_listings_cache=False, **options)
    if hasattr(files, "retries"):  # `persistently` tries again, and says so
        files.retries = 1
    return files


def answer(files: "AbstractFileSystem", name: str, *arguments: Any, **options: Any) -> Any:
    """Call a function of a file system, with a limit of time where it has one to give.

    Args:
        files: The file system.
        name: The function's name, such as cat_file.
        arguments: Its positional arguments.
        options: Its keyword arguments.

    Raises:
        Exception: What fsspec raises.
    """
    if not files.async_impl:
        return getattr(files, name)(*arguments, **options)
    from fsspec.asyn import sync

    return sync(files.loop, getattr(files, f"_{name}"), *arguments, timeout=_ANSWER_S, **options)
