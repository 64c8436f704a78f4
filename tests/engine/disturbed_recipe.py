"""Run the recipe of nearest_key_recipe.py so that the number of ranks hardly changes the weights.

BatchNorm has fixed statistics. If HANG_AT is set, rank 0 stops torchrun in that step, and hangs.
"""

import ctypes
import os
import signal
from dataclasses import replace
from typing import Any

from typing_extensions import override

from fastpsl.engine import last_step
from fastpsl.engine.distributed import StopSignal
from fastpsl.engine.experiment import Experiment
from fastpsl.pipelines.embedded.draw_sample import NUM_TRAIN
from fastpsl.scripts.launch import launch
from tests.tasks.nearest_key_recipe import RECIPE as NEAREST_KEY
from tests.tasks.nearest_key_recipe import NearestKey, Options, build


class Hanging(NearestKey):
    num_steps = 0

    @override
    def after_step(self, extras: Any) -> None:
        super().after_step(extras)  # type: ignore[no-untyped-call]
        self.num_steps += 1
        if os.environ["RANK"] == "0" and self.num_steps == int(os.environ.get("HANG_AT", "0")):
            os.kill(os.getppid(), signal.SIGTERM)
            hang()


def hang() -> None:
    """Block in a C call, during which Python's signal handlers do not run."""
    library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(128)
    library.pthread_mutex_init(mutex, None)
    for _ in range(2):
        library.pthread_mutex_lock(mutex)


def build_hanging(options: Options) -> Experiment:
    return replace(build(options), task=Hanging(NUM_TRAIN), batchnorm="eval")  # type: ignore[no-untyped-call]


RECIPE = replace(NEAREST_KEY, build=build_hanging)


if __name__ == "__main__":
    if "HANG_AT" in os.environ:
        last_step.LONG_STEP_S = StopSignal.ask_every_s = 0.0  # every step counts as long
        last_step.LEAVE_AFTER_S = 1.0
    launch(RECIPE)
