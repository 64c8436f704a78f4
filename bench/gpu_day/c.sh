#!/usr/bin/env bash
# Part C: the step by mode and stage with PSL's cost over end to end's; loader, step and both together of each recipe.
part=c
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
make_photos 80
if [ -n "$SMALL" ]; then
    bench step 300 step --recipes jigsaw --stages S2 --modes eager --backbone resnet18 --batch-size 8 --repeats 1
    bench recipes 500 throughput --recipe jigsaw --stages S2 --backbone resnet18 --batch-size 8 --decoders torchvision --compile off \
        --seconds 0.1 --repeats 1 --no-peers
    exit
fi
# Every mode but `graphed`, which part E has. Of rotation: its views and head cost next to nothing. A compilation takes 45 s, and there are six.
read -ra modes < <("$PYTHON" -c 'from typing import get_args; from bench.step import Mode; print(*[mode for mode in get_args(Mode) if mode != "graphed"])')
bench step 350 step --recipes rotation --modes "${modes[@]}" --no-revnet --repeats 5 --limit-s "$(share 350 90)"
bench recipes 520 throughput --data "$photos" --recipe jigsaw simclr rotation moco --stages S1 S3 --decoders dali --compile off --epochs 1 \
    --seconds 1.5 --repeats 2 --limit-s "$(share 520 75)" --no-peers
