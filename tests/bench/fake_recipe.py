"""A recipe that writes what a training or an evaluation leaves. Its accuracy is a function of its options.

With --backbone, a training also leaves a checkpoint of weights that follow from its seed.
"""

import hashlib
import json
import signal
import sys
import time
from pathlib import Path

kind, words = sys.argv[1], sys.argv[2:]
checkpoint = words.pop(0) if words and not words[0].startswith("--") else None
flags = dict(zip(words[::2], words[1::2], strict=True))
out = Path(flags["--out"])
out.mkdir(exist_ok=True)


def stop(*_: object) -> None:
    (out / "stopped").touch()
    sys.exit(75)


if "--fail" in flags:
    sys.exit("it broke")
if "--wait" in flags and not (out / "half").exists():
    (out / "half").touch()
    signal.signal(signal.SIGTERM, stop)
    time.sleep(60)
    sys.exit("nobody stopped it")


def write(name: str, value: object) -> None:
    (out / name).write_text(json.dumps(value))


def save_checkpoint(name: str, seed: int) -> None:
    """Write a checkpoint with the time, as real ones, of a backbone whose BatchNorm has seen images."""
    import torch

    from fastpsl.models import CheckpointManager, make_backbone
    from fastpsl.pipelines.views import Input

    torch.manual_seed(seed)
    network = make_backbone(name)
    maps = torch.randn(8, 3, 16, 16)
    for block in network.train().blocks():
        maps = block(maps)
    summary = {"num_steps": 5, "num_steps_planned": 5}
    CheckpointManager(out / "checkpoints").save(5, {
        "science": {"backbone": name, "recipe": "fake", "seed": seed}, "input": Input(size_px=16).as_dict(),
        "position": {"run_step": 5, "seconds": time.time(), "summaries": [summary]},
        "num_stages": 1, "backbone": network.state_dict(),
    })  # fmt: skip


if kind == "train":
    seconds = float(flags.get("--epochs", 1)) / 10
    write("results.json", [{"num_steps": 5, "num_steps_planned": 5, "loss_end": 1.0, "seconds": seconds}])
    write("config.json", {"science": {"data_digest": "d" * 32}})
    machine: dict[str, object] = {"gpu": None, "torch_threads": 1, "python": "3.12", "packages": {}}
    write("environment.json", {"commit": "c" * 40, **machine})
    seed, swing = int(flags["--seed"]), float(flags.get("--swing", 0))
    score = 10 * float(flags["--gain"]) - abs(float(flags["--lr"]) - 0.2) + seed + swing * (-1) ** seed
    write("score.json", score)
    lines = [json.dumps({"epoch": epoch, "knn_accuracy": 0.1 * epoch}) for epoch in (1, 2)]
    (out / "probe.jsonl").write_text("\n".join(lines))
    if name := flags.get("--backbone"):
        save_checkpoint(name, seed)
else:
    weights, score = Path(checkpoint or "none"), 1.5
    files = [weights] if weights.is_file() else sorted(weights.glob("checkpoints/*.pt"))
    if checkpoint:
        score = 19.5 if weights.is_file() else json.loads((weights / "score.json").read_text())
    sha256 = {"sha256": hashlib.sha256(files[-1].read_bytes()).hexdigest()} if files else {}
    seen = {"channels": flags.get("--input", "RGB"), "mean": [0.5], "std": [0.25], "size_px": 8}
    write("result.json", {
        "cut": False, "protocol": "fake", "numbers": {"top1_B1": score, "top1_B2": score + 1},
        "data": {"train": "d" * 32, "val": kind}, "checkpoint": {"input": seen, **sha256}, "commit": "c" * 40,
    })  # fmt: skip
