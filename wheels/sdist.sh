#!/usr/bin/env bash
# The sdist as one who has no wheel meets it: complete, and built by pip in an empty
# environment with a C compiler only; then without OpenMP, and with it required.
#
#     wheels/sdist.sh
#
# Needs Python 3.11 with venv and headers. As root on Debian it installs gcc where no
# C compiler is there.
. "$(dirname "$0")/common.sh"
command -v "${CC:-cc}" >/dev/null || apt_install gcc=gcc make=libc6-dev

say "tools"
make_tools
say "sdist"
make_sdist
if git -C "$top" rev-parse --is-inside-work-tree >/dev/null 2>&1; then
    say "against what git tracks"
    (cd "$work/checkout" && git init -q && git add -A &&
        check-sdist --source-dir .) || die "the sdist is not what git has"
fi
base=$(find_python 3.11)
copy_tests "$work/suite"
cd "$work/suite"

# build OPENMP NAME: into an empty environment, away from every tool of ours
build() {
    say "pip install of the sdist, CNN_EXT_OPENMP=$1"
    "$base" -m venv "$work/$2"
    env -i HOME="$HOME" PATH="$work/$2/bin:/usr/bin:/bin" LANG=C.UTF-8 \
        CNN_EXT_OPENMP="$1" PIP_CERT="${PIP_CERT-}" \
        "$work/$2/bin/pip" install -q --no-binary cnn_ext --no-cache-dir "$sdist"
    "$work/$2/bin/pip" list --format=freeze
    "$work/$2/bin/python" -P -c 'import cnn_ext, sys
from cnn_ext import _runtime
print("OpenMP", _runtime.openmp_version(), "kernel set", _runtime.kernel_set())
sys.exit(bool(_runtime.openmp_version()) != (sys.argv[1] == "1"))' "$1" ||
        die "CNN_EXT_OPENMP=$1 was not heeded"
    "$work/$2/bin/pip" install -q 'pytest>=8' hypothesis
    "$work/$2/bin/pytest" -q "${operator_tests[@]}"
}

build 1 with
build 0 without
say "done: $(basename "$sdist")"
