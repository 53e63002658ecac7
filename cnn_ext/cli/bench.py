"""cnn-ext bench: check the operators, then time them on this machine."""

from __future__ import annotations

import argparse
from typing import Any

from cnn_ext._bench import timings
from cnn_ext._machine import show_config
from cnn_ext.cli._arguments import add_command, add_threads, positive, set_threads
from cnn_ext.cli._console import say

__all__ = ["add_parser", "run"]


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands, "bench", run, "Check the operators, then time them on this machine."
    )
    parser.add_argument(
        "--seconds", type=positive, default=0.2, metavar="X", help="for each operator"
    )
    add_threads(parser)


def run(arguments: argparse.Namespace) -> None:
    set_threads(arguments)
    say(show_config() + "\n")
    say(f"{'layer, float32':24} {'operator':24} {'ms':>9} {'rate':>8}")
    for row in timings(seconds=arguments.seconds):
        say(
            f"{row.layer:24} {row.operator:24} {row.milliseconds:9.3f} "
            f"{row.rate:8.1f} {row.unit}"
        )
