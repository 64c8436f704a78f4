"""Plans: which blocks run, which learn, at which level, for how long. PSL (psl.txt, section 3.2 and Algorithm 1) is such a plan."""

from collections.abc import Sequence
from dataclasses import dataclass

PLANS = ("psl", "sl", "psl_f", "end_to_end")


@dataclass(frozen=True)
class Stage:
    """One learning stage. Blocks count from 1 (B1); images enter at B1, so blocks 1 to `last_block` run.

    Blocks before `first_learning` run without a graph; blocks after `last_block` do not run at all.
    """

    name: str
    level: int
    first_learning: int
    last_block: int
    epochs: int

    def __str__(self) -> str:
        learning = f"B{self.first_learning}-B{self.last_block}"
        before = f", {self.first_learning - 1} before it frozen" if self.first_learning > 1 else ""
        return f"{self.name}: level G{self.level}, learns {learning}{before}, {self.epochs} epochs"


def make_plan(
    name: str, stage_epochs: Sequence[int], num_blocks: int = 5, blocks_per_stage: int = 3
) -> tuple[Stage, ...]:
    """The stages of plan `name` over a backbone of `num_blocks` blocks.

    psl: stage i learns blocks i … i+blocks_per_stage-1 at level i (S1 = B1-B3, S2 = B2-B4, S3 = B3-B5).
    sl: the same stages, all at the hardest level (section 4.5, "SL").
    psl_f: as psl, but every block that runs learns ("full gradient", section 4.5).
    end_to_end: one stage over all blocks at the hardest level. The paper does not say how long its end-to-end
    baselines ran; here as many epochs as the stages together.
    """
    if name not in PLANS:
        raise ValueError(f"unknown plan {name!r}: allowed are {', '.join(PLANS)}")
    num_stages = num_blocks - blocks_per_stage + 1
    if len(stage_epochs) != num_stages:
        raise ValueError(
            f"{len(stage_epochs)} stage lengths {tuple(stage_epochs)} given: {num_blocks} blocks in stages of "
            f"{blocks_per_stage} make {num_stages} stages, give --stage-epochs {num_stages} numbers"
        )
    if min(stage_epochs) < 1:
        raise ValueError(f"stage lengths {tuple(stage_epochs)}: each must be at least 1 epoch")
    if name == "end_to_end":
        return (Stage("E", num_stages, 1, num_blocks, sum(stage_epochs)),)
    return tuple(
        Stage(
            name=f"S{number}",
            level=num_stages if name == "sl" else number,
            first_learning=1 if name == "psl_f" else number,
            last_block=number + blocks_per_stage - 1,
            epochs=epochs,
        )
        for number, epochs in enumerate(stage_epochs, start=1)
    )
