#!/usr/bin/env bash
# LLVM's OpenMP runtime for macOS, built for MACOSX_DEPLOYMENT_TARGET: the libomp of
# package managers asks for the macOS of the machine that it was built on.
#
#     wheels/libomp.sh PREFIX
#
# Needs git, CMake and Apple's command line tools. Builds for the architecture in
# ARCHFLAGS, or the machine's.
set -euo pipefail
prefix=${1:?usage: libomp.sh PREFIX}
tag=llvmorg-19.1.7
commit=cd708029e0b2869e80abe31ddb175f7c35361f90
arch=${ARCHFLAGS:-"-arch $(uname -m)"}
arch=${arch##* }
source=$(mktemp -d)
trap 'rm -rf "$source"' EXIT

git clone -q --depth 1 --branch "$tag" --filter=blob:none --sparse \
    https://github.com/llvm/llvm-project "$source/llvm"
[ "$(git -C "$source/llvm" rev-parse HEAD)" = "$commit" ] || {
    echo "libomp.sh: $tag is not the commit $commit" >&2
    exit 1
}
git -C "$source/llvm" sparse-checkout set openmp cmake llvm/cmake
cmake -S "$source/llvm/openmp" -B "$source/build" -DCMAKE_BUILD_TYPE=Release \
    -DCMAKE_INSTALL_PREFIX="$prefix" -DCMAKE_INSTALL_NAME_DIR="$prefix/lib" \
    -DCMAKE_OSX_ARCHITECTURES="$arch" \
    -DCMAKE_OSX_DEPLOYMENT_TARGET="${MACOSX_DEPLOYMENT_TARGET:-11.0}" \
    -DLIBOMP_ENABLE_SHARED=ON -DLIBOMP_INSTALL_ALIASES=OFF \
    -DOPENMP_ENABLE_LIBOMPTARGET=OFF -DOPENMP_STANDALONE_BUILD=ON
cmake --build "$source/build" --parallel
cmake --install "$source/build"
