"""How this installation came here, and the commands of pip that add to it or renew it."""

import json
import shlex
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlsplit

NAME = "fastpsl-vision"
_CHECKOUT = Path(__file__).resolve().parents[2]


def install(extra: str) -> str:
    """Return the command that installs an extra: from where we were installed, or the packages themselves."""
    source = _source(f"[{extra}]")
    if source is None:
        needed = metadata.requires(NAME) or []
        source = shlex.join(each.split(";")[0] for each in needed if f'extra == "{extra}"' in each)
    return f"pip install {source}"


def reinstall() -> str:
    """Return the command that installs us again, and nothing else."""
    return f"pip install --force-reinstall --no-deps {_source('') or NAME}"


def _source(extras: str) -> str | None:
    """Return the folder or repository that pip has recorded (PEP 610), with extras; None for an index."""
    try:
        record = metadata.distribution(NAME).read_text("direct_url.json")
    except metadata.PackageNotFoundError:  # a checkout that is run from its folder
        return shlex.quote(f"{_CHECKOUT}{extras}")
    origin = json.loads(record or "{}")
    if "vcs_info" in origin:
        vcs = origin["vcs_info"]
        revision = f"@{vcs['requested_revision']}" if "requested_revision" in vcs else ""
        return shlex.quote(f"{NAME}{extras} @ {vcs['vcs']}+{origin['url']}{revision}")
    if "dir_info" not in origin:
        return None
    folder = Path(unquote(urlsplit(origin["url"]).path))
    if not (folder / "pyproject.toml").is_file():  # it was removed after the installation
        return None
    return "-e " * origin["dir_info"].get("editable", False) + shlex.quote(f"{folder}{extras}")
