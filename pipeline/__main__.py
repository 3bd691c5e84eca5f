"""Entry point of `convert` and of `python -m pipeline`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; ends the process with a documented exit code."""
    from pipeline.cli.main import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
