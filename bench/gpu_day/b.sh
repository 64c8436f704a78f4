#!/usr/bin/env bash
# Part B: loader alone, step alone and trained, from JPEGs and of small images that stay on the GPU (with .gpu/cifar); SimCLR beside
# lightly's.
part=b
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
make_photos 45
if [ -n "$SMALL" ]; then
    bench recipes 100 throughput --recipe --stages jigsaw:S2 --backbone resnet18 --batch-size 8 --decoders pillow --compile off \
        --seconds 0.1 --repeats 1 --no-peers
    bench sslpp 150 throughput --recipe --stages sslpp_rotation:E --decoders pillow --batch-size 8 --seconds 0.1 --repeats 1 --no-peers
    bench lightly 220 training --stages simclr:S1 --batch-size 4 --workers 1 --repeats 1
    exit
fi
bench recipes 120 throughput --data "$photos" --recipe --stages jigsaw:S1 simclr:E simclr:S1 simclr:S3 rotation:E --backbone resnet50 \
    --decoders turbo --fold-frozen --seconds 1.2 --repeats 2 --limit-s "$(share 120 75)" --no-peers
unpack_cifar 130
if [ "${#cifar[@]}" != 0 ]; then # at the papers' batches
    small=("${cifar[@]:0:2}" --decoders resident --repeats 3 --seconds 1 --no-peers --recipe)
    bench uic 145 throughput "${small[@]}" --stages uic_cifar10:E --batch-size 256 --limit-s "$(share 145 70)"
    bench sslpp 160 throughput "${small[@]}" --stages sslpp_rotation:E --batch-size 128 --limit-s "$(share 160 70)"
fi
# Half a minute for each first batch and repeat of lightly, whose 16 processes hold 32 batches ready.
bench lightly 225 training --data "$photos" --stages simclr:E simclr:S1 --decoder turbo --repeats 2 --seconds 1.5 --limit-s "$(share 225 60)"
