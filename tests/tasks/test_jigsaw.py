"""Jigsaw: views, head, loss and files of permutations, compared with plain loops."""

import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastpsl.kernels.permutations import permutation_set
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.tasks import jigsaw
from fastpsl.tasks.jigsaw import Jigsaw, JigsawHead, permutations_digest, read_permutations

NUM_TILES, TILE_PX = 9, 8


def small_task(per_image: int) -> Jigsaw:
    permutations = permutation_set(9, [6, 12, 24]).permutations
    return Jigsaw(
        permutations, (6, 12, 24), shorter_px=40, cell_px=12, tile_px=TILE_PX,
        permutations_per_image=per_image, embedding_width=5,
    )  # fmt: skip


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
        "shorter_px": 40, "cell_px": 12, "tile_px": TILE_PX, "permutations_per_image": 1,
        "embedding_width": 5,
    }  # fmt: skip
    for counts in ((12, 6, 24), (6, 12, 25), (1, 2, 3)):
        with pytest.raises(ValueError, match="give --counts that rise"):
            Jigsaw(permutations, counts, **sizes)
    with pytest.raises(ValueError, match="grid"):
        Jigsaw(permutations, (6,), grid=2, **sizes)


ROWS = np.array([[2, 0, 1], [0, 1, 2], [1, 2, 0], [1, 0, 2]])


def test_npy_counted_from_0_or_1(tmp_path: Path) -> None:
    for array in (ROWS.astype(np.int32), ROWS.astype(np.uint8), ROWS + 1):  # bbrattoli's files count from 1
        np.save(tmp_path / "p.npy", array)
        rows = read_permutations(tmp_path / "p.npy")
        assert (rows == ROWS).all() and rows.dtype == np.int64


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (np.array([[0, 1, 1]]), "row 0 is no permutation of 3"),
        (np.array([[1, 2, 3], [0, 1, 2]]), "row 0 is no permutation"),
        (np.array([[2, 3, 4], [4, 2, 3]]), "row 0 is no permutation of 3: .2, 3, 4."),
        (np.array([[0, 1], [1, 0], [0, 1]]), "1 of 3 permutations repeat another"),
        (np.zeros((0, 9), np.int64), "wanted"),
        (np.arange(9), "wanted"),
        (np.array([[0.0, 1.0]]), "wanted"),
        (np.array([[None]]), "Python objects"),
    ],
)
def test_npy_of_something_else(bad: np.ndarray, words: str, tmp_path: Path) -> None:
    np.save(tmp_path / "p.npy", bad)
    with pytest.raises(ValueError, match=words):
        read_permutations(tmp_path / "p.npy")


def noroozi(rows: list[list[int]]) -> bytes:
    """Return the layout of permutations_701.bin, which begins with the int32 701, 9, 1, 8, 3, 6, 9, 7."""
    values = [len(rows), len(rows[0])] + [value for row in rows for value in row]
    return struct.pack(f"<{len(values)}i", *values)


def test_noroozis_bin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "permutations_4_max.bin"
    path.write_bytes(noroozi((ROWS + 1).tolist()))
    assert path.stat().st_size == 4 * (2 + 4 * 3)
    rows = read_permutations(path)
    assert (rows == ROWS).all() and rows.dtype == np.int64
    monkeypatch.setattr(jigsaw, "_MAX_BYTES", 56)
    assert (read_permutations(path) == ROWS).all()
    path.write_bytes(noroozi([[2, 3, 1], [2, 2, 1]]))
    with pytest.raises(ValueError, match="row 1 is no permutation of 3: .2, 2, 1.;"):
        read_permutations(path)
    monkeypatch.setattr(jigsaw, "_MAX_BYTES", 31)
    with pytest.raises(ValueError, match="its size is 32 bytes"):
        read_permutations(path)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"no array", noroozi((ROWS + 1).tolist())[:-4], noroozi((ROWS + 1).tolist()) + b"\0",
        (ROWS + 1).astype("<i4").tobytes(), struct.pack(">14i", 4, 3, *(ROWS + 1).flatten()),
        struct.pack("<2i", -1, -1) + b"\0\0\0\0", struct.pack("<2i", 0, 9),
    ],
    ids=["empty", "text", "cut short", "too long", "without a header", "big-endian", "negative", "no rows"],
)  # fmt: skip
def test_other_files_are_named(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "p.bin").write_bytes(data)
    with pytest.raises(ValueError, match="neither an .npy file of numbers nor a .bin") as refused:
        read_permutations(tmp_path / "p.bin")
    assert f"{len(data):,} bytes" in str(refused.value) and "\n" not in str(refused.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No such file"):
        read_permutations(tmp_path / "none.npy")
    np.save(tmp_path / "p.npy", ROWS)
    (tmp_path / "p.npy").write_bytes((tmp_path / "p.npy").read_bytes()[:-8])
    with pytest.raises(ValueError, match="p.npy: cannot be read"):
        read_permutations(tmp_path / "p.npy")


def test_a_digest_is_of_the_numbers_alone() -> None:
    """Checkpoints record it, so it may not change: the first 16 digits of int64's SHA-256."""
    rows = np.array([[0, 1, 2], [2, 0, 1]])
    expected = hashlib.sha256(struct.pack("<6q", 0, 1, 2, 2, 0, 1)).hexdigest()[:16]
    for same in (rows, rows.astype(np.int32), np.asfortranarray(rows)):
        assert permutations_digest(same) == expected
    assert permutations_digest(rows[::-1]) != expected
