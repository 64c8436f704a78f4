#!/usr/bin/env bash
# Part F: loaders beside their peers; detection beside torchvision's; seconds to an accuracy on CIFAR-10 (without .gpu/cifar: the sample).
part=f
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
if [ -n "$SMALL" ]; then
    bench detection 500 detection --batch-size 1 --size 64 --repeats 1
    exit
fi
make_photos 60
unpack_cifar 80
bench loaders 190 throughput --recipe --data "$photos" --decoders dali --views 1 2 --repeats 2 --seconds 1.2 --limit-s "$(share 190 75)"
bench detection 270 detection --repeats 5 --limit-s "$(share 270 60)"
bench graphed 330 small "${cifar[@]}" --recipes sslpp_rotation --compile graphs --no-evaluation --repeats 3 --seconds 1.5 --limit-s "$(share 330 75)"
bench rotation 440 time_to_accuracy "${cifar[@]}" --recipe rotation --seeds 0 1 --limit-s "$(share 440 95)"
bench simclr 520 time_to_accuracy "${cifar[@]}" --recipe simclr --seeds 0 --limit-s "$(share 520 95)"
