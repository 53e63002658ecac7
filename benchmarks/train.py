"""Whole nets: a training step and an inference against what a user would pick instead.

From the same weights: loss and gradients, or outputs, are compared first; then ours
and theirs are timed in turn in one process. PyTorch stands there three times: eager as
it comes (NCHW), with channels-last arrays, and compiled. The peak memory of each is
that of a new process. ``python -m benchmarks.train --help`` lists the options.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .machine import cpu_name, disturbance
from .nets import CASES, NAMES, Case, Runner, load
from .nets.peak import peak_memory
from .report import show
from .timing import Timing, geometric_mean, interleaved

__all__ = ["Row", "main"]

OURS = "cnn_ext"
# What --against may say, and who that is.
PEERS = {
    "torch": tuple(name for name in NAMES if name.startswith("torch")),
    "onnxruntime": ("onnxruntime",),
    "openvino": ("openvino",),
}
# Normwise relative errors above which somebody computes another net. In float32 a sum
# that is nearly 0 may have either sign, and then a ReLU passes or stops a whole error:
# gradients of deep nets differ by as much as 1e-2 among libraries, and between two
# memory orders of one. In float64 they agree; `--check` shows both.
LIMIT = {"loss": 1e-4, "gradients": 5e-2, "outputs": 1e-3}
EXACT = {"loss": 1e-12, "gradients": 1e-10}


@dataclass
class Row:
    """What was measured of one net.

    Attributes
    ----------
    case : Case
    times : dict of str to Timing
    errors : dict of str to dict
        What differs from ours, normwise and relative: "loss" and "gradients" in
        training, "outputs" in inference.
    memory : dict of str to dict
        Bytes, see `peak_memory`.
    wrong : list of str
        Who computes something else; they are not timed.
    """

    case: Case
    statistic: str
    times: dict[str, Timing] = field(default_factory=dict)
    errors: dict[str, dict[str, float]] = field(default_factory=dict)
    memory: dict[str, dict[str, int] | None] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def seconds(self, name: str) -> float:
        return self.times[name].of(self.statistic)

    @property
    def ratios(self) -> dict[str, float]:
        """Their time over ours."""
        ours = self.seconds(OURS)
        return {n: self.seconds(n) / ours for n in self.times if n != OURS}

    def record(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {
            **self.case._asdict(),
            "seconds": {name: t._asdict() for name, t in self.times.items()},
            "ratios": self.ratios,
            "errors": self.errors,
            "memory": self.memory,
            "wrong": self.wrong,
        }


def compare(mine: Any, theirs: Any) -> dict[str, float]:
    """Return normwise relative differences of two results."""
    if isinstance(mine, np.ndarray):
        return {"outputs": _distance([theirs], [mine])}
    (value, grads), (other, others) = mine, theirs
    names = sorted(grads)
    if sorted(others) != names:
        raise ValueError("the nets have different parameters")
    together = _distance([others[n] for n in names], [grads[n] for n in names])
    return {"loss": abs(other - value) / abs(value), "gradients": together}


def _distance(parts: list[np.ndarray], others: list[np.ndarray]) -> float:
    difference = size = 0.0
    for a, b in zip(parts, others, strict=True):
        difference += float(((a - b).astype(np.float64) ** 2).sum())
        size += float((b.astype(np.float64) ** 2).sum())
    return (difference / size) ** 0.5


def check_gradients(net: str, ours: Runner, other: Runner) -> dict[str, float]:
    """Return how far loss and gradients are apart in float64, a batch of four."""
    case = Case(net, 4, True)
    results = []
    for runner in (ours, other):
        model, (x, labels) = case.model("float64"), case.data("float64")
        results.append(runner.training(model, case.loss(), x, labels).result())
    return compare(*results)


def check_rounding(net: str, runners: dict[str, Runner]) -> dict[str, float]:
    """Return how far each one's float32 gradients are from PyTorch's float64 ones."""
    case = Case(net, 32, True)
    x, labels = case.data()

    def gradients(runner: Runner, dtype: str) -> Any:
        model = case.model(dtype)
        return runner.training(model, case.loss(), x.astype(dtype), labels).result()

    exact = gradients(runners["torch eager"], "float64")
    return {
        name: compare(gradients(runner, "float32"), exact)["gradients"]
        for name, runner in runners.items()
        if runner.trains and name != "torch compiled"
    }


def measure(case: Case, runners: dict[str, Runner], options: argparse.Namespace) -> Row:
    """Compare and time one net."""
    row, calls, mine = Row(case, options.statistic), {}, None
    for name, runner in runners.items():
        if case.train and not runner.trains:
            continue
        model, (x, labels) = case.model(), case.data()
        if case.train:
            prepared = runner.training(model, case.loss(), x, labels)
        else:
            prepared = runner.inference(model, x)
        result = prepared.result()
        mine = result if mine is None else mine
        errors = row.errors[name] = compare(mine, result)
        if all(error <= LIMIT[what] for what, error in errors.items()):
            calls[name] = prepared.run
        else:
            row.wrong.append(name)
    # threads of a library may still spin when its turn is over
    pause = 0.005 if options.threads > 1 else 0.0
    row.times = interleaved(calls, options.rounds, options.seconds, pause)
    return row


def _listed(errors: dict[str, float]) -> str:
    return ", ".join(f"{name} {error:.0e}" for name, error in errors.items())


def _line(row: Row) -> str:
    text = f"{row.case.name:<18} {row.seconds(OURS) * 1e3:>9.3f}"
    for name, ratio in row.ratios.items():
        worst = max(row.errors[name].values())
        text += f"  {name} {row.seconds(name) * 1e3:.3f} = {ratio:.2f}x ({worst:.0e})"
    for name in row.wrong:
        text += f"  {name} WRONG {row.errors[name]}"
    if row.ratios:
        text += f"  | fastest of them {min(row.ratios.values()):.2f}x"
    return text


def _memory_line(row: Row) -> str:
    parts = []
    for name, peak in row.memory.items():
        if peak is not None:
            mega = {key: value / 2**20 for key, value in peak.items()}
            parts.append(f"{name} {mega['steps']:.1f} (process {mega['process']:.0f})")
    return f"{'':<18} MB: " + ", ".join(parts) if parts else ""


def _summary(rows: list[Row]) -> str:
    lines = ["", "their time / ours (above 1: ours is faster), geometric mean, least"]
    for train, what in ((True, "training step"), (False, "inference")):
        some = [row for row in rows if row.case.train == train and row.ratios]
        names = dict.fromkeys(name for row in some for name in row.ratios)
        lines += [_means(f"{what}, {name}", some, name) for name in names]
        if some:
            lines.append(_means(f"{what}, fastest of all", some, None))
    return "\n".join(lines)


def _means(what: str, rows: list[Row], name: str | None) -> str:
    seen = [row for row in rows if name is None or name in row.ratios]
    found = [
        (min(row.ratios.values()) if name is None else row.ratios[name], row.case.name)
        for row in seen
    ]
    mean = geometric_mean([ratio for ratio, _ in found])
    least, where = min(found)
    return f"{what:<40} {len(found):>3} {mean:>7.2f} {least:>7.2f}  {where}"


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train",
        description="Nets of the zoo against other libraries: compared, timed.",
    )

    def peers(text: str) -> tuple[str, ...]:
        names = tuple(filter(None, (part.strip() for part in text.split(","))))
        for name in names:
            if name not in (*PEERS, *NAMES) or name == OURS:
                raise argparse.ArgumentTypeError(
                    f"{name!r} is not one of {', '.join((*PEERS, *PEERS['torch'][1:]))}"
                )
        return names

    def positive(text: str) -> int:
        if (value := int(text)) < 1:
            raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
        return value

    add = parser.add_argument
    add("--against", type=peers, default=tuple(PEERS), metavar="PEER,...",
        help=f"of {', '.join(PEERS)} (default all; torch is three), or one of "
        f"{', '.join(PEERS['torch'][1:])}; '' for none")  # fmt: skip
    add("--threads", type=positive, default=1)
    add("--only", default="", metavar="NET,...",
        help="these nets alone; 'lenet5 b1' is one batch size of one")  # fmt: skip
    add("--passes", choices=("train", "infer", "both"), default="both")
    add("--rounds", type=positive, default=5, help="turns of each (default 5)")
    add("--seconds", type=float, default=0.03, help="of a turn (default 0.03)")
    add("--statistic", choices=("best", "median"), default="best")
    add("--memory", action="store_true", help="peak memory too, in new processes")
    add("--check", action="store_true", help="compare gradients first")
    add("--json", type=Path, metavar="FILE", help="write a record")
    return parser.parse_args(argv)


def _chosen(options: argparse.Namespace) -> list[Case]:
    only = [name.strip() for name in options.only.split(",") if name.strip()]
    cases = [
        case
        for case in CASES
        if options.passes in ("both", "train" if case.train else "infer")
    ]
    known = {name for case in cases for name in (case.net, case.name)}
    for name in only:
        if name not in known:
            raise ValueError(f"no net {name!r}; there are {', '.join(sorted(known))}")
    return [c for c in cases if not only or c.net in only or c.name in only]


def _load(options: argparse.Namespace) -> tuple[dict[str, Runner], dict[str, str]]:
    """Ours and the peers that are here, and why the others are not."""
    wanted = [OURS]
    for name in options.against:
        wanted += PEERS.get(name, (name,))
    runners, skipped = {}, {}
    for name in dict.fromkeys(wanted):
        try:
            runners[name] = load(name, options.threads)
        except ImportError as error:
            skipped[name] = str(error)
    return runners, skipped


def main(argv: Sequence[str] | None = None) -> int:
    """Run; return the exit status: 1 if nets differ, 2 for bad arguments."""
    options = _arguments(argv)
    try:
        cases = _chosen(options)
    except ValueError as error:
        print(f"benchmarks.train: {error}", file=sys.stderr)
        return 2
    disturbed = disturbance()  # later the load would be our own
    runners, skipped = _load(options)
    environment: dict[str, Any] = {
        "CPU": cpu_name(),
        "threads": options.threads,
        "statistic": f"{options.statistic} of {options.rounds} rounds of "
        f"{options.seconds * 1e3:g} ms, in turn",
        "numpy": np.__version__,
        "Python": platform.python_version(),
        "platform": f"{sys.platform} {platform.machine()}",
        "library": {name: runner.version() for name, runner in runners.items()},
        "skipped": skipped,
    }
    show(environment)
    print(disturbed or "", end="\n" if disturbed else "")
    different = False
    checks: dict[str, dict[str, float]] = {}
    rounded: dict[str, dict[str, float]] = {}
    if options.check and "torch eager" in runners:
        print("\nin float64, against PyTorch, relative:")
        for net in dict.fromkeys(case.net for case in cases):
            both = runners[OURS], runners["torch eager"]
            found = checks[net] = check_gradients(net, *both)
            different |= any(found[what] > EXACT[what] for what in found)
            print(f"{net:<18} " + _listed(found))
        print("\ngradients in float32, a batch of 32, from those in float64, relative:")
        for net in checks:
            rounded[net] = check_rounding(net, runners)
            print(f"{net:<18} " + _listed(rounded[net]))
    rows: list[Row] = []
    for train, title in ((True, "a training step"), (False, "an inference")):
        some = [case for case in cases if case.train == train]
        if some:
            print(f"\n{title}: ours in ms; theirs = their time / ours (difference)")
        for case in some:
            row = measure(case, runners, options)
            rows.append(row)
            print(_line(row), flush=True)
            gc.collect()
            if options.memory:
                for name in row.times:
                    row.memory[name] = peak_memory(name, case, options.threads)
                print(_memory_line(row), flush=True)
    print(_summary(rows))
    if options.json:
        record = {
            **environment,
            "float64": checks,
            "float32 from float64": rounded,
            "rows": [row.record() for row in rows],
        }
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 1 if different or any(row.wrong for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
