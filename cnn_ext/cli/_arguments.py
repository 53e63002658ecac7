"""The command line: how arguments are read, and those that commands share."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any, NoReturn

from cnn_ext._machine import set_num_threads
from cnn_ext.cli._console import UsageError

__all__ = ["Parser", "add_command", "add_threads", "integer", "positive", "set_threads"]


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # argparse would print its usage, several lines, in front
        raise UsageError(f"{message}; see {self.prog} --help")


def integer(low: int, high: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        if text.strip().isdecimal() and len(text) <= 20 and low <= int(text) <= high:
            return int(text)
        raise argparse.ArgumentTypeError(
            f"must be an integer from {low} to {high}, got {text!r}"
        )

    return convert


def positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return value


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], None], about: str
) -> Parser:
    """Add a command, `run` with its arguments, and return its parser."""
    parser: Parser = commands.add_parser(
        name, help=about, description=about, allow_abbrev=False
    )
    parser.set_defaults(command=run)
    return parser


def add_threads(parser: Parser) -> None:
    parser.add_argument("--threads", type=integer(1, 1024), metavar="N")


def set_threads(arguments: argparse.Namespace) -> None:
    if arguments.threads is not None:
        set_num_threads(arguments.threads)
