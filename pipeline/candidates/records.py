"""How a candidate is fed and read: plain records, which travel as config of the stage that takes it in."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class AdoptedInput(_Record):
    """An input that samples feed.

    Attributes:
        name: Ours.
        given: The candidate's.
        fed: numpy's name of what samples are.
        dtype: ONNX's name of the type that the candidate takes.
        axes: Names of its first axes.
    """

    name: str
    given: str
    fed: Literal["int64", "float32"]
    dtype: str
    axes: tuple[str, ...]


class SuppliedInput(_Record):
    """An input that no sample has, and that follows from another.

    Attributes:
        given: The candidate's name.
        dtype: As in `AdoptedInput`.
        rule: `positions`: 0, 1, 2 ... in each row; `zeros`; `zero`: a single one.
        rank: Axes of a single zero.
    """

    given: str
    dtype: str
    rule: Literal["positions", "zeros", "zero"]
    rank: int = 2


class AdoptedOutput(_Record):
    """An output that is compared.

    Attributes:
        name: Ours.
        given: The candidate's.
        dtype: ONNX's name of its type.
        axes: Names of its first axes.
    """

    name: str
    given: str
    dtype: str
    axes: tuple[str, ...]

    @property
    def is_comparable(self) -> bool:
        """Outputs of this type are compared as they are; all others are cast to float32."""
        return self.dtype in {"float", "float16"}


class AdoptedCache(_Record):
    """Keys or values of one layer: what goes in, and what comes out for the next step.

    Attributes:
        name: Our name of the input, `past_key_values.N.key`.
        present: Our name of the output.
        given: The candidate's input.
        given_present: The candidate's output.
        dtype: ONNX's name of the type of both; outside they are float32.
        heads: Key/value heads.
        width: Numbers of each.
    """

    name: str
    present: str
    given: str
    given_present: str
    dtype: str
    heads: int
    width: int


class Interface(_Record):
    """How a candidate is fed and read.

    Attributes:
        fixed: Named axis -> the one size that the candidate takes.
        missing: Our inputs that the candidate does not take, though the checkpoint does.
        notes: What a reader should know of all this, a sentence each.
        caches: Of a decoder, keys and values of every layer; empty when it keeps none.
        unused: Our inputs that it has no need of, as it finds them out itself.
    """

    inputs: tuple[AdoptedInput, ...]
    supplied: tuple[SuppliedInput, ...]
    outputs: tuple[AdoptedOutput, ...]
    fixed: dict[str, int]
    missing: tuple[str, ...]
    notes: tuple[str, ...]
    caches: tuple[AdoptedCache, ...] = ()
    unused: tuple[str, ...] = ()
