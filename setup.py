"""Build of the compiled core. Everything declarative is in pyproject.toml.

Environment:
    CNN_EXT_OPENMP=auto|0|1   found by a probe, left out, or required
    CNN_EXT_DEBUG=1           bounds checks and assertions, no optimisation lost
    CNN_EXT_CLANG=PATH        Windows: LLVM's clang.exe, found on PATH by default
"""

import os
import platform
import re
import shutil
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
    """Architecture built for, also when cross-compiling; one of them at a time."""
    archs = re.findall(r"-arch\s+(\S+)", os.environ.get("ARCHFLAGS", ""))
    if len(set(archs)) > 1:
        raise CompileError(
            f"ARCHFLAGS asks for {' and '.join(archs)}: each architecture has kernels "
            "of its own, build one wheel for each"
        )
    if archs:
        return archs[0].lower()
    name = sysconfig.get_platform().lower()  # heeds _PYTHON_HOST_PLATFORM
    for machine in ("x86_64", "amd64", "aarch64", "arm64"):
        if name.endswith(machine):
            return machine
    return platform.machine().lower()


def build_for_one_architecture():
    """A universal2 Python on macOS compiles for two architectures unless told."""
    name = sysconfig.get_platform()
    if name.endswith("universal2") and not os.environ.get("ARCHFLAGS"):
        machine = platform.machine()
        os.environ["ARCHFLAGS"] = f"-arch {machine}"
        os.environ["_PYTHON_HOST_PLATFORM"] = name.replace("universal2", machine)


def isa_sets():
    machine = target_machine()
    if machine in ("x86_64", "amd64"):
        return ["baseline", "avx2", "avx512"]
    if machine in ("arm64", "aarch64"):
        return ["baseline", "neon"]
    return ["baseline"]


def compiles(compiler, compile_flags, link_flags, source):
    """Whether a small program compiles and links with these flags."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "probe.c")
        path.write_text(source)
        try:
            objects = compiler.compile(
                [str(path)], output_dir=folder, extra_postargs=compile_flags
            )
            compiler.link_shared_object(
                objects, str(Path(folder, "probe.so")), extra_postargs=link_flags
            )
        except Exception:
            return False
    return True


# A parallel region too: its calls are not in every library that has omp.h's.
OPENMP_PROBE = """
#include <omp.h>
#ifdef _WIN32
__declspec(dllexport)
#endif
int threads(void)
{
    int count = 0;
    #pragma omp parallel reduction(+:count)
    count += omp_get_num_threads() > 0;
    return count;
}
"""


class BuildKernels(build_ext):
    """build_ext with flags per kernel set, an OpenMP probe and clang on Windows."""

    def build_extensions(self):
        if WINDOWS:
            self.use_clang()
        else:
            self.forget_run_path()
        openmp, openmp_link = self.openmp_flags()
        common = ["-O3", "-g0", "-fvisibility=hidden", "-ffp-contract=fast"]
        if not WINDOWS:
            common += ["-std=gnu11", "-Wno-psabi"]
        if DEBUG:
            common += ["-g", "-DCNN_EXT_DEBUG=1", "-UNDEBUG"]
        for extension in self.extensions:
            extension.extra_compile_args = [*common, *openmp]
            extension.extra_link_args = [*openmp_link, *([] if WINDOWS else ["-lm"])]
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

    def forget_run_path(self):
        """A Python with a run path of its own hands it on; modules need none."""
        inherited = (sysconfig.get_config_var("LDSHARED") or "").split()
        inherited = {flag for flag in inherited if flag.startswith("-Wl,-rpath")}
        self.compiler.linker_so = [
            flag for flag in self.compiler.linker_so if flag not in inherited
        ]

    def openmp_flags(self):
        wanted = os.environ.get("CNN_EXT_OPENMP", "auto")
        if wanted not in ("auto", "0", "1"):
            raise CompileError(f"CNN_EXT_OPENMP must be auto, 0 or 1, got {wanted!r}")
        if wanted == "0":
            return [], []
        # Apple's clang has no -fopenmp; libomp's place comes from CFLAGS, LDFLAGS
        apple = ["-Xpreprocessor", "-fopenmp"]
        choices = [(["-fopenmp"], ["-fopenmp"]), (apple, ["-lomp"])]
        if WINDOWS:  # MSVC's linker knows no -fopenmp
            choices = [(["-fopenmp"], [str(self.llvm() / "lib" / "libomp.lib")])]
        for flags in choices:
            if compiles(self.compiler, *flags, OPENMP_PROBE):
                return flags
        if wanted == "1":
            raise CompileError("CNN_EXT_OPENMP=1, but the compiler has no OpenMP")
        print("cnn_ext: the compiler has no OpenMP, building for one thread")
        return [], []

    def llvm(self):
        """Windows: the folder that LLVM is installed in."""
        name = os.environ.get("CNN_EXT_CLANG", "clang")
        clang = shutil.which(name)
        if clang is None:
            raise CompileError(
                f"{name} not found: MSVC lacks the vector types that the kernels use; "
                "install LLVM's clang and put it on PATH, or name it in CNN_EXT_CLANG"
            )
        return Path(clang).resolve().parent.parent

    def use_clang(self):
        """Compile with LLVM's clang, which has vector types; link as usual."""
        cpu = "aarch64" if target_machine() in ("arm64", "aarch64") else "x86_64"
        clang = str(self.llvm() / "bin" / "clang")
        command = [clang, f"--target={cpu}-pc-windows-msvc", "-c"]
        self.compiler.initialize()

        def compile_with_clang(
            sources, output_dir=None, macros=None, include_dirs=None, debug=0,
            extra_preargs=None, extra_postargs=None, depends=None,
        ):  # fmt: skip
            include = [*(include_dirs or []), *self.compiler.include_dirs]
            define = [
                f"-D{name}" if value is None else f"-D{name}={value}"
                for name, value in macros or []
            ]
            objects = []
            for source in sources:
                target = Path(output_dir or ".", source).with_suffix(".obj")
                target.parent.mkdir(parents=True, exist_ok=True)
                flags = [*define, *(f"-I{folder}" for folder in include)]
                flags += [*(extra_preargs or []), *(extra_postargs or [])]
                self.spawn([*command, source, "-o", str(target), *flags])
                objects.append(str(target))
            return objects

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


build_for_one_architecture()
setup(
    ext_modules=cythonize(
        [
            extension("runtime", ["dispatch.c", "scratch.c", "guest.c", "team.c"]),
            extension("conv"),
            extension("pool"),
            extension("pointwise"),
            extension("row"),
            extension("normalize"),
            extension("softmax"),
            extension("update"),
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
            "autotestdict": False,  # no __test__ that stubs would have to name
        },
    ),
    cmdclass={"build_ext": BuildKernels},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if ABI3 else {},
)
