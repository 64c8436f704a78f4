"""Check that every view of every recipe has fused kernels on CUDA.

The check asks `choose_augment`. Without a GPU the kernels' modules themselves state what they support.
"""

import importlib
import runpy
from itertools import chain
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastpsl.evaluation.features import Extraction
from fastpsl.kernels import fused
from fastpsl.pipelines.embedded.draw_sample import sample_paths
from fastpsl.pipelines.loader.augment import choose_augment
from fastpsl.pipelines.views import Input, ViewSpec
from fastpsl.transfer.few_shot import SmallImages
from tests.programs import ROOT, SMALL_NET

pytest.importorskip("triton", reason="triton is not installed: there are no kernels to ask")
CUDA = torch.device("cuda")
CHANNELS = ("RGB", "L", "Sobel", "SobelXY")
PADDED, COUPLED = {"crop": "padded"}, {"pseudo_labels": "coupled"}
SSLPP: list[dict[str, Any]] = [{}, {"crop": "random_resized"}, COUPLED, COUPLED | {"proxy": False}]
UIC: list[dict[str, Any]] = [
    {"input_channels": channels, "augment": augmentation}
    for channels in ("RGB", "SobelXY")
    for augmentation in ("standard", "strong")
]
# Options beside the paper's values that change a view.
TRAINED: dict[str, list[dict[str, Any]]] = {
    "distill": [{"teacher": SMALL_NET}],
    "deepcluster_alexnet": [{"input_channels": "RGB"}, {"input_channels": "SobelXY"}], "jigsaw_r50": [{}],
    "mocov2_r50": [{}], "rotation_rv50": [{}, {"rotations_per_image": "one"}], "simclr_r50": [{}],
    "sslpp_aet": [*SSLPP, {"transform": "affine"}], "sslpp_colorization": SSLPP, "sslpp_context": SSLPP,
    "sslpp_iic": [{"augment": name} for name in ("crop", "flip", "colour", "grey", "sobel")],
    "sslpp_rotation": SSLPP, "supervised": [{}, PADDED], "uic_alexnet": UIC, "uic_cifar10": UIC,
    "uic_r50": UIC,
}  # fmt: skip
WEIGHTS = {"random_weights": True, "backbone": "alexnet", "val": str(sample_paths().test)}
EVALUATED: dict[str, dict[str, Any]] = {
    "block_probe": WEIGHTS | {"backbone": "nin4"}, "linear_probe": WEIGHTS, "semi_supervised": WEIGHTS,
    "voc_classification": WEIGHTS | {"val": None},
}  # fmt: skip
EXTRACTED = {"few_labels", "few_shot", "knn", "voc_svm"}
WHOLE_IMAGES = {"voc_detection", "voc_segmentation"}  # which have no views


@pytest.fixture(autouse=True)
def modules(monkeypatch):
    if not torch.cuda.is_available():
        names = fused.CUDA_MODULES
        implementations = tuple(
            importlib.import_module(f"fastpsl.kernels.fused_cuda.{name}") for name in names
        )
        given = lambda device: (implementations, "by hand")
        monkeypatch.setattr("fastpsl.pipelines.loader.augment.fused_modules", given)


def check(views: tuple[ViewSpec, ...]) -> None:
    assert views and all(choose_augment(name, views, CUDA).path == "fused" for name in ("auto", "fused"))


def views_of(recipe: str, **asked: Any) -> tuple[ViewSpec, ...]:
    """Return the training, validation and pass views of all levels; the backbone is on the meta device."""
    parts = runpy.run_path(str(ROOT / "recipes" / f"{recipe}.py"))
    options = parts["RECIPE"].with_paper(data=str(sample_paths().train), **asked)
    with torch.device("cpu" if recipe == "distill" else "meta"):  # a teacher has values
        task = parts["build"](options).task
    levels = range(1, task.num_levels + 1)
    views = [(*task.views(n), *task.val_views(n), *(task.pass_views(n) or ())) for n in levels]
    return tuple(chain(*views))


def test_all_recipes_are_here():
    names = {path.stem for path in (ROOT / "recipes").glob("*.py")} - {"__init__"}
    assert names == {*TRAINED, *EVALUATED, *EXTRACTED, *WHOLE_IMAGES}


@pytest.mark.parametrize("recipe", TRAINED)
def test_what_is_trained_on_is_fused(recipe):
    for options in TRAINED[recipe]:
        check(views_of(recipe, **options))


@pytest.mark.parametrize("channels", CHANNELS)
def test_what_is_evaluated_is_fused(channels, monkeypatch):
    # No digest, because weights on the meta device have no values.
    monkeypatch.setattr("fastpsl.models.weights.sha256_of_tensors", lambda state: "")
    input = Input.usual(channels, 224)
    input_options = {"input_channels": channels, "input_mean": input.mean, "input_std": input.std}
    for recipe, options in EVALUATED.items():
        check(views_of(recipe, **options, **input_options))
    weights: Any = SimpleNamespace(input=input)
    data: Any = None
    for squashed in (False, True):
        check((Extraction(weights, data, 1, 224, squashed=squashed).view,))
    for source_px in (84, 224):
        check((SmallImages(weights, data, 1, 224, source_px=source_px).view,))
