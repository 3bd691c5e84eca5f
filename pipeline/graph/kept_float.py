"""Which layers a recipe, or a repair, keeps in float: the same rules for both kinds of quantisation."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

from pipeline.errors import QuantizationError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from pipeline.graph.weighted_layers import WeightedLayer

GIVEN_BACK: Final = "given back to float by the repair"
"""Why a layer is float that the recipe did not exclude."""

_SHOWN_NAMES: Final = 6


def find_kept_float(
    layers: Sequence[WeightedLayer], patterns: Sequence[str], given_back: Collection[str]
) -> Mapping[WeightedLayer, str]:
    """Layer -> why it is to stay float, for those that were named.

    Args:
        layers: All of the graph.
        patterns: `exclude_nodes`; the first one that matches a layer's name is its reason.
        given_back: Exact names.

    Raises:
        QuantizationError: for a pattern or a name that matches no layer with a weight.
    """
    found: dict[WeightedLayer, str] = {}
    candidates = [layer for layer in layers if not layer.reason]
    for pattern in patterns:
        matching = [layer for layer in candidates if fnmatchcase(layer.name, pattern)]
        if not matching:
            raise QuantizationError(
                f"exclude_nodes: `{pattern}` matches no layer with a weight; there are "
                f"{_listing(candidates)}",
                hint="`convert inspect model.onnx --layers` lists them; take the pattern out if "
                "nothing is to stay",
            )
        for layer in matching:
            found.setdefault(layer, f"excluded by `{pattern}`")
    by_name = {layer.name: layer for layer in candidates}
    for name in sorted(given_back):
        if name not in by_name:
            raise QuantizationError(
                f"`{name}` is to be given back to float, and no layer with a weight has this name; "
                f"there are {_listing(candidates)}"
            )
        found.setdefault(by_name[name], GIVEN_BACK)
    return found


def _listing(layers: Sequence[WeightedLayer]) -> str:
    names = [f"`{layer.name}`" for layer in layers]
    more = ", ..." if len(names) > _SHOWN_NAMES else ""
    return f"{', '.join(names[:_SHOWN_NAMES]) or 'none'}{more}"
