"""Data that fail amid training, on one rank or on all: no rank begins the step that has none, and what the last one left is saved."""

from collections.abc import Callable, Iterator

from fastpsl.engine.distributed import World, of_all_ranks, on_any_rank
from fastpsl.pipelines.batch import Batch


def next_on_all_ranks(batches: Iterator[Batch], world: World, save: Callable[[], str | None]) -> Batch:
    """The next batch. Called by every rank before a step.

    Args:
        save: called by every rank where the data failed on one: saves what the last step left, and says where a resume begins; None
            where nothing was saved.

    Raises:
        ValueError, OSError: the data failed, on this rank or on another.
    """
    failure: ValueError | OSError | None = None
    try:
        batch = next(batches)
    except (ValueError, OSError) as error:
        failure = error
    if not on_any_rank(world, failure is not None):
        return batch
    texts = of_all_ranks(world, None if failure is None else str(failure))
    others = (f"{text} (rank {rank})" for rank, text in enumerate(texts) if text is not None)
    told = next(others) if failure is None else str(failure)
    where = save()
    if where is not None:
        told += f"; a checkpoint was written, and the same command goes on from {where}"
    elif failure is not None:
        raise failure
    raise ValueError(told) from failure
