"""What a finished run says of its worth: against the weights it began with, and without labels."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import fastpsl
from fastpsl.models.factory import make_backbone
from fastpsl.pipelines.embedded.draw_sample import sample_paths
from fastpsl.scripts.after_training import why_not_better

VALUES: dict[str, Any] = {
    "data": sample_paths().train_32, "val": sample_paths().test_32, "size_px": 32, "batch_size": 16,
    "workers": 1, "tensorboard": False, "warmup_epochs": 0, "max_steps_per_stage": 2, "epochs": 1,
    "plan": "end_to_end", "backbone": "resnet18", "probe_every": 1,
}  # fmt: skip


def last_lines(capsys: pytest.CaptureFixture[str], out: Path, **options: Any) -> list[str]:
    """Train, and return the lines from `done:` on."""
    capsys.readouterr()
    fastpsl.pretrain("simclr", out=out, **{**VALUES, **options})
    lines = capsys.readouterr().out.splitlines()
    return lines[next(place for place, line in enumerate(lines) if line.startswith("done:")) :]


@pytest.mark.parametrize(
    ("before", "after", "num", "words"),
    [
        # 2 sqrt(0.774 * 0.226 / 900) = 0.02788
        (0.774, 0.751, 900, "kNN 75.1 % after 77.4 % (two standard errors of 900 images are 2.8 points)"),
        (0.774, 0.801, 900, "kNN 80.1 % after 77.4 % (two standard errors of 900 images are 2.8 points)"),
        (0.774, 0.802, 900, ""),
        (0.5, 0.6, 100, "kNN 60.0 % after 50.0 % (two standard errors of 100 images are 10.0 points)"),
        (0.5, 0.61, 100, ""),
        (1.0, 1.0, 2500, "kNN 100.0 % after 100.0 % (two standard errors of 2,500 images are 0.0 points)"),
    ],
)
def test_a_rise_of_two_standard_errors_is_one(before: float, after: float, num: int, words: str) -> None:
    looks = [{"knn_accuracy": accuracy, "num_val": num} for accuracy in (before, after)]
    expected = words and f"not better than the weights it began with: {words}"
    assert why_not_better(*looks) == expected


def test_a_run_made_worse_names_the_weights_it_began_with(
    cwd: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if it resumes, in its folder or in another one; --keep-checkpoints spares these weights."""
    network, run, start = make_backbone("resnet18"), cwd / "run", Path("run/checkpoints/start.pt")
    torch.save(network.state_dict(), cwd / "theirs.pth")
    accuracies = itertools.chain([0.5], itertools.repeat(0.25))
    monkeypatch.setattr("fastpsl.engine.online_probe.knn_accuracy", lambda *parts: next(accuracies))
    values = {"init": "theirs.pth", "keep_checkpoints": 1, "checkpoint_steps": 1}
    done, worse, *following = last_lines(capsys, Path("run"), **values)
    first, *_, last = [json.loads(line) for line in (run / "probe.jsonl").read_text().splitlines()]
    numbers = " after ".join(f"{100 * look['knn_accuracy']:.1f} %" for look in (last, first))
    assert worse.startswith(f"      not better than the weights it began with: kNN {numbers} (two standard ")
    assert done.startswith("done: kNN ") and following[0] == f"next: fastpsl.evaluate.knn('{start}')"
    model = fastpsl.load(start)
    assert model.record["run_step"] == 0 and not model.record["cut"]
    weights = network.state_dict()
    assert all(torch.equal(each, weights[name]) for name, each in model.backbone.state_dict().items())
    assert fastpsl.evaluate.knn(start, k=(5,), whole=True, out="knn")  # of the run's images
    (cwd / "theirs.pth").unlink()
    assert last_lines(capsys, Path("run"), **values) == [done, worse, *following]
    (checkpoint,) = (run / "checkpoints").glob("step-*.pt")
    moved = last_lines(capsys, Path("moved"), resume=str(checkpoint), **values)
    assert moved[:2] == [done, worse]
    assert moved[2] == f"next: fastpsl.evaluate.knn('{Path('moved/checkpoints/start.pt')}')"
    probes = run / "probe.jsonl"
    better = json.dumps(first | {"knn_accuracy": 0.0}) + "\n"
    probes.write_text(better + "".join(probes.read_text().splitlines(True)[1:]))
    assert last_lines(capsys, Path("run"), **values)[:2] == [done, "next: fastpsl.evaluate.knn('run')"]
    assert "not better" not in str(last_lines(capsys, Path("random")))


def test_a_run_without_labels_shows_std_and_rank(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done, cannot, signs, following, *_ = last_lines(capsys, tmp_path, val="none")
    assert done.startswith("done: loss ")
    assert cannot == "      no kNN tells whether the features got better: there are no validation images"
    looks = [json.loads(line) for line in (tmp_path / "probe.jsonl").read_text().splitlines()]
    (std, rank), (std_now, rank_now) = ((look["feature_std"], look["effective_rank"]) for look in looks)
    most = min(looks[0]["channels"], looks[0]["num_train"])
    assert signs == (
        f"      untrained and now: std {std:.3f} and {std_now:.3f} of 1, "
        f"rank {rank:.1f} and {rank_now:.1f} of {most}"
    )
    assert following == f"next: fastpsl.plot.neighbours({str(tmp_path)!r}, {str(VALUES['data'])!r})"
    assert (std, rank) != (std_now, rank_now)
