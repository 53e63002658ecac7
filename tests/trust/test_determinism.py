"""Training gives the same bits on any number of threads and run after run."""

import json

import pytest
from trust.programs import run

from cnn_ext import _runtime

PROGRAM = """
import json
import numpy as np
import cnn_ext
from cases import KERNEL_SETS, THREADS, machine
from trust.workload import digest

rng = np.random.default_rng(0)
x = rng.standard_normal((24, 3, 32, 32)).astype("f")
labels = rng.integers(0, 10, len(x))

def training():
    # large enough that every layer's work is shared out
    model = cnn_ext.Sequential(
        cnn_ext.Conv2d(3, 16, 5, padding=2, seed=1), cnn_ext.ReLU(),
        cnn_ext.MaxPool2d(2),
        cnn_ext.Conv2d(16, 32, 3, padding=1, seed=2), cnn_ext.Tanh(),
        cnn_ext.AvgPool2d(2),
        cnn_ext.Conv2d(32, 32, 3, stride=2, seed=3), cnn_ext.ScaledTanh(),
        cnn_ext.Flatten(), cnn_ext.Linear(32 * 9, 10, seed=4),
    )
    history = cnn_ext.fit(
        model, (x, labels), optimizer=cnn_ext.SGD(lr=0.05, momentum=0.9), epochs=1,
        batch_size=8, validation=(x, labels), seed=0, verbose=0)
    losses = np.array(history.train_loss + history.validation_loss)
    return (losses, *(p.value for p in model.parameters()))

found = {}
for name in KERNEL_SETS:
    for threads in (*THREADS, 2):
        with machine(name, threads):
            found.setdefault(name, []).append(digest(training()))
print(json.dumps(found))
"""


def test_training_gives_the_same_bits():
    if not _runtime.openmp_version():
        pytest.skip("built without OpenMP")
    both = [
        json.loads(run("-c", PROGRAM, OMP_NUM_THREADS="7").stdout) for _ in range(2)
    ]
    assert both[0] == both[1]
    assert set(both[0]) == set(_runtime.kernel_sets())
    for name, digests in both[0].items():
        assert len(set(digests)) == 1, name
