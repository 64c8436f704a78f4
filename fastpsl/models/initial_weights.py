"""The weights that trainings begin with and evaluations score: of a run, of a file, or published ones."""

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastpsl.console.progress import operation
from fastpsl.console.words import number_of
from fastpsl.files.atomic import atomic_file, remove_leftovers
from fastpsl.files.caches import cache_folder
from fastpsl.files.digest import sha256_of_bytes
from fastpsl.files.json_records import COUNTS, RECORD, Form, Kind, is_number, parse
from fastpsl.files.locks import locked
from fastpsl.files.remote.address import RemoteObject, is_remote, open_stream, read_whole, remote_objects
from fastpsl.files.system_errors import UnreadableError, input_errors, output_errors
from fastpsl.models.backbone import Backbone
from fastpsl.models.foreign_weights import MisfitError, first_three
from fastpsl.models.names import MAX_DOWNLOAD_GB, TIMM, WEIGHT_ENDINGS, is_module, is_own, is_timm
from fastpsl.models.weights import (
    TOLD_BY_EXPORT,
    Pretrained,
    WeightsFile,
    input_of_timm,
    open_weights,
    sha256_of_tensors,
    words_of_input,
)
from fastpsl.pipelines.views import Input

_MAX_CONFIG = 1 << 20  # bytes


def _are_three(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(is_number, value))


_STATISTICS = Kind("three numbers", _are_three)
# config.json of a model of timm on the Hugging Face Hub.
_HUB_CONFIG = Form("config.json", {
    "architecture": Kind("a name of timm", lambda value: bool(re.fullmatch(r"\w+", str(value)))),
    "pretrained_cfg": RECORD, "pretrained_cfg.mean": _STATISTICS, "pretrained_cfg.std": _STATISTICS,
    "pretrained_cfg.input_size": Kind("three sizes", lambda value: COUNTS.holds(value) and len(value) == 3),
})  # fmt: skip
_MAX_HEADER = 1 << 24
_SHARE_OF_DISK = 0.95  # of what is free: a disk that is full stops other programs


def open_initial(source: str, max_download_gb: float = MAX_DOWNLOAD_GB) -> WeightsFile:
    """Read weights: of a path, timm/NAME[.TAG], or the address of a file or a folder.

    A folder elsewhere is as the Hugging Face Hub has it for models of timm.

    Args:
        source: The value of --init, or the RUN of an evaluation.
        max_download_gb: The largest file that is downloaded from an address, in 10^9 bytes.

    Raises:
        ValueError: There are none, or they cannot be read, or are too large.
    """
    if is_timm(source):
        from fastpsl.models.timm_backbone import published

        name, tensors, config = published(source)
        digest = sha256_of_tensors(tensors)
        return WeightsFile(source, tensors, "timm", name, input_of_timm(config), digest=digest)
    if not is_remote(source):
        return open_weights(Path(source))
    is_file, place = _is_file(source), source.rstrip("/")
    path = _fetched(source if is_file else f"{place}/model.safetensors", max_download_gb)
    weights = _read_copy(source, path)
    if is_file or weights.kind:  # with our record, a folder's file says all
        return weights
    address = f"{place}/config.json"
    data = read_whole(address, _MAX_CONFIG) or b"{}"
    try:
        config = _HUB_CONFIG.checked(address, parse(address, data))
        name, input = TIMM + config["architecture"], input_of_timm(config["pretrained_cfg"])
    except ValueError as error:
        raise ValueError(
            f"{place}/config.json does not say which model of timm it is ({error}); give the address of a "
            "file of weights, and --backbone"
        ) from None
    return replace(weights, kind="timm", backbone=name, input=input)


def load_pretrained(
    source: str | Path,
    backbone: str | None = None,
    input: Input | None = None,
    max_download_gb: float = MAX_DOWNLOAD_GB,
) -> Pretrained:
    """Load a backbone with weights.

    Checkpoints and exported files record their backbone and input, and the arguments must agree with the
    record. Files of other projects have no such record and need `backbone`. Without `input`, theirs is taken
    to be timm's of a model of timm, and else ImageNet's usual. A record may name a file of Python code, which
    runs only if `backbone` names it as well.

    Args:
        source: What `open_initial` reads, such as a run's folder.
        backbone: The backbone's name.
        input: The input that the weights expect.
        max_download_gb: The largest file that is downloaded from an address, in 10^9 bytes.

    Raises:
        ValueError: The weights are unreadable, lack a tensor of the backbone, or are of another backbone or
            hold tensors that belong to no head. Or they name a Python file, and `backbone` does not.
    """
    return open_initial(str(source), max_download_gb).load(backbone, input)


def _is_file(address: str) -> bool:
    """Return whether an address is that of a file of weights, and not of a folder.

    hf://ORG/NAME[@REVISION] is a folder: most names of timm's models end in a tag, as resnet18.a1_in1k.
    """
    is_repository = re.fullmatch("hf://((models|datasets|spaces)/)?[^/]+/[^/]+/?", address)
    return not is_repository and address.partition("?")[0].lower().endswith(WEIGHT_ENDINGS)


def _fetched(address: str, max_gb: float) -> Path:
    """Return a copy of a file elsewhere, in the cache; of several processes, one downloads it."""
    found = remote_objects(address, "the address of one file of weights")
    if len(found) > 1:
        raise ValueError(f"{address}: {len(found)} files match; give the address of one file of weights")
    (remote,) = found
    # Nothing here has a name from the address, which may be the lock's, or too long.
    folder = cache_folder() / "weights" / _key(remote.address)
    ending = next(each for each in WEIGHT_ENDINGS if remote.name.partition("?")[0].lower().endswith(each))
    path = folder / f"{_key(f'{remote.num_bytes} {remote.version}')}{ending}"
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        waiting = f"{address}: another process downloads it, waiting for it"
        with locked(folder / "lock", waiting), operation(f"{address}: downloading it"):
            remove_leftovers(folder, beginning="")
            if not path.exists():
                _check_size(remote, folder, max_gb)
                with open_stream(remote) as stream, atomic_file(path) as file:
                    shutil.copyfileobj(stream, file, 1 << 20)
    return path


def _key(text: str) -> str:
    return sha256_of_bytes(text.encode(errors="surrogatepass"))[:16]


def _check_size(remote: RemoteObject, folder: Path, max_gb: float) -> None:
    """Refuse a file that is too large, or claims to hold other tensors than it can, before it is fetched."""
    gb, room_gb = remote.num_bytes / 1e9, _SHARE_OF_DISK * shutil.disk_usage(folder).free / 1e9
    if gb > max_gb:
        raise ValueError(
            f"{remote}: has {gb:,.2f} GB, and at most {max_gb:g} GB are downloaded; if you trust its server, "
            f"give --max-download-gb {math.ceil(gb)}"
        )
    if gb > room_gb:
        raise ValueError(
            f"{remote}: has {gb:,.2f} GB, and the disk of {folder} has room for {room_gb:,.2f} GB; free some "
            "space, or set XDG_CACHE_HOME to a folder on another disk"
        )
    if remote.name.lower().endswith(".safetensors") and not _has_its_tensors(remote):
        raise ValueError(
            f"{remote}: its first bytes are not those of a safetensors file of {remote.num_bytes:,} bytes; "
            "upload it again, or give another file"
        )


def _has_its_tensors(remote: RemoteObject) -> bool:
    """Return whether the header of a safetensors file tells of as many bytes of tensors as follow it."""
    head = remote.read_persistently(0, min(8, remote.num_bytes))
    start = 8 + int.from_bytes(head, "little")
    if len(head) < 8 or start > min(8 + _MAX_HEADER, remote.num_bytes):
        return False
    text = remote.read_persistently(8, start)
    try:
        header = json.loads(text)
        ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        return bool(start + max(ends, default=0) == remote.num_bytes)
    except (ValueError, RecursionError, AttributeError, KeyError, IndexError, TypeError):
        return False  # it is no such header


def _read_copy(source: str, path: Path) -> WeightsFile:
    """Read a copy of weights from elsewhere; one that is refused is removed, so that it is fetched again."""
    try:
        weights = open_weights(path)
        with input_errors(path):
            return replace(weights, source=source, digest=weights.sha256)
    except UnreadableError:
        raise
    except ValueError as error:
        with output_errors(path):
            path.unlink(missing_ok=True)
        reason = str(error).replace(str(path), source)
        raise ValueError(
            f"{reason}; its copy here was removed, so the same command fetches it again"
        ) from None


def known_input(source: str, backbone: str | None = None) -> Input | None:
    """Return the input that weights record, or timm's of a model of timm; `source` is as for `open_initial`.

    It is None for other networks' files that record none, and for those that are refused with a reason.
    """
    try:
        weights = None if is_timm(source) else open_initial(source)
        if weights and weights.input:
            return weights.input
        name = source if weights is None else backbone
        if name is None or not is_timm(name):
            return None
        from fastpsl.models.timm_backbone import config_of

        return input_of_timm(config_of(name))
    except ValueError:
        return None


def recorded_backbone(source: str, max_download_gb: float) -> str | None:
    """Return the backbone that the weights record, if its name alone makes it.

    It is None for weights that record none, and for those that `begin_with` refuses with a reason.

    Raises:
        ValueError: They are elsewhere and cannot be fetched, or timm has no model of their name.
    """
    if is_timm(source):
        from fastpsl.models.timm_backbone import model_of

        return model_of(source)
    try:
        weights = open_initial(source, max_download_gb)
        weights.check_room()
        name = weights.backbone
    except ValueError:
        if is_remote(source):
            raise  # it comes after a long wait, and a second reader would wait as long again
        return None
    return None if name is None or is_own(name) or is_module(name) else name


def begin_with(
    source: str,
    backbone: Backbone,
    name: str,
    input: Input,
    *,
    partial: bool,
    max_download_gb: float,
) -> dict[str, Any]:
    """Fill a backbone with the weights that `--init` names.

    Args:
        source: The value of --init.
        backbone: The backbone, which is filled in place.
        name: The backbone's name.
        input: What the recipe shows the backbone, which weights without a record are taken to expect.
        partial: Whether to take the tensors that fit alone.
        max_download_gb: The largest file that is downloaded from an address, in 10^9 bytes.

    Returns:
        The record of the weights: path, sha256, kind, backbone, recipe, run_step, input, left_out, recorded
        (whether the file tells its input) and not_taken.

    Raises:
        ValueError: The weights cannot be read, do not fit, or expect other channels.
    """
    weights = open_initial(source, max_download_gb)
    recorded = weights.input
    if recorded is not None and recorded.channels != input.channels and not partial:
        raise ValueError(
            f"--init {source}: its weights read {recorded.channels}, and the recipe shows {input.channels}; "
            f"give weights that were trained on {input.channels}"
        )
    try:
        loaded = weights.load(name, None, backbone, partial=partial, usual=input)
    except MisfitError as error:
        raise ValueError(f"--init: {error}; or --init-partial, which takes the tensors that fit") from None
    record = loaded.record
    return {
        "path": source, **{key: record[key] for key in ("sha256", "kind", "run_step", "input", "left_out")},
        "backbone": str(weights.backbone or name), "recipe": (record["science"] or {}).get("recipe"),
        "recorded": not record["assumed"], "not_taken": record.get("not_taken", []),
    }  # fmt: skip


def lines_of(record: dict[str, Any]) -> list[str]:
    """Return lines about the weights of `begin_with`, and about tensors that were not taken."""
    steps = None if record["run_step"] is None else number_of(record["run_step"], "step")
    whose = ", ".join(filter(None, (record["kind"], record["recipe"], steps)))
    left_out = f"; left out: {', '.join(record['left_out'])}" if record["left_out"] else ""
    told_by = "" if record["recorded"] else TOLD_BY_EXPORT
    input = words_of_input(Input.from_dict(record["input"]), told_by)
    digest = f"sha256 {record['sha256'][:8]}…"
    lines = [f"begins with {record['path']} ({whose}; {digest}), {input}{left_out}"]
    if missed := record["not_taken"]:
        lines.append(f"--init-partial: {number_of(len(missed), 'tensor')} not taken: {first_three(missed)}")
    return lines
