"""`fastpsl.pretrain`, `load`, `embed` and `evaluate` against the commands and the model, and their errors.

Each error is one line that says what to do.
"""

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import EpsImagePlugin, Image

import fastpsl
from fastpsl.engine.run import Run
from fastpsl.kernels.lab import Lightness
from fastpsl.model import Transform
from fastpsl.models.weights import random_weights
from fastpsl.pipelines.datasets.open_folder import Folder
from fastpsl.pipelines.embedded.draw_sample import sample_paths
from fastpsl.pipelines.views import Input
from fastpsl.scripts import recipe_process
from fastpsl.scripts.call import call
from fastpsl.scripts.launch import launch
from fastpsl.scripts.recipe_files import find_recipe
from fastpsl.training import RECIPES, find, option_names
from tests.engine.exact_signals import before_asking
from tests.pipelines.threads import in_a_forked_process
from tests.programs import ENVIRONMENT
from tests.warm import Running

TINY = {"backbone": "resnet18", "size_px": 32, "batch_size": 16, "max_steps_per_stage": 2}
TINY |= {"workers": 1, "tensorboard": False, "preset": "small"}


def pretrain(out: Path, **options: Any) -> fastpsl.Trained:
    paths = sample_paths()
    data = {"data": paths.train_32, "val": paths.test_32, "epochs": 1}
    return fastpsl.pretrain("simclr", out=out, **{**data, **TINY, **options})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> fastpsl.Trained:
    return pretrain(tmp_path_factory.mktemp("api") / "run")


@pytest.fixture(scope="module")
def model(run: fastpsl.Trained) -> fastpsl.Model:
    return fastpsl.load(run)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Write 2 classes of images, wide, high and square, of 40 px and more."""
    for number, size in enumerate([(48, 40), (40, 61), (40, 40), (73, 50)]):
        pixels = np.random.default_rng(number).integers(0, 256, (size[1] // 8, size[0] // 8, 3), np.uint8)
        path = tmp_path / "images" / f"class {number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(path)
    return tmp_path / "images"


def state() -> list[Any]:
    return [
        torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), torch.get_num_threads(),  # type: ignore[index]
        torch.get_default_dtype(), torch.is_grad_enabled(), torch.backends.cudnn.benchmark,
        torch.get_float32_matmul_precision(), signal.getsignal(signal.SIGINT),
        signal.getsignal(signal.SIGTERM), warnings.showwarning, [*warnings.filters], sys.stdout, sys.stderr,
        dist.is_initialized(), dict.__getitem__(matplotlib.rcParams, "backend"), os.getcwd(),
        signal.set_wakeup_fd(-1),
    ]  # fmt: skip


def test_the_public_names_wait_for_nothing_and_are_all_there() -> None:
    code = (
        "import fastpsl, sys\n"
        "names = dir(fastpsl)\n"
        "heavy = {'torch', 'numpy', 'numba', 'matplotlib'}\n"
        "assert not heavy & set(sys.modules)\n"
        "try: fastpsl.loadr\n"
        "except AttributeError as error: assert 'fastpsl' in str(error) and 'loadr' in str(error)\n"
        "assert not heavy & set(sys.modules)\n"
        "for name in names: getattr(fastpsl, name)\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert callable(fastpsl.loader) and callable(fastpsl.load) and callable(fastpsl.pretrain)\n"
        "print(*names)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    wanted = "Beton Loader ViewSpec backbones embed evaluate load loader losses ops optim plot pretrain tasks"
    assert {*wanted.split(), "views"} <= {*done.stdout.split()}


# pretrain


def test_a_call_trains_as_its_command_does(run: fastpsl.Trained, tmp_path: Path) -> None:
    assert run.folder.is_absolute() and run.checkpoint == run.folder / "checkpoints" / "step-00000002.pt"
    flags = [
        f"--{name.replace('_', '-')}={value}" for name, value in TINY.items() if not isinstance(value, bool)
    ]
    paths, epochs = sample_paths(), "epochs" if "epochs" in option_names("simclr") else "stage-epochs"
    with pytest.raises(SystemExit) as ended:
        launch(
            find_recipe("simclr_r50"),
            [*flags, "--no-tensorboard", f"--data={paths.train_32}", f"--val={paths.test_32}",
             f"--{epochs}=1", f"--out={tmp_path}"],
        )  # fmt: skip
    assert ended.value.code == 0
    by_command = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert run.metrics == by_command and len(by_command) == 2
    summaries = json.loads((tmp_path / "results.json").read_text())
    assert [s["val"] for s in run.summaries] == [s["val"] for s in summaries]
    assert json.loads((run.folder / "status.json").read_text())["state"] == "finished"


def test_what_torch_is_set_to_changes_no_result(run: fastpsl.Trained, tmp_path: Path) -> None:
    test, precision = sample_paths().test_32, torch.backends.cuda.matmul
    scores = fastpsl.evaluate.knn(run, test, test, out=tmp_path / "a")
    features, _ = fastpsl.embed(run, test)
    before = precision.fp32_precision
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), np.errstate(all="raise"):
            assert pretrain(tmp_path / "run").metrics == run.metrics
            precision.fp32_precision = "tf32"  # beside the precision of all backends, which torch then hides
            assert fastpsl.evaluate.knn(run, test, test, out=tmp_path / "b") == scores
            np.testing.assert_array_equal(fastpsl.embed(run, test)[0], features)
        assert precision.fp32_precision == "tf32"
    finally:
        torch.set_float32_matmul_precision("highest")
        precision.fp32_precision = before


def test_the_defaults_are_the_papers_with_data_and_the_samples_without() -> None:
    script, lines = find("jigsaw"), list[str]()
    with_data = script.from_values({"data": "photos", "counts": [1, 2, 3], "lr": None}, lines.append)
    without = script.from_values({"lr": 0.5}, lines.append)
    assert (with_data.lr, with_data.batch_size, with_data.counts) == (0.01, 256, (1, 2, 3))
    assert (without.lr, without.batch_size, without.counts) == (0.5, 32, (16, 32, 64))
    assert not lines  # the record of the run has them
    variant = find_recipe("voc_detection").from_values({"data": "VOC", "protocol": "sslpp"}, lines.append)
    parsed = find_recipe("voc_detection").parse(["--data", "VOC", "--protocol", "sslpp"], log=lines.append)
    assert variant == parsed


def test_every_recipe_has_a_short_name() -> None:
    assert {*RECIPES.values()} == {path.stem for path in Path("recipes").glob("*.py")} - {
        "__init__", "block_probe", "few_labels", "few_shot", "knn", "linear_probe", "semi_supervised",
        "voc_classification", "voc_detection", "voc_segmentation", "voc_svm",
    } or not Path("recipes").is_dir()  # fmt: skip
    for name, file in RECIPES.items():
        assert find(name).name == find(file).name == find(name.replace("-", "_")).name == file
    assert find("sslpp-colourisation") is find("sslpp_colorization") is find("SSLPP-Colorization")


def test_a_second_call_is_equal_and_leaves_nothing(
    run: fastpsl.Trained, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(5)
    torch.set_default_dtype(torch.float64)
    try:
        before = state()
        with torch.no_grad():
            again = pretrain(tmp_path / "again")
        assert state() == before
    finally:
        torch.set_default_dtype(torch.float32)
    assert again.metrics == run.metrics
    said = "".join(capfd.readouterr())
    assert "; max_steps_per_stage cuts each at 2\n" in said and "480 training images in 8 classes" in said
    assert "; give epochs 5\n" in said
    assert "fastpsl.pretrain('distill', " in said and " --" not in said
    threads = {thread.name for thread in threading.enumerate()}
    assert not {name for name in threads if "last-step" in name}, threads


def test_it_resumes_and_trains_on_nothing_more(run: fastpsl.Trained) -> None:
    again = pretrain(run.folder)
    assert again.summaries == run.summaries and again.checkpoint == run.checkpoint


def interrupt_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Send this process a real SIGINT after step `step` of the next run."""

    def open_run(*arguments: Any, **options: Any) -> Run:
        run = Run(*arguments, **options)

        def send() -> None:
            if run.position.run_step == step:
                os.kill(os.getpid(), signal.SIGINT)

        before_asking(run, send)
        return run

    monkeypatch.setattr(recipe_process, "Run", open_run)


def test_an_interrupted_call_writes_a_checkpoint_and_goes_on(
    run: fastpsl.Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, before = tmp_path / "run", state()
    with monkeypatch.context() as patch:
        interrupt_after(patch, 1)
        with pytest.raises(
            KeyboardInterrupt, match=r"simclr_r50 was stopped; the same call with out='.*run'"
        ):
            pretrain(out)
    assert state() == before
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-00000001.pt"]
    assert json.loads((out / "status.json").read_text())["state"] == "preempted"
    resumed = pretrain(out)
    assert [{**line, "seconds": 0} for line in resumed.metrics] == [
        {**line, "seconds": 0} for line in run.metrics
    ]
    assert torch.load(resumed.checkpoint)["position"]["run_step"] == 2


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_process_makes_one_call_at_a_time(
    run: fastpsl.Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls in another thread and from within a training are refused, and the training is as if alone."""
    is_under_way, may_go_on, refused = threading.Event(), threading.Event(), list[str]()
    others: list[Callable[[], object]] = [
        partial(pretrain, tmp_path / "b"),
        partial(fastpsl.evaluate.knn, run, out=tmp_path / "c", size_px=32),
    ]

    def call_again() -> None:
        for other in others:
            with pytest.raises(ValueError) as caught:
                other()
            refused.append(str(caught.value).partition(":")[2])

    def open_run(*arguments: Any, **options: Any) -> Run:
        opened = Run(*arguments, **options)

        def pause() -> None:
            call_again()
            is_under_way.set()
            may_go_on.wait(120)

        before_asking(opened, pause)
        return opened

    monkeypatch.setattr(recipe_process, "Run", open_run)
    results: list[fastpsl.Trained] = []
    thread = threading.Thread(target=lambda: results.append(pretrain(tmp_path / "a")))
    thread.start()
    try:
        assert is_under_way.wait(120)
        call_again()
    finally:
        may_go_on.set()
        thread.join()
    assert results[0].metrics == run.metrics and len(refused) >= 6
    assert all(
        text.startswith(" this process trains or evaluates already, and all of its") for text in refused
    )
    assert not (tmp_path / "b").exists() and not (tmp_path / "c").exists()
    assert others[1]()  # those that were refused have left nothing


def test_a_process_that_was_forked_beside_a_call_makes_its_own() -> None:
    assert call("a", lambda _: in_a_forked_process(lambda: call("b", lambda _: 7))) == 7


@pytest.mark.parametrize("default", ["device", "dtype"])
def test_torchs_defaults_change_nothing(
    default: str, run: fastpsl.Trained, model: fastpsl.Model, images: Path, tmp_path: Path
) -> None:
    """The device "meta", whose tensors have no values, stands for a GPU."""
    picture = next(images.rglob("*.png"))
    features, embedded = model.features(model.transform(picture)[None]), fastpsl.embed(model, images)[0]
    weights = torch.load(run.checkpoint)["backbone"]
    before = torch.get_default_dtype()
    try:
        with torch.device("meta" if default == "device" else "cpu"):
            torch.set_default_dtype(torch.float64 if default == "dtype" else before)
            again = pretrain(tmp_path / "run")
            loaded = fastpsl.load(again)
            assert torch.equal(loaded.features(loaded.transform(picture)[None]), features)
            assert np.array_equal(fastpsl.embed(again, images)[0], embedded)
            assert torch.zeros(()).device.type == ("meta" if default == "device" else "cpu")
            assert torch.get_default_dtype() == (torch.float64 if default == "dtype" else before)
    finally:
        torch.set_default_dtype(before)
    others = torch.load(again.checkpoint)["backbone"]
    assert others.keys() == weights.keys()
    assert all(torch.equal(others[name], tensor) for name, tensor in weights.items())
    assert [line["loss"] for line in again.metrics] == [line["loss"] for line in run.metrics]


# load
def test_a_model_is_the_backbone_of_the_checkpoint(run: fastpsl.Trained, model: fastpsl.Model) -> None:
    tensors = torch.load(run.checkpoint)["backbone"]
    for name, tensor in model.backbone.state_dict().items():
        assert torch.equal(tensor, tensors[name]), name
    assert not model.training and model.input.size_px == model.transform.size_px == 32
    x = torch.randn(2, 3, 40, 32)
    maps = x
    for number, block in enumerate(model.blocks(), 1):
        maps = block(maps)
        for name in (f"B{number}", model.backbone.block_names[number - 1]):
            torch.testing.assert_close(model.features(x, name), maps.mean((2, 3)))
    torch.testing.assert_close(model(x), maps)
    assert model.features(x[:0]).shape == (0, maps.shape[1])
    assert (
        run.load().record["sha256"] == fastpsl.load(run.checkpoint).record["sha256"] == model.record["sha256"]
    )


def test_a_transform_takes_paths_pictures_and_arrays_alike(images: Path, model: fastpsl.Model) -> None:
    path = images / "class 1" / "1.png"
    expected = model.transform(path)
    assert expected.shape == (3, 32, 32) and expected.dtype == torch.float32 and expected.is_contiguous()
    with Image.open(path) as picture:
        array = np.asarray(picture)
        for other in (str(path), picture, array, torch.from_numpy(array.copy()).permute(2, 0, 1)):
            assert torch.equal(model.transform(other), expected)
    grey = model.transform(array[..., 0])
    assert torch.equal(grey, model.transform(np.repeat(array[..., :1], 3, axis=2)))


def files_of_many_kinds(root: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 5, 4), np.uint8)
    clear = Image.fromarray(np.kron(pixels, np.ones((8, 8, 1), np.uint8)))  # transparent in part
    image, grey, exif = clear.convert("RGB"), clear.convert("L"), Image.Exif()
    exif[0x0112] = 6
    root.mkdir()
    image.save(root / "rgb.png")
    grey.save(root / "grey.jpg")
    image.convert("CMYK").save(root / "cmyk.jpg")
    image.quantize(16).save(root / "palette.png", transparency=3)
    clear.save(root / "rgba.png")
    clear.convert("LA").save(root / "la.png")
    Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(root / "16 bit.png")
    image.save(root / "turned.png", exif=exif)
    image.save(root / "turned.jpg", exif=exif)
    image.save(root / "image.gif")
    clear.save(root / "clear.avif")
    clear.save(root / "clear.jp2")


def test_a_transform_sees_in_files_and_pil_images_what_embedding_sees(
    tmp_path: Path, model: fastpsl.Model
) -> None:
    files_of_many_kinds(tmp_path / "kinds")
    features, _ = fastpsl.embed(model, tmp_path / "kinds", size_px=35)  # 40 px, so nothing is resized
    transform, paths = Transform(model.input, 35), sorted((tmp_path / "kinds").iterdir())
    for path, expected in zip(paths, features, strict=True):
        assert torch.equal(transform(path), transform(Image.open(path))), path
        with torch.no_grad():
            values = model.features(transform(path)[None])[0].numpy()
        difference = np.linalg.norm(values - expected) / np.linalg.norm(expected)
        assert difference < (0.02 if path.suffix == ".jpg" else 1e-4), path  # decoders differ in JPEGs


@pytest.mark.parametrize("read", ["transform", "PIL", "embed"])
def test_no_program_is_started_for_an_image(
    read: str, tmp_path: Path, model: fastpsl.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos").mkdir()
    path, script = tmp_path / "photos" / "a.jpg", tmp_path / "gs"
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n")
    script.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # Pillow looks for it again
    with pytest.raises(ValueError, match="no image of a known format|EPS is not opened") as error:
        if read == "embed":
            fastpsl.embed(model, path.parent)
        else:
            model.transform(path if read == "transform" else Image.open(path))
    assert "\n" not in str(error.value) and not (tmp_path / "started").exists()


def test_a_pil_image_of_another_format_is_taken_once_it_is_loaded(
    tmp_path: Path, model: fastpsl.Model
) -> None:
    Image.new("RGB", (40, 40), (1, 2, 3)).save(tmp_path / "a.pcx")
    with pytest.raises(ValueError, match="PCX"):
        model.transform(Image.open(tmp_path / "a.pcx"))
    image = Image.open(tmp_path / "a.pcx")
    image.load()
    assert torch.equal(model.transform(image), model.transform(np.asarray(image)))


@pytest.mark.parametrize("channels", ["RGB", "L", "Sobel", "SobelXY"])
def test_a_transform_has_the_channels_of_the_input_record(channels: str) -> None:
    input = Input.usual(channels, 24)
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    result = Transform(input, whole=True)(pixels)
    assert result.shape == (input.num_channels, 24, 24)
    mean, std = (torch.tensor(values)[:, None, None] for values in (input.mean, input.std))
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    if channels == "L":
        torch.testing.assert_close(result, (Lightness()(x, {})[0] - mean) / std)
    if channels == "RGB":
        torch.testing.assert_close(result, (x[0] - mean) / std)


def test_an_export_has_the_present_weights(
    model: fastpsl.Model, run: fastpsl.Trained, tmp_path: Path
) -> None:
    changed = fastpsl.load(run)
    with torch.no_grad():
        changed.backbone.get_parameter("conv1.weight").add_(1)
    path = changed.export(tmp_path / "resnet18.pth", to="torchvision")
    exported = torch.load(path)
    assert torch.equal(exported["conv1.weight"], model.backbone.state_dict()["conv1.weight"] + 1)
    assert fastpsl.load(path).input == model.input
    assert changed.pretrained().record["kind"] == "changed"
    assert model.pretrained().record == model.record
    double = copy.deepcopy(model).double()  # whatever reads the copy takes float32
    assert double.pretrained().record == model.record
    assert all(each.dtype == torch.float32 for each in double.pretrained().backbone.parameters())
    with pytest.raises(ValueError, match="exists already; remove it, give overwrite, or"):
        model.export(path)
    assert model.export(path, overwrite=True) == path


# embed


@pytest.mark.parametrize("block", ["final", "B3"])
def test_embeddings_are_the_models_features_of_transformed_images(
    block: str, images: Path, model: fastpsl.Model
) -> None:
    features, labels = fastpsl.embed(model, images, block=block, size_px=35, batch_size=3)
    transform = Transform(model.input, 35)  # 40 px on the shorter side: images of 40 px are not resized
    paths = sorted(images.rglob("*.png"), key=str)
    expected = torch.stack([transform(path) for path in paths])
    with torch.no_grad():
        values = model.features(expected, block).numpy()
    assert features.dtype == np.float32 and labels.dtype == np.int64 and labels.tolist() == [0, 0, 1, 1]
    resized = [min(Image.open(path).size) != 40 for path in paths]
    assert sum(resized) == 1
    differences = np.linalg.norm(features - values, axis=1) / np.linalg.norm(values, axis=1)
    assert differences[~np.array(resized)].max() < 1e-4, differences
    assert differences.max() < 0.25, differences  # two ways of resizing
    double = copy.deepcopy(model).double()  # it stays so, and its copy computes in float32
    with Folder(images) as data:
        np.testing.assert_array_equal(fastpsl.embed(double, data, block=block, size_px=35)[0], features)


def test_embedding_changes_neither_the_model_nor_the_random_state(model: fastpsl.Model, images: Path) -> None:
    model.train()
    before, weights = torch.get_rng_state(), {k: v.clone() for k, v in model.state_dict().items()}
    fastpsl.embed(model, images, size_px=16)
    assert model.training and torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    model.eval()


def test_bad_images_have_rows_of_nan(model: fastpsl.Model, images: Path) -> None:
    (images / "class 0" / "0.png").write_bytes((images / "class 0" / "0.png").read_bytes()[:200])
    with pytest.raises(ValueError, match="0.png"):
        fastpsl.embed(model, images, size_px=16)
    features, labels = fastpsl.embed(model, images, size_px=16, on_bad_sample="skip")
    assert np.isnan(features).all(1).tolist() == [True, False, False, False]
    assert labels.tolist() == [0, 0, 1, 1]


def test_without_data_there_are_the_images_that_the_run_learned_from(
    run: fastpsl.Trained, images: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(run.folder, tmp_path / "copy"))
    config = json.loads((folder / "config.json").read_text())
    config["options"]["data"] = str(images)
    (folder / "config.json").write_text(json.dumps(config))
    features, labels = fastpsl.embed(folder, size_px=16)
    assert len(features) == 4 and labels.tolist() == [0, 0, 1, 1]
    np.testing.assert_array_equal(features, fastpsl.embed(run, images, size_px=16)[0])
    with pytest.raises(ValueError, match="give some of 0 to 3$"):
        fastpsl.plot.neighbours(folder, indices=[4])
    images.rename(tmp_path / "moved")
    for function, remedy in ((fastpsl.embed, "data"), (fastpsl.plot.neighbours, "gallery")):
        with pytest.raises(ValueError, match=f"copy are not here: {images}; give {remedy}$"):
            function(folder)  # type: ignore[operator]
    unknown = fastpsl.Model(random_weights("nin3", 0))
    assert len(fastpsl.embed(unknown, size_px=16)[0]) == 480


# evaluate

SMALL: dict[str, Any] = {"size_px": 32, "workers": 1}


def test_knn_has_the_numbers_of_its_result_file(
    run: fastpsl.Trained, model: fastpsl.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = sample_paths()
    before = state()
    numbers = fastpsl.evaluate.knn(model, paths.train_32, paths.test_32, k=(1, 5), **SMALL)
    assert state() == before
    result = json.loads(Path("runs/knn-001/result.json").read_text())
    assert numbers == result["numbers"] and result["settings"]["k"] == [1, 5]
    assert result["checkpoint"]["sha256"] == model.record["sha256"]
    by_path = fastpsl.evaluate.knn(run, paths.train_32, paths.test_32, k=(1, 5), out="other", **SMALL)
    assert by_path == numbers
    features, labels = fastpsl.embed(model, paths.train_32, size_px=32)
    queries, truth = fastpsl.embed(model, paths.test_32, size_px=32)
    unit, of_queries = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (features, queries))
    right = labels[(of_queries @ unit.T).argmax(1)] == truth
    assert abs(100 * right.mean() - numbers["top1_k1"]) <= 100 * 2 / len(truth)  # the recipe's are in fp16


def test_changed_weights_are_evaluated_as_they_are(run: fastpsl.Trained, tmp_path: Path) -> None:
    paths, changed = sample_paths(), fastpsl.load(run)
    for parameter in changed.parameters():
        parameter.data.zero_()
    numbers = fastpsl.evaluate.knn(changed, paths.train_32, paths.test_32, k=(1,), out=tmp_path, **SMALL)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["checkpoint"]["kind"] == "changed" and numbers["top1_k1"] <= 100 / 8 + 1e-6


def test_a_fine_tuning_leaves_the_model_as_it_is(model: fastpsl.Model, tmp_path: Path) -> None:
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    numbers = fastpsl.evaluate.semi_supervised(
        model, out=tmp_path, percent=10, epochs=1, max_steps_per_stage=1, **SMALL | {"batch_size": 16}
    )
    assert numbers == json.loads((tmp_path / "result.json").read_text())["numbers"] and "top1" in numbers
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_other_evaluations_return_their_numbers(model: fastpsl.Model, tmp_path: Path) -> None:
    few = {"max_steps_per_stage": 1, **SMALL}
    linear = fastpsl.evaluate.linear(model, out=tmp_path / "linear", epochs=1, **few)
    assert {"top1_B1", "top1_B5"} <= linear.keys()
    heads = fastpsl.evaluate.block_probe(
        model, out=tmp_path / "heads", heads=("fc1_B2",), epochs=1, intervals=(1,), **few
    )
    assert "top1_fc1_B2" in heads
    shots = fastpsl.evaluate.few_shot(
        model, out=tmp_path / "shots", block=("B3",), episodes=20, source_px=32, size_px=84
    )
    assert {*shots} == {"accuracy_B3", "interval_B3"}
    assert fastpsl.plot.blocks(linear, chance=12.5).get_axes()


def test_an_interrupted_evaluation_raises(
    model: fastpsl.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_after(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt, match="linear_probe was stopped"):
        fastpsl.evaluate.linear(model, out=tmp_path, epochs=2, **SMALL)


def test_random_weights_are_evaluated_too(tmp_path: Path) -> None:
    paths = sample_paths()
    options: dict[str, Any] = {"random_weights": True, "backbone": "resnet18", "k": (1,), **SMALL}
    fastpsl.evaluate.knn(None, paths.train_32, paths.test_32, out=tmp_path, **options)
    record = json.loads((tmp_path / "result.json").read_text())["checkpoint"]
    assert record["sha256"] == random_weights("resnet18", 0).record["sha256"]


PROGRAM = """
import os, sys, fastpsl
from fastpsl.pipelines.embedded.draw_sample import sample_paths
paths, out = sample_paths(), sys.argv[1]
data = {"data": paths.train_32, "val": paths.test_32, "size_px": 32, "batch_size": 16}
short = {"backbone": "resnet18", "epochs": 1, "max_steps_per_stage": 1}
run = fastpsl.pretrain("simclr", out=out + "/run", **short, **data)
numbers = fastpsl.evaluate.knn(run, k=(1,), out=out + "/knn", **data)
open(f"{out}/{os.environ['RANK']}.txt", "w").write(repr(numbers))
"""


@pytest.mark.slow
def test_ranks_may_call_several_functions_one_after_the_other(tmp_path: Path) -> None:
    """Without torchrun, rank 0 serves the store of each start."""
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    code, _, errors = Running([str(path), str(tmp_path)], ENVIRONMENT, tmp_path, ranks=2).wait(240)
    assert code == 0, errors
    first, second = ((tmp_path / f"{rank}.txt").read_text() for rank in range(2))
    assert first == second == repr(json.loads((tmp_path / "knn" / "result.json").read_text())["numbers"])


def test_an_error_of_the_training_is_noted_and_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(error: Exception) -> Callable[..., None]:
        def train(*_: object) -> None:
            raise error

        return train

    before = state()
    with monkeypatch.context() as patch:
        patch.setattr(recipe_process, "pretrain", failing(RuntimeError("a bug")))
        with pytest.raises(RuntimeError, match="a bug"):
            pretrain(tmp_path)
    assert state() == before
    assert json.loads((tmp_path / "status.json").read_text())["reason"] == "RuntimeError: a bug"
    with monkeypatch.context() as patch:
        patch.setattr(recipe_process, "pretrain", failing(MemoryError()))
        with pytest.raises(
            ValueError,
            match=f"^out of this machine's memory .* batch_size; the same call with out {tmp_path} ",
        ):
            pretrain(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(recipe_process, "pretrain", failing(ValueError("bad labels")))
        with pytest.raises(ValueError, match="bad labels"):
            pretrain(tmp_path)
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["reason"]) == ("failed", "bad labels")
    assert len(pretrain(tmp_path).metrics) == 2  # the folder's lock is free


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"recipe": "jigsw"}, "no recipe called 'jigsw'; perhaps you meant jigsaw$"),
        ({"batchsize": 3}, "no option of jigsaw_r50 called 'batchsize'; perhaps you meant batch_size$"),
        ({"precision": "fp8"}, "^precision fp8: allowed are auto, fp32, bf16, fp16$"),
        ({"counts": ("--help",)}, "counts .* a value cannot begin with --$"),
        ({"data": "nothere"}, "^nothere: no such file or folder; give a folder of images, a .beton file"),
        ({"backbone": "resnet1"}, "^backbone resnet1: no network .*allowed are alexnet, "),
        ({"epochs": ()}, "^epochs without a value; give whole numbers$"),
        ({"batch_size": 1000}, "^480 training images are fewer than one batch of 1000: lower batch_size,"),
        ({"out": __file__}, "^out .* is a file: give a folder"),
    ],
)
def test_wrong_arguments_are_one_line(arguments: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        fastpsl.pretrain(**{"recipe": "jigsaw", "out": tmp_path / "out", **arguments})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_data_and_runs_are_not_mistaken(run: fastpsl.Trained, images: Path, model: fastpsl.Model) -> None:
    is_run = "is a run's folder; give images, not what was trained$"
    for make in (
        lambda: fastpsl.pretrain("jigsaw", run),
        lambda: fastpsl.pretrain("jigsaw", images, val=run, preset="small"),
        lambda: fastpsl.embed(model, run),
        lambda: fastpsl.evaluate.knn(model, images, run),
        lambda: fastpsl.plot.views(run),
    ):
        with pytest.raises(ValueError, match=is_run):
            make()
    for wrong, words in (
        (images, "holds no checkpoint: give a run's folder, or a file of weights$"),
        (images / "class 0" / "0.png", "no readable file of weights"),
        ("nothere", "^nothere: no such file or folder; give a run's folder, .* such as hf://ORG/NAME$"),
    ):
        for function in (fastpsl.load, fastpsl.embed, fastpsl.evaluate.knn, fastpsl.plot.neighbours):
            with pytest.raises(ValueError, match=words):
                function(wrong)  # type: ignore[operator]
    with pytest.raises(ValueError, match="has no metrics.jsonl: give the folder of a run$"):
        fastpsl.plot.curve(images)
    with pytest.raises(ValueError, match="no folder of PASCAL VOC"):
        fastpsl.evaluate.svm(model, images)


def test_a_process_group_of_the_users_own_is_left_alone(tmp_path: Path) -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match="a process group already"):
            pretrain(tmp_path / "run")
        assert dist.is_initialized()
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: m.features(torch.zeros(1, 3, 32, 32), "B9"), "^block B9: this backbone has B1 to B5"),
        (lambda m: m.features(torch.zeros(3, 32, 32)), r"reads \[B, 3, H, W\], such as model.transform"),
        (lambda m: m.transform(np.zeros((4, 4), np.float32)), "an array float32 .* give uint8"),
        (lambda m: m.transform(np.zeros((0, 4, 3), np.uint8)), "an array uint8 .0, 4, 3.: give uint8"),
        (lambda m: m.transform("nothere.jpg"), "^nothere.jpg cannot be read as an image"),
        (lambda m: m.transform(Image.new("F", (9, 9))), "^the PIL image cannot be read .*floating-point"),
        (lambda m: m.export("x.pth", to="nobody"), "to nobody"),
        (lambda m: fastpsl.load("nothere", size_px=0), "size_px is 0"),
        (lambda m: fastpsl.load(3), "weights is int, not a path: give the path of a run's folder"),  # type: ignore[arg-type]
        (lambda m: fastpsl.load(m.record["path"], "vgg16"), "resnet18, not vgg16; leave out backbone$"),
        (lambda m: fastpsl.load(m.record["path"], input_channels="RGB"), "input_std belong together"),
        (lambda m: fastpsl.embed(m, size_px=0), "images of 0 px"),
        (lambda m: fastpsl.embed(m, precision="half"), "precision 'half': allowed"),  # type: ignore[arg-type]
        (lambda m: fastpsl.evaluate.knn(m, kk=3), "no option of knn called 'kk'; perhaps you meant k$"),
    ],
)  # fmt: skip
def test_wrong_calls_of_a_model_are_one_line(call: Any, words: str, model: fastpsl.Model) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        call(model)
    assert "\n" not in str(caught.value)


def test_weights_of_others_need_their_input(tmp_path: Path, model: fastpsl.Model) -> None:
    torch.save(model.backbone.state_dict(), tmp_path / "foreign.pth")
    with pytest.raises(ValueError, match="does not say which backbone"):
        fastpsl.load(tmp_path / "foreign.pth")
    statistics: dict[str, Any] = {"input_mean": (0.5,) * 3, "input_std": (0.2,) * 3}
    loaded = fastpsl.load(tmp_path / "foreign.pth", "resnet18", input_channels="RGB", **statistics)
    assert loaded.input == Input("RGB", (0.5,) * 3, (0.2,) * 3) and loaded.transform.size_px == 224
    listed: dict[str, Any] = {"input_mean": [0.5] * 3, "input_std": [0.2] * 3}  # as people write them
    again = fastpsl.load(loaded.export(tmp_path / "own.pth"), input_channels="RGB", **listed)
    assert again.input == loaded.input and hash(again.input) == hash(loaded.input)


def test_what_is_missing_is_named(
    model: fastpsl.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    for function, name in (
        (fastpsl.evaluate.detection, "pycocotools"), (fastpsl.evaluate.segmentation, "torchmetrics"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"{name}.*pip install"):
            function(model, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
