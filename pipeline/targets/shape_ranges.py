"""Ranges of named axes, as recipes write them: for all inputs, and for one optimization profile."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(ge=1)]
Size = Annotated[int, Field(ge=1, le=(1 << 31) - 1)]
"""Of an axis: TensorRT holds the sizes of a profile in 32 bits with a sign."""


class OutOfOrder(ValueError):
    """Of a range; `hint` is the range with the same three sizes in their order."""

    def __init__(self, sizes: tuple[int, int, int]) -> None:
        super().__init__("min <= opt <= max does not hold: {}, {}, {}".format(*sizes))
        self.hint = "{{min: {}, opt: {}, max: {}}}".format(*sorted(sizes))


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ShapeRange(_Strict):
    """The smallest, the usual and the largest value of one named axis."""

    min: Size = Field(description="the smallest that must work")
    opt: Size = Field(description="the usual one; engines are fastest here")
    max: Size = Field(description="the largest that must work")

    @model_validator(mode="after")
    def _is_ordered(self) -> Self:
        if not self.min <= self.opt <= self.max:
            raise OutOfOrder(self.sizes())
        return self

    def sizes(self) -> tuple[int, int, int]:
        """As (min, opt, max)."""
        return self.min, self.opt, self.max


class PastRange(_Strict):
    """How many tokens a decoder's cache holds already, at least, usually and at most."""

    min: int = Field(ge=0, lt=1 << 31, description="0 takes an empty cache: the start of a text")
    opt: int = Field(ge=0, lt=1 << 31, description="the usual one; engines are fastest here")
    max: int = Field(ge=0, lt=1 << 31, description="the largest that must work")

    @model_validator(mode="after")
    def _is_ordered(self) -> Self:
        if not self.min <= self.opt <= self.max:
            raise OutOfOrder(self.sizes())
        return self

    def sizes(self) -> tuple[int, int, int]:
        """As (min, opt, max)."""
        return self.min, self.opt, self.max


class ProfileShapes(_Strict):
    """Shapes that an engine is made for; an axis that is left out has the range of `shapes`."""

    batch: ShapeRange | None = Field(
        default=None, description="samples at once", examples=[{"min": 1, "opt": 1, "max": 1}]
    )
    sequence: ShapeRange | None = Field(
        default=None,
        description="tokens of one text",
        examples=[{"min": 8, "opt": 32, "max": 64}],
    )
    num_choices: ShapeRange | None = Field(
        default=None, description="choices of one question; for multiple-choice"
    )
    past_sequence: PastRange | None = Field(
        default=None,
        description="tokens in the cache, for text-generation; left out: none",
        examples=[{"min": 1, "opt": 128, "max": 511}],
    )

    @model_validator(mode="after")
    def _limits_something(self) -> Self:
        if not self.given():
            msg = "a profile needs the range of at least one axis"
            raise ValueError(msg)
        return self

    def given(self) -> dict[str, ShapeRange | PastRange]:
        """Axis -> its range, of those that are written."""
        ranges = {axis: getattr(self, axis) for axis in type(self).model_fields}
        return {axis: extent for axis, extent in ranges.items() if extent is not None}
