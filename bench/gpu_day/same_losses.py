"""A comparison of the losses of two runs, step by step: exit 1 if one differs by more than 2 %.

python bench/gpu_day/same_losses.py RUN RUN
"""

import json
import sys
from pathlib import Path

MOST = 0.02  # half precision and atomic sums change the rounding, but not the training


def main() -> int:
    one, other = (
        [json.loads(line)["loss"] for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
        for run in sys.argv[1:]
    )
    worst = max(abs(a - b) / max(abs(a), 1e-9) for a, b in zip(one, other, strict=True))
    print(f"{len(one)} steps: losses differ by {worst:.1e} at most")
    return int(worst > MOST)


if __name__ == "__main__":
    sys.exit(main())
