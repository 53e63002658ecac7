"""The command `cnn-ext`: train, evaluate, predict, bench, info.

Exit status: 0, or 2 with one line on standard error that says what is wrong and what
to do, or 130 after Ctrl-C. Each command has a file of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cnn_ext._version import __version__
from cnn_ext.cli import bench, evaluate, info, predict, train
from cnn_ext.cli._arguments import Parser
from cnn_ext.cli._console import complain, sentence, without_stdout

__all__ = ["main"]

# What a user's input can cause; anything else is a bug and shows its traceback.
_EXPECTED = (ValueError, OSError, ImportError, FloatingPointError, RuntimeError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments, without the program's name; by default those of the process.

    Returns
    -------
    int
        Exit status: 0, 2 (one line on standard error says why), 130 (Ctrl-C).
    """
    try:
        arguments = _parser().parse_args(argv)
        arguments.command(arguments)
        sys.stdout.flush()  # here a closed pipe or a full disk still gives one line
    except SystemExit as end:  # --help, --version
        return int(end.code or 0)
    except KeyboardInterrupt as interrupt:
        complain(str(interrupt) or "interrupted; nothing was written")
        return 130
    except BrokenPipeError:
        complain("standard output was closed before the end")
        return without_stdout(2)
    except MemoryError:
        complain("not enough memory; give fewer or smaller images, or --batch-size")
        return 2
    except _EXPECTED as error:
        complain(sentence(error))
        return without_stdout(2)
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="cnn-ext",
        description="Train and use convolutional networks on CPUs.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"cnn-ext {__version__}")
    commands = parser.add_subparsers(
        metavar="COMMAND", required=True, parser_class=Parser
    )
    for command in (train, evaluate, predict, bench, info):
        command.add_parser(commands)
    return parser
