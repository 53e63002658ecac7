"""A model as a table of text."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from cnn_ext.layers.base import Shape

if TYPE_CHECKING:
    from cnn_ext.graph import Graph

__all__ = ["summary"]


def summary(graph: Graph, shapes: list[Shape], itemsize: int) -> str:
    """Return a line a step: output shape, parameters, work and bytes of one sample.

    Parameters
    ----------
    graph : Graph
    shapes : list of tuple
        Shape of every value, that of the input first.
    itemsize : int
        Bytes of a number.
    """
    rows = [["name", "layer", "from", "output", "parameters", "multiply-adds", "bytes"]]
    sizes = [itemsize * math.prod(shape) for shape in shapes]
    rows.append(["", "input", "", _by(shapes[0]), "", "", f"{sizes[0]:,}"])
    total = work = 0
    seen = set()
    steps, names = graph.steps, graph.names
    for k, step in enumerate(steps):
        layer = step.layer
        inputs = tuple(shapes[i] for i in step.inputs)
        adds = layer.multiply_adds(inputs if layer.joins else inputs[0])
        size = sum(parameter.size for parameter in layer.parameters.values())
        sources = (names[steps[i - 1].layer] if i else "input" for i in step.inputs)
        rows.append(
            [
                names[layer],
                repr(layer),
                ", ".join(sources),
                _by(shapes[k + 1]),
                "shared" if layer in seen else f"{size:,}",
                f"{adds:,}",
                f"{sizes[k + 1]:,}",
            ]
        )
        work += adds
        total += 0 if layer in seen else size
        seen.add(layer)
    rows.append(["", "total", "", "", f"{total:,}", f"{work:,}", f"{sum(sizes):,}"])
    if all(step.inputs == (k,) for k, step in enumerate(steps)):
        rows = [row[:2] + row[3:] for row in rows]  # a chain: each from the one above
    return _table(rows)


def _by(shape: Shape) -> str:
    return "x".join(map(str, shape))


def _table(rows: list[list[str]]) -> str:
    """Format rows in columns; the last three are numbers and set to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        for i in (-1, -2, -3):
            cells[i] = row[i].rjust(widths[i])
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
