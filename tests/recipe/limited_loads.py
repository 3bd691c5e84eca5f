"""Loads recipe files one after the other, each within hard limits; run as a child process.

Prints each file's name and the first line of its refusal. What goes beyond a limit ends the
process: SIGXCPU for time, MemoryError for memory, SIGSEGV for the stack.
"""

from __future__ import annotations

import math
import resource
import sys
from pathlib import Path

from pipeline.errors import RecipeError
from pipeline.recipe import load_recipes

ADDRESS_SPACE_BYTES = 200 << 20
CPU_SECONDS_EACH = 1


def main(directory: Path) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
    for path in sorted(directory.glob("*.yaml")):
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit = math.ceil(used.ru_utime + used.ru_stime + CPU_SECONDS_EACH)
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
        _say(f"{path.name}: ")
        try:
            load_recipes(path)
        except RecipeError as error:
            _say(error.message.splitlines()[0] + "\n")
        else:
            _say("LOADED\n")


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
