"""Build of the compiled core. Everything declarative is in pyproject.toml.

Environment:
    CNN_EXT_OPENMP=auto|0|1   found by a probe, left out, or required
    CNN_EXT_DEBUG=1           bounds checks and assertions, no optimisation lost
"""

import os
import platform
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

DEBUG = os.environ.get("CNN_EXT_DEBUG", "0") not in ("", "0")
WINDOWS = sys.platform == "win32"
# One wheel for CPython 3.11 and later; free-threaded builds have no stable ABI.
ABI3 = not sysconfig.get_config_var("Py_GIL_DISABLED")
KERNELS = Path("src/kernels")

# What each kernel set may use beyond the platform's baseline.
ISA_FLAGS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": [
        *("-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mfma"),
        "-mprefer-vector-width=512",
    ],
    "neon": [],
}


def target_machine():
    """Architecture built for, also when cross-compiling."""
    name = os.environ.get("_PYTHON_HOST_PLATFORM") or sysconfig.get_platform()
    archflags = os.environ.get("ARCHFLAGS", "")
    if "arm64" in archflags or "aarch64" in name or "arm64" in name:
        return "arm64"
    if "x86_64" in name or "amd64" in name or "universal2" in name:
        return "x86_64" if "universal2" not in name else platform.machine().lower()
    return platform.machine().lower()


def isa_sets():
    machine = target_machine()
    if machine in ("x86_64", "amd64"):
        return ["baseline", "avx2", "avx512"]
    if machine in ("arm64", "aarch64"):
        return ["baseline", "neon"]
    return ["baseline"]


def compiles(compiler, flags, source):
    """Whether a small program compiles and links with these flags."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "probe.c")
        path.write_text(source)
        try:
            objects = compiler.compile(
                [str(path)], output_dir=folder, extra_postargs=flags
            )
            compiler.link_shared_object(
                objects, str(Path(folder, "probe.so")), extra_postargs=flags
            )
        except Exception:
            return False
    return True


OPENMP_PROBE = "#include <omp.h>\nint threads(void) { return omp_get_max_threads(); }\n"


class BuildKernels(build_ext):
    """build_ext with flags per kernel set, an OpenMP probe and clang on Windows."""

    def build_extensions(self):
        if WINDOWS:
            self.use_clang()
        openmp = self.openmp_flags()
        common = ["-O3", "-g0", "-fvisibility=hidden", "-ffp-contract=fast"]
        if not WINDOWS:
            common += ["-std=gnu11", "-Wno-psabi"]
        if DEBUG:
            common += ["-g", "-DCNN_EXT_DEBUG=1", "-UNDEBUG"]
        for extension in self.extensions:
            extension.extra_compile_args = [*common, *openmp]
            extension.extra_link_args = [*openmp, *([] if WINDOWS else ["-lm"])]
        super().build_extensions()

    def build_extension(self, extension):
        if extension.name == "cnn_ext._runtime":
            for name in isa_sets():
                extension.extra_objects += self.compiler.compile(
                    [str(KERNELS / f"isa_{name}.c")],
                    output_dir=self.build_temp,
                    include_dirs=extension.include_dirs,
                    extra_postargs=[*extension.extra_compile_args, *ISA_FLAGS[name]],
                    depends=extension.depends,
                )
        super().build_extension(extension)

    def openmp_flags(self):
        wanted = os.environ.get("CNN_EXT_OPENMP", "auto")
        if wanted not in ("auto", "0", "1"):
            raise CompileError(f"CNN_EXT_OPENMP must be auto, 0 or 1, got {wanted!r}")
        if wanted == "0":
            return []
        # Apple's clang has no -fopenmp; libomp's place comes from CFLAGS, LDFLAGS
        for flags in (["-fopenmp"], ["-Xpreprocessor", "-fopenmp", "-lomp"]):
            if compiles(self.compiler, flags, OPENMP_PROBE):
                return flags
        if wanted == "1":
            raise CompileError("CNN_EXT_OPENMP=1, but the compiler has no OpenMP")
        print("cnn_ext: the compiler has no OpenMP, building for one thread")
        return []

    def use_clang(self):
        """MSVC has no vector types: compile with LLVM's clang, link as usual."""
        clang = os.environ.get("CNN_EXT_CLANG", "clang")

        def compile_with_clang(sources, output_dir=None, include_dirs=None,
                               extra_postargs=None, depends=None, macros=None, **_):
            objects = []
            for source in sources:
                target = Path(output_dir or ".", source).with_suffix(".obj")
                target.parent.mkdir(parents=True, exist_ok=True)
                include = [f"-I{d}" for d in [*(include_dirs or []),
                           *self.compiler.include_dirs]]
                define = [f"-D{m[0]}={m[1]}" for m in macros or []]
                subprocess.check_call([clang, "-c", source, "-o", str(target),
                                       *include, *define, *(extra_postargs or [])])
                objects.append(str(target))
            return objects

        self.compiler.initialize()
        self.compiler.compile = compile_with_clang


def extension(name, c_sources=()):
    return Extension(
        f"cnn_ext._{name}",
        [f"src/{name}.pyx", *(str(KERNELS / source) for source in c_sources)],
        include_dirs=[str(KERNELS)],
        depends=[str(path) for path in sorted(KERNELS.glob("*.h"))],
        define_macros=[("Py_LIMITED_API", "0x030B0000")] if ABI3 else [],
        py_limited_api=ABI3,
    )


setup(
    ext_modules=cythonize(
        [
            extension("runtime", ["dispatch.c", "scratch.c"]),
            extension("conv"),
            extension("pool"),
        ],
        include_path=["src"],
        build_dir="build/cython",
        compiler_directives={
            "language_level": "3",
            "boundscheck": DEBUG,
            "wraparound": False,
            "cdivision": True,
            "initializedcheck": DEBUG,
            "freethreading_compatible": True,
        },
    ),
    cmdclass={"build_ext": BuildKernels},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if ABI3 else {},
)
