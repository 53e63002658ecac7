"""How many CPUs this process may use: affinity, and quotas of Linux's cgroups.

A container with a quota of two CPUs on a machine with 64 still sees 64; as many threads
would be stopped for most of every period. Sources: Linux's
``Documentation/admin-guide/cgroup-v2.rst`` (cpu.max), ``scheduler/sched-bwc.rst``
(cpu.cfs_quota_us) and ``filesystems/proc.rst`` (mountinfo).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

__all__ = ["available_cpus"]


def available_cpus(root: str | os.PathLike[str] = "/") -> int:
    """Return the number of CPUs that this process may use, at least 1.

    Parameters
    ----------
    root : path
        The folder that holds ``proc`` and the mount points named there; for tests.
    """
    if hasattr(os, "sched_getaffinity"):
        cpus = len(os.sched_getaffinity(0))
    else:
        cpus = os.cpu_count() or 1
    try:
        quotas = [
            quota for folder in _groups(os.fspath(root)) for quota in _quota(folder)
        ]
    except (OSError, ValueError):  # no such files: no Linux, or nothing is shown here
        quotas = []
    # half a CPU more is worth a thread: the others wait for it less than it brings
    return max(1, min(cpus, *(-int(-quota // 1) for quota in quotas), cpus))


def _groups(root: str) -> Iterator[str]:
    """Folders of this process's cgroup and of all above it, as far as they show."""
    membership = {}
    for line in _read(root, "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            membership[controller] = path
    for line in _read(root, "proc/self/mountinfo").splitlines():
        mount, _, system = line.partition(" - ")
        words = system.split(" ", 2)
        wanted = {"cgroup2": "", "cgroup": "cpu"}.get(words[0])
        if wanted is None or wanted not in membership:
            continue
        if wanted and wanted not in words[-1].split(","):
            continue
        top, place = map(_unescaped, mount.split(" ")[3:5])
        folder = os.path.join(root, place.lstrip("/"))
        group, above = _names(membership[wanted]), _names(top)
        below = group[len(above) :] if group[: len(above)] == above else []
        if ".." in below:  # a group outside of what this namespace shows
            below = []
        yield folder
        for name in below:
            folder = os.path.join(folder, name)
            yield folder


def _read(folder: str, name: str) -> str:
    # not pathlib: to import it takes longer than all that is read here
    with open(os.path.join(folder, name), encoding="utf-8") as file:
        return file.read()


def _names(path: str) -> list[str]:
    return [name for name in path.split("/") if name not in ("", ".")]


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _quota(folder: str) -> Iterator[float]:
    """CPUs that one group may use, if it has a quota."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            words = " ".join(_read(folder, name) for name in names).split()
            quota, period = map(int, words[:2])
        except (OSError, ValueError):  # not there, or "max": no quota
            continue
        if quota > 0 and period > 0:
            yield quota / period
