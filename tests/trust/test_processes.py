"""Forks, threads, and other numerical libraries in the same process."""

import importlib.util
import os
import shutil
import subprocess
import sys
from itertools import permutations

import pytest
from trust.programs import run

from cnn_ext import _runtime

LINUX = sys.platform.startswith("linux")
POSIX = os.name == "posix"


def needs(*modules):
    for module in modules:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")


@pytest.mark.skipif(not POSIX, reason="no fork on this system")
@pytest.mark.parametrize("kind, count", [("fork", 8), ("busy", 8), ("preloaded", 3)])
def test_children_of_a_fork_compute(kind, count):
    # macOS's own libraries do not survive a fork with threads running
    if kind == "busy" and not LINUX:
        pytest.skip("forks beside running threads: Linux alone")
    done = run("-m", "trust.children", kind, str(count), OMP_NUM_THREADS="2")
    assert done.stdout.strip() == "fine"


@pytest.mark.slow
@pytest.mark.skipif(not POSIX, reason="no fork on this system")
@pytest.mark.parametrize(
    "kind, count",
    [
        ("fork", 200),
        ("busy", 200),
        ("preloaded", 200),
        ("forkserver", 50),
        ("spawn", 200),
        ("joblib", 200),
    ],
)
def test_hundreds_of_children_compute(kind, count):
    if kind == "joblib":
        needs("joblib")
    run("-m", "trust.children", kind, str(count), timeout=3600, OMP_NUM_THREADS="2")


def test_threads_share_models_and_operators():
    said = run("-m", "trust.hammer", "3", "8", "2", OMP_NUM_THREADS="2").stdout
    assert "8 threads" in said and " 0 wrong" in said


@pytest.mark.slow
def test_threads_share_models_and_operators_for_a_minute():
    run("-m", "trust.hammer", "60", "8", "2", OMP_NUM_THREADS="2")


def beside(*names):
    return run("-m", "trust.neighbours", *names, OMP_NUM_THREADS="2").stdout


@pytest.fixture(scope="module")
def alone():
    return beside("cnn_ext")


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("other", ["numpy", "sklearn", "torch", "onnxruntime"])
def test_beside_another_library(other, first, alone):
    needs(other)
    assert beside(*(["cnn_ext", other] if first else [other, "cnn_ext"])) == alone


@pytest.mark.slow
def test_beside_all_of_them_in_any_order(alone):
    needs("sklearn", "torch", "onnxruntime")
    for names in permutations(["cnn_ext", "sklearn", "torch", "onnxruntime"]):
        # numpy is imported by each of them; its OpenBLAS computes in between
        assert beside(*names[:2], "numpy", *names[2:]) == alone


LIMITED = """
import os
import numpy as np
import cnn_ext
from cnn_ext import functional as F
from threadpoolctl import threadpool_info, threadpool_limits

ours = [p for p in threadpool_info() if p["user_api"] == "openmp"]
assert ours, threadpool_info()
cnn_ext.set_num_threads(3)
x, w = np.ones((8, 32, 40, 40), "f"), np.ones((32, 32, 3, 3), "f")
started = len(os.listdir("/proc/self/task"))
with threadpool_limits(1):
    F.conv2d(x, w)
assert len(os.listdir("/proc/self/task")) == started
with threadpool_limits(2, user_api="openmp"):
    F.conv2d(x, w)
assert len(os.listdir("/proc/self/task")) == started + 1
F.conv2d(x, w)
assert len(os.listdir("/proc/self/task")) == started + 2
print("fine")
"""


@pytest.mark.skipif(not LINUX, reason="counts threads as Linux shows them")
def test_threadpoolctl_sees_and_limits_us():
    needs("threadpoolctl")
    if not _runtime.openmp_version():
        pytest.skip("built without OpenMP")
    assert run("-c", LIMITED, OMP_NUM_THREADS="3").stdout.strip() == "fine"


REGION = """
#include <omp.h>
int region(void (*call)(int), int threads)
{
    int count = 0;
    #pragma omp parallel num_threads(threads) reduction(+:count)
    {
        call(omp_get_thread_num());
        count += 1;
    }
    return count;
}
"""

NESTED = """
import ctypes, sys
import cnn_ext
from trust.children import work

expected, found = work(), []
library = ctypes.CDLL(sys.argv[1])
call = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda i: found.append(work()))
for _ in range(3):
    count = library.region(call, 3)
    assert count == 3 and found == [expected] * count, (count, found)
    found.clear()
print("fine")
"""


@pytest.mark.skipif(not LINUX, reason="compiles with the system's cc and OpenMP")
def test_inside_of_the_openmp_region_of_somebody_else(tmp_path):
    compiler = shutil.which("cc") or shutil.which("gcc")
    source, library = tmp_path / "region.c", tmp_path / "region.so"
    source.write_text(REGION)
    command = [compiler or "", "-fopenmp", "-shared", "-fPIC", "-o", library, source]
    if not compiler or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no C compiler with OpenMP")
    said = run("-c", NESTED, str(library), OMP_NUM_THREADS="3").stdout
    assert said.strip() == "fine"
