"""bench/kernels.py: the bytes that are counted, and that peers do the work they are timed for."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from bench import kernels
from bench.kernel_chains import PEERS, Setting, crop_chains, view_chain, views_of_chains
from fastpsl.kernels.colour import Grey
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.kernels.filters import SOBEL_XY_STD, GaussianBlur, Sobel, SobelXY
from fastpsl.kernels.fused_cpu import photometric as numba_photometric
from fastpsl.kernels.geometry import AllTurns, Flip
from fastpsl.pipelines.views import ViewSpec

SETTING = Setting(torch.device("cpu"), torch.float32, batch_size=2, size_px=32, num_inputs=2)


def test_bytes_that_must_be_moved() -> None:
    views = views_of_chains(32)
    num_bytes = {
        name: view_chain(name, views[name], SETTING).num_bytes
        for name in ("jigsaw", "rotation, all 8", "lightness", "UIC, strong")
    }
    # Three cells of 11 px per side, with tiles of 9 px: only the tiles' pixels are read.
    assert num_bytes["jigsaw"] == 2 * 9 * 3 * 9 * 9 * (1 + 4)
    assert num_bytes["rotation, all 8"] == 2 * 2 * 3 * 32 * 32 * (1 + 4 * 4)
    assert num_bytes["lightness"] == 2 * 32 * 32 * (3 + 4)
    assert num_bytes["UIC, strong"] == 2 * 32 * 32 * (3 + 2 * 4)
    half = view_chain("grey", views["grey"], replace(SETTING, dtype=torch.float16))
    assert half.num_bytes == 2 * 3 * 32 * 32 * (1 + 2)
    written_bytes = 2 * 3 * 32 * 32
    for crop in crop_chains(SETTING):
        assert written_bytes < crop.num_bytes < written_bytes + 2 * 3 * 54 * 71  # images of 54 x 71 px


OPS: list[tuple[Any, ...]] = [
    (Flip(1.0),), (Grey(1.0),), (GaussianBlur(5, (1.0, 1.0), p=1),), (Sobel(1.0),), (AllTurns(4),),
    (SobelXY(),),
]  # fmt: skip
ONLY_KORNIA = Sobel | AllTurns | SobelXY


@pytest.mark.parametrize("ops", OPS, ids=lambda ops: type(ops[0]).__name__)
def test_peers_do_the_same_where_nothing_is_random(ops: tuple[Any, ...]) -> None:
    view = ViewSpec(RandomResizedCrop(32))
    gradients = SobelXY() in ops
    views = (
        replace(view, ops=ops, mean=(0.0,) * 2, std=(SOBEL_XY_STD,) * 2)
        if gradients
        else replace(view, ops=ops),
    )
    chain = view_chain("any", views, SETTING)
    expected = chain.paths["kornia"](1)
    peers = [peer for peer in PEERS if peer in chain.paths]
    assert peers == (list(PEERS) if not isinstance(ops[0], ONLY_KORNIA) else ["kornia_modules"])
    for peer in peers:
        result = chain.paths[peer](1)
        assert result.shape == expected.shape and result.is_contiguous(memory_format=torch.channels_last)
        # torchvision rounds to bytes; Kornia's Sobel adds 1e-6 under the root, and its rotations interpolate.
        assert (result - expected).abs().max() < 0.03, peer


def test_a_fused_kernel_that_is_wrong_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba_photometric, "run", lambda *arguments: arguments[-1].zero_())
    options = kernels.Options(chains=("grey",), peers=False)
    result = kernels.measure(options, SETTING, 1, lambda line: None)
    assert [row["path"] for row in result["rows"]] == ["-", "kornia"]
    (broken,) = (part for part in result["not_measured"] if part["what"] == "grey, fused")
    assert "differ from the operations one by one by" in broken["reason"]
    assert [part["reason"] for part in result["not_measured"]].count("left out by --no-peers") == len(PEERS)
