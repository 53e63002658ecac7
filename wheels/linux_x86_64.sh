#!/usr/bin/env bash
# The Linux x86-64 wheel, natively: sdist, wheel from it, repair, verification, the
# tests from the installed wheel on several Pythons and under emulated CPUs.
#
#     wheels/linux_x86_64.sh                    all of it
#     PYTHONS=3.11 CPUS= wheels/linux_x86_64.sh     fewer tests
#     PYTEST_ARGS='-x -q' EMULATED_ARGS='tests/test_conv.py' wheels/linux_x86_64.sh
#
# Needs Debian 12 (its apt-get fetches Debian 11's libgomp) and Python 3.11 with venv
# and headers. As root it installs gcc and qemu-user-static where they are missing.
. "$(dirname "$0")/common.sh"
pythons=${PYTHONS-3.11 3.12 3.13}
cpus=${CPUS-Nehalem:baseline Haswell:avx2}
read -ra pytest_args <<<"${PYTEST_ARGS-}"
platform=manylinux_2_28_x86_64

if [ -n "${EMULATED_ARGS-}" ]; then
    read -ra emulated_args <<<"$EMULATED_ARGS"
else
    emulated_args=("${emulated_tests[@]}")
fi
[ "$(uname -sm)" = "Linux x86_64" ] || die "this is for Linux on x86-64"
apt_install gcc=gcc make=libc6-dev
[ -z "$cpus" ] || apt_install qemu-x86_64-static=qemu-user-static

say "tools"
make_tools
say "sdist"
make_sdist

say "wheel from the sdist"
pip wheel -q --no-deps -w "$work/raw" "$sdist"

say "repair and verification"
debian11_libgomp amd64 x86_64-linux-gnu
LD_LIBRARY_PATH=$libgomp auditwheel repair --plat "$platform" --only-plat \
    -w "$work/repaired" "$work"/raw/*.whl
finish "$work/repaired" "$platform"

say "an empty environment: numpy alone comes with it"
base=$(find_python 3.11)
"$base" -m venv "$work/empty"
"$work/empty/bin/pip" install -q "$wheel"
"$work/empty/bin/pip" list --format=freeze
others=$("$work/empty/bin/pip" list --format=freeze | cut -d= -f1 |
    grep -vixE 'pip|setuptools|numpy|cnn[-_]ext' || true)
[ -z "$others" ] || die "the wheel pulled in $others"
(cd / && "$work/empty/bin/cnn-ext" info)

copy_tests "$work/suite"
cd "$work/suite"
for version in $pythons; do
    say "tests on Python $version"
    python=$(find_python "$version") || die "no Python $version"
    "$python" -m venv "$work/py$version"
    "$work/py$version/bin/pip" install -q "$wheel[test]"
    "$work/py$version/bin/python" -VV
    "$work/py$version/bin/pytest" "${pytest_args[@]}"
done

for pair in $cpus; do
    cpu=${pair%%:*}
    say "tests on an emulated $cpu"
    if [ ! -d "$work/py3.11" ]; then
        "$base" -m venv "$work/py3.11"
        "$work/py3.11/bin/pip" install -q "$wheel[test]"
    fi
    emulated=(qemu-x86_64-static -cpu "$cpu" "$work/py3.11/bin/python")
    set_in_use=$("${emulated[@]}" -c 'from cnn_ext import _runtime
print(_runtime.kernel_set())')
    [ "$set_in_use" = "${pair##*:}" ] ||
        die "$cpu is to use the kernel set ${pair##*:}, it uses $set_in_use"
    echo "kernel set in use: $set_in_use"
    # qemu computes each fused multiply-add in software: there only this CPU's own set
    others=()
    [ "$set_in_use" = baseline ] || others=(-k "not baseline")
    "${emulated[@]}" -m pytest -p no:cacheprovider "${others[@]}" "${emulated_args[@]}"
done

say "done: $(basename "$wheel"), $(stat -c %s "$wheel") bytes"
