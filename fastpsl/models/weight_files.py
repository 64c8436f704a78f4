"""Files of weights: reading torch's formats and safetensors without running code, and writing safetensors."""

import hashlib
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from fastpsl.files.paths import WEIGHTS, require_existing
from fastpsl.files.untrusted import check_zip

_CHUNK = 1 << 22
_NO_SAFETENSORS = 'safetensors is not installed: pip install "fastpsl-vision[export]"'


def sha256_of_file(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_of_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def read_weights(path: Path) -> dict[str, Any]:
    """Read a file of weights onto the CPU.

    Raises:
        ValueError: The file is missing, damaged, or not a dict.
    """
    require_existing(path, WEIGHTS)
    if path.suffix == ".safetensors":
        return dict(_read_safetensors(path)[0])
    try:
        if zipfile.is_zipfile(path):
            check_zip(path, path.stat().st_size)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        what = _foreign_object(error)
        if not what:
            raise ValueError(f"{path} is no readable file of weights: fetch or copy it again") from None
        raise ValueError(
            f"{path} holds objects besides tensors ({what}), which could run code and are not read: with the "
            "project that wrote it, save its tensors alone, torch.save(model.state_dict(), 'weights.pt'), "
            "and give that file"
        ) from None
    except Exception as error:  # noqa: BLE001  (zipfile, pickle and torch raise different errors for damage)
        # torch's message is about its archive reader, though the usual cause is a truncated file.
        reason = (
            str(error).split("\n")[0]
            if isinstance(error, zipfile.BadZipFile) or str(error).startswith("it would take")
            else "cut short or damaged"
        )
        raise ValueError(
            f"{path} is no readable file of weights ({reason}): fetch or copy it again"
        ) from None
    if isinstance(state, dict):
        return state
    raise ValueError(
        f"{path} holds a {type(state).__name__}, not a dict of tensors: save a model's state_dict()"
    )


def read_weights_sidecar(path: Path) -> dict[str, Any] | None:
    """Read the record that `fastpsl export` wrote in the file's metadata or in PATH.json.

    Returns:
        The record, or None if there is none or PATH.json belongs to another file.

    Raises:
        ValueError: The record cannot be read.
    """
    if path.suffix == ".safetensors":
        text = _read_safetensors(path)[1].get("fastpsl")
        if text is None:
            return None
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} does not say what it holds ({_why(error)}): export it again") from None
        if not isinstance(record, dict):
            raise ValueError(
                f"{path} does not say what it holds (a {type(record).__name__}, not a dict): export it again"
            )
        return record
    json_path = path.with_name(f"{path.name}.json")
    try:
        record = json.loads(json_path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{json_path} cannot be read ({_why(error)}): export it again, or remove it"
        ) from None
    if not isinstance(record, dict) or record.get("sha256") != sha256_of_file(path):
        return None
    return record


def _why(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())[:120]


def _foreign_object(error: Exception) -> str:
    """Return the name of the object that torch refused to make, or "" if the file is damaged."""
    reason = " ".join(str(error).split())
    return (reason.partition("GLOBAL ")[2].split(" ")[0] or "something") if "GLOBAL " in reason else ""


def safetensors_bytes(tensors: dict[str, torch.Tensor], told: dict[str, Any]) -> bytes:
    """Serialise tensors as a safetensors file.

    Args:
        tensors: Contiguous tensors on the CPU.
        told: The record for the file's metadata, which stores it as JSON.

    Raises:
        ValueError: safetensors is not installed.
    """
    try:
        from safetensors.torch import save
    except ImportError as error:
        raise ValueError(_NO_SAFETENSORS) from error
    # timm and transformers look for "format".
    return save(tensors, metadata={"format": "pt", "fastpsl": json.dumps(told)})


def _read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ValueError(f"{path}: {_NO_SAFETENSORS}") from error
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is no readable safetensors file ({error}): fetch or copy it again"
        ) from None
