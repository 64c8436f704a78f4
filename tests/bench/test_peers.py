"""The parts of the peers that need no process of their own: boxes, filters, decoders' names, CPU time."""

import os
import random
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from bench.cpu_time import tree_cpu_s
from bench.peers import ours
from bench.peers.spdl import filter_graph, random_box
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.decoders import choose, libffcv
from fastpsl.pipelines.sample.betons import sample_paths

CPU = torch.device("cpu")


def test_spdls_boxes_are_torchvisions() -> None:
    """Areas and ratios have torchvision's ranges and, over many, its means; a strip gets the middle."""
    from torchvision.transforms import RandomResizedCrop

    random.seed(0)
    torch.manual_seed(0)
    image = torch.zeros(3, 90, 120)
    ours_ = np.array([random_box(90, 120) for _ in range(4000)], float)
    theirs = np.array([RandomResizedCrop.get_params(image, [0.08, 1], [3 / 4, 4 / 3]) for _ in range(4000)])
    assert (ours_[:, :2] >= 0).all()
    assert (ours_[:, 0] + ours_[:, 2] <= 90).all() and (ours_[:, 1] + ours_[:, 3] <= 120).all()
    assert np.allclose(ours_.mean(0), theirs.mean(0), atol=3.0)
    assert np.allclose(ours_.std(0), theirs.std(0), atol=3.0)
    assert random_box(4, 400) == (0, 197, 4, 5)


def test_ffmpegs_filters_cut_and_stack_the_boxes() -> None:
    one = "crop=w=30:h=20:x=2:y=1,scale=w=8:h=8:flags=area"
    other = "crop=w=5:h=6:x=4:y=3,scale=w=8:h=8:flags=area"
    assert filter_graph([(1, 2, 20, 30)], 8) == f"{one},format=pix_fmts=rgb24"
    assert filter_graph([(1, 2, 20, 30), (3, 4, 6, 5)], 8) == (
        f"split=2[in0][in1];[in0]{one}[out0];[in1]{other}[out1];"
        "[out0][out1]vstack=inputs=2,format=pix_fmts=rgb24"
    )


def test_decoders_are_those_of_the_package_with_autos_first(monkeypatch: pytest.MonkeyPatch) -> None:
    with Beton(sample_paths().train) as data:
        first, _ = choose.choose_decoder("auto", data, CPU)
        names = ours.decoder_names(data, CPU)
        assert names[0] == first and set(names) == set(choose.NAMES) - {"resident"}
        monkeypatch.setattr(choose, "NAMES", ("turbo", *choose.NAMES))
        monkeypatch.setattr(choose, "choose_decoder", lambda *_: ("turbo", "a test's"))
        assert ours.decoder_names(data, CPU)[:2] == ("turbo", "ffcv")
        assert ours.why_no_decoder("turbo", data, CPU) is None


def test_a_decoder_that_is_missing_or_unknown_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libffcv, "why_missing", lambda: "it is on holiday")
    with Beton(sample_paths().train) as data:
        assert "it is on holiday" in (ours.why_no_decoder("ffcv", data, CPU) or "")
        assert ours.why_no_decoder("torchvision", data, CPU) is None
        with pytest.raises(ValueError, match="--decoders nobody: there are"):
            ours.why_no_decoder("nobody", data, CPU)


def test_cpu_time_is_that_of_the_whole_tree() -> None:
    """A child's work counts while it lives and after it has ended, and a sleeper's does not grow."""
    busy = "import time\nwhile time.process_time() < 0.5: pass\nprint('done', flush=True)\ninput()"
    before = tree_cpu_s(os.getpid())
    child = subprocess.Popen(
        [sys.executable, "-c", busy], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None and child.stdout.readline() == "done\n"
    alive = tree_cpu_s(os.getpid()) - before
    assert alive >= 0.48  # ticks of 10 ms
    assert tree_cpu_s(child.pid) >= 0.48
    child.communicate("\n")
    assert tree_cpu_s(os.getpid()) - before >= alive - 0.05
    started = time.process_time()
    assert tree_cpu_s(os.getpid()) >= started
