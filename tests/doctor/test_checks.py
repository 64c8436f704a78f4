"""The checks of doctor that need no timing: right on this machine, and right if something is missing."""

import os
import resource
from pathlib import Path

import pytest
import torch

from fastpsl.doctor import checks
from fastpsl.doctor.checks import check_machine, check_noise, check_page_cache, check_software, driver_version
from fastpsl.doctor.measurements import ReadRate
from fastpsl.doctor.report import Check
from fastpsl.engine.experiment import Experiment
from fastpsl.engine.optim.schedules import cosine
from fastpsl.engine.options import PretrainOptions, TrainingOptions
from fastpsl.engine.plan import make_plan
from fastpsl.files.workers import usable_cores
from fastpsl.models.backbone import Backbone
from fastpsl.pipelines.decoders import dali, libffcv
from fastpsl.tasks.rotation import Rotation
from tests.doctor.measured import report_of, screen_of, stage
from tests.engine.tiny import TinyNet

CPU = torch.device("cpu")


def by_name(checks: list[Check]) -> dict[str, Check]:
    assert len({check.name for check in checks}) == len(checks)
    assert all(check.text and "\n" not in check.text + check.remedy for check in checks)
    return {check.name: check for check in checks}


def machine(
    out: Path | None = None, num_threads: int = 1, num_ranks: int = 1, num_files: int = 1
) -> dict[str, Check]:
    options = PretrainOptions(out=out, workers=num_threads)
    task, plan = Rotation(shorter_px=36, size_px=32), make_plan("psl", (1, 1, 1))
    experiment = Experiment(task, TinyNet(), plan, cosine(0.1))
    return by_name(check_machine(options, num_ranks, CPU, experiment, num_files))


def test_what_is_installed() -> None:
    checks = by_name(check_software(CPU, 1))
    assert checks["torch"].text.startswith(torch.__version__)
    assert {check.state for check in checks.values()} <= {"ok", "warning"}
    if not torch.cuda.is_available():
        assert checks["gpu"].state == "ok" and "nccl" not in checks


def test_a_missing_decoder_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (libffcv, dali):
        monkeypatch.setattr(module, "why_missing", lambda *device: "not installed")
    checks = by_name(check_software(CPU, 1))
    assert {"ffcv", "dali"}.isdisjoint(checks)
    warned = Check("warning", "warning", "decoding by pillow is slow: pip install it")
    screen = screen_of(report_of(None, *checks.values(), warned), 80)
    assert f"\nwarning: {warned.text}\n" in screen and "ffcv" not in screen and "dali" not in screen


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    check = by_name(check_software(CPU, 1))["compiler"]
    assert "no C++ compiler" in check.text and check.remedy == "apt-get install g++"


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May\nGCC version: 12.2.0",
            "535.183.01",
        ),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build", "580.65.06"),
        ("NVRM version: none", "of an unknown version"),
    ],
)
def test_the_drivers_version(
    text: str, version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "_DRIVER_FILE", tmp_path / "version")
    assert driver_version() is None
    (tmp_path / "version").write_text(text)
    assert driver_version() == version


def test_a_machine_where_all_is_well(tmp_path: Path) -> None:
    checks = machine(tmp_path / "runs" / "new")
    assert checks["disk"].state == checks["cores"].state == "ok"
    assert f"free in {tmp_path}," in checks["disk"].text and not (tmp_path / "runs").exists()


def test_too_many_threads() -> None:
    usable = usable_cores()
    check = machine(num_threads=usable, num_ranks=2)["cores"]
    assert check.state == "warning" and check.remedy == f"give --workers {max(1, usable // 2)}"


def test_torchs_own_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
        assert "OMP_WAIT_POLICY=PASSIVE" in machine()["openmp"].remedy
        monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
        assert machine()["openmp"].state == "ok"
        monkeypatch.setenv("OMP_NUM_THREADS", "9999")
        assert machine(num_ranks=2)["openmp"].remedy.startswith("set OMP_NUM_THREADS=")
        monkeypatch.setenv("OMP_NUM_THREADS", "9999,2")
        assert machine(num_ranks=2)["openmp"].state == "warning"
        monkeypatch.setenv("OMP_NUM_THREADS", "many")
        assert machine(num_ranks=2)["openmp"].state == "ok"
    finally:
        torch.set_num_threads(before)


def test_too_few_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (900, hard))
        check = machine()["open files"]
        assert check.state == "warning" and check.remedy == "raise it by ulimit -n 1024"
        assert machine(num_files=hard)["open files"].remedy.startswith("ask for more than")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_shared_memory_matters_to_several_ranks() -> None:
    assert machine()["shared memory"].state == "ok"
    assert machine(num_ranks=100_000)["shared memory"].remedy.startswith("docker run --shm-size")


def test_no_room_for_checkpoints(tmp_path: Path) -> None:
    """The backbone's parameters are on the meta device, and take no memory."""
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    for num_states, state in ((0.5, "ok"), (2.5, "warning"), (40, "broken")):
        num = int(free * num_states / 4 / 8)
        experiment = Experiment(Rotation(shorter_px=36, size_px=32), Backbone(), (), cosine(0.1))
        experiment.backbone.weight = torch.nn.Parameter(torch.empty(num, device="meta"))
        check = by_name(check_machine(TrainingOptions(out=tmp_path), 1, CPU, experiment, 1))["disk"]
        assert check.state == state, (num_states, check)


def test_the_page_cache() -> None:
    fits = check_page_cache(ReadRate(1.0, 1.0, 10**9, 2 * 10**9, 1.0))
    assert fits.state == "ok" and fits.text == "the data's 1 GB fit into memory, 100% of it there now"
    remote = check_page_cache(ReadRate(1.0, 1.0, 4 * 10**9, 2 * 10**9, 0.5, is_remote=True))
    assert remote.remedy.startswith("a larger --cache-gb") and "fit into --cache-dir" in remote.text
    short = check_page_cache(ReadRate(1.0, 1.0, 4 * 10**9, 2 * 10**9, None))
    assert short.state == "warning" and "quasi_random" in short.remedy
    assert "2 GB of the data's 4 GB" in short.text


def test_noise() -> None:
    assert not check_noise([stage(spread=0.1)]) and not check_noise([])
    (check,) = check_noise([stage(spread=0.1), stage("S2", spread=0.4)])
    assert check.state == "warning" and "differ by 40%" in check.text
