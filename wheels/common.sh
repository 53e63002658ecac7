# What the scripts beside this share; sourced, not run.
set -euo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
wheels=$top/wheels
dist=$wheels/dist
# environments, roots and images that the next run takes up again
cache=${CNN_EXT_WHEELS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/cnn_ext-wheels}
debian=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
mkdir -p "$cache" "$dist"
work=$(mktemp -d "${TMPDIR:-/tmp}/cnn_ext-wheels.XXXXXX")
export PIP_DISABLE_PIP_VERSION_CHECK=1
unset PYTHONPATH PYTHONHOME

cleanup() { rm -rf "$work"; }
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say() { printf '\n=== %s\n' "$*"; }

die() {
    echo "wheels: $*" >&2
    exit 2
}

# apt_install PROGRAM=PACKAGE...: Debian packages for programs that are missing
apt_install() {
    local pair missing=()
    for pair in "$@"; do
        command -v "${pair%%=*}" >/dev/null || missing+=("${pair##*=}")
    done
    [ "${#missing[@]}" -gt 0 ] || return 0
    if ! command -v apt-get >/dev/null || [ "$(id -u)" -ne 0 ]; then
        die "missing: ${missing[*]} (Debian packages; run as root to have them installed)"
    fi
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends \
        "${missing[@]}"
}

# find_python 3.12: a Python of this version with venv and headers
find_python() {
    local candidate
    for candidate in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1"*/bin/python3; do
        candidate=$(command -v "$candidate") || continue
        # a version manager's shim may be there for a version that is not active
        "$candidate" - "$1" 2>/dev/null <<'PY' && return
import ensurepip, os, sys, sysconfig, venv
version = ".".join(map(str, sys.version_info[:2]))
header = os.path.join(sysconfig.get_path("include"), "Python.h")
if version != sys.argv[1] or not os.path.exists(header):
    sys.exit(1)
print(sys.executable)
PY
    done
    return 1
}

# The environment with the tools of requirements.txt, made anew when that changes.
make_tools() {
    local python stamp=$cache/tools/requirements.txt
    python=$(find_python 3.11) || die "no Python 3.11 with venv and headers"
    if ! cmp -s "$wheels/requirements.txt" "$stamp"; then
        rm -rf "$cache/tools"
        "$python" -m venv "$cache/tools"
        "$cache/tools/bin/pip" install -q -r "$wheels/requirements.txt"
        cp "$wheels/requirements.txt" "$stamp"
    fi
    PATH=$cache/tools/bin:$PATH
    hash -r
}

# The sdist of the checkout as it is now, built in a copy; sets $sdist, $version and
# $sources, the unpacked sdist that everything else is made from.
make_sdist() {
    local copy=$work/checkout
    mkdir "$copy"
    cd "$top"
    if git rev-parse --is-inside-work-tree >/dev/null 2>&1; then
        # tracked and new files; nothing built, nothing ignored
        git ls-files -z --cached --others --exclude-standard |
            while IFS= read -r -d '' file; do
                if [ -e "$file" ]; then printf '%s\0' "$file"; fi
            done | tar --null -T - -cf - | tar -xf - -C "$copy"
    else # an unpacked sdist
        tar --exclude='*.so' --exclude=./build --exclude=./wheels/dist -cf - . |
            tar -xf - -C "$copy"
    fi
    python -m build -q --sdist --outdir "$work/sdist" "$copy"
    sdist=$(echo "$work"/sdist/cnn_ext-*.tar.gz)
    version=$(basename "$sdist" .tar.gz)
    version=${version#cnn_ext-}
    tar -xf "$sdist" -C "$work"
    sources=$work/cnn_ext-$version
    cp "$sdist" "$dist/"
    sdist=$dist/$(basename "$sdist")
    ls -l "$sdist"
    cd "$work"
}

# debian11_libgomp ARCH TRIPLET: sets $libgomp, a folder with Debian 11's libgomp.so.1.
# It needs no newer glibc than manylinux_2_28 allows; that of Debian 12 does.
debian11_libgomp() {
    local apt=$cache/bullseye-$1 options
    command -v apt-get >/dev/null || die "apt-get is needed to download Debian 11's libgomp1"
    libgomp=$apt/root/usr/lib/$2
    [ ! -e "$libgomp/libgomp.so.1" ] || return 0
    rm -rf "$apt"
    mkdir -p "$apt/lists/partial" "$apt/archives/partial" "$apt/root"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]" \
        "$debian bullseye main" >"$apt/sources.list"
    # folders of its own: the machine's package lists stay as they are
    options=(-o Dir::Etc::SourceList="$apt/sources.list" -o Dir::Etc::SourceParts=-
        -o Dir::State="$apt" -o Dir::State::Lists="$apt/lists"
        -o Dir::State::status=/dev/null -o Dir::Cache="$apt"
        -o APT::Architecture="$1" -o APT::Architectures="$1"
        -o APT::Sandbox::User=root)
    apt-get "${options[@]}" -q update
    (cd "$apt" && apt-get "${options[@]}" -q download libgomp1)
    dpkg -x "$apt"/libgomp1_*.deb "$apt/root"
}

# finish FOLDER PLATFORM: licences into the repaired wheel, verification; sets $wheel
finish() {
    python "$wheels/add_licenses.py" "$1"
    python "$wheels/verify.py" --platform "$2" "$1"/*.whl
    wheel=$dist/$(basename "$1"/*.whl)
    mv "$1"/*.whl "$wheel"
}

# Every kernel, without training.
operator_tests=(tests/test_{conv,transposed,pool,subsample,linear,adjoint}.py
    tests/test_{special_values,pointwise,normalize,update}.py)
# For emulated CPUs, some twenty times slower: the same with fewer random cases.
emulated_tests=(--hypothesis-profile=brief "${operator_tests[@]}")

# The tests as an installed package meets them: no sources of ours beside them.
copy_tests() {
    rm -rf "$1"
    mkdir -p "$1"
    cp -r "$sources/tests" "$sources/pyproject.toml" "$1/"
}
