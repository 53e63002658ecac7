"""Memory stays flat; see trust/leaks.py and trust/soak.py for the long runs."""

import sys

import pytest
from trust.programs import run

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="reads memory in use as Linux shows it"
)


def test_memory_is_flat():
    # an operator that leaked a result of 4 kB at each call would grow beyond the slack
    said = run("-m", "trust.leaks", "600", "10", OMP_NUM_THREADS="1").stdout
    assert "kinds, 600 calls each, 10 models" in said


@pytest.mark.slow
def test_memory_is_flat_over_100_000_calls():
    run("-m", "trust.leaks", "100000", "1000", timeout=4 * 3600, OMP_NUM_THREADS="1")


def test_memory_is_bounded_in_mixed_calls():
    run("-m", "trust.soak", "4", OMP_NUM_THREADS="2")


@pytest.mark.slow
def test_memory_is_bounded_over_an_hour():
    run("-m", "trust.soak", "3600", timeout=4000, OMP_NUM_THREADS="2")
