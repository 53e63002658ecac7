"""cnn-ext info: print version, kernel set, CPU features, threads."""

from __future__ import annotations

import argparse
from typing import Any

from cnn_ext._machine import show_config
from cnn_ext.cli._arguments import add_command
from cnn_ext.cli._console import say

__all__ = ["add_parser", "run"]


def add_parser(commands: Any) -> None:
    about = "Print version, kernel set, CPU features, threads."
    add_command(commands, "info", run, about)


def run(arguments: argparse.Namespace) -> None:
    say(show_config())
