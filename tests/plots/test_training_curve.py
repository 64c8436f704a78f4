"""The training curve's lines and points."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastpsl.plots.charts import curve, draw_curve, running_mean


def test_running_mean_is_the_mean_of_the_last_twentieth() -> None:
    values = [float(i % 7) for i in range(60)]
    expected = [sum(values[max(0, i - 2) : i + 1]) / len(values[max(0, i - 2) : i + 1]) for i in range(60)]
    assert running_mean(values) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30])
def test_a_value_far_off_has_an_effect_on_its_own_windows_alone(value: float) -> None:
    values = [1.0] * 30 + [value] + [2.0] * 29
    means = running_mean(values)
    assert means[:30] == [1.0] * 30 and means[33:] == [2.0] * 27
    assert all(mean == pytest.approx(value / 3, nan_ok=True) for mean in means[30:33])


def a_run(folder: Path) -> tuple[list[float], list[float]]:
    """Write metrics.jsonl of two stages of 60 steps, and return its learning rates and losses."""
    rates = [0.1 if n % 60 < 30 else 0.01 for n in range(120)]
    losses = [float(n % 7) for n in range(120)]
    lines = [
        {
            "run_step": n + 1, "stage": f"S{1 + n // 60}", "level": 1, "step": n % 60 + 1, "lr": rates[n],
            "loss": losses[n],
        }
        for n in range(120)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return rates, losses


def test_the_curve_draws_means_validation_points_and_the_rate_as_it_was(tmp_path: Path) -> None:
    rates, losses = a_run(tmp_path)
    summaries = [
        {"stage": "S1", "num_steps": 60, "val": {"loss": 0.5, "other": 1.0}},
        {"stage": "S2", "num_steps": 60, "val": {}},
    ]
    (tmp_path / "results.json").write_text(json.dumps(summaries))
    figure = curve(tmp_path)
    loss, rate = figure.axes
    assert [list(line.get_ydata()) for line in rate.lines] == [rates[:60], rates[60:]]  # type: ignore[arg-type]
    assert rate.get_ylim()[0] == 0 and rate.get_ylim()[1] > 0.1
    curves = [(list(line.get_xdata()), list(line.get_ydata())) for line in loss.lines]  # type: ignore[arg-type]
    steps = list(range(1, 121))
    assert curves == [
        (steps[:60], losses[:60]), (steps[:60], running_mean(losses[:60])), ([60], [0.5]),
        (steps[60:], losses[60:]), (steps[60:], running_mean(losses[60:])),
    ]  # fmt: skip
    legend = loss.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["S1", "S1, validation", "S2"]


def test_a_curve_of_a_run_with_an_odd_name(tmp_path: Path) -> None:
    folder = tmp_path / "latin \udce4 $a^$"  # neither UTF-8 nor a formula
    folder.mkdir()
    a_run(folder)
    assert draw_curve(folder).exists()


def test_a_curve_of_this_folder_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert curve(Path()).get_suptitle() == tmp_path.name


def test_a_curve_of_a_run_that_has_not_ended(tmp_path: Path) -> None:
    a_run(tmp_path)
    assert draw_curve(tmp_path) == tmp_path / "curve.png"
    assert np.asarray(Image.open(tmp_path / "curve.png")).shape[2] == 4
    (tmp_path / "metrics.jsonl").write_text("")
    draw_curve(tmp_path)
