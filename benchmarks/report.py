"""The tables and the summary, as text."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from .measure import Row
from .timing import geometric_mean

__all__ = ["header", "line", "show", "summary"]

_NAME, _ORDER, _PASS = 10, 13, 7


def show(environment: dict[str, object]) -> None:
    """Print what a measurement depends on."""
    for name, value in environment.items():
        if isinstance(value, dict):
            for key, text in value.items():
                print(f"{name + ' ' + key:<20} {text}")
        else:
            print(f"{name:<20} {value}")


def header(is_conv: bool, peers: list[str]) -> str:
    """Heading of one of the two tables."""
    unit = "GFLOP/s  of peak" if is_conv else "   GB/s  of copy"
    columns = "".join(f"  {peer:>14}, error" for peer in peers)
    return (
        f"{'shape':<{_NAME}} {'order':<{_ORDER}} {'pass':<{_PASS}} "
        f"{'ms':>9} {unit} {'error':>8}{columns}"
    )


def line(row: Row, peers: list[str], native: dict[str, bool], peak: float) -> str:
    """One task; `native` says which peers take channels-last arrays."""
    task = row.task
    if task.shape.is_conv:
        speed, share = row.gflops, row.gflops / peak
    else:
        speed, share = row.bandwidth, row.of_copy
    part = "unknown" if share != share else f"{share:7.0%}"
    text = (
        f"{task.shape.name:<{_NAME}} {task.order:<{_ORDER}} {task.pass_:<{_PASS}} "
        f"{row.ours * 1e3:>9.3f} {speed:>7.1f}  {part} {row.errors[row.ours_key]:>8.0e}"
    )
    for peer in peers:
        if peer in row.ratios:
            mark = " " if task.order == "nchw" or native[peer] else "*"
            cell = f"{row.ratios[peer]:.2f}x{mark} {row.errors[peer]:.0e}"
        elif peer in row.wrong:
            cell = f"WRONG {row.errors[peer]:.0e}"
        else:
            cell = "-"
        text += f"  {cell:>21}"
    return text


def summary(rows: list[Row], peers: list[str]) -> str:
    """Geometric means and worst cases: by peer, by pass and order, by group."""
    lines = [""]
    if peers:
        lines += [
            "peer's time / ours (above 1: ours is faster)",
            f"{'peer':<12} {'which':<30} {'lines':>5} {'geo. mean':>9} {'worst':>7}  "
            "where",
        ]
    for peer in peers:
        seen = [row for row in rows if peer in row.ratios]
        lines += _ratios(peer, seen, lambda row, peer=peer: row.ratios[peer])
    if len(peers) > 1:
        seen = [r for r in rows if r.ratios and r.task.pass_ == "forward"]
        seen = [r for r in seen if r.task.shape.is_conv]
        lines += _ratios("best of all", seen, lambda row: min(row.ratios.values()))
    lines += ["", "largest normwise relative error against float64"]
    for is_conv in (True, False):
        passes = sorted({r.task.pass_ for r in rows if r.task.shape.is_conv == is_conv})
        for pass_ in passes:
            seen = [
                r
                for r in rows
                if r.task.pass_ == pass_ and r.task.shape.is_conv == is_conv
            ]
            lines.append(_errors("conv" if is_conv else "pool", pass_, seen, peers))
    copies = [r for r in rows if "copy" in r.times]
    if copies:
        low = min(copies, key=lambda r: r.of_copy)
        lines += [
            "",
            f"pools: {geometric_mean([r.of_copy for r in copies]):.0%} of a copy's "
            f"bandwidth (geometric mean), lowest {low.of_copy:.0%}, {_where(low)}",
        ]
    if wrong := [f"{name}: {_where(r)}" for r in rows for name in r.wrong]:
        lines += ["", "WRONG and not timed: " + "; ".join(wrong)]
    return "\n".join(lines)


def _ratios(name: str, rows: list[Row], ratio: Callable[[Row], float]) -> Iterable[str]:
    """One line for all rows, then one for each kind of them."""
    if not rows:
        return [f"{name:<12} nothing in common"]
    kinds: dict[str, list[Row]] = {"all": rows}
    for row in rows:
        task = row.task
        kind = "conv" if task.shape.is_conv else "pool"
        kinds.setdefault(f"{kind} {task.pass_}, {task.order}", []).append(row)
    for row in rows:
        if row.task.shape.is_conv:
            kinds.setdefault(f"{row.task.group}, {row.task.pass_}", []).append(row)
    lines = []
    for kind, some in kinds.items():
        worst = min(some, key=ratio)
        mean = geometric_mean([ratio(row) for row in some])
        lines.append(
            f"{name:<12} {kind:<30} {len(some):>5} {mean:>9.2f} {ratio(worst):>7.2f}  "
            f"{_where(worst)}"
        )
    return lines


def _errors(kind: str, pass_: str, rows: list[Row], peers: list[str]) -> str:
    text = f"{kind} {pass_:<8}"
    for name in ("cnn_ext", "cnn_ext out=", *peers):
        seen = [row for row in rows if name in row.errors]
        if seen:
            worst = max(seen, key=lambda row: row.errors[name])
            text += f"  {name} {worst.errors[name]:.1e} ({worst.task.shape.name})"
    return text


def _where(row: Row) -> str:
    return f"{row.task.shape.name} {row.task.pass_} {row.task.order}"
