#!/usr/bin/env bash
# Part A: the CUDA tests of the step, the tasks, BatchNorm and photometric kernels, with launched and captured steps compared; the step by
# stage and mode, launched and captured, with PSL's cost over end to end's; kernels of augmentation (T3).
part=a
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
if [ -n "$SMALL" ]; then
    step tests 100 "$PYTHON" -m pytest -q -p no:cacheprovider tests/pipelines/test_engines.py
    bench step 180 step --recipes jigsaw --stages S2 --modes eager --backbone resnet18 --batch-size 8 --repeats 1
    bench kernels 220 kernels --chains flip 'SimCLR T3' --batch-size 4 --size-px 64 --repeats 1 --no-peers
    exit
fi
mapfile -t files < <(gpu_tests tests/engine tests/tasks tests/kernels/test_*norm.py tests/kernels/test_*photometric.py)
OMP_NUM_THREADS=1 TORCHINDUCTOR_COMPILE_THREADS=2 tests tests-changed 100 15 -n 12 --dist worksteal -o timeout=80 -k 'not memory' "${files[@]}"
# Of rotation: its views and head cost next to nothing.
bench step 195 step --recipes rotation --modes eager fused fused+fold --graph off on --no-revnet --repeats 5 --limit-s "$(share 195 85)"
bench kernels 222 kernels --chains 'SimCLR T3' jigsaw 'rotation, all 8' UIC --repeats 7
