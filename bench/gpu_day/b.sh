#!/usr/bin/env bash
# Part B: loader alone, step alone and trained, from JPEGs and of small images that stay on the GPU (without .gpu/cifar: noise); SimCLR beside
# lightly's.
part=b
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
make_photos 45
if [ -n "$SMALL" ]; then
    bench recipes 100 throughput --recipe --stages jigsaw:S2 --backbone resnet18 --batch-size 8 --decoders pillow --compile off \
        --seconds 0.1 --repeats 1 --no-peers
    bench small 150 small --recipes sslpp_rotation --no-evaluation --decoders pillow --batch-size 8 --seconds 0.1 --repeats 1
    bench lightly 220 training --stages simclr:S1 --batch-size 4 --workers 1 --repeats 1
    exit
fi
bench recipes 120 throughput --data "$photos" --recipe --stages jigsaw:S1 simclr:E simclr:S1 simclr:S3 rotation:E --backbone resnet50 \
    --decoders turbo --fold-frozen --seconds 1.2 --repeats 2 --limit-s "$(share 120 75)" --no-peers
unpack_cifar 130
bench small 160 small "${cifar[@]}" --recipes uic_cifar10 sslpp_rotation --no-evaluation --repeats 3 --seconds 1 --limit-s "$(share 160 60)"
# Half a minute for each first batch and repeat of lightly, whose 16 processes hold 32 batches ready.
bench lightly 225 training --data "$photos" --stages simclr:E simclr:S1 --decoder turbo --repeats 2 --seconds 1.5 --limit-s "$(share 225 60)"
