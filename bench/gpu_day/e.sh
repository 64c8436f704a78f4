#!/usr/bin/env bash
# Part E: the step replayed as CUDA graphs; detection beside torchvision's; the stages that part C leaves out.
part=e
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
if [ -n "$SMALL" ]; then
    bench detection 500 detection --batch-size 1 --size 64 --repeats 1
    exit
fi
make_photos 80
bench graphed 270 step --recipes rotation --modes eager graphed --no-revnet --repeats 5 --limit-s "$(share 270 85)"
bench detection 370 detection --repeats 5 --limit-s "$(share 370 60)"
bench rest 520 throughput --data "$photos" --recipe jigsaw simclr rotation moco --stages S2 E --decoders dali --compile off --epochs 1 \
    --seconds 1.2 --repeats 2 --limit-s "$(share 520 75)" --no-peers
