"""Loaders alone on equal footing: ours by decoder and the peers', the same random resized crops, each in its own process."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench import peers
from bench.schema import spread
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.decoders import dali, libffcv


def decoders_here(wanted: Sequence[str], device: Any) -> tuple[list[str], list[dict[str, str]]]:
    """Which of our decoders can run, and the others with the reason. ValueError where none can."""
    found: list[str] = []
    missing: list[dict[str, str]] = []
    for name in wanted:
        reason: str | None = None
        if name == "ffcv":
            reason = libffcv.why_missing()
        elif name == "dali":
            reason = dali.why_missing(device)
        if reason:
            missing.append({"what": f"decoder {name}", "reason": reason})
        else:
            found.append(name)
    if not found:
        raise ValueError(f"--decoders {' '.join(wanted)}: {missing[0]['reason']}")
    return found, missing


def measure_loaders(
    kinds: Sequence[str],
    work: Callable[[str], peers.Work],
    files: Path,
    *,
    views: Sequence[int],
    repeats: int,
    seconds: float,
    deadline: float,
    say: Callable[[str], None],
) -> tuple[list[dict[str, Any]], list[dict[str, str]], list[str]]:
    """(rows, what failed and why, notes), interleaved: all kinds in turn, as many times as there are repeats, every other time backwards.

    kinds: of peers.TITLES, or our decoders. files: an empty folder. deadline: of time.perf_counter(); one repeat is made at least.
    """
    missing: list[dict[str, str]] = []
    notes: list[str] = []
    started: dict[str, peers.Peer] = {}
    if set(kinds) & set(peers.NEED_FILES):
        say("the pictures as files, for DALI's reader and WebDataset")
        first = work(kinds[0])
        num_files = peers.copy_out(first.data, files, num_shards=4 * first.num_threads)
        with Beton(first.data) as data:
            if num_files < data.num_samples:
                notes.append(
                    f"DALI's reader and WebDataset read {num_files:,} of the pictures, taken in even steps"
                )
    rates: dict[tuple[str, int], list[tuple[float, float | None]]] = {}
    try:
        for kind in kinds:
            say(f"{peers.TITLES.get(kind, kind)}: from an empty process to the first batch")
            try:
                started[kind] = peers.Peer(work(kind))
                for num in views:
                    started[kind].samples_per_s(num, 0.0)
                    rates[kind, num] = []
            except RuntimeError as error:
                missing.append(
                    {"what": peers.TITLES.get(kind, f"decoder {kind}"), "reason": f"failed: {error}"}
                )
                rates = {key: values for key, values in rates.items() if key[0] != kind}
        # What is compared stands side by side, as others' load comes in waves.
        keys = sorted(rates, key=lambda key: key[1])
        for number in range(repeats):
            if number and time.perf_counter() > deadline:
                break
            say(f"loaders alone, repeat {number + 1} of {repeats}")
            for key in keys if number % 2 else keys[::-1]:
                peer = started[key[0]]
                rates[key].append((peer.samples_per_s(key[1], seconds), peer.cores_used))
        first_batch_s = {kind: round(peer.first_batch_s, 2) for kind, peer in started.items()}
    finally:
        for peer in started.values():
            peer.close()
    return [_row(*key, values, first_batch_s[key[0]]) for key, values in rates.items()], missing, notes


def _row(
    kind: str, num_views: int, values: list[tuple[float, float | None]], first_batch_s: float
) -> dict[str, Any]:
    cores = [each for _, each in values if each is not None]
    row: dict[str, Any] = {
        "measured": "peer" if kind in peers.TITLES else "loader",
        "decoder": kind,
        "num_views": num_views,
        "stage": None,
        "crop": "RandomResizedCrop",
        "unit": "samples/s",
        "first_batch_s": first_batch_s,
        "cores_used": spread(cores)["median"] if cores else None,
    }
    return row | spread([rate for rate, _ in values])
