"""What only a GPU can show: the batches on it are those of the CPU."""

from pathlib import Path

import pytest
import torch

from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.kernels.flip import Flip
from fastpsl.pipelines.batch import Batch
from fastpsl.pipelines.beton import Beton
from fastpsl.pipelines.decoders import dali
from fastpsl.pipelines.loader import Loader
from fastpsl.pipelines.views import ViewSpec
from tests.pipelines.photos import DECODERS, RAW, photo, photo_samples, write

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

NUM = 40
VIEWS = [ViewSpec(RandomResizedCrop(32), (Flip(),)), ViewSpec(RandomResizedCrop(48))]


@pytest.mark.parametrize("decoder", [*DECODERS, "resident"])
@pytest.mark.parametrize("train", [True, False])
def test_batches_are_those_of_the_cpu(tmp_path: Path, decoder: str, train: bool) -> None:
    if decoder == "dali" and dali.why_missing(torch.device("cuda")):
        pytest.skip(dali.why_missing(torch.device("cuda")))
    samples = photo_samples(NUM)
    if decoder == "resident":
        samples = [(photo(i, 60, 70).tobytes(), 60, 70, RAW) for i in range(NUM)]

    def batches(data: Beton, device: str) -> list[Batch]:
        options = {"batch_size": 12, "train": train, "decoder": decoder}
        with Loader(data, VIEWS, device=device, **options) as loader:  # type: ignore[arg-type]
            found = list(loader.epoch(0))
            assert len(list(loader.epoch(1, first_step=1))) == len(found) - 1
        return found

    with Beton(write(tmp_path / "x.beton", samples)) as data:
        for ours, expected in zip(batches(data, "cuda"), batches(data, "cpu"), strict=True):
            assert all(tensor.device.type == "cuda" for tensor in ours.tensors())
            assert torch.equal(ours.indices.cpu(), expected.indices)
            assert torch.equal(ours.labels.cpu(), expected.labels)
            for view, other in zip(ours.images, expected.images, strict=True):
                assert view.is_contiguous(memory_format=torch.channels_last)
                difference = (view.cpu().int() - other.int()).abs().float()
                # The CPU's own pixels, but where the GPU decodes or multiplies.
                assert difference.mean() < {"dali": 2.0, "resident": 0.01}.get(decoder, 1e-9)
            for draws, others in zip(ours.draws, expected.draws, strict=True):
                for draw, same in zip(draws, others, strict=True):
                    assert all(torch.equal(draw[key].cpu(), same[key]) for key in draw)
