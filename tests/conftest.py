"""Fixtures for every kernel set and number of threads, and how much to draw.

The default run draws about 150 random cases an operator, always the same ones.
``pytest -m slow`` runs the long tests too, among them 2,000 new cases an operator;
``pytest --hypothesis-profile=thorough`` draws 2,000 in every test of random cases,
``--hypothesis-profile=brief`` 25, for emulated CPUs.
"""

from __future__ import annotations

import os
import signal

# Threads are to be used in tests, whether they pay or not. Read when cnn_ext is loaded.
os.environ.setdefault("OMP_DYNAMIC", "false")

import cases
import pytest
from hypothesis import HealthCheck, settings

# Programs that tests start must meet the installed package too, not the sources in
# the folder where pytest was started.
os.environ["PYTHONSAFEPATH"] = "1"
# A shell starts a job in the background with Ctrl-C ignored, and programs inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile(
    "default",
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
settings.register_profile(
    "thorough",
    settings.get_profile("default"),
    max_examples=2000,
    derandomize=False,
    print_blob=True,
)
settings.register_profile("brief", settings.get_profile("default"), max_examples=25)


def pytest_configure(config):
    if not config.getoption("--hypothesis-profile", None):
        settings.load_profile("default")


def pytest_collection_modifyitems(config, items):
    if "slow" in (config.option.markexpr or ""):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="slow: run with -m slow"))


@pytest.fixture(params=cases.KERNEL_SETS)
def kernel_set(request):
    """Each kernel set that this machine runs, in use."""
    with cases.machine(request.param):
        yield request.param


@pytest.fixture(params=cases.THREADS)
def threads(request):
    """Numbers of threads, set."""
    with cases.machine(threads=request.param):
        yield request.param
