"""Read and check what parts of bench/gpu_day/ brought back: results-PART.tgz."""

import gzip
import json
import re
import tarfile
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.evidence.plan import commands_of
from bench.schema import REHEARSAL, output_of, validate
from fastpsl.files.atomic import write_atomically
from fastpsl.files.digest import sha256_of_file

_NAME = r"[A-Za-z0-9_][\w.+-]*"
_RESULT = re.compile(rf"results/({_NAME}\.json)", re.ASCII)
_EXPERIMENT = re.compile(rf"experiments/({_NAME})/({_NAME})", re.ASCII)
_FOLDER = re.compile(rf"\.|logs|results|runs|experiments(/{_NAME})?", re.ASCII)
_OTHERS = re.compile(
    rf"summary\.txt|failed\.txt|steps\.tsv|logs/{_NAME}\.log|"
    rf"results/{_NAME}\.png|runs/{_NAME}\.(png|json|jsonl)",
    re.ASCII,
)
_MOST_BYTES = 64 << 20  # per file
_SCORED = "results.json"


@dataclass
class Brought:
    """The content of archives."""

    results: dict[str, dict[str, Any]] = field(default_factory=dict)  # file name → result of bench/results/
    experiments: dict[str, dict[str, bytes]] = field(default_factory=lambda: defaultdict(dict))
    """Plan's name → file name → content: results.json, and what the plan keeps."""


def read_archives(paths: Sequence[Path]) -> Brought:
    """Return what all archives hold, each result checked against the schema."""
    brought = Brought()
    for path in paths:
        new = read_archive(path)
        for one, other in ((brought.results, new.results), (brought.experiments, new.experiments)):
            if duplicates := sorted(one.keys() & other.keys()):
                raise ValueError(f"{path}: {duplicates[0]} is in another archive too; give one of the two")
        brought.results |= new.results
        brought.experiments |= new.experiments
    return brought


def read_archive(path: Path) -> Brought:
    """Return what an archive holds."""
    brought = Brought()
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                result, of_plan = _RESULT.fullmatch(name), _EXPERIMENT.fullmatch(name)
                file = result or of_plan or _OTHERS.fullmatch(name)
                if not (member.isdir() and _FOLDER.fullmatch(name) or member.isfile() and file):
                    raise ValueError(f"{path}: holds {member.name!r}, which no part of bench/gpu_day/ makes")
                if result or of_plan:
                    stream = archive.extractfile(member)
                    assert stream is not None
                    data = stream.read(_MOST_BYTES)
                if result:
                    remedy = "run the part without SMALL"
                    brought.results[result[1]] = checked(data, f"{path}, {name}", remedy)
                elif of_plan:
                    brought.experiments[of_plan[1]][of_plan[2]] = data
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: is no whole .tgz ({error}); bring it back again") from None
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(
            f"{path}: cannot be read ({reason}); give a results-PART.tgz of bench/gpu_day/"
        ) from None
    if not brought.results:
        raise ValueError(f"{path}: holds no results/*.json; give a results-PART.tgz of bench/gpu_day/")
    return brought


def checked(data: bytes, where: str, remedy: str) -> dict[str, Any]:
    """Return a result of bench/results/ that follows the schema and is no rehearsal."""
    try:
        result: dict[str, Any] = json.loads(data)
        validate(result)
    except ValueError as error:  # json.JSONDecodeError is a ValueError, too
        raise ValueError(f"{where}: {error}") from None
    if REHEARSAL in result["notes"]:
        raise ValueError(f"{where}: is {REHEARSAL}; {remedy}")
    return result


def check_experiment(name: str, files: Mapping[str, bytes], root: Path) -> None:
    """Raise ValueError unless an experiment is of a committed plan, whole, and lacks no earlier entry."""
    plan, where = Path("bench", "evidence", f"{name}.json"), f"experiments/{name}"
    try:
        record = json.loads(files[_SCORED])
        commit, commands = record["plan_commit"], commands_of(record)
        kept = {file for one in record["training"] for file in one.get("kept", ())}
        is_of_plan = record["plan_sha256"] == sha256_of_file(root / plan)
        is_rehearsal = REHEARSAL in record["title"]
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise ValueError(f"{where}: has no results of a plan of bench/evidence ({error!r})") from None
    if is_rehearsal:
        raise ValueError(f"{where}: is {REHEARSAL}; run the part without SMALL")
    if not is_of_plan:
        raise ValueError(f"{where}: is of another {plan} than is here; check out the one that was run")
    here = output_of("git", "-C", str(root), "hash-object", str(plan))
    if not commit or here != output_of("git", "-C", str(root), "rev-parse", f"{commit}:{plan}"):
        raise ValueError(f"{where}: {plan} was not committed before it was run ({commit}); run it again")
    if kept != files.keys() - {_SCORED}:
        raise ValueError(f"{where}: its trainings keep {sorted(kept)}, not {sorted(files)}; bring all back")
    earlier = root / "docs" / "runs" / name / _SCORED
    if earlier.exists() and (lost := commands_of(json.loads(earlier.read_text())) - commands):
        raise ValueError(f"{where}: lacks {len(lost)} entries of {earlier}; go on from that file")


def put_experiment(files: Mapping[str, bytes], folder: Path) -> None:
    """Write an experiment's files, results.json at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(files, key=lambda file: file == _SCORED):
        write_atomically(folder / file, files[file])
