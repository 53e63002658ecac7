"""The same bits for any number of threads; calls from threads; calls after a fork."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from cases import THREADS, machine
from checks import assert_same_bits
from thread_digests import operators

import cnn_ext
from cnn_ext import _runtime
from cnn_ext import functional as F

HERE = Path(__file__).parent


def run(program: str, *arguments: str, **environment: str) -> str:
    """Run a Python program with this package, and with these variables."""
    places = [str(HERE), str(Path(cnn_ext.__file__).parents[1])]
    variables = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(places),
        "OMP_DYNAMIC": "false",
        **environment,
    }
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=variables,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def digests():
    if not _runtime.openmp_version():
        pytest.skip("built without OpenMP")
    program = "import thread_digests; thread_digests.main()"
    return json.loads(run(program, OMP_NUM_THREADS=str(max(THREADS))))


def test_the_same_bits_for_any_number_of_threads(digests):
    assert len(digests) >= 50
    different = {
        name: by_threads
        for name, by_threads in digests.items()
        if len(set(by_threads.values())) > 1
    }
    assert not different


def test_maxima_are_the_same_for_every_kernel_set(digests):
    """A maximum is no sum: nothing may depend on the width of vectors."""
    for name in digests:
        if ": max_pool2d" not in name:
            continue
        operator = name.split(": ", 1)[1]
        same = {
            tuple(d.values()) for key, d in digests.items() if key.endswith(operator)
        }
        assert len(same) == 1, operator


def calls_until_rest(work, now, took, worked):
    """How many calls of `took` ns, `worked` in all, use threads before a rest."""
    calls = 0
    while calls < 1000 and _runtime.team_pays(work, now):
        _runtime.team_took(work, now, now + took, worked)
        now += took
        calls += 1
    return calls, now


def test_threads_rest_where_they_do_not_pay():
    """A neighbour delays threads: after 4 ms of losses such calls do without."""
    work, ms = 2.0**61, 1_000_000
    assert calls_until_rest(work, 0, ms // 2, ms) == (1000, 500 * ms)  # 0.5 ms, not 1
    calls, now = calls_until_rest(work, 1000 * ms, ms // 2, ms // 4)
    assert calls == 8
    assert not _runtime.team_pays(work, now + 49 * ms)
    assert _runtime.team_pays(work / 2, now) and _runtime.team_pays(2 * work, now)
    assert _runtime.team_pays(work, now + 50 * ms)
    # at least four calls, and a rest of twenty
    calls, now = calls_until_rest(work, 2000 * ms, 10 * ms, ms)
    assert calls == 4
    assert not _runtime.team_pays(work, now + 199 * ms)
    assert _runtime.team_pays(work, now + 200 * ms)


def test_a_loss_now_and_then_is_chance():
    work, now = 2.0**62, 0
    for i in range(1000):
        assert _runtime.team_pays(work, now)
        _runtime.team_took(work, now, now + 1_000_000, 1 if i % 4 == 0 else 2_000_000)
        now += 1_000_000


def test_set_and_get_num_threads(threads):
    assert cnn_ext.get_num_threads() == threads


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_calls_from_several_python_threads(dtype, kernel_set):
    calls = operators(dtype, "contiguous")
    with machine(kernel_set, 2):
        expected = {name: call() for name, call in calls.items()}
        with ThreadPoolExecutor(4) as pool:
            futures = [
                (name, pool.submit(call))
                for _ in range(3)
                for name, call in calls.items()
            ]
            for name, future in futures:
                actual, wanted = future.result(), expected[name]
                if not isinstance(actual, tuple):
                    actual, wanted = (actual,), (wanted,)
                for ours, theirs in zip(actual, wanted, strict=True):
                    assert_same_bits(ours, theirs)


FORKS = """
import os, sys
import numpy as np
import cnn_ext
from cnn_ext import functional as F

cnn_ext.set_num_threads(2)
x = np.random.default_rng(0).standard_normal((4, 16, 40, 40)).astype("f")
w = np.random.default_rng(1).standard_normal((32, 16, 3, 3)).astype("f")

def everything():
    y = F.conv2d(x, w, padding=1)
    z, argmax = F.max_pool2d(y, 2, return_argmax=True)
    back = F.max_pool2d_backward(z, argmax, y.shape, 2)
    parts = (y, z, F.avg_pool2d(y, 2), back,
             F.conv2d_backward_input(back, w, x.shape, padding=1),
             F.conv2d_backward_weight(back, x, w.shape, padding=1))
    return b"".join(part.tobytes() for part in parts)

before = everything()
sys.stdout.flush()
children = []
for _ in range(3):
    child = os.fork()
    if child == 0:
        try:
            cnn_ext.set_num_threads(3)
            same = everything() == before
            grandchild = os.fork()
            if grandchild == 0:
                os._exit(0 if everything() == before else 4)
            _, status = os.waitpid(grandchild, 0)
            os._exit(0 if same and status == 0 else 3)
        except BaseException:
            os._exit(5)
    children.append(child)
statuses = [os.waitpid(child, 0)[1] for child in children]
assert statuses == [0, 0, 0], statuses
assert everything() == before
print("fine")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_may_call_anything():
    warnings_off = {"PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "3"}
    assert run(FORKS, **warnings_off).strip() == "fine"


def test_the_gil_is_released():
    """While one thread is in a kernel, another one runs Python."""
    x = np.ones((8, 64, 56, 56), np.float32)
    weight = np.ones((64, 64, 3, 3), np.float32)
    with machine(threads=1), ThreadPoolExecutor(1) as pool:
        ticks = 0
        future = pool.submit(F.conv2d, x, weight, padding=1)
        while not future.done():
            ticks += 1
    # with the lock held, this loop would see a handful of switches
    assert ticks > 20


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5"])
def test_bad_numbers_of_threads_in_the_environment(value):
    program = "try:\n import cnn_ext\nexcept ValueError as error:\n print(error)\n"
    said = run(program, CNN_EXT_NUM_THREADS=value)
    assert "CNN_EXT_NUM_THREADS must be an integer" in said
    assert value in said


def test_environment_sets_threads_and_kernel_set():
    program = "import cnn_ext; print(cnn_ext.get_num_threads(), cnn_ext.show_config())"
    for name in _runtime.kernel_sets():
        said = run(program, CNN_EXT_NUM_THREADS="3", CNN_EXT_ISA=name)
        assert said.startswith("3 ")
        assert f" {name} " in said
    program = (
        "try:\n import cnn_ext\n"
        "except (ValueError, ImportError) as error:\n print(error)\n"
    )
    assert "CNN_EXT_ISA" in run(program, CNN_EXT_ISA="mmx")
