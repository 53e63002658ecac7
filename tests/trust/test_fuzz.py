"""A share of the inputs of trust/fuzz.py; all of them where slow tests run."""

import sys

import pytest
from trust.programs import run

import cnn_ext

pytest.importorskip("safetensors")
pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="limits memory as Linux does"
)

COUNTS = {
    "operators": 60_000,
    "augment": 12_000,
    "idx": 12_000,
    "npz": 12_000,
    "model": 12_000,
    "run": 12_000,
    "cli": 4000,
}


@pytest.mark.parametrize("target", COUNTS)
def test_inputs_end_in_a_result_or_in_one_error(target):
    count = COUNTS[target] // (40 if target in ("run", "cli") else 20)
    said = run("-m", "trust.fuzz", target, str(count), "0", CNN_EXT_NUM_THREADS="1")
    assert said.stdout.startswith(f"{target}: ")


@pytest.mark.slow
@pytest.mark.parametrize("target", COUNTS)
def test_a_hundred_thousand_inputs(target):
    run(
        "-m", "trust.fuzz", target, str(COUNTS[target]), "1", timeout=3600,
        CNN_EXT_NUM_THREADS="1",
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "target", ["operators", "augment", "idx", "npz", "model", "run"]
)
def test_inputs_guided_by_coverage(target):
    pytest.importorskip("atheris")
    run(
        "-m", "trust.fuzz", "--atheris", target, "20000", "1", timeout=3600,
        CNN_EXT_NUM_THREADS="1",
    )  # fmt: skip


@pytest.mark.parametrize("kernel_size", [2**31, 2**40, (2**30, 2**30), (1, 2**58)])
@pytest.mark.parametrize("operator", ["max_pool2d", "avg_pool2d"])
def test_a_window_that_no_memory_holds(operator, kernel_size):
    """With ceil_mode no image bounds the window, whose pixels are listed."""
    import numpy as np

    call = getattr(cnn_ext.functional, operator)
    with pytest.raises(ValueError, match="too large"):
        call(np.ones((1, 1, 7, 3), "f"), kernel_size, ceil_mode=True)
