"""Ctrl-C, no memory, a full disk, a folder that is read-only or vanishes."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest
from trust.programs import run, start

import cnn_ext

LINUX = sys.platform.startswith("linux")
POSIX = os.name == "posix"
pytest.importorskip("safetensors")

TRAIN = """
import sys, time
import numpy as np
import cnn_ext
from trust.workload import network, samples

class Counting(cnn_ext.SGD):
    # counts whole steps; ends a replay after as many
    count, most = 0, -1

    def step(self, parameters):
        super().step(parameters)
        self.count += 1
        if self.count == self.most:
            raise StopIteration

def train(most=-1):
    model, optimizer = network(), Counting(lr=0.01, momentum=0.9)
    optimizer.most = most
    caught = None
    try:
        print("training", flush=True)
        cnn_ext.fit(model, samples(512), optimizer=optimizer, epochs=10**6,
                    batch_size=16, seed=0, verbose=0)
    except (KeyboardInterrupt, StopIteration):
        caught = time.time()
    return model, optimizer, caught

model, optimizer, caught = train()
print(repr(caught), optimizer.count, flush=True)
again = train(optimizer.count)[0] if optimizer.count else network()
for p, q in zip(model.parameters(), again.parameters(), strict=True):
    assert p.value.tobytes() == q.value.tobytes(), p
    assert np.isfinite(p.value).all()
# it goes on from there
cnn_ext.fit(model, samples(32), optimizer=optimizer, epochs=1, verbose=0)
print("fine")
"""


@pytest.mark.skipif(not POSIX, reason="sends the signal as POSIX does")
@pytest.mark.parametrize("delay", [0.01, 0.13, 0.4])
def test_ctrl_c_ends_training_between_two_steps(delay):
    program = start("-c", TRAIN, OMP_NUM_THREADS="2")
    assert program.stdout.readline() == "training\n"
    time.sleep(delay)
    sent = time.time()
    program.send_signal(signal.SIGINT)
    out, err = program.communicate(timeout=120)
    assert program.returncode == 0, err
    lines = out.splitlines()
    caught, steps = lines[0].split()
    assert lines[-1] == "fine"
    assert int(steps) >= 0
    # 200 ms is the promise; a machine that is busy elsewhere gets some more
    assert float(caught) - sent < 1


CALL = """
import time
import numpy as np
import cnn_ext
from cnn_ext import functional as F

cnn_ext.set_num_threads({threads})
x = np.ones((16, 32, 96, 96), "f")
w = np.ones((32, 32, 3, 3), "f")
y = F.conv2d(x, w, padding=1)
z, argmax = F.max_pool2d(x, 3, stride=1, padding=1, return_argmax=True)
call = dict(
    forward=lambda: F.conv2d(x, w, padding=1, out=y),
    backward_input=lambda: F.conv2d_backward_input(y, w, x.shape, padding=1, out=x),
    backward_weight=lambda: F.conv2d_backward_weight(y, x, w.shape, padding=1),
    pool=lambda: F.max_pool2d(x, 3, stride=1, padding=1, out=z),
    pool_backward=lambda: F.max_pool2d_backward(
        z, argmax, x.shape, 3, stride=1, padding=1, out=x),
)["{which}"]
call()
print("calling", flush=True)
try:
    while True:
        call()
except KeyboardInterrupt:
    caught = time.time()
call()
y = F.conv2d(np.ones((1, 1, 5, 5), "f"), np.ones((1, 1, 3, 3), "f"))
assert (y == 9).all()
print(repr(caught))
"""


@pytest.mark.skipif(not POSIX, reason="sends the signal as POSIX does")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "which", ["forward", "backward_input", "backward_weight", "pool", "pool_backward"]
)
def test_ctrl_c_ends_a_loop_of_calls(which, threads):
    program = start(
        "-c", CALL.format(which=which, threads=threads), OMP_NUM_THREADS="2"
    )
    assert program.stdout.readline() == "calling\n"
    time.sleep(0.1)
    sent = time.time()
    program.send_signal(signal.SIGINT)
    out, err = program.communicate(timeout=120)
    assert program.returncode == 0, err
    assert float(out) - sent < 1


NO_MEMORY = """
import resource
import numpy as np
import cnn_ext
from cnn_ext import functional as F
from trust.leaks import resident

def size():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * 4096

def limit(extra):
    most = resource.RLIM_INFINITY if extra is None else size() + extra
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))

threads = {threads}
cnn_ext.set_num_threads(threads)
F.conv2d(np.ones((8, 8, 32, 32), "f"), np.ones((8, 8, 3, 3), "f"))  # starts the team
rng = np.random.default_rng(0)
refused = done = 0
for shape, kernel, options in (
    ((2, 128, 30, 30), (128, 128, 3, 3), dict(padding=1)),
    ((2, 128, 30, 30), (128, 128, 3, 3), dict(padding=2, dilation=2)),
    ((2, 500, 30, 30), (500, 1, 5, 5), dict(padding=2, groups=500)),
    ((2, 3, 200, 200), (8, 3, 7, 7), dict(padding=3)),
):
    x = rng.standard_normal(shape).astype("f")
    w = rng.standard_normal(kernel).astype("f")
    y = F.conv2d(x[:0], w, **options)
    y = np.empty((len(x), *y.shape[1:]), "f")
    gx, gw = np.empty_like(x), np.empty_like(w)
    calls = [
        lambda: F.conv2d(x, w, out=y, **options),
        lambda: F.conv2d_backward_input(y, w, x.shape, out=gx, **options),
        lambda: F.conv2d_backward_weight(y, x, w.shape, out=gw, **options),
        lambda: F.max_pool2d(x, 3, return_argmax=True),
        lambda: F.avg_pool2d(x, 2),
    ]
    results = []
    for extra in (0, 1 << 18, 1 << 20, 1 << 21, 1 << 23):
        for call in calls:
            for _ in range(2):
                limit(extra)
                try:
                    call()
                    done += 1
                except MemoryError:
                    refused += 1
                finally:
                    limit(None)
    before = resident()
    y[...] = 0
    for call in calls:
        call()
    wanted = F.conv2d(x, w, **options)
    assert y.tobytes() == wanted.tobytes()
    del wanted
for _ in range(50):
    limit(0)
    try:
        np.empty_like(y), F.conv2d(x, w, **options)
    except MemoryError:
        pass
    finally:
        limit(None)
assert resident() < before + (16 << 20), (resident(), before)
assert refused, (refused, done)
print("fine", refused, done)
"""


@pytest.mark.skipif(not LINUX, reason="limits the address space as Linux does")
@pytest.mark.parametrize("threads", [1, 2])
def test_no_memory_is_a_memory_error_and_leaks_nothing(threads):
    # one arena of malloc's: memory that is free in another one is no memory
    said = run(
        "-c", NO_MEMORY.format(threads=threads), OMP_NUM_THREADS="2",
        MALLOC_ARENA_MAX="1",
    ).stdout  # fmt: skip
    assert said.startswith("fine"), said


# -- files ---------------------------------------------------------------------------

SAVE = """
import errno, os, resource, signal, sys
import cnn_ext
from trust.workload import network

path, how = sys.argv[1:]
old = network(0)
cnn_ext.save(old, path)
before = open(path, "rb").read()
large = cnn_ext.Sequential(cnn_ext.Flatten(), cnn_ext.Linear(512, 512))
if how == "limit":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
elif how == "readonly":
    os.chmod(os.path.dirname(path), 0o555)
    if os.getuid() == 0:  # nobody is stopped by a mode as root is not
        os.setegid(65534)
        os.seteuid(65534)
for _ in range(3):
    try:
        cnn_ext.save(large, path)
        raise SystemExit("written")
    except OSError as error:
        print(errno.errorcode[error.errno])
assert open(path, "rb").read() == before
assert os.listdir(os.path.dirname(path)) == [os.path.basename(path)]
again = cnn_ext.load(path)
for p, q in zip(old.parameters(), again.parameters(), strict=True):
    assert p.value.tobytes() == q.value.tobytes()
print("fine")
"""


@pytest.mark.skipif(not POSIX, reason="limits and modes of POSIX")
@pytest.mark.parametrize("how, name", [("limit", "EFBIG"), ("readonly", "EACCES")])
def test_a_file_that_cannot_be_written_leaves_the_last_one(tmp_path, how, name):
    folder = tmp_path / "models"
    folder.mkdir()
    for parent in (folder, *list(folder.parents)[:3]):
        if parent.owner() != "root" or os.getuid() == 0:
            parent.chmod(parent.stat().st_mode | 0o755)
    said = run("-c", SAVE, str(folder / "net.safetensors"), how).stdout.split()
    folder.chmod(0o755)
    assert said == [name] * 3 + ["fine"]


@pytest.mark.skipif(not LINUX, reason="mounts a small disk as Linux does")
def test_a_full_disk_leaves_the_last_file(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("may not mount a small disk here")
    try:
        said = run("-c", SAVE, str(disk / "net.safetensors"), "disk").stdout.split()
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert said == [errno.errorcode[errno.ENOSPC]] * 3 + ["fine"]


CLI = "import sys; from cnn_ext.cli import main; sys.exit(main())"


@pytest.mark.skipif(not POSIX, reason="removes what another process uses")
@pytest.mark.parametrize("which", ["data", "folder"])
def test_what_vanishes_in_mid_training(tmp_path, which):
    """Data are in memory by then; a folder that is gone is one error."""
    import numpy as np

    rng = np.random.default_rng(0)
    data, folder = tmp_path / "d.npz", tmp_path / "out"
    folder.mkdir()
    labels = np.arange(400) % 4
    np.savez(data, x=rng.random((400, 12, 12)).astype("f"), y=labels)
    program = start(
        "-c", CLI, "train", str(data), "--epochs", "4", "--out",
        str(folder / "net.safetensors"), OMP_NUM_THREADS="1",
    )  # fmt: skip
    while "epoch" not in program.stdout.readline():
        pass
    if which == "data":
        data.unlink()
    else:
        folder.rmdir()
    _, err = program.communicate(timeout=120)
    if which == "data":
        assert (program.returncode, err) == (0, "")
        assert cnn_ext.load(folder / "net.safetensors").metadata["class_names"]
    else:
        assert program.returncode == 2
        assert err.startswith("cnn-ext: ") and err.count("\n") == 1, err
        assert "No such file" in err
