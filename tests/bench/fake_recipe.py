"""A recipe that writes what a training or an evaluation leaves. Its accuracy is a function of its options."""

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


if kind == "train":
    seconds = float(flags.get("--epochs", 1)) / 10
    write("results.json", [{"num_steps": 5, "num_steps_planned": 5, "loss_end": 1.0, "seconds": seconds}])
    write("config.json", {"science": {"data_digest": "d" * 32}})
    machine: dict[str, object] = {"gpu": None, "torch_threads": 1, "python": "3.12", "packages": {}}
    write("environment.json", {"commit": "c" * 40, **machine})
    write("score.json", 10 * float(flags["--gain"]) - abs(float(flags["--lr"]) - 0.2) + int(flags["--seed"]))
    lines = [json.dumps({"epoch": epoch, "knn_accuracy": 0.1 * epoch}) for epoch in (1, 2)]
    (out / "probe.jsonl").write_text("\n".join(lines))
else:
    score = json.loads(Path(checkpoint, "score.json").read_text()) if checkpoint else 1.5
    seen = {"channels": flags.get("--input", "RGB"), "mean": [0.5], "std": [0.25], "size_px": 8}
    write("result.json", {
        "cut": False, "protocol": "fake", "numbers": {"top1_B1": score, "top1_B2": score + 1},
        "data": {"train": "d" * 32, "val": kind}, "checkpoint": {"input": seen}, "commit": "c" * 40,
    })  # fmt: skip
