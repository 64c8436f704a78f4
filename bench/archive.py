"""The reader of results-PART.tgz, which a part of bench/gpu_day/ writes; nothing in it is trusted."""

import gzip
import json
import re
import tarfile
import zlib
from pathlib import Path
from typing import Any

from bench.schema import REHEARSAL, validate

_NAME = r"[A-Za-z0-9_][\w.+-]*"
_RESULT = re.compile(rf"results/({_NAME}\.json)", re.ASCII)
_FOLDER = re.compile(r"\.|logs|results|runs")
_OTHERS = re.compile(
    rf"summary\.txt|failed\.txt|steps\.tsv|logs/{_NAME}\.log|"
    rf"results/{_NAME}\.png|runs/{_NAME}\.(png|json|jsonl)",
    re.ASCII,
)
_MOST_BYTES = 64 << 20  # per result


def read_archive(path: Path) -> dict[str, dict[str, Any]]:
    """Return the results by file name, each checked against the schema.

    Raises:
        ValueError: The archive cannot be read, or holds anything that a part does not write. One line.
    """
    results = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                match = _RESULT.fullmatch(name)
                known = _FOLDER.fullmatch(name) if member.isdir() else match or _OTHERS.fullmatch(name)
                if not known or not (member.isdir() or member.isfile()):
                    raise ValueError(f"{path}: holds {member.name!r}, which no part of bench/gpu_day/ makes")
                if match:
                    file = archive.extractfile(member)
                    assert file is not None
                    results[match[1]] = _result(file.read(_MOST_BYTES), f"{path}, {name}")
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: is no whole .tgz ({error}); bring it back again") from None
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(
            f"{path}: cannot be read ({reason}); give a results-PART.tgz of bench/gpu_day/"
        ) from None
    if not results:
        raise ValueError(f"{path}: holds no results/*.json; give a results-PART.tgz of bench/gpu_day/")
    return results


def read_archives(paths: list[Path]) -> dict[str, dict[str, Any]]:
    """Return the results of all archives.

    Raises:
        ValueError: Two archives hold the same result.
    """
    results: dict[str, dict[str, Any]] = {}
    for path in paths:
        new_results = read_archive(path)
        if duplicates := sorted(results.keys() & new_results.keys()):
            raise ValueError(f"{path}: {duplicates[0]} is in another archive too; give one of the two")
        results |= new_results
    return results


def _result(data: bytes, where: str) -> dict[str, Any]:
    try:
        result = json.loads(data)
        validate(result)
    except ValueError as error:  # json.JSONDecodeError is a ValueError, too
        raise ValueError(f"{where}: {error}") from None
    if REHEARSAL in result["notes"]:
        raise ValueError(f"{where}: is {REHEARSAL}; run the part without SMALL")
    assert isinstance(result, dict)
    return result
