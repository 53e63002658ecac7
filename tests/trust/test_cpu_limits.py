"""The default number of threads heeds affinity and the quotas of containers."""

import os
import sys

import pytest
from trust.programs import run

from cnn_ext._cpus import available_cpus

V2 = "26 25 0:23 {top} {place} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "33 25 0:29 {top} {place} rw shared:9 - cgroup cgroup rw,{controllers}\n"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine of 8 CPUs whose /proc and /sys are below a folder."""

    def build(cgroup, mountinfo, **files):
        monkeypatch.setattr(
            os, "sched_getaffinity", lambda pid: set(range(8)), raising=False
        )
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(cgroup)
        (tmp_path / "proc/self/mountinfo").write_text(mountinfo)
        for path, text in files.items():
            file = tmp_path / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return available_cpus(tmp_path)

    return build


@pytest.mark.parametrize(
    "text, cpus",
    [
        ("max 100000\n", 8),
        ("200000 100000\n", 2),
        ("150000 100000\n", 2),
        ("100001 100000\n", 2),
        ("50000 100000\n", 1),
        ("1000 100000\n", 1),
        ("1600000 100000\n", 8),
        ("", 8),
        ("100000 0\n", 8),
        ("many 100000\n", 8),
    ],
)
def test_quota_of_version_2(machine, text, cpus):
    mounts = V2.format(top="/", place="/sys/fs/cgroup")
    assert machine("0::/\n", mounts, **{"sys/fs/cgroup/cpu.max": text}) == cpus


def test_the_smallest_quota_above_counts(machine):
    files = {
        "sys/fs/cgroup/a/cpu.max": "300000 100000\n",
        "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
        "sys/fs/cgroup/a/b/c/cpu.max": "500000 100000\n",
        "sys/fs/cgroup/other/cpu.max": "100000 100000\n",
    }
    mounts = V2.format(top="/", place="/sys/fs/cgroup")
    assert machine("0::/a/b/c\n", mounts, **files) == 3


@pytest.mark.parametrize(
    "quota, period, cpus",
    [("-1", "100000", 8), ("250000", "100000", 3), ("50000", "50000", 1)],
)
@pytest.mark.parametrize("controllers", ["cpu", "cpu,cpuacct", "cpuacct,cpu"])
def test_quota_of_version_1(machine, quota, period, cpus, controllers):
    place = f"/sys/fs/cgroup/{controllers}"
    files = {
        f"{place[1:]}/docker/1/cpu.cfs_quota_us": f"{quota}\n",
        f"{place[1:]}/docker/1/cpu.cfs_period_us": f"{period}\n",
        "sys/fs/cgroup/cpuset/docker/1/cpu.cfs_quota_us": "100000\n",
        "sys/fs/cgroup/cpuset/docker/1/cpu.cfs_period_us": "100000\n",
    }
    mounts = V1.format(top="/", place="/sys/fs/cgroup/cpuset", controllers="cpuset")
    mounts += V1.format(top="/", place=place, controllers=controllers)
    groups = f"5:cpuset:/docker/1\n4:{controllers}:/docker/1\n0::/docker/1\n"
    assert machine(groups, mounts, **files) == cpus


def test_inside_of_a_container_the_mount_is_the_group(machine):
    """Without a namespace of its own the path is the host's, the mount its end."""
    files = {
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "400000\n",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
    }
    mounts = V1.format(top="/docker/1", place="/sys/fs/cgroup/cpu", controllers="cpu")
    assert machine("4:cpu:/docker/1\n", mounts, **files) == 4


@pytest.mark.parametrize("path", ["/elsewhere", "/../../x", "/docker/10"])
def test_a_group_that_does_not_show_leaves_what_does(machine, path):
    mounts = V2.format(top="/docker/1", place="/sys/fs/cgroup")
    files = {"sys/fs/cgroup/cpu.max": "300000 100000\n"}
    assert machine(f"0::{path}\n", mounts, **files) == 3


@pytest.mark.parametrize("cgroup, mountinfo", [("", ""), ("x", "y"), ("0::/\n", " - ")])
def test_files_of_another_form_are_no_limit(machine, cgroup, mountinfo):
    assert machine(cgroup, mountinfo) == 8


def test_a_machine_without_such_files(tmp_path):
    assert 1 <= available_cpus(tmp_path) <= (os.cpu_count() or 1)


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="no affinity on this system"
)
def test_affinity():
    program = (
        "import os\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "import cnn_ext\n"
        "print(cnn_ext.get_num_threads())\n"
    )
    assert run("-c", program, OMP_NUM_THREADS="").stdout.strip() == "1"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's files")
def test_this_machine():
    assert 1 <= available_cpus() <= len(os.sched_getaffinity(0))
