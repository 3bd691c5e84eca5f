"""What a repair decided, as the quantising stages read it: `repair.json`.

Their port `repair` is optional; without it, nothing is given back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.hashing import JSON

REPAIR_PORT: Final = "repair"
REPAIR_FILE: Final = "repair.json"


def read_given_back(inputs: Mapping[str, Path]) -> frozenset[str]:
    """Names of the layers that a repair gave back to float; none without the port.

    Raises:
        StageError: when the file is not one that the repair writes.
    """
    import json

    from pipeline.errors import StageError

    if REPAIR_PORT not in inputs:
        return frozenset()
    try:
        document = json.loads((inputs[REPAIR_PORT] / REPAIR_FILE).read_text("utf-8"))
        names = [entry["layer"] for entry in document["given_back"]]
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise StageError(f"not the result of a repair: {err}", where=REPAIR_FILE) from err
    return frozenset(map(str, names))


def repair_facts(inputs: Mapping[str, Path], given_back: frozenset[str]) -> dict[str, JSON]:
    """What a quantising stage says of a repair; nothing without the port."""
    return {"given_back": sorted(given_back)} if REPAIR_PORT in inputs else {}
