#!/usr/bin/env bash
# Makes .gpu/: what a GPU machine without a network lacks, to be carried there with the tree. No GPU needed. In the checkout's root, after
# `make install`:
#
#   bash bench/gpu_day/prepare.sh FFCV_WHEEL [IMAGES [SCENES]]
#
#   FFCV_WHEEL   ffcv 1.0.2 for CPython 3.12 (or abi3) with its libraries inside; README.md says how to build one
#   IMAGES       a folder with train.npz and test.npz of CIFAR-10, as `fastpsl data write` reads them; part H and those of the methods
#                take them
#   SCENES       a folder with the public set that bench/evidence/splits/scenes.csv lists, and lite0.pth; part worth takes them
#
#   .gpu/whl     wheels of CPython 3.12 at the versions of constraints.txt, fastpsl's C libraries, and sources.sha256, which says what was
#                measured
#   .gpu/dali1   DALI, its codecs and nvJPEG, without other GPUs' code and other Pythons', first part
#   .gpu/dali2   and second part
#   .gpu/cifar1  12,000 + 3,000 images, packed (bench/pack_images.py)
#   .gpu/cifar2  and so on up to .gpu/cifar4: the others
#   .gpu/scenes1 to .gpu/scenes4: the scenes at 128 px with their published weights, in pieces (pack in bench/evidence/data.py)
set -euo pipefail
usage='usage: bash bench/gpu_day/prepare.sh FFCV_WHEEL [IMAGES [SCENES]]'
wheel=${1:-}
images=${2:-}
scenes=${3:-}
python=${PYTHON:-.venv/bin/python}
most_mib=63 # of a call: the tree without weights, and what is carried beside it
most_images=29000000 # bytes of images in a call
first_bytes=20000000 # of DALI
[[ $wheel == *.whl && -e $wheel ]] || { echo "prepare: '$wheel' is no wheel; $usage" >&2; exit 2; }
[[ -z $images || ( -e $images/train.npz && -e $images/test.npz ) ]] || {
    echo "prepare: $images has no train.npz and test.npz; $usage" >&2
    exit 2
}
[[ -z $scenes || -e $scenes/lite0.pth ]] || { echo "prepare: $scenes has no lite0.pth; $usage" >&2; exit 2; }
rm -rf .gpu/new
mkdir -p .gpu/new .gpu/dali1 .gpu/dali2

# One by one: nothing may come along that the machine has (torch, torchvision, triton, numpy, numba, pillow, opencv, rich, pytest, ...).
platforms=(--platform any)
for glibc in 39 36 35 34 31 28 27 24 17; do platforms+=(--platform "manylinux_2_${glibc}_x86_64"); done
for year in 2014 2010 1; do platforms+=(--platform "manylinux${year}_x86_64"); done
"$python" -m pip download -qq --no-deps --only-binary=:all: --python-version 3.12 --implementation cp --abi cp312 --abi abi3 --abi none \
    "${platforms[@]}" -c constraints.txt -d .gpu/new \
    kornia kornia-rs tyro docstring-parser typeguard tqdm terminaltables pytorch-pfn-extras webdataset braceexpand pycocotools \
    astunparse gast makefun nvtx optree libcst lightly lightning-utilities timm
"$python" -m pip wheel -qq --no-deps -c constraints.txt -w .gpu/new assertpy fastargs # have no wheels
cp "$wheel" .gpu/new/
# fastpsl's own C, what makes the tests' JPEGs, and the JPEG library that both need.
mkdir .gpu/new/built .gpu/new/lib
"$python" -c 'from tests.pipelines.jpeg_kinds import library; library()'
find fastpsl build/libjpeg_kinds.so -name '*.so' -exec cp --parents {} .gpu/new/built/ \;
ldd fastpsl/pipelines/decoders/_turbo.abi3.so | awk '/libjpeg/ { print $3 }' | xargs -I {} cp -L {} .gpu/new/lib/
rm -rf .gpu/whl
mv .gpu/new .gpu/whl

if [ ! -s .gpu/dali2/dali.tar.xz.1 ]; then # remove it for another version
    site=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    mkdir -p "$work/nvidia/cu13/lib"
    cp -r "$site"/nvidia_dali_cuda*.dist-info "$work/" # its version
    cp -r "$site"/nvidia/{dali,nvimgcodec,nvjpeg2k,nvtiff} "$work/nvidia/"
    cp "$site"/nvidia/cu13/lib/libnvjpeg.so.13 "$work/nvidia/cu13/lib/"
    # The machine's torch has a folder nvidia/ of its own beside this one.
    echo '__path__ = __import__("pkgutil").extend_path(__path__, __name__)' >"$work/nvidia/__init__.py"
    rm -rf "$work"/nvidia/*/include
    find "$work" -name __pycache__ -prune -exec rm -rf {} +
    find "$work" -name '*.cpython-*.so' ! -name '*.cpython-312-*' -delete
    find "$work" -name '*.so*' -type f -print0 | xargs -0 "$python" bench/gpu_day/prune_fatbins.py 90 >/dev/null
    echo "compressing DALI: some minutes" # one thread: several would compress blocks apart
    (cd "$work" && tar c nvidia*) | nice xz --x86 --lzma2=preset=6 -T1 >"$work/dali.tar.xz"
    head -c $first_bytes "$work/dali.tar.xz" >.gpu/dali1/dali.tar.xz.0 # travels with the wheels
    tail -c +$((first_bytes + 1)) "$work/dali.tar.xz" >.gpu/dali2/dali.tar.xz.1
fi

if [ -n "$images" ]; then
    rm -rf .gpu/cifar*
    "$python" bench/pack_images.py pack "$images/train.npz" .gpu/cifar --each 12000 # 5 pieces
    "$python" bench/pack_images.py pack "$images/test.npz" .gpu/cifar --each 3000 # 4
    mkdir .gpu/cifar{1,2,3,4}
    for n in 1 2 3; do mv .gpu/cifar/*-${n}of* .gpu/cifar$n/; done
    mv .gpu/cifar/* .gpu/cifar4/
    rmdir .gpu/cifar
fi

if [ -n "$scenes" ]; then
    rm -rf .gpu/scenes*
    "$python" -c '
import sys; from pathlib import Path; from bench.evidence.data import pack
pack("scenes", Path(sys.argv[1]), Path(".gpu/scenes"), 4)' "$scenes"
    for n in 1 2 3 4; do mkdir .gpu/scenes$n && mv .gpu/scenes/*-${n}of* .gpu/scenes$n/; done
    rmdir .gpu/scenes
fi

# There is no git on the GPU machine: the commit, and a sum of each file, by which setup.sh sees whether the tree is another.
{
    echo "# $("$python" -c 'from bench.schema import commit; print(commit())')"
    git ls-files -z -- '*.py' 'bench/evidence/*.json' | xargs -0 sha256sum
} >.gpu/whl/sources.sha256

tree=$(git ls-files -z --cached --others --exclude-standard ':!*.safetensors' | xargs -0 du -cb | tail -n 1 | cut -f 1)
for parts in 'whl dali1' dali2 cifar1 cifar2 cifar3 cifar4 scenes1 scenes2 scenes3 scenes4; do # what a call carries beside the tree
    if [[ $parts =~ ^(cifar|scenes) && -d .gpu/$parts ]] && [ "$(du -sb ".gpu/$parts" | cut -f 1)" -gt $most_images ]; then
        echo "prepare: more than $most_images bytes in .gpu/$parts" >&2
        exit 1
    fi
    bytes=$tree
    for part in $parts; do
        if [ -d ".gpu/$part" ]; then bytes=$((bytes + $(du -sb ".gpu/$part" | cut -f 1))); fi
    done
    echo "tree + ${parts/ / + }: $((bytes >> 20)) MiB"
    [ $((bytes >> 20)) -lt $most_mib ] || { echo "prepare: more than $most_mib MiB in one call" >&2; exit 1; }
done
