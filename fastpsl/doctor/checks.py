"""What is looked at and not timed; a row each."""

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "broken"]


@dataclass(frozen=True)
class Check:
    """name: one word or two, stable; text: what was found; remedy: what to do, empty where nothing need be done."""

    name: str
    state: State
    text: str
    remedy: str = ""
