"""Long runs of training: the same bits on any threads, and after any kill -9."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from cases import THREADS

import cnn_ext
from cnn_ext import _runtime, zoo
from cnn_ext.checkpoint import load
from cnn_ext.layers import (
    BatchNorm2d,
    Conv2d,
    DepthwiseConv2d,
    Dropout,
    Dropout2d,
    GlobalAvgPool,
    Input,
    Linear,
    MaxPool2d,
    ReLU,
    ReLU6,
    SiLU,
)
from cnn_ext.model import Model
from cnn_ext.optimizers import SGD, AdamW, RMSprop
from cnn_ext.training import fit

HERE = Path(__file__).parent


def everything(width: int = 24) -> Model:
    """A net with batch norm, depthwise, residual joins, both dropouts."""
    rng = np.random.default_rng(0)
    x = Input((3, 16, 16))
    h = ReLU()(BatchNorm2d(width)(Conv2d(3, width, 3, padding=1, seed=rng)(x)))
    way = ReLU6()(BatchNorm2d(width)(DepthwiseConv2d(width, 3, padding=1, seed=rng)(h)))
    way = BatchNorm2d(width)(Conv2d(width, width, 1, bias=False, seed=rng)(way))
    h = ReLU()(Dropout2d(0.1)(way) + h)
    h = MaxPool2d(2)(h)
    way = SiLU()(BatchNorm2d(width)(Conv2d(width, width, 3, padding=1, seed=rng)(h)))
    h = Dropout(0.2)(GlobalAvgPool()(way + h))
    return Model(x, Linear(width, 10, seed=rng)(h))


def data(shape, count):
    rng = np.random.default_rng(1)
    return rng.standard_normal((count, *shape), np.float32), rng.integers(0, 10, count)


def bits(model: Model) -> str:
    digest = hashlib.sha256()
    for _, held in (*model.named_parameters(), *model.named_buffers()):
        assert np.isfinite(held.value).all()
        digest.update(held.value.tobytes())
    return digest.hexdigest()


def runs(steps: int) -> dict[str, tuple[Model, object, int]]:
    """By name: a net, its optimiser, and how many samples a step takes."""
    found = {
        "everything, SGD": (everything(), SGD(0.02, 0.9, weight_decay=1e-4), 16),
        "everything, AdamW": (everything(), AdamW(), 16),
    }
    if steps >= 200:
        found |= {
            "everything, RMSprop": (everything(), RMSprop(1e-3, momentum=0.5), 16),
            "resnet20": (zoo.build("resnet20", (3, 16, 16), seed=0), SGD(0.02, 0.9), 8),
            "mobilenet-v2": (
                zoo.build("mobilenet-v2", (3, 16, 16), seed=0), SGD(0.01, 0.9), 4
            ),
            "cifar-quick": (zoo.build("cifar-quick", seed=0), SGD(0.01, 0.9), 8),
            "lenet5": (zoo.build("lenet5", seed=0), SGD(0.02, 0.9), 16),
        }  # fmt: skip
    return found


def digests(steps: int) -> None:
    """Print the digest of every net after training, for each number of threads."""
    found: dict[str, dict[int, str]] = {}
    for threads in THREADS:
        cnn_ext.set_num_threads(threads)
        for name, (model, optimizer, batch) in runs(steps).items():
            assert model.input_shape is not None
            x, labels = data(model.input_shape, 10 * batch)
            fit(
                model, (x, labels), optimizer=optimizer, epochs=steps // 10,
                batch_size=batch, seed=0, verbose=0, clip_norm=5.0,
            )  # fmt: skip
            found.setdefault(name, {})[threads] = bits(model)
    print(json.dumps(found))


def program(code: str, *arguments: str, **environment: str) -> subprocess.Popen:
    places = [str(HERE), str(Path(cnn_ext.__file__).parents[1])]
    return subprocess.Popen(
        [sys.executable, "-c", f"import test_long_runs as it; {code}", *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(places)} | environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("steps", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_same_bits_on_any_number_of_threads(steps):
    if not _runtime.openmp_version():
        pytest.skip("built without OpenMP")
    process = program(
        f"it.digests({steps})", OMP_NUM_THREADS=str(max(THREADS)), OMP_DYNAMIC="false"
    )
    printed, said = process.communicate(timeout=3000)
    assert process.returncode == 0, said
    found = json.loads(printed)
    assert found.keys() == runs(steps).keys()
    different = {name: of for name, of in found.items() if len(set(of.values())) > 1}
    assert not different


# -- kill -9 -------------------------------------------------------------------------

KILLS = 50
STEPS = 1200
CHECKPOINT = "run.safetensors"


def train(folder: str) -> None:
    """Train in a folder: from the beginning, or on from its checkpoint."""
    model, path = everything(8), Path(folder, CHECKPOINT)
    Path(folder, "began").touch()
    fit(
        model, data((3, 16, 16), 96), optimizer=AdamW(), epochs=STEPS // 12,
        batch_size=8, seed=0, verbose=0, checkpoint=path, checkpoint_every=1,
        resume=path if path.exists() else None,
    )  # fmt: skip
    Path(folder, "done").write_text(bits(model))


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_kill_9_at_fifty_moments(tmp_path):
    """No checkpoint is unreadable, and the end is that of an undisturbed run."""
    pytest.importorskip("safetensors", reason="checkpoints are written with it")
    moments = random.Random(0)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir(), parts.mkdir()
    process = program("import sys; it.train(sys.argv[1])", str(whole))
    _, said = process.communicate(timeout=600)
    assert process.returncode == 0, said
    path, kills, seen = parts / CHECKPOINT, 0, set()
    while kills < KILLS and not (parts / "done").exists():
        (parts / "began").unlink(missing_ok=True)
        process = program("import sys; it.train(sys.argv[1])", str(parts))
        # every fifth dies while it starts, the others while they train
        if kills % 5:
            while not (parts / "began").exists() and process.poll() is None:
                time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if process.returncode == -signal.SIGKILL:
            kills += 1
        if path.exists():
            load(path)  # whole, whenever it was
            seen.add(hashlib.sha256(path.read_bytes()).digest())
    assert kills == KILLS, "it ended too soon: STEPS must be more"
    process = program("import sys; it.train(sys.argv[1])", str(parts))
    _, said = process.communicate(timeout=600)
    assert process.returncode == 0, said
    print(f"{kills} kills, {len(seen)} different checkpoints between them")
    assert len(seen) > KILLS // 3
    assert (parts / "done").read_text() == (whole / "done").read_text()
    # but for names of time, the file too
    a, b = load(path), load(whole / CHECKPOINT)
    assert bits(a) == bits(b)
