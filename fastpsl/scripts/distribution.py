"""What is installed as fastpsl: our distribution, and traces of another one that uses the same folder."""

import platform
from importlib import metadata
from pathlib import Path

import fastpsl
from fastpsl.console.installed import NAME, reinstall

# A parser of public suffix lists, which also installs a package called fastpsl.
OTHER = "fastpsl"
REMEDY = f"pip uninstall {OTHER}, then {reinstall()}"


def version() -> str:
    """Return our version; "unknown" if another distribution has overwritten fastpsl/__init__.py."""
    return str(getattr(fastpsl, "__version__", "unknown"))


def version_line() -> str:
    """Return our version, Python's and torch's as one line, without an import of torch."""
    try:
        torch = metadata.version("torch")
    except metadata.PackageNotFoundError:
        torch = "not installed"
    return f"{NAME} {version()}, Python {platform.python_version()}, torch {torch}"


def stranger() -> str | None:
    """Return one line about another distribution whose files lie in the folder of ours; None without one."""
    for other in metadata.distributions(name=OTHER):
        # Without RECORD it is a checkout's .egg-info, which lists sources and not what is installed.
        is_installed = other.read_text("RECORD") is not None
        if is_installed and any(file.parts[0] == "fastpsl" for file in other.files or ()):
            return f"{OTHER} {other.version} is another project, and its files lie among those of {NAME}"
    folder = Path(str(fastpsl.__file__)).parent
    compiled = sorted(file.name for pattern in ("*.so", "*.pyd") for file in folder.glob(pattern))
    if compiled:
        return f"{folder / compiled[0]} is not of {NAME}: another project, {OTHER}, was installed over it"
    return None
