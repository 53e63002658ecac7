"""Peak memory of one net in a process of its own; see `peak_memory`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ..processes import new_python
from .base import Case

__all__ = ["peak_memory"]

_ROOT = Path(__file__).resolve().parents[2]


def peak_memory(runner: str, case: Case, threads: int) -> dict[str, int] | None:
    """Return bytes at the peak: of the "process", and of the "steps" beyond imports.

    None where the system does not tell (it is not Linux).
    """
    if not Path("/proc/self/clear_refs").exists():
        return None
    code = f"import sys; sys.path.append({str(_ROOT)!r})\n"
    code += "from benchmarks.nets.peak import report\n"
    code += f"report({runner!r}, {tuple(case)!r}, {threads})"
    return json.loads(new_python(code, threads=threads)[0].splitlines()[-1])


def report(runner: str, case: tuple[str, int, bool], threads: int) -> None:
    """Run a few steps, print a line of JSON. For a process of its own."""
    from . import load

    of = Case(*case)
    run = load(runner, threads)
    model, (x, labels) = of.model(), of.data()
    before = _status("VmRSS")
    _forget_peak()
    prepared = (
        run.training(model, of.loss(), x, labels)
        if of.train
        else run.inference(model, x)
    )
    for _ in range(3):
        prepared.run()
    peak = _status("VmHWM")
    print(json.dumps({"process": peak, "steps": peak - before}))
    sys.stdout.flush()


def _status(key: str) -> int:
    """Bytes of a line of /proc/self/status, in which they are kB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")


def _forget_peak() -> None:
    """Let the peak begin anew, so that imports do not count."""
    Path("/proc/self/clear_refs").write_text("5")
