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

large = {large}  # steps of a second each: the signal comes in the middle of one

def net():
    if not large:
        return network()
    rng = np.random.default_rng(0)
    return cnn_ext.Sequential(
        cnn_ext.Conv2d(1, 64, 5, padding=2, seed=rng), cnn_ext.ReLU(),
        cnn_ext.Conv2d(64, 64, 5, padding=2, seed=rng), cnn_ext.MaxPool2d(2),
        cnn_ext.Flatten(), cnn_ext.Linear(64 * 8 * 8, 10, seed=rng))

def train(most=-1):
    model, optimizer = net(), Counting(lr=0.01, momentum=0.9)
    optimizer.most = most
    caught = None
    fit = cnn_ext.fit  # imported now: a module half imported stays with some Pythons
    try:
        print("training", flush=True)
        fit(model, samples(512), optimizer=optimizer, epochs=10**6,
            batch_size=512 if large else 16, seed=0, verbose=0)
    except (KeyboardInterrupt, StopIteration):
        caught = time.time()
    return model, optimizer, caught

model, optimizer, caught = train()
print(repr(caught), optimizer.count, flush=True)
again = train(optimizer.count)[0] if optimizer.count else net()
for p, q in zip(model.parameters(), again.parameters(), strict=True):
    assert p.value.tobytes() == q.value.tobytes(), p
    assert np.isfinite(p.value).all()
assert optimizer.count <= 3 or not large
# it goes on from there
cnn_ext.fit(model, samples(32), optimizer=optimizer, epochs=1, verbose=0)
print("fine")
"""


@pytest.mark.skipif(not POSIX, reason="sends the signal as POSIX does")
@pytest.mark.parametrize(
    "large, delay", [(False, 0.01), (False, 0.13), (False, 0.4), (True, 0.3)]
)
def test_ctrl_c_ends_training_with_whole_steps(large, delay):
    program = start("-c", TRAIN.format(large=large), OMP_NUM_THREADS="2")
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
    assert float(caught) - sent < 2


@pytest.mark.skipif(not POSIX, reason="sends the signal as POSIX does")
@pytest.mark.parametrize("kind", ["winograd", "one plane, 3x3"])
def test_ctrl_c_ends_a_long_call(kind):
    # 200 ms is the promise; a machine that is busy elsewhere gets some more
    run("-m", "trust.interrupts", "2e7", "2", kind, OMP_NUM_THREADS="1")


@pytest.mark.slow
@pytest.mark.skipif(not POSIX, reason="sends the signal as POSIX does")
def test_ctrl_c_ends_every_call_on_arrays_of_2_gb():
    run("-m", "trust.interrupts", "2e9", timeout=4 * 3600, OMP_NUM_THREADS="1")


HANDLED = """
import signal, threading, time
import numpy as np
import cnn_ext
from cnn_ext import functional as F

cnn_ext.set_num_threads({threads})
rng = np.random.default_rng(0)
x = rng.standard_normal((8, 32, 96, 96)).astype("f")
w = rng.standard_normal((32, 32, 5, 5)).astype("f")
small, kernel = x[:4, :, :20, :20], w[:, :, :3, :3]
wanted, inside = F.conv2d(x, w), F.conv2d(small, kernel)
handled = []

def handle(number, frame):
    # the same operators, inside of a call of theirs
    handled.append(F.conv2d(small, kernel).tobytes() == inside.tobytes())

before = x.tobytes()
signal.signal(signal.SIGALRM, handle)
signal.setitimer(signal.ITIMER_REAL, 0.02, 0.06)
end = time.monotonic() + 60
while len(handled) < 4 and time.monotonic() < end:
    assert F.conv2d(x, w).tobytes() == wanted.tobytes()
signal.setitimer(signal.ITIMER_REAL, 0)
assert handled == [True] * len(handled) and len(handled) >= 4, handled

# what a handler raises is what the call raises; then all is as it was
def refuse(number, frame):
    raise ArithmeticError("from the handler")

signal.signal(signal.SIGALRM, refuse)
for _ in range(3):
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    try:
        while time.monotonic() < end:
            F.conv2d(x, w)
    except ArithmeticError as error:
        assert str(error) == "from the handler"
    else:
        raise AssertionError("the signal was lost")
assert x.tobytes() == before and F.conv2d(x, w).tobytes() == wanted.tobytes()

# a call in another thread is not the one that ends
found = []
thread = threading.Thread(target=lambda: found.append(F.conv2d(x, w).tobytes()))
thread.start()
signal.setitimer(signal.ITIMER_REAL, 0.02)
try:
    time.sleep(60)
except ArithmeticError:
    pass
else:
    raise AssertionError("the signal was lost")
thread.join()
assert found == [wanted.tobytes()]
print("fine")
"""


@pytest.mark.skipif(not POSIX, reason="timers of POSIX")
@pytest.mark.parametrize("threads", [1, 3])
def test_handlers_of_signals_run_inside_of_a_call(threads):
    said = run("-c", HANDLED.format(threads=threads), OMP_NUM_THREADS="3").stdout
    assert said == "fine\n"


FORKED = """
import os, signal, time
import numpy as np
import cnn_ext
from cnn_ext import functional as F

x, w = np.ones((64, 32, 96, 96), "f"), np.ones((32, 32, 5, 5), "f")
F.conv2d(x[:1], w)
child = os.fork()
if child == 0:
    try:
        while True:
            F.conv2d(x, w)
    except KeyboardInterrupt:
        os._exit(7)
time.sleep(0.3)
os.kill(child, signal.SIGINT)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
"""


@pytest.mark.skipif(not POSIX, reason="no fork on this system")
def test_ctrl_c_ends_a_call_in_a_forked_child():
    run("-c", FORKED, OMP_NUM_THREADS="2")


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


@pytest.mark.skipif(not LINUX, reason="limits another process as Linux does")
@pytest.mark.parametrize("how", ["no room", "ctrl-c"])
def test_what_stops_a_training_leaves_a_run_to_resume(tmp_path, how):
    """The checkpoint is whole, and going on from it gives the undisturbed bits."""
    import resource

    import numpy as np

    rng = np.random.default_rng(0)
    data, labels = tmp_path / "d.npz", np.arange(200) % 4
    np.savez(data, x=rng.random((200, 12, 12)).astype("f"), y=labels)
    words = ["train", str(data), "--epochs", "6", "--seed", "1", "--out"]
    run("-c", CLI, *words, str(tmp_path / "whole"), OMP_NUM_THREADS="1")
    kept, parts = tmp_path / "run", tmp_path / "parts"
    program = start(
        "-c", CLI, *words, str(parts), "--checkpoint", str(kept),
        "--checkpoint-every", "5", OMP_NUM_THREADS="1",
    )  # fmt: skip
    while "epoch 2" not in program.stdout.readline():
        pass
    if how == "no room":
        resource.prlimit(program.pid, resource.RLIMIT_FSIZE, (1000, 1000))
    else:
        program.send_signal(signal.SIGINT)
    _, err = program.communicate(timeout=120)
    assert err.startswith("cnn-ext: ") and err.count("\n") == 1, err
    if how == "no room":
        assert program.returncode == 2 and "File too large" in err
        assert not parts.exists()
    else:
        assert program.returncode == 130 and "interrupted" in err
        cnn_ext.load(parts)
    assert {path.name for path in tmp_path.iterdir()} <= {
        "d.npz", "whole", "run", "parts"
    }  # fmt: skip
    cnn_ext.load(kept)
    run("-c", CLI, "train", "--resume", str(kept), OMP_NUM_THREADS="1")
    assert parts.read_bytes() == (tmp_path / "whole").read_bytes()


# -- the environment -----------------------------------------------------------------


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("CNN_EXT_NUM_THREADS", "many", "must be an integer of at least 1, got 'many'"),
        ("CNN_EXT_ISA", "x87", "kernel set 'x87' does not run here; this build"),
    ],
)
def test_a_wrong_setting_is_one_line_of_the_command(tmp_path, name, value, message):
    """The package cannot be imported then, not even by its own command."""
    script = tmp_path / "cnn-ext"
    script.write_text(CLI)
    for words in ((script, "info"), ("-m", "cnn_ext.cli", "info", "x")):
        done = run(*words, status=2, **{name: value})
        assert done.stdout == ""
        assert done.stderr.startswith(f"cnn-ext: {name}") and message in done.stderr
        assert done.stderr.count("\n") == 1
    done = run("-c", "import cnn_ext", status=1, **{name: value})
    assert f"ValueError: {name}" in done.stderr
