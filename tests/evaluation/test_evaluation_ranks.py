"""Test features, nearest neighbours and the online monitor on two ranks, which must agree with one process.

One pair of processes does all the work.
"""

import json
import os
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastpsl.engine import online_probe
from fastpsl.engine.dataset_pass import undisturbed
from fastpsl.engine.distributed import World, leave_world
from fastpsl.engine.online_probe import features_of, figures, look_view
from fastpsl.engine.plan import Stage
from fastpsl.engine.trainer import pretrain
from fastpsl.evaluation.feature_file import read_features
from fastpsl.evaluation.feature_labels import feature_labels
from fastpsl.evaluation.features import extract
from fastpsl.evaluation.neighbours import find_shared, retrieve, score
from fastpsl.evaluation.options import EvaluationOptions
from fastpsl.evaluation.result_file import read_result
from fastpsl.models.factory import make_backbone
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.embedded.draw_sample import sample_paths
from fastpsl.plots import charts
from fastpsl.scripts.recipe import Evaluation
from fastpsl.scripts.recipe_files import find_recipe
from tests.engine.exact_signals import signal_when, train_until
from tests.engine.test_online_probe import by_hand, monitor_of, probes, untrained
from tests.engine.test_trainer import tiny_experiment
from tests.engine.tiny import TinyNet, one_process, tiny_run
from tests.evaluation.test_features import extraction, leave_at
from tests.programs import digests, newest_checkpoint
from tests.recipes.test_knn import by_others, numbers_by_hand
from tests.warm import on_ranks, reserved_port

STAGE = Stage("E", 3, 1, 5, 3)
STEPS_PER_EPOCH = 5


def in_a_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": Path(folder, "port").read_text()}
    world = World(rank, 2, rank, 2, torch.device("cpu"))
    neighbours(Path(folder))  # first, because the recipe joins the process group
    few_labels(Path(folder))
    features(Path(folder), world)
    itself(Path(folder) / "same", world)
    retrieval(Path(folder) / "retrieval", world)
    labels_of_features(Path(folder) / "labels", world)
    statistics(world)
    monitor(Path(folder), world)
    leave_world()


def neighbours(folder: Path) -> None:
    recipe = find_recipe("knn")
    assert isinstance(recipe, Evaluation)
    options = recipe.parse(["--out", str(folder / "knn"), "--size-px", "32", "--workers", "1"])
    assert recipe.run(options) == 0


def few_labels(folder: Path) -> None:
    """Score and fine-tune the network of a file beside an untrained one; also by its neighbours."""
    recipe = find_recipe("few_labels")
    assert isinstance(recipe, Evaluation)
    data = ("--data", str(sample_paths().train_32), "--val", str(sample_paths().test_32))
    words = "--labels-per-class 1 --draws 2 --size-px 32 --batch-size 20 --workers 1 --epochs 1"
    given = "--backbone nin3 --input-channels RGB --input-mean .5 .5 .5 --input-std .25 .25 .25"
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    for classifier in ("linear", "finetune"):
        out = ("--classifier", classifier, "--out", str(folder / classifier))
        options = recipe.parse([str(folder / "net.pt"), *data, *words.split(), *given.split(), *out])
        leave_world()  # the recipe joins it
        assert recipe.run(options) == 0
    knn, words = find_recipe("knn"), "--k 3 --size-px 32 --batch-size 20 --workers 1"
    assert isinstance(knn, Evaluation)
    more = (*words.split(), *given.split(), "--out", str(folder / "floor"))
    leave_world()
    assert knn.run(knn.parse([str(folder / "net.pt"), *data, *more])) == 0


def itself(folder: Path, world: World) -> None:
    """Score 160 images among one another."""
    with Beton(sample_paths().test_32) as train, Beton(sample_paths().test_32) as val:
        shared = find_shared(train, val, world)
        work, names = extraction(train, batch_size=20), ("train", "val")
        bank, queries = (work.to_file(folder / f"{name}.npy", world) for name in names)
        scores = score(bank, queries, (1,), 0.07, world, shared.own)
    assert (shared.num, scores.num_bank) == (160, 159)
    if world.rank == 0:
        (folder / "numbers.json").write_text(json.dumps(scores.numbers("both")))


def features(folder: Path, world: World) -> None:
    with Beton(sample_paths().test_32) as data:
        extraction(data, batch_size=20).to_file(folder / "whole.npy", world, save_every_s=0)
        works = [extraction(data, block, batch_size=20) for block in (3, 5)]
        works = [replace(work, pretrained=works[0].pretrained) for work in works]
        extract(works, [folder / "B3.npy", folder / "B5.npy"], world, save_every_s=0)
        # One process wrote 100 rows; here a step is 60 rows.
        extraction(data, batch_size=30).to_file(folder / "left.npy", world)


def retrieval(out: Path, world: World) -> None:
    """Search 160 images among one another; rank 0 reports."""
    data = str(sample_paths().test_32)
    options = EvaluationOptions(
        data=data, val=data, out=out, size_px=32, random_weights=True, backbone="nin3",
        workers=1, batch_size=40,
    )  # fmt: skip
    lines = retrieve(options, world, block="B2", k=8, num=2, indices=())
    assert len(lines) == (3 if world.rank == 0 else 0)


def labels_of_features(folder: Path, world: World) -> None:
    with Beton(sample_paths().test_32) as data:
        work = extraction(data, batch_size=20, dtype="float16")
        more = {"path": "tiny.pt", "input": work.pretrained.input.as_dict(), "cut": False}
        record = {**work.pretrained.record, **more}
        work = replace(work, pretrained=replace(work.pretrained, record=record))
        made = feature_labels(work, folder, 9, 1, world)
        np.save(folder / f"labels-{world.rank}.npy", made.labels)


def statistics(world: World) -> None:
    net = TinyNet()
    for buffer in net.buffers():
        buffer.fill_(world.rank + 1)
    net.parts[2].eval()
    with undisturbed(net, world):
        assert all((buffer == 1).all() for buffer in net.buffers())
        assert not any(module.training for module in net.modules())
    assert all((buffer == world.rank + 1).all() for buffer in net.buffers())
    assert [part.training for part in net.parts] == [True, True, False, True, True]


def monitor(folder: Path, world: World) -> None:
    """Run seven steps without evaluations, with them, and with a signal to one rank in the first of them."""
    charts.draw_probes = lambda lines, path: path
    experiment = lambda: replace(tiny_experiment("end_to_end"), stages=(STAGE,))
    options: dict[str, Any] = {"batch_size": 96, "max_steps_per_stage": 7}
    for name, every in (("probed", 1), ("plain", 0)):
        run = tiny_run(folder / name, world, probe_every=every, **options)
        assert train_until(None, experiment(), run)
    with closing(tiny_run(folder / "stopped", world, probe_every=1, **options)) as run:
        looks: list[Any] = []
        note = lambda: looks.append(run.position.run_step)  # 0: of the untrained network
        online_probe.features_of = lambda *arguments: note() or features_of(*arguments)  # type: ignore
        signal_when(run, lambda: world.rank == 1 and any(looks))
        run.stop_signal.ask_every_s = 0.0
        assert not pretrain(experiment(), run)
        assert run.position.run_step == STEPS_PER_EPOCH and not probes(run.folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the two processes and return the folder of their results."""
    path = tmp_path_factory.mktemp("ranks")
    reserved = reserved_port()
    (path / "port").write_text(str(reserved.getsockname()[1]))
    with Beton(sample_paths().test_32) as data, pytest.MonkeyPatch.context() as patched:
        leave_at(100, path / "left.npy", patched, data, batch_size=20)
    (path / "same").mkdir()
    (path / "labels").mkdir()
    torch.save(make_backbone("nin3").state_dict(), path / "net.pt")
    with reserved:
        on_ranks(in_a_process, (str(path),), 2)
    return path


@pytest.mark.parametrize(("name", "block"), [("whole", 4), ("left", 4), ("B3", 3), ("B5", 5)])
def test_features_are_those_of_one_process(folder: Path, tmp_path: Path, name: str, block: int) -> None:
    """Cases: padding (160 rows in steps of 40 and of 60), a continued file, two blocks in one pass."""
    file = read_features(folder / f"{name}.npy")
    with Beton(sample_paths().test_32) as data:
        alone = extraction(data, block).to_file(tmp_path / "alone.npy", one_process()).features()
    assert file is not None and file.features() == pytest.approx(alone, rel=1e-4, abs=1e-6)
    assert not list(folder.glob(".*.npy.*"))


def test_scores_are_those_of_all_queries(folder: Path) -> None:
    numbers = json.loads((folder / "knn" / "result.json").read_text())["numbers"]
    assert numbers == pytest.approx(numbers_by_hand(folder / "knn", (1, 5, 10, 20), 0.07))


def test_each_image_is_without_itself(folder: Path) -> None:
    numbers = json.loads((folder / "same" / "numbers.json").read_text())
    assert numbers["top1_k1"] == pytest.approx(by_others(folder / "same", list(range(160))))


def test_few_labels_are_scored_as_by_one_process(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "net.pt").write_bytes((folder / "net.pt").read_bytes())
    few_labels(tmp_path)
    for place, name in (("linear", "top1_1"), ("finetune", "top1_1"), ("floor", "top1_k3")):
        both, alone = (read_result(each / place / "result.json") for each in (folder, tmp_path))
        # An image of 160 may change its class: float32 rounds differently in other batches.
        assert both["numbers"] == pytest.approx(alone["numbers"], abs=1.3)
        assert both["numbers"].keys() > {name, f"untrained_{name}"}


def test_precision_is_that_of_all_queries(folder: Path, tmp_path: Path) -> None:
    retrieval(tmp_path / "retrieval", one_process())
    both, alone = (read_result(place / "retrieval" / "result.json") for place in (folder, tmp_path))
    # float32 rounds differently in other batches.
    assert abs(both["numbers"]["precision_top8"] - alone["numbers"]["precision_top8"]) < 0.1
    for one, other in zip(both["settings"]["shown"], alone["settings"]["shown"], strict=True):
        assert one["query"] == other["query"]
        assert one["similarities"] == pytest.approx(other["similarities"], abs=1e-3)


def test_clusters_of_features_are_those_of_one_process(folder: Path, tmp_path: Path) -> None:
    """They are those of the very features, which round differently in other batches."""
    for kept in (folder / "labels").glob("features-*"):
        (tmp_path / kept.name).write_bytes(kept.read_bytes())
    labels_of_features(tmp_path, one_process())
    alone, *both = (np.load(place) for place in (
        tmp_path / "labels-0.npy", folder / "labels" / "labels-0.npy", folder / "labels" / "labels-1.npy"
    ))  # fmt: skip
    assert len(set(alone.tolist())) == 9
    assert all(np.array_equal(labels, alone) for labels in both)


def test_looks_change_no_training(folder: Path) -> None:
    probed, plain = newest_checkpoint(folder / "probed"), newest_checkpoint(folder / "plain")
    assert probed["position"]["run_step"] == 7
    for part in ("backbone", "train_step"):
        assert digests(probed[part]) == digests(plain[part])


def test_a_look_sees_what_one_process_would(folder: Path, tmp_path: Path) -> None:
    lines = probes(folder / "probed")
    assert [line["run_step"] for line in lines] == [5, 7]
    net = TinyNet()
    net.load_state_dict(newest_checkpoint(folder / "probed")["backbone"])
    run = tiny_run(tmp_path)
    alone = monitor_of(run)
    pooled = lambda images: [torch.nn.Sequential(*net.blocks())(images).mean((2, 3))]
    with torch.no_grad(), undisturbed(net, run.world):
        view = look_view(alone.experiment, STAGE)
        (train,), (val,) = (
            features_of(run.data, part, view, pooled, lambda: False) for part in alone._parts()
        )
    run.close()
    expected = figures(train, val)
    assert expected == {name: pytest.approx(lines[-1][name], rel=1e-3) for name in expected}
    assert (expected["num_train"], expected["num_val"]) == (480, 160)


def test_untrained_statistics_are_means_over_the_batches_of_both_ranks(folder: Path, tmp_path: Path) -> None:
    """Each rank has half of the batch of 96, which are inputs enough."""
    (line,) = untrained(folder / "probed")
    with closing(tiny_run(tmp_path)) as run:
        expected = by_hand(run, 48, 2)[-1]
    assert expected == {name: pytest.approx(line[name], rel=1e-3) for name in expected}
    lines = probes(folder / "probed")
    assert [each["knn_untrained"] for each in lines] == [line["knn_accuracy"]] * 2


def test_a_signal_to_one_rank_stops_the_look_of_both(folder: Path) -> None:
    assert newest_checkpoint(folder / "stopped")["position"]["run_step"] == STEPS_PER_EPOCH
