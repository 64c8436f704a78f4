"""The script DECODER DATA COUNT SEED, which opens a loader repeatedly and leaves it early in every way.

It prints lines of JSON: openings so far, threads, descriptors, resident bytes.
"""

import gc
import json
import os
import random
import sys
from contextlib import closing

from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.kernels.flip import Flip
from fastpsl.pipelines.datasets.open import open_data
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.views import ViewSpec
from tests.faults.trend import held_by

NUM_LINES = 200


def open_and_leave(decoder: str, data: str, epoch: int, chance: random.Random) -> None:
    """Take 0 to 3 of 6 batches, then close or drop the iterator, or raise, and close the loader."""
    view = ViewSpec(RandomResizedCrop(32), (Flip(),))
    way = chance.choice(("closed", "dropped", "raised", "never begun"))
    try:
        with (
            closing(open_data(data)) as opened,
            Loader(opened, [view, view], batch_size_per_rank=8, decoder=decoder, num_threads=2) as loader,
        ):
            batches = loader.epoch(epoch)
            if way == "never begun":
                return
            for _ in range(chance.randrange(4)):
                next(batches)
            if way == "closed":
                batches.close()  # type: ignore[attr-defined]
            if way == "raised":
                raise KeyError(way)
    except KeyError as error:
        assert error.args == ("raised",)


def main() -> None:
    decoder, data = sys.argv[1:3]
    count, chance = int(sys.argv[3]), random.Random(sys.argv[4])
    every = max(count // NUM_LINES, 1)
    for number in range(1, count + 1):
        open_and_leave(decoder, data, number, chance)
        if number % every == 0:
            gc.collect()
            print(json.dumps([number, *held_by(os.getpid())]), flush=True)


if __name__ == "__main__":
    main()
