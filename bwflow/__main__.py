"""`python -m bwflow`, and the command `bwflow`."""

import sys

from bwflow import _versions
from bwflow._process import end_when_told, reader_has_left


def main() -> int:
    """Entry point, which is ready for signals before it imports what takes long."""
    end_when_told()
    if sys.argv[1:] == ["--version"]:  # which needs none of what the other commands do
        try:
            _versions.show()
            sys.stdout.flush()
        except BrokenPipeError:
            return reader_has_left()
        return 0
    from bwflow import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
