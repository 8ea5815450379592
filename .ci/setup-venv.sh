#!/usr/bin/env bash
# Makes .venv in this checkout and installs cloudft into it, editable. Safe to repeat, and to run twice at once.
# usage: setup-venv.sh demo|dev     demo: what `make demo` needs; dev: every extra and the development tools
# environment: PYTHON (python3), CLOUDFT_CACHE (~/.cache/cloudft), CMAKE_ARGS (flags for llama.cpp, instead of ours)
set -euo pipefail
what=${1:?usage: setup-venv.sh demo|dev}
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
cache=${CLOUDFT_CACHE:-${XDG_CACHE_HOME:-${HOME:?}/.cache}/cloudft}
stamp=.venv/.ready-$what

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$@" >&2; exit 1; }
# A download of gigabytes should show that it moves; a log file should not hold its progress bar.
quiet=(); [ -t 1 ] || quiet=(-qq)
pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }
pinned() { sed -n "s/^ *\"\($1\(\[[a-z]*\]\)\{0,1\}==[^\"]*\)\",\{0,1\}\$/\1/p" pyproject.toml | head -n 1; }

check_python() {
    command -v "$python" >/dev/null || fail "there is no $python" \
        "install Python 3.11 or newer (Debian, Ubuntu: sudo apt-get install python3 python3-venv)"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail \
        "$("$python" -V) is too old, cloudft needs 3.11 or newer" \
        "name a newer one:  make PYTHON=python3.12 …"
    "$python" -c 'import venv, ensurepip' 2>/dev/null || fail "this Python cannot make virtual environments" \
        "install that part (Debian, Ubuntu: sudo apt-get install python3-venv)"
}

make_venv() {
    # A venv whose Python has been removed, or that was interrupted before it had pip, is made anew.
    if ! .venv/bin/python -c 'import pip' 2>/dev/null; then
        say "making .venv with $("$python" -V)"
        "$python" -m venv --clear .venv
    fi
    # The first pip that installs dependency groups.
    .venv/bin/python -c 'import pip, sys; sys.exit(tuple(map(int, pip.__version__.split(".")[:2])) < (25, 1))' \
        || pip install -qq --upgrade 'pip>=25.1'
}

# PyPI has llama-cpp-python as source only. Its wheel is built once per version and kept outside the checkout; flags of
# the user's own (a GPU backend, say) make another wheel, which gets a folder of its own.
wheels=$cache/wheels
[ -z "${CMAKE_ARGS:-}" ] || wheels+=/$(printf '%s' "$CMAKE_ARGS" | cksum | cut -d' ' -f1)
find_wheel() { find "$wheels" -maxdepth 1 -name "llama_cpp_python-$1-*$(uname -m).whl" 2>/dev/null | head -n 1; }

# Before anything is downloaded.
check_compiler() {
    local tool
    [ -z "$(find_wheel "$1")" ] || return 0
    for tool in cc c++; do
        command -v "$tool" >/dev/null || fail "llama-cpp-python must be compiled, and there is no compiler ($tool)" \
            "install one (Debian, Ubuntu: sudo apt-get install build-essential)"
    done
}

build_wheel() {
    local version=$1 part
    mkdir -p "$wheels"
    part=$(mktemp -d "$wheels/.build.XXXXXX")
    # shellcheck disable=SC2064  # now, not at exit: the variable is local
    trap "rm -rf '$part'" EXIT
    say "building llama-cpp-python $version: 3 to 10 minutes, once on this machine"
    # Past pip's own cache: that one does not know with which flags a wheel was built.
    CMAKE_ARGS=${CMAKE_ARGS:-$(llama_flags)} pip wheel -q --no-cache-dir --no-deps --no-binary llama-cpp-python \
        --wheel-dir "$part" "llama-cpp-python==$version" >"$part/log" 2>&1 \
        || { tail -n 40 "$part/log" >&2; fail "llama-cpp-python could not be built; the end of its log stands above"; }
    mv "$part"/*.whl "$wheels/"
    rm -rf "$part"; trap - EXIT
}

# Only the library: no tools, no server, no vision. On x86-64 for any processor with AVX2 rather than for this very
# one, since a cache may be shared by several machines.
llama_flags() {
    local part
    for part in LLAVA_BUILD LLAMA_BUILD_TOOLS LLAMA_BUILD_SERVER LLAMA_BUILD_TESTS LLAMA_BUILD_EXAMPLES LLAMA_OPENSSL; do
        printf -- '-D%s=OFF ' "$part"
    done
    [ "$(uname -m)" != x86_64 ] || printf -- '-DGGML_NATIVE=OFF'
}

install_all() {
    # First and alone: pip then keeps this torch, whichever build of it the user's index or links offer.
    say "installing $torch"
    pip install "${quiet[@]}" "$torch"
    # In place before its requirement is read, so that pip does not build it again.
    [ -n "$(find_wheel "$llama")" ] || build_wheel "$llama"
    pip install -qq --no-deps --force-reinstall "$(find_wheel "$llama")"
    say "installing cloudft for $what"
    if [ "$what" = dev ]; then
        pip install "${quiet[@]}" -e '.[all]' --group dev
    else
        pip install "${quiet[@]}" -e '.[train,local]'
    fi
}

case $what in demo|dev) ;; *) fail "unknown: $what (demo or dev)";; esac
torch=$(pinned torch); llama=$(pinned llama-cpp-python); llama=${llama#*==}
[ -n "$torch" ] && [ -n "$llama" ] || fail "pyproject.toml pins no torch or no llama-cpp-python any more"
check_python
check_compiler "$llama"
mkdir -p "$cache"
# One at a time for all checkouts of this user: two makes would build the same wheel, or write into the same venv.
if command -v flock >/dev/null; then
    exec 9>"$cache/setup.lock"
    flock -n 9 || { say "waiting for another setup that is going on"; flock 9; }
fi
if [ "$stamp" -nt pyproject.toml ] && [ "$stamp" -nt .ci/setup-venv.sh ]; then exit 0; fi
make_venv
install_all
[ "$what" = demo ] || touch .venv/.ready-demo
touch "$stamp"
say "ready"
