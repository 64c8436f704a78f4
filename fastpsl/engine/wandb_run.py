"""The run at Weights & Biases that belongs to a run's folder."""

import secrets
from pathlib import Path
from typing import Any

from fastpsl.files.atomic import write_atomically


def start_wandb(folder: Path, config: dict[str, Any]) -> Any:
    """Start a W&B run, or resume the one with the id stored in the folder.

    Raises:
        ValueError: wandb is missing or raises an error.
    """
    try:
        import wandb
    except ImportError as error:
        raise ValueError('--wandb needs wandb: pip install "fastpsl-vision[wandb]"') from error
    id_file = folder / "wandb-id.txt"
    if not id_file.exists():
        write_atomically(id_file, secrets.token_hex(8).encode())
    try:
        return wandb.init(dir=folder, id=id_file.read_text(), name=folder.name, resume="allow", config=config)
    except wandb.Error as error:
        raise ValueError(f"--wandb: {error}; log in (wandb login), or set WANDB_MODE=offline") from error
