#!/usr/bin/env bash
# Sets up .venv with every extra: system packages, Python packages, our C library, and ffcv, which has to be
# compiled, too.
# Each step leaves in .venv/.done what it was made from; where that still holds, the step does nothing.
set -euo pipefail
export LC_ALL=C
terminal=$([ -t 0 ] && echo yes || true)
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$(pwd -P)
exec 9<"$root"
flock 9 # two calls at once (a demo beside the tests) take turns

say() { echo "install: $*" >&2; }
is_done() { [ "$(cat ".venv/.done/$1" 2>/dev/null)" = "$2" ]; }
set_done() { mkdir -p .venv/.done && echo "$2" >".venv/.done/$1"; }

missing_packages() { # libglib2.0-0 and others are only "provided" on newer systems
    mapfile -t wanted <toolchain/system-packages.txt
    if command -v dpkg-query >/dev/null; then
        dpkg-query -W -f='${db:Status-Status} ${Package} ${Provides}\n' | sed -n 's/^installed //p' | tr -s ', ' '\n'
    fi | sort -u | comm -13 - <(printf '%s\n' "${wanted[@]}" | sort) | paste -sd ' '
}

install_packages() { # sudo asks for a password only where somebody can answer
    local as_root=(env)
    if [ "$(id -u)" != 0 ]; then
        if [ -n "$terminal" ]; then as_root=(sudo env); else as_root=(sudo -n env); fi
    fi
    command -v apt-get >/dev/null && command -v "${as_root[0]}" >/dev/null || return 1
    as_root+=(DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300)
    "${as_root[@]}" update || true # one broken source need not matter
    "${as_root[@]}" install -y --no-install-recommends "$@"
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.10}; do
        if "$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            echo "$candidate" && return
        fi
    done
    say "no Python >= 3.10 with venv (tried ${PYTHON:-python3, python3.13 to python3.10}); set PYTHON or install ${missing:-python3-venv}"
    return 1
}

# A .venv that was moved or copied runs another folder's scripts: made anew.
if ! .venv/bin/python -m pip --version >/dev/null 2>&1 || ! grep -qF "$root/.venv" .venv/bin/activate; then
    rm -rf .venv
fi

missing=$(missing_packages)
if [ -n "$missing" ] && ! is_done system "$missing"; then
    say "installing system packages: $missing"
    apt_log=$(mktemp)
    # shellcheck disable=SC2086  # one word a package
    install_packages $missing >"$apt_log" 2>&1 </dev/null || true
    missing=$(missing_packages)
else
    apt_log=
fi

if [ ! -x .venv/bin/python ]; then
    python=$(find_python)
    "$python" -m venv "$root/.venv"
fi
set_done system "$missing"
if [ -n "$apt_log" ]; then mv "$apt_log" .venv/.done/apt.log; fi

pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }
# pyproject.toml's [tool.*] tables come last and install nothing
inputs=$({ sed '/^\[tool\./,$d' pyproject.toml && cat setup.py constraints.txt && .venv/bin/python --version && echo "$root"; } | sha256sum)
if ! is_done packages "$inputs"; then
    say "Python packages into .venv: about 7 GB, 2 to 4 minutes the first time; torch and NVIDIA's libraries are most of it"
    pip uninstall -qq -y fastpsl # another project's, or ours by its former name: either would leave files of its own behind
    # pip's own progress is for somebody who looks; a log gets warnings and errors alone.
    if [ -t 1 ]; then quiet=(); else quiet=(-q); fi
    pip install "${quiet[@]}" --no-compile -c constraints.txt -e ".[dali-cu13,datasets,heic,tiff,wandb,bench,transfer,export,onnx,timm,hub,remote,docs,dev]"
    say "compiling the Python packages with all cores"
    # pip would compile with one core. A few files are written for newer Pythons: they stay as they are.
    .venv/bin/python -m compileall -qq -j 0 .venv/lib/python3.*/site-packages || true
    set_done packages "$inputs"
fi

# pip built them the first time; they are built again where their source or the libraries have changed
source=$(cat fastpsl/kernels/*.c fastpsl/pipelines/beton/*.c fastpsl/pipelines/decoders/*.[ch] setup.py | sha256sum)
built=(fastpsl/pipelines/decoders/_turbo.*.so)
if ! is_done turbo "$source $missing" || [ ! -e "${built[0]}" ]; then
    say "compiling our C libraries: the turbo decoder and the kernels, half a minute"
    .venv/bin/python setup.py -q build_ext --inplace --force >.venv/.done/turbo.log 2>&1 || true
    built=(fastpsl/pipelines/decoders/_turbo.*.so)
    set_done turbo "$source $missing"
    [ -e "${built[0]}" ] || say "no turbo decoder: it does not build (.venv/.done/turbo.log)"
fi

ffcv_works() { .venv/bin/python -c "import ffcv.libffcv" >>.venv/.done/ffcv.log 2>&1; }
if ! is_done ffcv "yes $inputs" && ! is_done ffcv "no $missing $inputs"; then
    say "compiling ffcv, a minute or two; its log is .venv/.done/ffcv.log"
    if PKG_CONFIG_PATH="$root/toolchain/ffcv-shim${PKG_CONFIG_PATH:+:$PKG_CONFIG_PATH}" \
        pip install -c constraints.txt ffcv >.venv/.done/ffcv.log 2>&1 && ffcv_works; then
        set_done ffcv "yes $inputs"
    else
        pip uninstall -q -y ffcv >>.venv/.done/ffcv.log 2>&1
        set_done ffcv "no $missing $inputs"
    fi
fi
if ! is_done ffcv "yes $inputs"; then
    if [ -n "$missing" ]; then why="system packages are missing and cannot be installed here: $missing"; else why="it does not build"; fi
    say "no ffcv decoder: $why (logs in .venv/.done)"
fi
