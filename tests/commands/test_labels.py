"""`fastpsl labels` as a user types it: k-means against scikit-learn's, of pixels and of features, random and
true labels, and user errors.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

from fastpsl.engine.options import RunOptions
from fastpsl.evaluation import feature_labels
from fastpsl.evaluation.feature_file import PartialFeatures
from fastpsl.evaluation.features import Extraction
from fastpsl.kernels.draws import Keys, Slot, words
from fastpsl.models.factory import make_backbone
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.write import write_beton
from fastpsl.pipelines.datasets.open import open_data
from fastpsl.pipelines.embedded.draw_sample import sample_paths
from fastpsl.pipelines.interface.source import Sample
from fastpsl.pipelines.views import Input
from fastpsl.tasks.pseudo_labels.baselines import (
    _components,
    _pixels,
    k_means_labels,
    make_labels,
    random_labels,
)
from fastpsl.tasks.pseudo_labels.file import Labels, labels_of, read_labels
from fastpsl.tasks.pseudo_labels.scores import ari
from tests.cli import Cli, refused
from tests.pipelines.photos import jpeg, photo
from tests.pipelines.written import tree
from tests.recorded import save_checkpoint


def written(path: Path, source: Path) -> Labels:
    with open_data(source) as data:  # type: ignore[attr-defined]
        return read_labels(path, data)


def pixels(source: Path) -> np.ndarray:
    """Return a beton of raw 32-px images as float64 [N, 3 * 32 * 32]."""
    with Beton(source) as data:
        images = [np.frombuffer(data.read(i), np.uint8) for i in range(data.num_samples)]
    return np.stack(images).reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2).reshape(len(images), -1) / 1.0


def plain(path: Path, colours: list[int], label: int = -1) -> Path:
    """Write a raw beton of plain grey images."""
    images = [
        Sample(str(i), np.full((32, 32, 3), colour, np.uint8), label) for i, colour in enumerate(colours)
    ]
    write_beton(images, path, num_samples=len(colours))
    return path


def test_true_labels(tmp_path: Path, cli: Cli) -> None:
    out = tmp_path / "true.npz"
    code, output, error = cli("labels", "true", "--out", out)
    assert (code, error) == (0, "")
    assert output.startswith(
        f"labels {out} (fastpsl labels true): 480 images, 8 classes, 8 not empty, of 60 to 60"
    )
    assert "NMI 100.0 %" in output and "many-to-one accuracy 100.0 %" in output
    labels_file = labels_of(out, RunOptions())
    with Beton(sample_paths().train) as data:
        assert labels_file.labels.tolist() == data.labels().tolist()
    named = (labels_file.num_classes, labels_file.made_by, labels_file.num_split)
    assert named == (8, "fastpsl labels true", 0)
    assert labels_file.configuration == {"source": "true", "num_classes": 8}
    assert np.isnan(labels_file.entropy).all()


def test_true_labels_that_are_not_there(tmp_path: Path, cli: Cli) -> None:
    source, out = plain(tmp_path / "some.beton", [10, 200, 30]), tmp_path / "true.npz"
    error = refused(cli("labels", "true", "--data", source, "--out", out))
    assert "`fastpsl labels true` needs labels, and 3 of 3 samples have none" in error and not out.exists()
    error = refused(cli("labels", "true", "--num-clusters", 8, "--out", out))
    assert "true labels have their own number of classes" in error


def test_random_labels(tmp_path: Path, cli: Cli) -> None:
    out = tmp_path / "random.npz"
    code, output, error = cli("labels", "random", "--out", out, "--seed", 3)
    assert (code, error) == (0, "") and "480 images, 70 classes" in output
    labels_file = written(out, sample_paths().train)
    assert labels_file.configuration == {"source": "random", "num_classes": 70, "seed": 3}
    random_words = words(Keys(3, 0, np.arange(480), view=255), Slot.TASK, 1)
    assert labels_file.labels.tolist() == [int(word) * 70 >> 32 for word in random_words[:, 0].tolist()]


def test_random_labels_are_uniform_and_keyed() -> None:
    labels = random_labels(70_000, 70, 0)
    sizes = np.bincount(labels, minlength=70)
    # Chi-squared with 69 degrees of freedom exceeds 120 with a probability of 1 in 8,000.
    assert len(sizes) == 70 and ((sizes - 1000) ** 2 / 1000).sum() < 120
    assert np.array_equal(random_labels(100, 70, 0), labels[:100])
    assert (random_labels(70_000, 70, 1) == labels).mean() < 0.02
    assert random_labels(0, 70, 0).shape == (0,)


def test_components_are_those_of_scikit_learn() -> None:
    rows = pixels(sample_paths().train_32)[:200, ::8]
    ours = _components(torch.from_numpy(rows.astype(np.uint8)), 20).numpy()
    theirs = PCA(20, svd_solver="full").fit_transform(rows)
    assert ours.dtype == np.float32 and ours.shape == theirs.shape
    for our, their in zip(ours.T, theirs.T, strict=True):
        assert np.abs(our * np.sign(our @ their) - their).max() < 2e-4 * np.abs(theirs).max()


def test_k_means_is_as_good_as_scikit_learns(tmp_path: Path, cli: Cli) -> None:
    """The labels are a fixed point of scikit-learn's iterations, and as good as its best of ten runs."""
    source, out = sample_paths().train_32, tmp_path / "k.npz"
    options = ["--num-clusters", "12", "--pca-width", "16"]
    code, output, error = cli("labels", "k-means", "--data", source, *options, "--out", out)
    assert code == 0 and "480 images, 12 classes, 12 not empty" in output, error
    labels_file = written(out, source)
    assert labels_file.made_by == "fastpsl labels k-means"
    usual = {"num_starts": 10, "num_iterations": 100, "size_px": 32, "seed": 0}
    given = {"source": "k-means", "pca_width": 16, "num_classes": 12}
    assert {**labels_file.configuration, **usual, **given} == labels_file.configuration
    components = PCA(16, svd_solver="full").fit_transform(pixels(source))
    means = np.stack([components[labels_file.labels == number].mean(0) for number in range(12)])
    again = KMeans(12, init=means, n_init=1, tol=0).fit(components)
    assert again.labels_.tolist() == labels_file.labels.tolist()
    ours = float(((components - means[labels_file.labels]) ** 2).sum())
    best = KMeans(12, n_init=10, random_state=0).fit(components).inertia_
    assert ours < 1.01 * best


def test_the_same_again_and_another_by_another_seed() -> None:
    with Beton(sample_paths().test_32) as data:
        once, again, other = (k_means_labels(data, 20, 8, 16, seed) for seed in (0, 0, 2**40))
    assert np.array_equal(once, again) and not np.array_equal(once, other)


def test_pixels_are_those_of_the_middle(tmp_path: Path) -> None:
    """Images brighten from left to right, by more than their compression changes them."""
    rise = np.broadcast_to(4 * np.arange(60, dtype=np.uint8)[:, None], (32, 60, 3))
    samples = [Sample(f"p{number}", np.ascontiguousarray(rise), -1) for number in range(9)]
    write_beton(samples, tmp_path / "wide.beton", num_samples=9)
    with Beton(tmp_path / "wide.beton") as data:
        rows = _pixels(data, 32).numpy().reshape(9, 3, 32, 32)
    assert np.abs(rows.astype(int) - 4 * np.arange(14, 46)).max() <= 3


def test_clear_clusters_are_found(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    true_labels = random.integers(0, 4, 101)
    source = plain(tmp_path / "plain.beton", (20 + 60 * true_labels + random.integers(0, 9, 101)).tolist())
    with Beton(source) as data:
        labels, num_classes, configuration = make_labels(
            "k-means", data, num_classes=4, pca_width=1, size_px=32, seed=0
        )
    assert ari(labels, true_labels) == 1 and num_classes == 4 and configuration["size_px"] == 32


def test_fewer_images_than_clusters_would_need(tmp_path: Path) -> None:
    """Two images are a cluster each; equal images leave clusters empty."""
    with Beton(plain(tmp_path / "two.beton", [10, 90])) as data:
        labels, *_ = make_labels("k-means", data, num_classes=2, pca_width=1, size_px=4, seed=0)
    assert sorted(labels.tolist()) == [0, 1]
    with Beton(plain(tmp_path / "equal.beton", [50] * 6)) as data:
        labels, num_classes, _ = make_labels("k-means", data, num_classes=3, pca_width=2, size_px=8, seed=0)
    assert num_classes == 3 and ((labels >= 0) & (labels < 3)).all()


def test_what_is_refused(tmp_path: Path, cli: Cli) -> None:
    source, out = plain(tmp_path / "some.beton", list(range(0, 240, 10))), tmp_path / "out.npz"
    for arguments, said in (
        ("k-means", "70 classes for 24 images: "),
        ("k-means --num-clusters 4", "--pca-width 64: 24 images of 32 px have 1 to 24 components"),
        ("k-means --num-clusters 4 --pca-width 0", "--pca-width 0"),
        ("k-means --num-clusters 4 --size-px 3", "--size-px 3: give a number from 4 to 64"),
        ("random --num-clusters 4 --seed -1", "--seed -1"),
        (f"random --data {tmp_path}/none.beton", "none.beton"),
        (f"random --out {tmp_path}/labels", "ends in .npz"),
    ):
        refused(cli("labels", "--data", source, "--out", out, *arguments.split()), said)
    assert not out.exists()


def test_a_file_that_is_there_is_kept(tmp_path: Path, cli: Cli) -> None:
    out = tmp_path / "labels.npz"
    out.write_bytes(b"precious")
    assert "exists already; remove it, give --overwrite" in refused(cli("labels", "random", "--out", out))
    assert out.read_bytes() == b"precious"
    assert cli("labels", "random", "--out", out, "--overwrite")[0] == 0
    assert written(out, sample_paths().train).num_classes == 70


def test_an_image_that_cannot_be_decoded_is_named(tmp_path: Path, cli: Cli) -> None:
    tree(tmp_path / "photos", {f"{i}.jpg": jpeg(photo(i, 40, 50)) for i in range(6)})
    arguments = ("k-means", "--num-clusters", 2, "--pca-width", 2, "--data", tmp_path / "photos", "--out")
    assert cli("labels", *arguments, tmp_path / "whole.npz")[0] == 0
    path = tmp_path / "photos" / "3.jpg"
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    assert "3.jpg" in refused(cli("labels", *arguments, tmp_path / "broken.npz"))
    assert not (tmp_path / "broken.npz").exists()


NIN3 = "--backbone nin3 --input-channels RGB --input-mean .5 .5 .5 --input-std .25 .25 .25"
SMALL = f"{NIN3} --size-px 32 --whole --batch-size 60 --workers 1".split()


def nin3() -> dict[str, Any]:
    torch.manual_seed(0)
    return make_backbone("nin3").state_dict()


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Write a file of weights as another project would."""
    path = tmp_path / "weights" / "nin3.pth"
    path.parent.mkdir()
    torch.save(nin3(), path)
    return path


def test_clusters_of_features_are_scikit_learns(tmp_path: Path, weights: Path, cli: Cli) -> None:
    """They are those of scikit-learn that begins at the same rows of what `fastpsl features` writes."""
    data, out, features = sample_paths().train_32, tmp_path / "f.npz", tmp_path / "features.npy"
    options = (*SMALL, "--block", "B2", "--data", data)
    assert cli("features", weights, *options, "--out", features)[0] == 0
    arguments = ("labels", "features", "--weights", weights, *options, "--seed", 3)
    code, output, error = cli(*arguments, "--num-clusters", 12, "--out", out)
    assert code == 0 and "480 images, 12 classes, 12 not empty" in output, error
    rows = np.load(features).astype(np.float32)
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16).astype(np.float32)
    order = sorted(range(480), key=words(Keys(3, 0, np.arange(480)), Slot.TASK, 2).tolist().__getitem__)
    sklearns = KMeans(12, init=rows[order[:12]], n_init=1, max_iter=20, tol=0, algorithm="lloyd")
    labels_file = written(out, data)
    assert labels_file.labels.tolist() == sklearns.fit(rows).labels_.tolist()
    record = json.loads(features.with_suffix(".json").read_text())["checkpoint"]
    assert labels_file.configuration == {
        "source": "features", "weights": record["sha256"], "backbone": "nin3", "input": record["input"],
        "block": "B2", "size_px": 32, "whole": True, "num_iterations": 20, "seed": 3, "num_classes": 12,
        "cut": False,
    }  # fmt: skip
    whose = f"({weights}, sha256 {record['sha256'][:8]}…)"
    assert labels_file.made_by == f"fastpsl labels features, B2 of nin3 {whose}"

    # Other clusters of the same features are made of the file that is kept.
    (kept,) = tmp_path.glob("features-????????.npy")
    before = kept.stat().st_mtime_ns
    assert cli(*arguments, "--num-clusters", 5, "--out", tmp_path / "five.npz")[0] == 0
    assert written(tmp_path / "five.npz", data).num_classes == 5 and kept.stat().st_mtime_ns == before
    kept.with_suffix(".json").unlink()  # as after a kill between two renames
    assert cli(*arguments, "--num-clusters", 5, "--out", tmp_path / "again.npz")[0] == 0
    assert len([*tmp_path.glob("features-????????.npy")]) == 1


def test_features_of_a_run_are_of_its_own_images(tmp_path: Path, cli: Cli) -> None:
    data, run, out = sample_paths().train_32, tmp_path / "run", tmp_path / "f.npz"
    input = Input("RGB", (0.5,) * 3, (0.25,) * 3, 24)
    save_checkpoint(run / "checkpoints", nin3(), input, 9, recipe="rotation", backbone="nin3", seed=0)
    (run / "config.json").write_text(json.dumps({"options": {"data": str(data), "val": None}}))
    code, output, error = cli("labels", "features", "--weights", run, "--num-clusters", 9, "--out", out)
    assert code == 0 and "images of 24 px" in output, error
    found = written(out, data).configuration
    expected = {"backbone": "nin3", "block": "B3", "size_px": 24, "whole": False, "cut": True}
    assert {**found, **expected} == found and found["input"] == input.as_dict()


def test_equal_features_leave_clusters_empty(tmp_path: Path, weights: Path, cli: Cli) -> None:
    source, out = plain(tmp_path / "two.beton", 4 * [0, 250]), tmp_path / "f.npz"
    options = ("--weights", weights, *SMALL, "--data", source, "--num-clusters", 3)
    code, output, error = cli("labels", "features", *options, "--out", out)
    assert code == 0 and "3 classes, 2 not empty, of 4 to 4 images" in output, error
    labels_file = written(out, source)
    assert labels_file.num_classes == 3 and len(set(labels_file.labels[::2])) == 1
    assert ari(labels_file.labels, np.arange(8) % 2) == 1


def test_an_interrupted_command_goes_on(
    tmp_path: Path, weights: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted within the features and within k-means, it leaves no labels."""
    out = tmp_path / "f.npz"
    arguments = ("labels", "features", "--weights", weights, *SMALL, "--num-clusters", 4, "--out", out)

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    write = PartialFeatures.write
    with monkeypatch.context() as patch:
        stop = lambda self, row, rows: write(self, row, rows) if row < 240 else interrupt()
        patch.setattr(PartialFeatures, "write", stop)
        patch.setattr(Extraction.to_file, "__kwdefaults__", {"overwrite": False, "save_every_s": 0.0})
        assert cli(*arguments).code == 130 and not out.exists()
    with monkeypatch.context() as patch:
        patch.setattr(feature_labels, "clusters_of_samples", interrupt)
        code, _, error = cli(*arguments)
        assert code == 130 and "goes on from row 240" in error and not out.exists()
    assert cli(*arguments)[0] == 0
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert written(out, sample_paths().train).num_classes == 4


def test_features_of_images_that_cannot_be_decoded(tmp_path: Path, weights: Path, cli: Cli) -> None:
    tree(tmp_path / "photos", {f"{i}.jpg": jpeg(photo(i, 40, 50)) for i in range(6)})
    photos, out = tmp_path / "photos", tmp_path / "f.npz"
    path = photos / "3.jpg"
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    arguments = ("labels", "features", "--weights", weights, *SMALL, "--data", photos, "--out", out)
    code, _, error = cli(*arguments, "--num-clusters", 5)
    assert code == 2 and "3.jpg" in error and not out.exists()
    code, output, error = cli(*arguments, "--num-clusters", 5, "--on-bad-sample", "skip")
    assert code == 0 and "3.jpg" in error and "1 bad" in output
    labels = written(out, photos).labels
    assert labels[3] == 0 and sorted(np.delete(labels, 3).tolist()) == [0, 1, 2, 3, 4]
    code, _, error = cli(*arguments, "--num-clusters", 6, "--on-bad-sample", "skip", "--overwrite")
    assert code == 2 and "--num-clusters 6: only 5 images can be decoded" in error


def test_what_is_refused_of_features(tmp_path: Path, weights: Path, cli: Cli) -> None:
    out = tmp_path / "out.npz"
    huge, state = tmp_path / "huge.pth", nin3()
    last = [name for name in state if name.endswith("weight") and state[name].ndim == 1][-1]
    torch.save(state | {last: torch.full_like(state[last], 1e38)}, huge)
    of_file = ("features", "--weights", weights)
    for arguments, said in (
        (("features",), "needs a network: give --weights"),
        (("features", "--weights", tmp_path / "none.pth"), "none.pth: no such file or folder"),
        (("features", "--weights", huge, *SMALL), "features of B3 reach "),
        ((*of_file,), "give --backbone"),
        ((*of_file, *SMALL, "--backbone", "resnet18"), "nin3.pth"),
        ((*of_file, *SMALL, "--num-clusters", 481), "481 classes for 480 images: "),
        ((*of_file, *SMALL, "--block", "B4"), "--block B4: this backbone has B1 to B3"),
        ((*of_file, *SMALL, "--pca-width", 8), "--pca-width 8: it is for the pixels of k-means"),
        (("k-means", "--weights", weights), "--weights is for `fastpsl labels features`"),
    ):
        code, _, error = cli("labels", *arguments, "--out", out)
        assert code == 2 and error.count("\n") == 1 and said in error, (arguments, error)
        assert not out.exists()
