"""Test the jigsaw task against plain loops over permuted pixels, one label at a time."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastpsl.kernels.crops import ShorterSideCrop
from fastpsl.kernels.geometry import Flip
from fastpsl.kernels.jigsaw import JigsawTiles
from fastpsl.kernels.permutations import permutation_set
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.tasks.jigsaw import Jigsaw, JigsawHead

NUM_TILES, TILE_PX = 9, 8


def small_task(per_image: int) -> Jigsaw:
    permutations = permutation_set(9, [6, 12, 24]).permutations
    return Jigsaw(
        permutations,
        (6, 12, 24),
        shorter_px=40,
        cell_px=12,
        tile_px=TILE_PX,
        permutations_per_image=per_image,
        embedding_width=5,
    )


def small_blocks() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 7, 3, bias=False), nn.BatchNorm2d(7), nn.ReLU())


def batch_of(labels: Tensor, indices: list[int] | None = None) -> Batch:
    size = len(labels)
    draws: tuple[dict[str, Tensor], ...] = ({}, {"permutation": labels})
    chosen = torch.tensor(indices if indices is not None else range(size))
    ops = [view.ops for view in small_task(1).views(1)]
    return Batch(images=[], draws=[draws], indices=chosen, labels=torch.zeros(size), epoch=0, step=0, ops=ops)


def loss_of_permuted_pixels(
    task: Jigsaw, blocks: nn.Module, head: JigsawHead, tiles: Tensor, labels: Tensor
) -> Tensor:
    """Follow section 3.3.1: shuffle each image's tiles, then the network, then cross-entropy."""
    puzzles = []
    for image in range(len(labels)):
        for position in range(NUM_TILES):
            puzzles.append(tiles[image * NUM_TILES + task.permutations[labels[image, 0], position]])
    features = blocks(torch.stack(puzzles)).mean((2, 3))
    embeddings = head.embed(features).reshape(len(labels), -1)
    return F.cross_entropy(head.classify(embeddings), labels[:, 0])


@pytest.mark.parametrize("batch_size", [2, 5])
def test_permuting_embeddings_is_permuting_pixels(batch_size: int) -> None:
    task = small_task(1)
    tiles = torch.randn(batch_size * NUM_TILES, 3, TILE_PX, TILE_PX)
    labels = torch.randint(0, 12, (batch_size, 1))
    results = []
    for permute_pixels in (True, False):
        torch.manual_seed(0)
        blocks, head = small_blocks(), task.head(2, 7)
        assert isinstance(head, JigsawHead)
        if permute_pixels:
            loss = loss_of_permuted_pixels(task, blocks, head, tiles, labels)
        else:
            loss, _ = task.loss(blocks, head, [tiles], batch_of(labels))  # type: ignore[arg-type]
        loss.backward()
        gradients = [p.grad for module in (blocks, head) for p in module.parameters()]
        results.append((loss.detach(), gradients))
    assert torch.allclose(results[0][0], results[1][0], atol=1e-5)
    for pixels, embeddings in zip(results[0][1], results[1][1], strict=True):
        assert pixels is not None and embeddings is not None
        assert torch.allclose(pixels, embeddings, atol=1e-5)


def test_k_permutations_of_an_image_are_the_mean_of_k_passes() -> None:
    task = small_task(4)
    torch.manual_seed(0)
    blocks, head = small_blocks(), task.head(3, 7)
    tiles = torch.randn(3 * NUM_TILES, 3, TILE_PX, TILE_PX)
    labels = torch.randint(0, 24, (3, 4))
    together, metrics = task.loss(blocks, head, [tiles], batch_of(labels))  # type: ignore[arg-type]
    singly = [task.loss(blocks, head, [tiles], batch_of(labels[:, [k]]))[0] for k in range(4)]  # type: ignore[arg-type]
    assert torch.allclose(together, torch.stack(singly).mean(), atol=1e-5)
    assert metrics["accuracy"][1] == 12


def test_padded_samples_count_for_nothing() -> None:
    task = small_task(1)
    torch.manual_seed(0)
    blocks, head = small_blocks().eval(), task.head(1, 7).eval()
    tiles = torch.randn(3 * NUM_TILES, 3, TILE_PX, TILE_PX)
    labels = torch.tensor([[1], [5], [3]])
    padded, metrics = task.loss(blocks, head, [tiles], batch_of(labels, [7, -1, 9]))  # type: ignore[arg-type]
    keep = torch.cat([tiles[:9], tiles[18:]])
    alone, _ = task.loss(blocks, head, [keep], batch_of(labels[[0, 2]]))  # type: ignore[arg-type]
    assert torch.allclose(padded, alone, atol=1e-6)
    assert metrics["accuracy"][1] == metrics["loss"][1] == 2


def test_levels_are_the_papers() -> None:
    """Table 1: 500 ⊂ 1,000 ⊂ 2,000. Section 3.3.1: window 225, cells 75, tiles 64."""
    counts = (500, 1000, 2000)
    task = Jigsaw(
        permutation_set(9, counts).permutations,
        counts,
        shorter_px=256,
        cell_px=75,
        tile_px=64,
        permutations_per_image=1,
        embedding_width=1000,
    )
    for level, count in enumerate(counts, start=1):
        (view,) = task.views(level)
        assert view.crop == ShorterSideCrop(256, 225)
        assert view.ops == (Flip(0.5), JigsawTiles(3, 75, 64, count, 1))
        head = task.head(level, 512)
        assert isinstance(head, JigsawHead)
        assert head.classify.weight.shape == (count, 9000)
        assert np.array_equal(head.permutations.numpy(), task.permutations.numpy()[:count])
        assert task.chance(level) == 1 / count


def test_contact_sheet_shows_the_window_and_the_puzzle() -> None:
    task = small_task(1)
    (view,) = task.views(1)
    shades = torch.arange(NUM_TILES).float().view(9, 1, 1, 1).expand(9, 3, TILE_PX, TILE_PX) / 10
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (view.mean, view.std))
    label = 4
    sheet = task.contact_sheet([(shades - mean) / std], batch_of(torch.tensor([[label, 1]])))
    step = TILE_PX + 2
    assert sheet.shape == (1, 3, 3 * step, 6 * step + 4)
    middles = sheet[0, 0, step // 2 :: step]
    left = middles[:, step // 2 : 3 * step : step].flatten() * 10
    right = middles[:, 3 * step + 4 + step // 2 :: step].flatten() * 10
    assert torch.allclose(left, torch.arange(9.0), atol=1e-3)
    assert torch.allclose(right, task.permutations[label].float(), atol=1e-3)
    assert task.captions(batch_of(torch.tensor([[label, 1], [0, 2]]))) == ["permutation 4", "permutation 0"]


def test_impossible_levels_are_refused() -> None:
    permutations = permutation_set(9, [6, 12, 24]).permutations
    sizes = {
        "shorter_px": 40,
        "cell_px": 12,
        "tile_px": TILE_PX,
        "permutations_per_image": 1,
        "embedding_width": 5,
    }
    for counts in ((12, 6, 24), (6, 12, 25), (1, 2, 3)):
        with pytest.raises(ValueError, match="give --counts that rise"):
            Jigsaw(permutations, counts, **sizes)
    with pytest.raises(ValueError, match="grid"):
        Jigsaw(permutations, (6,), grid=2, **sizes)
