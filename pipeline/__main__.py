"""Entry point of `convert` and of `python -m pipeline`."""

from __future__ import annotations

import gc
import os
import sys


def main() -> None:
    """Run the command line; ends the process with a documented exit code."""
    # A plug-in of another package must not change how recipes are read; looking for them takes 30 ms.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    # Importing makes many objects that stay: looking through them again and again takes 80 ms.
    gc.set_threshold(50_000)
    from pipeline.cli.main import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
