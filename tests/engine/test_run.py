"""The data of a run, its decoder, and the files of its folder."""

import json
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import fastpsl
from fastpsl.engine import run as run_module
from fastpsl.engine.distributed import World
from fastpsl.engine.options import PretrainOptions
from fastpsl.engine.reporter import Reporter
from fastpsl.engine.run import RunData, choose_run_decoder, decoder_choice
from fastpsl.kernels.crops import RandomResizedCrop, ShorterSideCrop
from fastpsl.pipelines.decoders import libffcv, resident
from fastpsl.pipelines.embedded.draw_sample import sample_paths
from fastpsl.pipelines.views import ViewSpec
from fastpsl.tasks.pseudo_labels.file import write_labels
from fastpsl.tasks.pseudo_labels.scores import label_figures
from tests.engine.exact_signals import train_until
from tests.engine.test_step_modes import stopped_in_mid_stage
from tests.engine.test_trainer import fit, tiny_experiment
from tests.engine.tiny import one_process, tiny_run
from tests.pipelines.written import write_labelled
from tests.programs import ROOT, newest_checkpoint
from tests.test_api import pretrain as pretrain_by_api


def test_a_batch_larger_than_the_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fewer than one batch of 960"):
        fit(tmp_path, batch_size=960, accumulate=2)


def test_a_task_that_needs_labels_refuses_data_without(tmp_path: Path) -> None:
    def fit_with_labels(data: Path) -> bool:
        experiment = tiny_experiment()
        experiment.task.needs_labels = True  # type: ignore[attr-defined]
        options: dict[str, Any] = {"data": str(data), "val": None, "batch_size": 4, "max_steps_per_stage": 1}
        return train_until(None, experiment, tiny_run(tmp_path / "out", **options))

    labelled = write_labelled(tmp_path / "labelled.beton", range(8))
    without = write_labelled(tmp_path / "without.beton", (0, 1, -1, 3, -1, 5, 6, 7))
    words = r"this recipe needs labels, and 2 of 8 samples have none .*sample 2 \(p2\)"
    with pytest.raises(ValueError, match=words):
        fit_with_labels(without)
    assert fit_with_labels(labelled)


def test_a_batch_of_all_images_is_allowed(tmp_path: Path) -> None:
    with closing(tiny_run(tmp_path, batch_size=480)) as run:
        run.data.check_batch()


def test_a_run_closes_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, closed = tiny_run(tmp_path), list[RunData]()
    with monkeypatch.context() as patch:
        patch.setattr(RunData, "close", lambda data: closed.append(data))
        run.close()
    assert closed == [run.data]
    run.data.close()


def test_validation_images_are_checked_for_their_own_views(tmp_path: Path) -> None:
    """An image of 32 px has less than one pixel of a crop of 24 of 2,400 px."""
    small, large = ViewSpec(ShorterSideCrop(32, 24)), ViewSpec(ShorterSideCrop(2400, 24))
    run = tiny_run(tmp_path)
    run.data.check_views([small], [small])
    for views, val_views in (([small], [large]), ([large], [small])):
        with pytest.raises(ValueError, match="is too small for a crop of"):
            run.data.check_views(views, val_views)
    run.close()


def test_options_reach_the_loader_of_whole_images() -> None:
    options = PretrainOptions(
        data=str(sample_paths().train_32), batch_size=64, accumulate=2, seed=5, workers=3, prefetch_batches=7,
        timeout_s=33.0,
    )  # fmt: skip
    run_data = RunData(options, World(1, 2, 1, 2, torch.device("cpu")))
    read: Any = None
    with closing(run_data), run_data.annotated_loader(read) as loader:
        assert (loader.num_samples, loader.batch_size_per_rank) == (480, 16)
        assert (loader.rank, loader.world, loader.device) == (1, 2, torch.device("cpu"))
        assert (loader.seed, loader.prefetch_batches, loader.timeout_s) == (5, 7, 33.0)
        assert loader._workers.num_threads == 3


@pytest.mark.parametrize("share", [None, 0.0, 0.65])
def test_the_share_of_the_jpeg_engines_reaches_the_loader(
    share: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def build(*_: Any, hw_decoder_load: float | None, **__: Any) -> SimpleNamespace:
        given.append(hw_decoder_load)
        return SimpleNamespace(decoder_name="dali")

    monkeypatch.setattr(run_module, "Loader", build)
    options = PretrainOptions(data=str(sample_paths().train_32), hw_decoder_load=share)
    with closing(RunData(options, one_process())) as run_data:
        run_data.loader(run_data.train, [ViewSpec(ShorterSideCrop(32, 32))], train=False)
    assert given == [share]


VIEW = ViewSpec(RandomResizedCrop(32))


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(Reporter, "log", lambda _, text: lines.append(text))
    return lines


def chosen(monkeypatch: pytest.MonkeyPatch, name: str) -> list[dict[str, Any]]:
    """Let `auto` choose `name`, and return a list that gets what it was asked."""
    asked: list[dict[str, Any]] = []
    choose_decoder = run_module.choose_decoder

    def choose_by_table(given: str, *args: Any, **values: Any) -> tuple[str, str]:
        if given != "auto":
            return choose_decoder(given, *args, **values)
        asked.append(values)
        return name, "by a table"

    monkeypatch.setattr(run_module, "choose_decoder", choose_by_table)
    return asked


def test_all_loaders_have_the_decoder_of_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    """The validation has one view, for which `auto` alone would choose otherwise."""
    asked = chosen(monkeypatch, "pillow")
    run = tiny_run(tmp_path)
    choose_run_decoder(run, 2, None)
    assert asked == [{"num_threads": 1, "num_views": 2}] and decoder_choice(run) == {"decoder": "pillow"}
    assert run.data.val is not None
    for data, train in ((run.data.train, True), (run.data.val, False)):
        with run.data.loader(data, [VIEW], train=train) as loader:
            assert (loader.decoder_name, loader.decoder_reason) == ("pillow", "by a table")
    run.close()
    assert not [line for line in told if "decoder" in line]


def test_data_that_it_cannot_read_and_small_raw_images_have_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    run = tiny_run(tmp_path)
    run.data.decoder = "ffcv"
    folder: Any = SimpleNamespace(kind="folder")
    assert [run.data.decoder_of(data) for data in (run.data.train, folder)] == ["ffcv", "auto"]
    run.data.world = World(0, 1, 0, 1, torch.device("cuda", 0))
    monkeypatch.setattr(resident, "is_small", lambda data: data is run.data.val)
    assert run.data.val is not None
    assert [run.data.decoder_of(data) for data in (run.data.train, run.data.val)] == ["ffcv", "auto"]
    run.close()


@pytest.mark.parametrize("name", ["synthetic", "resident"])
def test_noise_and_resident_images_are_no_choice_of_a_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    chosen(monkeypatch, name)
    run = tiny_run(tmp_path)
    choose_run_decoder(run, 1, None)
    assert run.data.decoder == "auto" and decoder_choice(run) == {}
    run.close()


def test_rank_0_chooses_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[str]) -> None:
    asked, sent = chosen(monkeypatch, "pillow"), list[Any]()

    def share(world: World, value: Any) -> Any:
        sent.append(value)
        return ("ffcv", "by rank 0") if world.rank else value

    run = tiny_run(tmp_path)
    monkeypatch.setattr(run_module, "share", share)
    for rank, decoder in ((0, "pillow"), (1, "ffcv")):
        run.world = World(rank, 2, rank, 2, torch.device("cpu"))
        choose_run_decoder(run, 1, None)
        assert run.data.decoder == decoder
    assert len(asked) == 1 and sent == [("pillow", "by a table"), None]
    run.close()


@pytest.mark.parametrize(
    ("kept", "option", "decoder", "words"),
    [
        ("ffcv", "auto", "ffcv", None),
        ("dali", "auto", "pillow", "began with decoder dali, which cannot be here"),
        ("ffcv", "pillow", "pillow", "began with decoder ffcv and goes on with pillow"),
        ("pillow", "pillow", "pillow", None),
        (None, "auto", "pillow", None),
        ("newer", "auto", "pillow", "began with decoder newer, which cannot be here"),
    ],
)
def test_a_run_goes_on_with_its_decoder_where_it_works(
    kept: str | None, option: str, decoder: str, words: str | None,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[str],
) -> None:  # fmt: skip
    chosen(monkeypatch, "pillow")
    monkeypatch.setattr(libffcv, "why_missing", lambda: "")
    run = tiny_run(tmp_path, decoder=option)
    choose_run_decoder(run, 1, kept)
    assert run.data.decoder == decoder
    lines = [line for line in told if "decoder" in line]
    assert len(lines) == (words is not None) and all(words in line for line in lines if words)
    assert decoder != kept or option != "auto" or run.data.decoder_reason == "as the run began"
    run.close()


@pytest.mark.slow
def test_a_checkpoint_has_it_and_a_resume_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    stopped_in_mid_stage(tmp_path, decoder="pillow")
    told.clear()
    fit(tmp_path, max_steps_per_stage=2)
    assert [line for line in told if line.startswith("decoder ")] == ["decoder pillow: as the run began"]
    assert newest_checkpoint(tmp_path)["choices"]["decoder"] == "pillow"


PAGE = "".join((ROOT / "docs/reference" / name).read_text() for name in ("run_folder.md", "file_formats.md"))
NAMED = {word for code in re.findall(r"`([^`\n]+)`", PAGE) for word in re.split(r"[\s,:]+", code)}
# The numbers in names of files: steps, levels and blocks.
EXAMPLES = {"step-00000002.pt": "step-00000090.pt", "contact-sheet-G3.png": "contact-sheet-G1.png"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = pretrain_by_api(tmp_path_factory.mktemp("page") / "run", probe_every=1, tensorboard=True)
    paths = sample_paths()
    fastpsl.evaluate.knn(
        run, out=run.folder / "knn", k=(1,), data=paths.train_32, val=paths.test_32, size_px=32,
        batch_size=32, workers=1,
    )  # fmt: skip
    return run.folder


def keys(value: Any) -> Iterator[str]:
    """Yield the keys of an object and of the objects in it.

    The values of options and protocols and the numbers of an evaluation have names of their own.
    """
    for each in value if isinstance(value, list) else ():
        yield from keys(each)
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield key
        if key not in ("options", "science", "settings", "numbers", "val", "differences"):
            yield from keys(inner)


def objects(path: Path) -> list[Any]:
    text = path.read_text()
    return [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else [json.loads(text)]


def test_every_file_is_named(folder: Path) -> None:
    files = {path.name for path in folder.rglob("*") if path.is_file()}
    files = {EXAMPLES.get(name, name) for name in files if not name.startswith("events.out.tfevents")}
    features = {f"{name}{end}" for name in ("train", "val") for end in (".json", "-labels.npy")}
    assert files - features <= NAMED, files - features - NAMED
    assert {"tensorboard/", "F.json", "F-labels.npy"} <= NAMED and features <= files


def test_every_field_of_a_json_file_is_named(folder: Path) -> None:
    paths = [path for path in folder.rglob("*") if path.suffix in (".json", ".jsonl")]
    names = {path.name for path in paths}
    assert {"config.json", "metrics.jsonl", "probe.jsonl", "result.json", "train.json"} <= names
    for path in paths:
        found = {key for each in objects(path) for key in keys(each)}
        assert found <= NAMED, (path.name, found - NAMED)
    config = json.loads((folder / "config.json").read_text())
    assert set(config["science"]) - set(config["options"]) <= NAMED


def test_every_part_of_a_checkpoint_is_named(folder: Path) -> None:
    (path,) = (folder / "checkpoints").iterdir()
    state = torch.load(path, weights_only=True)
    found = {*state, *state["position"], *state["train_step"], *state["choices"], *state["input"]}
    assert found <= NAMED, found - NAMED
    assert {"world_size", "device"} <= state["machine"].keys() & NAMED


def test_figures_and_files_of_pseudo_labels_are_named(tmp_path: Path) -> None:
    labels = np.array([0, 1, 1])
    assert label_figures(labels, labels, labels, 2, 0).keys() <= NAMED

    class Data:
        num_samples, split = 3, ""

        def digest(self) -> str:
            return "0"

    path = write_labels(tmp_path / "labels.npz", labels, 2, Data(), "a test")  # type: ignore[arg-type]
    with np.load(path) as file:
        assert set(file.files) <= NAMED
