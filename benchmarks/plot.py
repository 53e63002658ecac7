"""The ratios as a picture: one dot a shape, peer and memory order."""

from __future__ import annotations

from pathlib import Path

from .measure import Row

__all__ = ["plot"]

_MARKS = {"nchw": "o", "channels_last": "D"}


def plot(rows: list[Row], peers: list[str], path: Path | str, title: str) -> None:
    """Draw one panel a pass: shapes downwards, the peer's time over ours to the right.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D
    except ImportError:
        raise ImportError(
            "--plot needs matplotlib: pip install 'cnn_ext[bench]'"
        ) from None
    rows = [row for row in rows if row.ratios]
    if not rows:
        raise ValueError("nothing to plot: no ratios")
    passes = list(dict.fromkeys(row.task.pass_ for row in rows))
    names = list(dict.fromkeys(row.task.shape.name for row in rows))
    size = 2.2 + 3.2 * len(passes), 1.6 + 0.2 * len(names)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(passes), sharey=True, squeeze=False)[0]
    colours = {peer: f"C{i}" for i, peer in enumerate(peers)}
    for panel, pass_ in zip(panels, passes, strict=True):
        for row in rows:
            if row.task.pass_ != pass_:
                continue
            for peer, ratio in row.ratios.items():
                panel.plot(
                    ratio,
                    names.index(row.task.shape.name),
                    _MARKS[row.task.order],
                    color=colours[peer],
                    markersize=4,
                    alpha=0.8,
                )
        panel.axvline(1, color="black", linewidth=0.8)
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        panel.grid(axis="both", linewidth=0.3)
        panel.set_title(pass_, fontsize=10)
        panel.set_xlabel("peer's time / ours", fontsize=9)
        panel.tick_params(labelsize=8)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    orders = list(dict.fromkeys(row.task.order for row in rows))
    legend = [
        Line2D([], [], color=colours[peer], marker="o", linestyle="", label=peer)
        for peer in peers
        if any(peer in row.ratios for row in rows)
    ] + [
        Line2D([], [], color="grey", marker=_MARKS[order], linestyle="", label=order)
        for order in orders
    ]
    figure.legend(
        handles=legend, loc="outside lower center", ncols=len(legend), fontsize=8
    )
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, format="svg")
