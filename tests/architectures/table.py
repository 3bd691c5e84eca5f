"""Converts the whole zoo and prints what came of it: `python -m tests.architectures.table [NAME]`.

With a name, only the entries in which it occurs.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.architectures.conversion import TARGETS, Row, convert_entry
from tests.architectures.zoo import ENTRIES, Entry


def main(wanted: str = "") -> int:
    """Print one line for each target of each entry, then N of M; 1 when any failed."""
    passed = total = 0
    for entry in ENTRIES:
        if wanted not in str(entry):
            continue
        for row in _convert(entry):
            total += 1
            passed += not row.reason
            verdict = f"FAILED: {row.reason}" if row.reason else "passed"
            sys.stdout.write(f"{entry!s:38} {row.target:9} {verdict} {row.measured}\n")
            sys.stdout.flush()
    sys.stdout.write(f"{passed} of {total}\n")
    return int(passed < total)


def _convert(entry: Entry) -> tuple[Row, ...]:
    with tempfile.TemporaryDirectory(prefix="zoo-") as folder:
        try:
            return convert_entry(entry, Path(folder))
        except Exception as err:  # noqa: BLE001 - a defect, which must not hide the others' results
            return tuple(Row(name, f"crashed: {err!r}", "") for name in TARGETS)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
