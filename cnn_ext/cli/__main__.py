"""``python -m cnn_ext.cli``: the command `cnn-ext`."""

import sys

from cnn_ext.cli import main

if __name__ == "__main__":
    sys.exit(main())
