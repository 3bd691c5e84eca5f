"""Tell a check what a repair has come to: the facts of `repair.json`, for the gate.

Port `repair`. Facts only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.stages.base import Footprint, Stage, StageConfig
from pipeline.stages.given_back import REPAIR_FILE, REPAIR_PORT

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.hashing import JSON
    from pipeline.stages.base import StageContext

_KEPT = ("limits", "is_reached", "stopped", "given_back", "layers_total", "samples", "price")


class CheckRepairConfig(StageConfig):
    """Nothing is to be chosen."""


def run(
    config: CheckRepairConfig, inputs: Mapping[str, Path], output: Path, context: StageContext
) -> dict[str, JSON]:
    """Facts: limits with what was measured before and after, the layers given back, and the price.

    Raises:
        StageError: when the file is not one that the repair writes.
    """
    import json

    from pipeline.errors import StageError

    del config, output, context
    try:
        document = json.loads((inputs[REPAIR_PORT] / REPAIR_FILE).read_text("utf-8"))
        return {name: document[name] for name in _KEPT}
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise StageError(f"not the result of a repair: {err}", where=REPAIR_FILE) from err


CHECK_REPAIR = Stage(
    name="check_repair",
    version=1,
    footprint=Footprint(base_mib=60),
    config_type=CheckRepairConfig,
    run=run,
)
"""Port `repair` -> facts only."""
