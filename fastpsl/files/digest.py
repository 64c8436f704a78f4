"""Digests of files, bytes and JSON. No other module of fastpsl imports hashlib.

What comes in pieces is added to a `sha256` or `blake2b` of hashlib. SHA-256 stands in records that people
compare; BLAKE2, which is faster, in keys of caches and identities of data.
"""

import json
from hashlib import blake2b, md5, sha256
from pathlib import Path

from fastpsl.files.system_errors import input_errors

__all__ = ["blake2b", "md5", "sha256", "sha256_of_bytes", "sha256_of_file", "sha256_of_json"]
_CHUNK_BYTES = 1 << 22  # held in memory at a time; 1 MiB would do as well (not measured)


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    digest = sha256()
    with input_errors(path), open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_of_bytes(data: bytes) -> str:
    """Return the SHA-256 of some bytes."""
    return sha256(data).hexdigest()


def sha256_of_json(value: object) -> str:
    """Return the SHA-256 of a value's JSON, which does not depend on the order of keys."""
    return sha256_of_bytes(json.dumps(value, sort_keys=True).encode())
