"""`fastpsl.views`, `losses`, `optim`, `ops`, `backbones` and `plot` alone, against plain definitions."""

import importlib
import io
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

import fastpsl
from fastpsl import ops
from fastpsl.console.terminal import escaped
from fastpsl.kernels.draws import Keys
from fastpsl.models.weights import random_weights
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.datasets.subset import Subset
from fastpsl.pipelines.embedded.draw_sample import sample_paths
from fastpsl.plots.inline import png_bytes
from fastpsl.training import Trained
from tests.pipelines.written import photo_tree

# what there is


@pytest.mark.parametrize(
    "name",
    ["backbones", "evaluate", "losses", "ops", "optim", "plot", "pretext", "tasks", "training", "views"],
)
def test_a_public_module_shows_what_it_offers_alone(name: str) -> None:
    module = importlib.import_module(f"fastpsl.{name}")
    assert dir(module) == sorted(module.__all__)
    values = [getattr(module, each) for each in module.__all__]
    assert all(value.__doc__ for value in values if callable(value) and hasattr(value, "__name__"))
    longest = max(module.__all__, key=len)
    with pytest.raises(
        AttributeError, match=f"fastpsl.{name} has no {longest}x; perhaps you meant {longest}"
    ):
        getattr(module, f"{longest}x")
    assert not hasattr(module, "__wrapped__")


@pytest.mark.parametrize(
    ("call", "wrong", "meant"),
    [
        (lambda: fastpsl.pretrian, "pretrian", "pretrain"),  # type: ignore[attr-defined]
        (lambda: fastpsl.losses.ntxent, "ntxent", "NTXent"),  # type: ignore[attr-defined]
        (lambda: fastpsl.loader(None, batch=3), "batch", "batch_size"),  # type: ignore[call-arg]
        (lambda: fastpsl.loader(None, batch_size=3, num_workers=3), "num_workers", "num_threads"),  # type: ignore[call-arg]
        (lambda: fastpsl.load("runs", arch="nin3"), "arch", "backbone"),  # type: ignore[call-arg]
        (lambda: fastpsl.embed("runs", image_size=3), "image_size", "size_px"),  # type: ignore[call-arg]
        (lambda: fastpsl.plot.tsne(np.zeros((9, 2)), titel=""), "titel", "title"),  # type: ignore[call-arg]
        (lambda: fastpsl.views.byol(size=96), "size", "size_px"),  # type: ignore[call-arg]
        (lambda: fastpsl.pretrain("simclr", learning_rate=0.1), "learning_rate", "lr"),
        (lambda: fastpsl.evaluate.knn(None, resolution=32), "resolution", "size_px"),
    ],
)  # fmt: skip
def test_a_wrong_name_comes_with_the_one_that_was_meant(
    call: Callable[[], object], wrong: str, meant: str
) -> None:
    with pytest.raises((AttributeError, ValueError), match=rf"{wrong}.*; perhaps you meant {meant}$"):
        call()


def test_what_ends_a_cell_says_what_it_is() -> None:
    views, paths = fastpsl.views.simclr(32), sample_paths()
    with fastpsl.loader(paths.train_32, views, batch_size=30, decoder="turbo", rank=1, world=2) as batches:
        data, steps = batches.dataset, batches.num_samples // 30
        size = f"{data.num_samples} images in {data.num_classes} classes"
        text = f"Loader({size}, {steps} batches of 15 on rank 1 of 2, 2 views, decoder turbo)"
        assert repr(batches) == repr(batches.loader) == text and repr(data) == f"Beton({size})"
        assert repr(Subset(data, np.arange(1))) == f"Subset(1 image in {data.num_classes} classes)"
    with fastpsl.loader(paths.test_32, batch_size=10**6, train=False, decoder="turbo") as batches:
        assert ", 1 batch of 1,000,000, 1 view, decoder turbo)" in repr(batches)
    model = repr(fastpsl.Model(random_weights("nin3", 0)))
    assert model.startswith("Model(nin3, random weights; ") and "\n" not in model


# views


def drawn(view: fastpsl.ViewSpec, num: int = 4000) -> dict[str, dict[str, np.ndarray]]:
    keys = Keys(7, 0, np.arange(num, dtype=np.int64))
    draws = zip(view.ops, view.draw(keys), strict=True)
    return {type(op).__name__: draw for op, draw in draws}


def areas(view: fastpsl.ViewSpec, num: int = 4000) -> np.ndarray:
    """Return the shares of the area of square images that the crops take."""
    sides = np.full(num, 1000, np.int32)
    boxes = view.crop.boxes(Keys(7, 0, np.arange(num, dtype=np.int64)), sides, sides)
    shares: np.ndarray = boxes[:, 2].astype(float) * boxes[:, 3] / 1e6
    return shares


@pytest.mark.parametrize(
    ("view", "size_px", "area", "jitter", "hue", "blur", "sigma_px", "solarise"),
    [
        (fastpsl.views.simclr()[0], 224, (0.08, 1), (0.8, 0.8, 0.8), 0.2, 0.5, 23, None),
        (fastpsl.views.simclr(96)[1], 96, (0.08, 1), (0.8, 0.8, 0.8), 0.2, 0.5, 9, None),
        (fastpsl.views.mocov2()[0], 224, (0.2, 1), (0.4, 0.4, 0.4), 0.1, 0.5, 23, None),
        (fastpsl.views.byol()[0], 224, (0.08, 1), (0.4, 0.4, 0.2), 0.1, 1.0, 23, None),
        (fastpsl.views.byol()[1], 224, (0.08, 1), (0.4, 0.4, 0.2), 0.1, 0.1, 23, 0.2),
        (fastpsl.views.barlow_twins()[0], 224, (0.08, 1), (0.4, 0.4, 0.2), 0.1, 1.0, 23, None),
        (fastpsl.views.barlow_twins(96)[1], 96, (0.08, 1), (0.4, 0.4, 0.2), 0.1, 0.1, 11, 0.2),
        (fastpsl.views.vicreg()[1], 224, (0.08, 1), (0.4, 0.4, 0.2), 0.1, 0.5, 23, 0.1),
        (fastpsl.views.dino()[0], 224, (0.4, 1), (0.4, 0.4, 0.2), 0.1, 1.0, 23, None),
        (fastpsl.views.dino()[1], 224, (0.4, 1), (0.4, 0.4, 0.2), 0.1, 0.1, 23, 0.2),
        (fastpsl.views.dino()[9], 96, (0.05, 0.4), (0.4, 0.4, 0.2), 0.1, 0.5, 11, None),
        (fastpsl.views.swav()[7], 96, (0.05, 0.14), (0.8, 0.8, 0.8), 0.2, 0.5, 9, None),
        (fastpsl.views.multicrop()[1], 224, (0.14, 1), (0.8, 0.8, 0.8), 0.2, 0.5, 23, None),
        (fastpsl.views.multicrop()[7], 96, (0.05, 0.14), (0.8, 0.8, 0.8), 0.2, 0.5, 9, None),
    ],
)  # fmt: skip
def test_presets_draw_what_their_papers_say(
    view: fastpsl.ViewSpec, size_px: int, area: tuple[float, float], jitter: tuple[float, ...], hue: float,
    blur: float, sigma_px: int, solarise: float | None,
) -> None:  # fmt: skip
    assert view.side_px == size_px
    shares = areas(view)
    assert area[0] - 0.01 < shares.min() < area[0] + 0.02 and area[1] - 0.03 < shares.max() < area[1] + 0.01
    draws = drawn(view)
    kinds = ["Flip", "ColourDistortion", "Grey", "GaussianBlur"] + ["Solarise"] * (solarise is not None)
    assert list(draws) == kinds
    for name, column, p in (
        ("Flip", "flip", 0.5), ("ColourDistortion", "apply", 0.8), ("Grey", "apply", 0.2),
        ("GaussianBlur", "apply", blur), ("Solarise", "apply", solarise),
    ):  # fmt: skip
        if p is not None:
            bound = 5 * math.sqrt(p * (1 - p) / 4000)
            assert abs(draws[name][column].mean() - p) <= bound, name
    factors = draws["ColourDistortion"]["factors"]
    for number, strength in enumerate(jitter):
        assert 1 - strength <= factors[:, number].min() < 1 - 0.95 * strength
        assert 1 + 0.95 * strength < factors[:, number].max() <= 1 + strength
    assert 0.95 * hue < np.abs(factors[:, 3]).max() <= hue
    sigma = draws["GaussianBlur"]["sigma"]
    assert 0.1 <= sigma.min() < 0.15 and 1.95 < sigma.max() <= 2
    assert next(op.kernel_px for op in view.ops if isinstance(op, ops.Blur)) == sigma_px


TWO_VIEWS = ("simclr", "mocov2", "byol", "barlow_twins", "vicreg")


def test_presets_have_the_numbers_of_views_of_their_papers() -> None:
    assert [len(getattr(fastpsl.views, name)()) for name in TWO_VIEWS] == [2] * len(TWO_VIEWS)
    assert fastpsl.views.swav() == fastpsl.views.multicrop()
    assert [view.side_px for view in fastpsl.views.dino(64, 32, 1)] == [64, 64, 32]
    with pytest.raises(ValueError, match="-1 small views; give 0 or more"):
        fastpsl.views.dino(num_small=-1)
    assert [view.side_px for view in fastpsl.views.multicrop()] == [224] * 2 + [96] * 6
    assert [view.side_px for view in fastpsl.views.multicrop(64, 32, 1, 0)] == [64]
    for wrong in ((-1, 2), (0, 0), (2, -1)):
        with pytest.raises(ValueError, match="give 0 or more of each, and at least one in all"):
            fastpsl.views.multicrop(num_large=wrong[0], num_small=wrong[1])
    with pytest.raises(ValueError, match="crop size 0"):
        fastpsl.views.simclr(0)


@pytest.mark.parametrize("preset", TWO_VIEWS)
def test_presets_run_in_the_loader(preset: str) -> None:
    views = getattr(fastpsl.views, preset)(32)
    with fastpsl.loader(sample_paths().train_32, views, batch_size=8, device="cpu", num_threads=1) as batches:
        (first, second), _ = next(iter(batches))
        assert first.shape == second.shape == (8, 3, 32, 32) and not torch.equal(first, second)
        assert torch.isfinite(first).all() and torch.isfinite(second).all()
        assert batches.augment.path == ("fused" if preset in ("simclr", "mocov2") else "torch")
    views = fastpsl.views.multicrop(32, 16)
    with fastpsl.loader(sample_paths().train_32, views, batch_size=4, device="cpu", num_threads=1) as batches:
        inputs, _ = next(iter(batches))
        assert [view.shape[-1] for view in inputs] == [32] * 2 + [16] * 6


def test_both_spellings_are_one_op() -> None:
    assert (ops.ColorDistortion, ops.Gray, ops.Solarize) == (ops.ColourDistortion, ops.Grey, ops.Solarise)
    assert ops.Blur is ops.GaussianBlur
    for name in ops.__all__:
        assert getattr(ops, name).__module__.startswith("fastpsl.kernels.")


# losses, optim, backbones


def nt_xent_by_loops(first: Tensor, second: Tensor, valid: list[bool], temperature: float) -> float:
    rows = [v for a, b, ok in zip(first, second, valid, strict=True) if ok for v in (a, b)]
    unit = [row / row.norm() for row in rows]
    losses = []
    for i, anchor in enumerate(unit):
        terms = [math.exp(float(anchor @ other) / temperature) for j, other in enumerate(unit) if j != i]
        losses.append(math.log(sum(terms)) - float(anchor @ unit[i ^ 1]) / temperature)
    return sum(losses) / max(len(losses), 1)


@pytest.mark.parametrize("num", [0, 1, 2, 5])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_ntxent_alone_equals_plain_loops(num: int, temperature: float) -> None:
    random = torch.Generator().manual_seed(num)
    first, second = (torch.randn(num, 6, generator=random, dtype=torch.float64) for _ in range(2))
    valid = [i % 3 != 1 for i in range(num)]
    loss = fastpsl.losses.NTXent(temperature)
    expected = nt_xent_by_loops(first, second, [True] * num, temperature)
    assert loss(first.float(), second.float()).item() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    expected = nt_xent_by_loops(first, second, valid, temperature)
    found = loss(first.float(), second.float(), torch.tensor(valid, dtype=torch.bool))
    assert found.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_ntxent_has_the_gradient_of_cross_entropy() -> None:
    random = torch.Generator().manual_seed(0)
    first, second = (torch.randn(5, 6, generator=random, requires_grad=True) for _ in range(2))
    fastpsl.losses.NTXent(0.2)(first, second).backward()
    found = first.grad, second.grad
    first.grad = second.grad = None
    unit = nn.functional.normalize(torch.cat([first, second]))
    logits = (unit @ unit.T / 0.2).masked_fill(torch.eye(10, dtype=torch.bool), -torch.inf)
    nn.functional.cross_entropy(logits, torch.arange(10).roll(5)).backward()
    for gradient, expected in zip(found, (first.grad, second.grad), strict=True):
        torch.testing.assert_close(gradient, expected)


def test_lars_alone_equals_a_plain_loop_and_takes_torchs_schedulers() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    names, groups = dict(model.named_parameters()), fastpsl.optim.lars_groups(model.parameters(), 0.1)
    optimiser = fastpsl.optim.LARS(groups, lr=0.5, momentum=0.8)
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, 1, gamma=0.1)
    weights = {name: p.detach().double().numpy().copy() for name, p in names.items()}
    velocity = {name: np.zeros_like(w) for name, w in weights.items()}
    for step in range(3):
        optimiser.zero_grad()
        model(torch.randn(5, 4, generator=torch.Generator().manual_seed(step))).square().sum().backward()
        for name, p in names.items():
            assert p.grad is not None
            g, w = p.grad.double().numpy().copy(), weights[name]
            trust = 1.0
            if w.ndim > 1:
                g += 0.1 * w
                trust = 0.001 * float(np.linalg.norm(w) / np.linalg.norm(g))
            velocity[name] = 0.8 * velocity[name] + 0.5 * 0.1**step * trust * g
            weights[name] = w - velocity[name]
        optimiser.step()
        schedule.step()
    for name, p in names.items():
        np.testing.assert_allclose(p.detach().numpy(), weights[name], rtol=1e-5, atol=1e-6)
    with pytest.raises(TypeError, match="lr"):
        fastpsl.optim.LARS(model.parameters())  # type: ignore[call-arg]


def test_backbones_are_made_by_name() -> None:
    for name in fastpsl.backbones.BACKBONES[:3]:
        assert isinstance(fastpsl.backbones.make_backbone(name), fastpsl.backbones.Backbone)
    with pytest.raises(ValueError, match="resnet1: no network has this name; .*allowed are"):
        fastpsl.backbones.make_backbone("resnet1")


# plot


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Write a run's files of numbers."""
    folder = tmp_path_factory.mktemp("run")
    lines = [f'{{"run_step": {i}, "stage": "S1", "level": 1, "step": {i}, "lr": 0.1, "loss": {3 - i / 9}}}\n'
             for i in range(1, 9)]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(lines))
    summary = {"stage": "S<1>", "level": 1, "num_steps": 8, "num_steps_planned": 8, "seconds": 2.5,
               "loss_start": 3.0, "loss_end": 2.0, "val": {"accuracy": 0.5}, "chance": None}  # fmt: skip
    return Trained(folder, folder / "checkpoints" / "step-00000008.pt", [summary], "resnet18")


def pixels(figure: Figure) -> np.ndarray:
    with Image.open(io.BytesIO(png_bytes(figure))) as image:
        return np.asarray(image.convert("RGB"))


def test_a_run_shows_itself(trained: Trained) -> None:
    figure = trained.curve()
    assert [axis.get_ylabel() for axis in figure.get_axes()] == ["loss", "lr"]
    assert figure._repr_png_().startswith(b"\x89PNG")
    steered = replace(trained, summaries=[trained.summaries[0] | {"stage": "\x1b[2J\u202e"}])._repr_html_()
    assert escaped(steered) == steered and r"\x1b[2J\u202e" in steered
    page = trained._repr_html_()
    assert "S&lt;1&gt;" in page and "val accuracy" in page and "data:image/png;base64,iVBOR" in page
    assert [axis.get_ylabel() for axis in fastpsl.plot.curve(trained).get_axes()] == ["loss", "lr"]
    assert str(trained).startswith(
        f"trained in {trained.folder}\nS<1> (level G1): 8 steps in 0:00:02, loss 3"
    )
    assert Path(trained) == trained.folder


def test_a_map_has_a_point_per_row_that_can_be_placed() -> None:
    features = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
    features[3] = np.nan
    figure = fastpsl.plot.tsne(features, np.arange(20) % 3, ["a", "b", "c"], perplexity=4)
    (axis,) = figure.get_axes()
    assert len(axis.collections[0].get_offsets()) == 19  # type: ignore[arg-type]
    assert axis.get_title() == "t-SNE of 19 images, perplexity 4"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "c"]
    assert not fastpsl.plot.tsne(features, perplexity=4).legends
    with pytest.raises(ValueError, match="perplexity 30 of 19 images"):
        fastpsl.plot.tsne(features, perplexity=30)
    for wrong, labels, words in (
        (features[:0], None, "perplexity 0 of 0 images"),
        (features[:, 0], None, r"give features \[N, C\]"),
        (features, np.zeros(3), r"labels \[N\]"),
        (features[:0], None, "of 0 images"),
    ):
        with pytest.raises(ValueError, match=words):
            fastpsl.plot.tsne(wrong, labels)


def test_blocks_are_bars() -> None:
    figure = fastpsl.plot.blocks({"top1_B1": 10.0, "top1_B2": 30.0}, chance=12.5, title="probe")
    (axis,) = figure.get_axes()
    assert [patch.get_height() for patch in axis.patches] == [10, 30] and axis.get_title() == "probe"  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="give top1_B1"):
        fastpsl.plot.blocks({"mAP": 3.0})


def test_views_are_shown_as_the_loader_draws_them() -> None:
    views = [fastpsl.ViewSpec(ops.RandomResizedCrop(64), (ops.Flip(),)), fastpsl.ViewSpec(ops.Squashed(40))]
    picture = pixels(fastpsl.plot.views(sample_paths().train, views, indices=[5, 2], seed=3))
    with Beton(sample_paths().train) as data:
        chosen = Subset(data, np.array([5, 2]))
        options: dict[str, Any] = {"train": False, "device": "cpu", "num_threads": 1, "seed": 3}
        with fastpsl.loader(chosen, views, batch_size=2, **options) as batches:
            (_, squashed), _ = next(iter(batches))
    image = views[1].denormalise(squashed)[1]
    expected = (image.permute(1, 2, 0) * 255).round().byte().numpy().repeat(2, 0).repeat(2, 1)
    places = np.argwhere((picture == expected[0, 0]).all(-1))
    assert any(
        (picture[top : top + 80, left : left + 80] == expected).all()
        for top, left in places
        if top + 80 <= len(picture) and left + 80 <= picture.shape[1]
    )
    for indices, words in (([], "name one image"), ([480], "the images are 0 to 479"), ([-1], "index -1")):
        with pytest.raises(ValueError, match=words):
            fastpsl.plot.views(indices=indices)
    tiles = fastpsl.ViewSpec(ops.RandomResizedCrop(24), (ops.JigsawTiles(2, 12, 8),))
    with pytest.raises(ValueError, match="several images of one"):
        fastpsl.plot.views(views=[tiles])


def test_neighbours_of_an_image_are_those_of_its_features(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model, shown, judged = fastpsl.Model(random_weights("resnet18", 0), 32), list[Any](), list[bool]()

    def sheet(*arguments: Any, **options: Any) -> Image.Image:
        shown.append(arguments)
        judged.append(options["judged"])
        return Image.new("RGB", (30, 20))

    monkeypatch.setattr("fastpsl.plot.neighbour_sheet", sheet)
    figure = fastpsl.plot.neighbours(model, sample_paths().train_32, indices=[7, 0], k=3)
    assert pixels(figure).shape == (20, 30, 3)
    features, _ = fastpsl.embed(model, sample_paths().train_32)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    similarities = unit @ unit[[7, 0]].T
    similarities[[7, 0], [0, 1]] = -2  # an image does not find itself
    assert shown[0][2].tolist() == [7, 0]
    np.testing.assert_allclose(shown[0][4], -np.sort(-similarities, axis=0)[:3].T, atol=1e-5)
    shutil.copy(sample_paths().train_32, tmp_path / "copy.beton")
    for queries in (sample_paths().train_32, tmp_path / "copy.beton"):
        fastpsl.plot.neighbours(model, sample_paths().train_32, queries, indices=[7, 0], k=3)
        assert (shown[-1][3] == shown[0][3]).all()
    del judged[1:]
    others = photo_tree(tmp_path / "others")
    fastpsl.plot.neighbours(model, sample_paths().train_32, others, indices=[1], k=2)
    assert judged == [True, False]  # equal numbers of other classes are not equal classes
    for arguments, words in (
        ({"k": 0}, "k is 0"),
        ({"k": 480}, "1 to 479"),
        ({"indices": [480]}, "0 to 479"),
    ):
        with pytest.raises(ValueError, match=words):
            fastpsl.plot.neighbours(model, sample_paths().train_32, **arguments)  # type: ignore[arg-type]
    monkeypatch.undo()
    assert pixels(fastpsl.plot.neighbours(model, sample_paths().train_32, indices=[1], k=2)).std() > 10
