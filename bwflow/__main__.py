"""`python -m bwflow`, and the command `bwflow`."""

import sys

from bwflow import _versions
from bwflow._process import end_when_told


def main() -> int:
    """Entry point, which is ready for signals before it imports what takes long."""
    end_when_told()
    if sys.argv[1:] == ["--version"]:  # which needs none of what the other commands do
        _versions.show()
        return 0
    from bwflow import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
