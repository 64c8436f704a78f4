"""Measurements of loaders alone, in turn, each in its own process.

ffcv sets thread counts when it is imported, and DataLoader forks, so that neither can share a process with
another loader. bench/peers/ holds the loaders.
"""

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.peers import TITLES, Work, reads
from bench.peers.peer import copy_out
from bench.program import in_turn
from bench.schema import spread

_ROOT = Path(__file__).resolve().parents[1]
_TIMEOUT_S = 300.0  # compilation included; ffcv's Loader can hang for ever


@dataclass
class Rates:
    """The rates of one loader with one number of views, one value per repeat each."""

    name: str
    work: Work
    num_views: int
    first_batch_s: float
    values: list[float] = field(default_factory=list)  # samples/s
    cores: list[float] = field(default_factory=list)  # CPU seconds per second of all its processes
    faults: list[float] = field(default_factory=list)  # minor page faults per sample of all its processes
    highest: list[int] = field(default_factory=list)  # reading of `watch`, if it has some

    def row(self, measured: str, **labels: Any) -> dict[str, Any]:
        """Return a row of a result."""
        return {
            "measured": measured, "decoder": self.work.kind, "num_views": self.num_views, **labels,
            "unit": "samples/s",
            "first_batch_s": round(self.first_batch_s, 2),
            "cores_used": round(spread(self.cores)["median"], 3),
            **spread(self.values),
        }  # fmt: skip

    @property
    def cpu_ms(self) -> list[float]:
        """The CPU milliseconds of a sample, one value per repeat: other load changes them less than rates."""
        return [1e3 * cores / rate for cores, rate in zip(self.cores, self.values, strict=True)]

    @property
    def measured(self) -> str:
        """ "loader" for ours, else "peer"."""
        return "peer" if self.work.kind in TITLES else "loader"


def measure(
    works: Mapping[str, Work],
    views: Sequence[int],
    *,
    repeats: int,
    seconds: float,
    deadline: float,
    log: Callable[[str], None],
    warms_up: bool = True,
    watch: Callable[[], AbstractContextManager[list[int]]] | None = None,
) -> tuple[list[Rates], list[dict[str, str]], list[str]]:
    """Measure all loaders in turn, every other time in reverse order; return rates, failures and notes.

    All works have the same data and the same folder for files. Readings of `watch` are of each timed region.
    """
    missing, notes = [], []
    readers = [name for name, work in works.items() if reads(work) != "dataset file"]
    if readers and not (Path(works[readers[0]].files) / "images").exists():
        log(f"the images as files, for {' and '.join(readers)}")
        first = works[readers[0]]
        num_files, num_samples = copy_out(first.data, Path(first.files), num_shards=4 * first.num_threads)
        if num_files < num_samples:
            notes.append(f"{' and '.join(readers)}: {num_files:,} of the images, taken in even steps")
    running: dict[str, Process] = {}
    rates: list[Rates] = []
    try:
        for name, work in works.items():
            log(f"{name}: from an empty process to the first batch")
            try:
                running[name] = process = Process(work, views[0])
                for num in views if warms_up else ():
                    process.measure(num, 0.0)
            except RuntimeError as error:
                missing.append({"what": name, "reason": f"failed: {error}"})
            else:
                rates += [Rates(name, work, num, process.first_batch_s) for num in views]
        # Loaders that are compared run one after another, because load from other work comes in waves.
        rates.sort(key=lambda each: each.num_views)
        for each in in_turn(rates[::-1], repeats, log, "all in turn, ", deadline):
            with watch() if watch else nullcontext([]) as readings:
                answer = running[each.name].measure(each.num_views, seconds)
            each.highest += [max(readings)] if readings else []
            for values, value in zip((each.values, each.cores, each.faults), answer, strict=True):
                values.append(value)
    finally:
        for process in running.values():
            process.close()
    return rates, missing, notes


class Process:
    """A loader in its own process, which begins with a number of views.

    Its methods raise RuntimeError with the process's last line of stderr if it ends or hangs.
    """

    def __init__(self, work: Work, num_views: int = 1) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        start = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.peers.serve", json.dumps(asdict(work)), str(num_views)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, bufsize=0,
            env=os.environ | {"PYTHONPATH": f"{_ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
        )  # fmt: skip
        self._answer()
        self.first_batch_s = time.perf_counter() - start

    def measure(self, num_views: int, seconds: float) -> tuple[float, float, float]:
        """Return samples/s, cores used and page faults a sample, of `seconds` at least."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{json.dumps([num_views, seconds])}\n".encode())
        rate, cores, faults = json.loads(self._answer())
        return rate, cores, faults

    def _answer(self) -> bytes:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], _TIMEOUT_S)
        line = self._process.stdout.readline() if ready else b""
        if not line:
            self._end()
            self._errors.seek(0)
            lines = self._errors.read().decode(errors="replace").splitlines()
            words = [text for line in lines if (text := line.strip(" |+-"))]  # frames are of error groups
            self._errors.close()
            raise RuntimeError(words[-1] if ready and words else f"no batch within {_TIMEOUT_S:g} s")
        return line

    def close(self) -> None:
        self._end()
        self._errors.close()

    def _end(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()  # tells the process to end
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
