"""Test few-shot classification: episodes by hand, scores in plain loops, features, and errors."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms.v2 import functional

from fastpsl.evaluation.features import extract
from fastpsl.evaluation.options import EvaluationOptions
from fastpsl.evaluation.protocols import pooled
from fastpsl.kernels.draws import Keys, Slot, words
from fastpsl.kernels.filters import SobelXY
from fastpsl.kernels.geometry import Enlarge
from fastpsl.models.factory import make_backbone
from fastpsl.models.weights import Pretrained
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.views import Input
from fastpsl.transfer import few_shot
from tests.engine.tiny import one_process
from tests.pipelines.written import write_raw

CPU = torch.device("cpu")


def test_an_episode_by_hand() -> None:
    """The means are (1, 0) and (4, 2).

    The queries' squared distances are 1 and 8 (right), 5 and 2 (wrong), 3.25 twice (wrong), 13 and 5 (right).
    """
    features = np.array([(0, 0), (2, 0), (4, 4), (4, 0), (2, 0), (3, 1), (2.5, 1), (3, 4)], np.float16)
    episode = few_shot.Episodes(np.array([[[0, 1], [2, 3]]]), np.array([[[4, 5], [6, 7]]]))
    right = few_shot.num_hits(features, episode, CPU)
    assert right.tolist() == [2]
    # The mean of (0, 0) and (20, 0) is nearer to (9, 0) than (8, 8) is. The nearest image and the cosine say
    # otherwise.
    features = np.array([(0, 0), (20, 0), (8, 8), (8, 8), (9, 0), (7, 7)], np.float32)
    episode = few_shot.Episodes(np.array([[[0, 1], [2, 3]]]), np.array([[[4], [5]]]))
    assert few_shot.num_hits(features, episode, CPU).tolist() == [2]


def right_by_hand(features: np.ndarray, episodes: few_shot.Episodes) -> list[int]:
    counts, features = [], features.astype(np.float64)
    for support, queries in zip(*episodes, strict=True):
        means = [features[rows].mean(0) for rows in support]
        nearest = [
            (label, np.argmin([((features[row] - mean) ** 2).sum() for mean in means]))
            for label, rows in enumerate(queries)
            for row in rows
        ]
        counts.append(sum(label == found for label, found in nearest))
    return counts


@pytest.mark.parametrize(("columns", "values"), [(8_192, 1 << 25), (5, 1 << 25), (1, 1), (7, 400)])
@pytest.mark.parametrize(("ways", "shots", "queries"), [(5, 5, 3), (2, 1, 1), (6, 3, 4)])
def test_scores_are_those_of_plain_loops(
    columns: int, values: int, ways: int, shots: int, queries: int, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Features in a memory map in half precision are far from zero, and some could not be decoded."""
    monkeypatch.setattr(few_shot, "_COLUMNS", columns)
    monkeypatch.setattr(few_shot, "_EPISODE_VALUES", values)
    random = np.random.default_rng(ways)
    labels = random.permutation(np.repeat(np.arange(6), [8, 9, 8, 12, 8, 10]))
    features = 20 + random.normal(0, 1, (55, 23)) + 0.5 * random.normal(0, 1, (6, 23))[labels]
    bad = [3, 17]
    features[bad] = np.nan
    np.save(tmp_path / "F.npy", features.astype(np.float16))
    stored = np.load(tmp_path / "F.npy", mmap_mode="r")
    good = np.setdiff1d(np.arange(55), bad)
    members = [good[labels[good] == label] for label in range(6)]
    episodes = few_shot.draw_episodes(members, 41, ways, shots, queries, 0)
    right = few_shot.num_hits(stored, episodes, CPU)
    assert right.shape == (41,) and right.tolist() == right_by_hand(stored, episodes)
    assert 41 * ways * queries / ways < right.sum() < 41 * ways * queries  # above chance, and not all


def test_separable_classes_are_all_right_and_noise_is_at_chance() -> None:
    random = np.random.default_rng(0)
    labels = np.arange(200) % 10
    members = [np.flatnonzero(labels == label) for label in range(10)]
    episodes = few_shot.draw_episodes(members, 2_000, 5, 5, 15, 1)
    noise = random.normal(0, 1, (200, 64)).astype(np.float32)
    planted = noise + 20 * np.eye(10, 64, dtype=np.float32)[labels]
    assert few_shot.Accuracy.of(few_shot.num_hits(planted, episodes, CPU), 75) == (100, 0)
    chance = few_shot.Accuracy.of(few_shot.num_hits(noise, episodes, CPU), 75)
    # Ten fixed classes differ by chance by far more than the interval over episodes.
    assert abs(chance.mean - 20) < 6 and 0.1 < chance.interval < 0.5
    same = few_shot.num_hits(np.ones((200, 3), np.float16), episodes, CPU)
    assert (same == 15).all()  # features without information are at chance


def test_the_interval_is_the_means() -> None:
    right = np.array([3, 5, 4, 8])
    shares = [30.0, 50.0, 40.0, 80.0]
    deviation = (sum((share - 50) ** 2 for share in shares) / 3) ** 0.5
    assert few_shot.Accuracy.of(right, 10) == pytest.approx((50, 1.96 * deviation / 2))


def draws_by_hand(seed: int, episode: int, view: int, k: int, num: int) -> list[int]:
    """Draw from a list that loses the drawn numbers."""
    remaining, chosen = list(range(num)), []
    for word in words(Keys(seed, 0, np.array([episode]), view), Slot.TASK, k)[0].tolist():
        chosen.append(remaining.pop(word * len(remaining) >> 32))
    return chosen


def test_episodes_are_those_of_a_list_that_grows_shorter() -> None:
    members = [np.arange(start, start + size) for start, size in ((100, 7), (200, 9), (300, 7), (400, 30))]
    episodes = few_shot.draw_episodes(members, 300, 3, 2, 5, seed=5)
    assert episodes.support.shape == (300, 3, 2) and episodes.queries.shape == (300, 3, 5)
    for number in (0, 1, 299):
        for way, label in enumerate(draws_by_hand(5, number, 0, 3, 4)):
            places = draws_by_hand(5, number, 1 + way, 7, len(members[label]))
            drawn_samples = [*episodes.support[number, way], *episodes.queries[number, way]]
            assert drawn_samples == members[label][places].tolist()
    both = np.concatenate(episodes, 2).reshape(300, -1)
    assert all(len(set(row)) == 21 for row in both.tolist())  # no image occurs twice
    fewer = few_shot.draw_episodes(members, 3, 3, 2, 5, seed=5)
    assert np.array_equal(fewer.queries, episodes.queries[:3])
    assert not np.array_equal(few_shot.draw_episodes(members, 3, 3, 2, 5, seed=6).support, fewer.support)


def test_every_choice_is_as_likely() -> None:
    members = [np.arange(8), np.arange(8, 13), np.arange(13, 19), np.arange(19, 24)]
    support, queries = few_shot.draw_episodes(members, 60_000, 2, 1, 1, seed=0)
    label = np.digitize(support[:, :, 0], [8, 13, 19])
    pairs = np.bincount(4 * label[:, 0] + label[:, 1], minlength=16).reshape(4, 4)
    assert not np.diag(pairs).any()
    assert abs(pairs[~np.eye(4, dtype=bool)] - 5_000).max() < 300  # a deviation of 68
    for which in (support, queries):
        counts = np.bincount(which.ravel(), minlength=24)
        expected = np.repeat(30_000 / np.array([8, 5, 6, 5]), [8, 5, 6, 5])
        assert (abs(counts - expected) < 5 * expected**0.5).all()
    first = (support == 0)[:, :, 0]
    follows = np.bincount(queries[:, :, 0][first], minlength=8)  # every other image of its class is as likely
    assert follows[0] == 0 and abs(follows[1:] - first.sum() / 7).max() < 130


def test_more_than_the_draws_give_is_refused() -> None:
    members = [np.arange(i, 2000 * 300, 300) for i in range(300)]
    for ways, shots in ((256, 1), (2, 1024)):
        with pytest.raises(ValueError, match="allowed are 255 classes and 1,024 images of each"):
            few_shot.draw_episodes(members, 2, ways, shots, 1, 0)
    assert few_shot.draw_episodes(members, 2, 255, 1, 1, 0).support.shape == (2, 255, 1)


class Labelled:
    def __init__(self, labels: list[int], names: list[str] | None = None) -> None:
        self._labels, self.class_names = np.array(labels, np.int32), names

    def labels(self) -> np.ndarray:
        return self._labels


def test_classes_and_what_is_too_few() -> None:
    data: Any = Labelled([4, 2, 4, -1, 2, 2, 4, 4], ["a", "b", "boat", "c", "house"])
    assert [rows.tolist() for rows in few_shot.classes_of(data, 2, 3)] == [[1, 4, 5], [0, 2, 6, 7]]
    assert [rows.tolist() for rows in few_shot.classes_of(data, 2, 2, bad=[4])] == [[1, 5], [0, 2, 6, 7]]
    assert data.labels()[4] == 2
    with pytest.raises(ValueError, match="ask for 4 images of a class, and class boat has 3"):
        few_shot.classes_of(data, 2, 4)
    with pytest.raises(ValueError, match="class boat has 2"):
        few_shot.classes_of(data, 2, 3, bad=[4])
    with pytest.raises(ValueError, match="class 2 has 3"):
        few_shot.classes_of(Labelled([4, 2, 4, -1, 2, 2, 4, 4]), 2, 4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="--ways 3: the data has 2 classes"):
        few_shot.classes_of(data, 3, 1)
    with pytest.raises(ValueError, match="--ways 2: the data has 0 classes"):
        few_shot.classes_of(Labelled([-1, -1]), 2, 1)  # type: ignore[arg-type]


def beton(path: Path, images: list[np.ndarray]) -> Beton:
    return Beton(write_raw(path, images, [i % 2 for i in range(len(images))], ["a", "b"]))


@pytest.fixture
def of_84(tmp_path: Path) -> Iterator[Beton]:
    random = np.random.default_rng(0)
    with beton(tmp_path / "84.beton", list(random.integers(0, 256, (3, 84, 84, 3), np.uint8))) as data:
        yield data


def works(
    data: Beton, blocks: tuple[str, ...] = ("B3", "conv4", "B5", "B5_max_pool"), **options: Any
) -> list[few_shot.SmallImages]:
    """Return the extractions of an AlexNet with random weights, optionally with other input channels."""
    source_px, channels = options.pop("source_px", 84), options.pop("channels", "RGB")
    world = options.pop("world", one_process())
    input = Input.usual(channels, 224)
    torch.manual_seed(0)
    backbone = make_backbone(options.pop("backbone", "alexnet"), num_channels=input.num_channels)
    weights = Pretrained(backbone, input, {"sha256": "x", "backbone": "alexnet"})
    chosen = EvaluationOptions(random_weights=True, backbone="alexnet", batch_size=2, workers=1, **options)
    return few_shot.few_shot_works(chosen, weights, data, blocks, source_px, world)


def network_input(work: few_shot.SmallImages) -> torch.Tensor:
    """Return the batch that the network sees."""
    num = work.data.num_samples
    with Loader(work.data, [work.view], batch_size_per_rank=num, train=False, num_threads=1) as loader:
        (batch,) = loader.epoch(0)
    inputs: torch.Tensor = batch.inputs(loader.views, torch.float32)[0]
    return inputs


def stored(data: Beton) -> torch.Tensor:
    images = [np.frombuffer(data.read(i), np.uint8).reshape(84, 84, 3) for i in range(data.num_samples)]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def normal(images: torch.Tensor) -> torch.Tensor:
    return functional.normalize(images / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def test_images_of_84_px_are_seen_whole_or_enlarged(of_84: Beton) -> None:
    torch.testing.assert_close(network_input(works(of_84, size_px=84)[0]), normal(stored(of_84)))
    large = functional.resize(stored(of_84), [256, 256], antialias=False)
    expected = normal(functional.center_crop(large, [224, 224]))
    torch.testing.assert_close(network_input(works(of_84)[0]), expected, atol=0.02, rtol=0)


def test_larger_images_are_made_84_px_first(tmp_path: Path) -> None:
    """Check that whole images are squashed: two by two pixels become one."""
    small = np.random.default_rng(1).integers(0, 256, (84, 84, 3), np.uint8)
    with beton(tmp_path / "x.beton", [np.repeat(np.repeat(small, 2, 0), 3, 1), small]) as data:
        for size_px in (84, 224):
            large, original = network_input(works(data, size_px=size_px)[0])
            torch.testing.assert_close(large, original, atol=0.03, rtol=0)


def test_gradients_are_those_of_the_enlarged_image(of_84: Beton) -> None:
    view = works(of_84, channels="SobelXY")[0].view
    assert [type(op) for op in view.ops] == [Enlarge, SobelXY] and view.input().channels == "SobelXY"


@pytest.mark.parametrize(
    ("size_px", "widths", "pool"),
    [(224, (384 * 169, 384 * 169, 256 * 169, 256 * 36), 6), (84, (6144, 6144, 4096, 256), 1)],
)  # fmt: skip
def test_features_are_the_maps_and_those_of_alexnets_own_pool(
    of_84: Beton, tmp_path: Path, size_px: int, widths: tuple[int, ...], pool: int
) -> None:
    chosen = works(of_84, size_px=size_px)
    names = [work.name for work in chosen]
    assert names == ["B3", "B4", "B5", "B5_max_pool"] and tuple(work.width for work in chosen) == widths
    files = extract(chosen, [tmp_path / f"{name}.npy" for name in names], one_process())
    images, backbone = network_input(chosen[0]), chosen[0].pretrained.backbone.eval()
    features = [file.features() for file in files]
    blocks: Any = backbone.blocks()
    with torch.no_grad():
        # The sixth block begins with the pool.
        for number, block in enumerate((*blocks[:5], blocks[5][0]), start=1):
            images = block(images)
            if number >= 3:
                expected = images.flatten(1).numpy()
                assert expected.std() > 0
                assert np.allclose(features[number - 3], expected, rtol=2e-3, atol=1e-3)
    assert images.shape[-1] == pool
    record = files[3].record
    assert record["source_px"] == 84 and record["digest"] != files[2].record["digest"]


def test_images_and_sizes_are_part_of_what_features_are(of_84: Beton) -> None:
    sizes: list[dict[str, int]] = [{"size_px": 84}, {}, {"size_px": 84, "source_px": 32}]  # which is enlarged
    assert len({works(of_84, ("B3",), **each)[0].digest() for each in sizes}) == 3


def test_ranks_see_batches_of_one_shape(of_84: Beton) -> None:
    """Two ranks have batches of two images each, and not of one."""
    for size in (1, 2):
        world = replace(one_process(), size=size)
        assert {work.batch_size for work in works(of_84, world=world)} == {2}


def test_the_shorter_side_of_the_data_must_reach_the_sources(tmp_path: Path) -> None:
    image = np.zeros((84, 120, 3), np.uint8)
    with beton(tmp_path / "wide.beton", [image, image]) as data:
        with pytest.raises(ValueError, match="--source-px 100: the data has images of 84 px"):
            works(data, source_px=100)
        assert works(data, source_px=84)[0].source_px == 84


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"blocks": ("B8",)}, ("--block B8", "B1 to B7")),
        ({"blocks": ("B5_mean_pool",)}, ("--block B5_mean_pool", "B1 to B7")),
        ({"blocks": ("_max_pool",)}, ("--block", "B1 to B7")),
        ({"blocks": ()}, ("--block", "one block or several")),
        ({"blocks": ("B5", "conv5")}, ("each once",)),
        (
            {"blocks": ("B6_max_pool",)},
            ("--block B6_max_pool", "maps of 1 x 1 are smaller than the pool's 3 x 3"),
        ),
        ({"source_px": 85}, ("--source-px 85: the data has images of 84 px",)),
        ({"size_px": 83}, ("--size-px 83", "--source-px 84 as they are or enlarged")),
        ({"size_px": 50, "source_px": 50}, ("--size-px 50", "63 px or more")),
    ],
)  # fmt: skip
def test_what_cannot_be_had_is_one_line(
    of_84: Beton, options: dict[str, Any], words: tuple[str, ...]
) -> None:
    with pytest.raises(ValueError) as caught:
        works(of_84, **options)
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


def test_both_pools_of_a_block_and_equal_maps() -> None:
    """The pool is the network's own 3 x 3 with stride 2; an adaptive one would cover all of 4 x 4."""
    maps = torch.arange(16.0).view(1, 1, 4, 4)
    pool = few_shot._POOLS[few_shot.MAX_POOL]
    assert pooled(maps, pool).tolist() == [[[[10.0]]]] == F.max_pool2d(maps, 3, 2).tolist()
