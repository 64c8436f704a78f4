"""What `fastpsl doctor` can be asked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Doctor:
    """Time a recipe's parts on this machine, name the bottleneck, and say what to change and what that gains.

    fastpsl doctor [its own options] [recipes/NAME.py OPTIONS]: OPTIONS are given as to the recipe itself. Reads, decodes, copies,
    augments and steps, each alone and all together; looks at driver, libraries, limits, disk and data. Trains nothing and
    makes no run. Exit 0: no stage waits (both/synthetic >= .95); 1: one does, or noise hides it; 2: something is broken. See docs/doctor.md.
    """

    recipe: tyro.conf.Positional[Annotated[Path | None, tyro.conf.arg(metavar="RECIPE.py")]] = None
    """The recipe's path; everything behind it is the recipe's. [recipes/jigsaw_r50.py of this checkout, with a ResNet-18]"""
    json: bool = False
    """One JSON object on stdout instead of the screen."""
    stages: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="NAME...")] = None
    """Of the recipe's plan, such as S1 S3. [all]"""
    seconds: Annotated[float | None, tyro.conf.arg(metavar="NUM")] = None
    """Length of a timed region, of which there are many; one step at least. [3 on CUDA, else 1; 0.3 without --data]"""
    nproc_per_node: Annotated[int | None, tyro.conf.arg(metavar="NUM")] = None
    """Ranks of this machine, as for torchrun: one rank is measured, with its share of batch and cores. [its GPUs, or 1]"""
