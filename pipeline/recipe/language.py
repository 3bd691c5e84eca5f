"""The keys that a recipe is written with, and that are gone once it is expanded.

`extends`, `vars` and `matrix` say how recipes and targets come to be; what then stands there is a
`Recipe`. Their types are here for checks and for the JSON Schema.
"""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.recipe.types import FactName, Printable, Strict

MAX_COMBINATIONS = 256
"""Of one matrix; more is a mistake, or an attack."""

NOT_WRITTEN: Any = None
"""For keys that may be left out, and yet hold something where they are written."""

Scalar = str | int | float | bool
Values = Annotated[dict[FactName, Scalar], Field(min_length=1)]


class Matrix(Strict):
    """Combinations of values; each one defines variables, and makes a recipe or a target."""

    axes: dict[FactName, Annotated[tuple[Scalar, ...], Field(min_length=1)]] = Field(
        default_factory=dict,
        description="variable -> its values; every value meets every value of the other axes",
        examples=[{"precision": ["fp32", "int8"]}],
    )
    exclude: tuple[Values, ...] = Field(
        default=(),
        description="combinations to leave out, by the values of some axes or of all",
        examples=[[{"model": "b", "precision": "int8"}]],
    )
    include: tuple[Values, ...] = Field(
        default=(),
        description="values added to the combinations they agree with; a combination of their "
        "own where there is none",
        examples=[[{"model": "c", "precision": "fp32"}]],
    )

    @model_validator(mode="after")
    def _has_combinations(self) -> Self:
        if not self.axes and not self.include:
            msg = "an empty matrix makes nothing; write `axes: {precision: [fp32, int8]}`"
            raise ValueError(msg)
        return self


class Language(BaseModel):
    """The keys of the recipe language beside those of a recipe."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, allow_inf_nan=False)

    extends: Printable | Annotated[tuple[Printable, ...], Field(min_length=1)] = Field(
        default=NOT_WRITTEN,
        description="recipes that this one builds on, by paths relative to this file; mappings "
        "merge, other values and lists replace",
        examples=["base.yaml"],
    )
    vars: dict[FactName, Scalar | None] = Field(
        default_factory=dict,
        description="variables: `${name}` in a value stands for the variable's value, `$${` for "
        "`${`; one without a value must be given with `--var name=value`",
        examples=[{"length": 128}],
    )
    matrix: Matrix = Field(
        default=NOT_WRITTEN,
        description="makes one recipe for each combination of values; the names must differ",
        examples=[{"axes": {"model": ["small", "large"]}}],
    )


class Entry(BaseModel):
    """The key of the recipe language that stands in a target."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, allow_inf_nan=False)

    matrix: Matrix = Field(
        default=NOT_WRITTEN,
        description="makes one target for each combination of values; the names must differ",
        examples=[{"axes": {"precision": ["fp32", "fp16"]}}],
    )
