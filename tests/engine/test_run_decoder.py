"""The decoder of a run: one for all loaders and ranks, which a resume keeps."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastpsl.engine import run as run_module
from fastpsl.engine.distributed import World
from fastpsl.engine.reporter import Reporter
from fastpsl.engine.run import choose_run_decoder, decoder_choice
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.pipelines.decoders import libffcv, resident
from fastpsl.pipelines.views import ViewSpec
from tests.engine.test_compile_modes import stopped_in_mid_stage
from tests.engine.test_trainer import fit
from tests.engine.tiny import tiny_run
from tests.programs import newest_checkpoint

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
