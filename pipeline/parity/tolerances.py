"""How far a graph may be from the checkpoint, from evidence: the one table, with its reasons.

The unit everywhere is *noise*: the RMSE of a sample's output over the root mean square of that
output over all samples. The noise floor is what the checkpoint in float32 does to itself: against
float64, and with another number of threads (`noise_floor` stage, measured anew for every
checkpoint). A graph that computes the same in float32 rounds as often and as much, in another order;
it cannot be much farther away unless it computes something else.

Measured with torch 2.13 and ONNX Runtime 1.31 by `benchmarks/noise.py --seeds 20`: 20 draws of evaluation
samples and probes for each model, noise over floor. Of good graphs the largest, of faults the smallest:

| checkpoint | export | simplify | fuse | cast to float16 | LayerNorm epsilon | tanh for erf |
|---|---|---|---|---|---|---|
| MiniLM, 6 layers | 1.5 | 1.8 | 1.8 | 2,000 | 980 | 1,790 |
| ViT, digits | 1.4 | 1.4 | 1.5 | 2,290 | 2,300 | 330 |
| BERT, text classes | 2.6 | 2.6 | 2.6 | 3,660 | 460 | 100 |
| BERT, token classes | 1.2 | 1.2 | 1.5 | 1,450 | 400 | 310 |
| BERT, answers | 1.5 | 1.5 | 1.6 | 1,820 | 490 | 450 |
| 32 of the zoo (`--zoo ""`), random weights | 1.9 | 1.9 | 2.1 | 5,360 | 12 | 87 |

The last two columns are faults, small ones that people really ship. ONNX Runtime's CPU computes many
float16 operators in float32, but rounds what they hand on: torch itself in float16, rounding every operator,
is as far away (2,000 to 6,600), so the graph that the CPU runs is a fair stand-in for the device's.

A cast to bfloat16, computed in float32 with every result rounded (`pipeline.graph.stand_in`), by one draw:
MiniLM 14,300, digits 15,500, text classes 12,900, token classes 17,900, answers 39,900 times the floor;
torch itself in bfloat16, by the same draws (but for MiniLM) 18,000, 7,700, 17,800 and 21,000.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.parity.types import NoiseFloor

Arithmetic: TypeAlias = Literal["float32", "float16", "bfloat16", "quantized"]
"""The least exact numbers that a graph computes with on purpose."""

SMALLEST_FLOOR: Final = 2.0**-22
"""Two units in the last place of float32 (2^-23): a floor below it was measured on too few sums."""


def floor_value(floor: NoiseFloor | None) -> float:
    """The larger of both ways to measure the floor; 0 when it was not measured."""
    return 0.0 if floor is None else max(floor.float64, floor.threads)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """What noise a graph may have.

    Attributes:
        factor: Times the noise floor; None where the floor says nothing.
        ceiling: Largest noise whatever the floor is: beyond it there is no resemblance that matters.
        reason: Why, in a sentence.
    """

    factor: float | None
    ceiling: float
    reason: str

    def limit(self, floor: float) -> float:
        """The largest noise that passes, given the floor of the output."""
        if self.factor is None:
            return self.ceiling
        return min(self.ceiling, self.factor * max(floor, SMALLEST_FLOOR))


TOLERANCES: Final[Mapping[Arithmetic, Tolerance]] = {
    "float32": Tolerance(
        factor=8.0,
        ceiling=1e-3,
        reason="the same sums in another order: at most 2.6 times the floor was measured, the "
        "smallest fault is 12 times the floor",
    ),
    "float16": Tolerance(
        factor=2.0**13,
        ceiling=0.05,
        reason="float16 keeps 13 bits less (2^13) of every operator's result, and sums are kept in "
        "float32: 960 to 5,360 times the floor was measured",
    ),
    "bfloat16": Tolerance(
        factor=2.0**17,
        ceiling=0.25,
        reason="bfloat16 keeps 16 bits less (2^16) of every operator's result, and sums are kept in "
        "float32: 12,600 to 39,900 times the floor was measured, and torch itself is 7,700 to 42,000 "
        "times the floor away",
    ),
    "quantized": Tolerance(
        factor=None,
        ceiling=0.7,
        reason="8 bits lose what the weights and ranges make of it, which the floor does not know: "
        "this only says that the outputs still resemble each other (a cosine of about 0.75); "
        "`gates.parity` and the check of the quantisation itself are what is strict",
    ),
}
"""Arithmetic -> tolerance. A recipe's `gates.stages` replaces the limit of a stage."""

LAYER_LIMITS: Final[Mapping[Arithmetic, float]] = {
    "float32": 2.0**-18,
    "float16": 2.0**-8,
    "bfloat16": 2.0**-5,
    "quantized": 0.4,
}
"""Arithmetic -> largest noise that the nodes between two compared values may add of their own.

They are few, so this is a matter of the last bits and not of the checkpoint. Measured as above, the
largest of all layers: float32 3.4e-7, float16 4.8e-4, bfloat16 3.2e-3 (MiniLM), 8 bits 0.13 (ONNX Runtime) and 0.23
(TensorRT's placement). One scale that is twice what it should be adds 1.
"""
