#!/usr/bin/env bash
# Part E: the step compiled and replayed as CUDA graphs, loader, step and both of all recipes. A compilation takes 45 s, and there are six.
part=e
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
if [ -n "$SMALL" ]; then
    bench recipes 500 throughput --recipe jigsaw --stages S2 --backbone resnet18 --batch-size 8 --decoders torchvision --compile off \
        --seconds 0.1 --repeats 1 --no-peers
    exit
fi
make_photos 60
bench compiled 350 step --recipes rotation --modes eager compiled compiled+fold graphed --no-revnet --repeats 5 --limit-s "$(share 350 90)"
bench all-recipes 520 throughput --data "$photos" --recipe jigsaw simclr rotation moco --stages E S1 S2 S3 --decoders dali --compile off --epochs 1 \
    --seconds 1.2 --repeats 2 --limit-s "$(share 520 75)" --no-peers
