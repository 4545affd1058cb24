"""`python -m bwflow`, and the command `bwflow`."""

import os
import sys

from bwflow import _versions
from bwflow._process import end_when_told


def main() -> int:
    """Entry point, which is ready for signals before it imports what takes long.

    Returns what `bwflow.cli.main` does, and 141 where output went to a pipe that was closed.
    """
    end_when_told()
    try:
        if sys.argv[1:] == ["--version"]:  # which needs none of what the other commands do
            _versions.show()
            sys.stdout.flush()
            return 0
        from bwflow import cli

        return cli.main()
    except BrokenPipeError:  # whoever read has seen enough; nothing is left to be written at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


if __name__ == "__main__":
    sys.exit(main())
