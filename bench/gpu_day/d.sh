#!/usr/bin/env bash
# Part D, which needs DALI: its tests, with the hardware decoder; supervised training beside its example of ResNet-50.
part=d
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
make_photos 60
if [ -n "$SMALL" ]; then
    bench dali 220 training --stages supervised:E --peers dali_resnet50 --batch-size 4 --workers 1 --repeats 1
    exit
fi
# One after the other: some read how much of the device is in use.
tests tests-dali 130 15 -o timeout=60 tests/pipelines/test_cuda.py
bench dali 225 training --data "$photos" --stages supervised:E --peers dali_resnet50 --decoder turbo --repeats 3 --seconds 1.5 \
    --limit-s "$(share 225 70)"
