"""Engines as the builder told of them: figures, a picture of the layers, and the table of them.

The facts are data of unknown shape (`pipeline.report.facts`): what is missing is left out, and what
has no place of its own here is still shown as rows.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pipeline.report import figures
from pipeline.report.facts import Facts

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pipeline.report.schema import EngineReport, Report

MAX_LAYERS = 400
"""Of one engine."""

_KNOWN = frozenset(
    {
        *("layer_types", "gemm_kinds", "layer_rows", "coverage", "by_profile", "profiles"),
        *("expected_inputs", "expected_outputs", "size_bytes", "compute_capability"),
    }
)
"""Keys with a place of their own."""

AMOUNTS: Final = ("activation_memory_mib", "copy_layers")
"""Coverage that is no share; the builder's figures have the same numbers."""

PRECISIONS: Final = ("fp32", "fp16", "bf16", "fp8", "int8", "int4")
"""With a colour of their own in the picture, the widest first; all else is grey."""

_HEIGHTS: Final = {"product": 30.0, "attention": 30.0, "copy": 8.0}
_OTHER_HEIGHT: Final = 15.0
_CELL: Final = 12.0
_GAP: Final = 2.0
_TALLEST: Final = 30.0
_ROW: Final = 42.0
_IN_A_ROW: Final = 78


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTable:
    """An engine's layers as the builder told them: columns of unknown names."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerBox:
    """One layer in the picture; lengths are SVG user units.

    Attributes:
        precision: One of `PRECISIONS`, or `none`.
        role: `product`, `attention`, `copy` or `other`.
        title: Shown when it is pointed at.
    """

    x: float
    y: float
    height: float
    precision: str
    role: str
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPicture:
    """The layers of one profile, in the order in which they run.

    Attributes:
        legend: (precision, how many layers compute in it), the widest first.
        said: The picture in words.
    """

    width: float
    height: float
    box_width: float
    boxes: tuple[LayerBox, ...]
    legend: tuple[tuple[str, int], ...]
    said: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileRow:
    """What one input may be fed in one profile."""

    profile: int
    tensor: str
    dtype: str
    smallest: str
    usual: str
    largest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """One engine, read from its facts."""

    engine: EngineReport
    target: str
    layer_types: tuple[tuple[str, float], ...]
    gemm_kinds: tuple[tuple[str, float], ...]
    coverage: tuple[tuple[str, float], ...]
    headline: tuple[str, ...]
    profiles: tuple[ProfileRow, ...]
    rows: tuple[tuple[str, str], ...]
    picture: LayerPicture | None
    layers: LayerTable | None


def engines_of(report: Report) -> tuple[Engine, ...]:
    """The engines of all targets."""
    return tuple(
        _engine(engine, target.name) for target in report.targets for engine in target.engines
    )


def _engine(engine: EngineReport, target: str) -> Engine:
    facts = Facts(engine.facts)
    layers = facts.records("layer_rows")
    return Engine(
        engine=engine,
        target=target,
        layer_types=facts.child("layer_types").numbers(),
        gemm_kinds=facts.child("gemm_kinds").numbers(),
        coverage=tuple(
            (name, share)
            for name, share in facts.child("coverage").numbers()
            if name not in AMOUNTS
        ),
        headline=tuple(headline(facts)),
        profiles=tuple(_profiles(facts)),
        rows=facts.rows(known=_KNOWN),
        picture=_picture(layers),
        layers=_table(layers),
    )


def headline(facts: Facts) -> Iterator[str]:
    """What matters of an engine, a few words each."""
    products = facts.child("gemm_kinds").numbers()
    if products:
        most = ", ".join(f"{count:.0f} {kind}" for kind, count in products)
        yield f"matrix products: {most}"
    widened = facts.number("widened_weights")
    if widened:
        noun = figures.plural(int(widened), "weight is", "weights are")
        yield f"{noun} written out as floats at every run"
    fused, blocks = facts.number("fused_attention"), facts.number("attention_blocks")
    if fused is not None and blocks:
        yield f"{fused:.0f} of {blocks:.0f} attentions in one kernel"
    memory = facts.number("activation_memory_bytes")
    if memory is not None:
        yield f"activations take {figures.size(memory)} at the largest shapes"
    copies = facts.number("copy_layers")
    if copies is not None:
        yield figures.plural(int(copies), "copy or reformat", "copies or reformats")


def _profiles(facts: Facts) -> Iterator[ProfileRow]:
    dtypes = {
        tensor.text("name"): tensor.text("dtype") for tensor in facts.records("expected_inputs")
    }
    for number, profile in enumerate(facts.records("profiles")):
        for name, shapes in profile.child("inputs").values.items():
            if isinstance(shapes, list | tuple) and len(shapes) == 3:
                small, usual, large = (
                    figures.TIMES.join(str(size) for size in shape)
                    if isinstance(shape, list | tuple)
                    else str(shape)
                    for shape in shapes
                )
                yield ProfileRow(
                    profile=number,
                    tensor=name,
                    dtype=dtypes.get(name, ""),
                    smallest=small,
                    usual=usual,
                    largest=large,
                )


def _picture(layers: Sequence[Facts]) -> LayerPicture | None:
    """The first profile's layers; None when nothing says what they compute in."""
    first = [layer for layer in layers if not layer.number("profile")]
    if not first or len(first) > MAX_LAYERS or not any(row.text("precision") for row in first):
        return None
    boxes = []
    for place, layer in enumerate(first):
        row, column = divmod(place, _IN_A_ROW)
        role, precision = layer.text("role") or "other", layer.text("precision")
        height = _HEIGHTS.get(role, _OTHER_HEIGHT)
        boxes.append(
            LayerBox(
                x=column * (_CELL + _GAP),
                y=row * _ROW + _TALLEST - height,
                height=height,
                precision=precision if precision in PRECISIONS else "none",
                role=role,
                title=" · ".join(filter(None, (layer.text("name"), role, precision))),
            )
        )
    counts = Counter(box.precision for box in boxes)
    roles = Counter(box.role for box in boxes)
    legend = tuple((name, counts[name]) for name in (*PRECISIONS, "none") if counts[name])
    rows = -(-len(first) // _IN_A_ROW)
    of_profile = " of profile 0" if len(first) < len(layers) else ""
    return LayerPicture(
        width=_IN_A_ROW * (_CELL + _GAP) - _GAP,  # of all engines: a layer is as large in each
        height=(rows - 1) * _ROW + _TALLEST,
        box_width=_CELL,
        boxes=tuple(boxes),
        legend=legend,
        said=f"{len(first)} layers{of_profile}: "
        + ", ".join(f"{count} {name}" for name, count in roles.most_common()),
    )


def _table(layers: tuple[Facts, ...]) -> LayerTable | None:
    if not layers:
        return None
    kept = layers[:MAX_LAYERS]
    columns = tuple(dict.fromkeys(key for layer in kept for key in layer.values))[:10]
    rows = tuple(tuple(layer.cell(column) for column in columns) for layer in kept)
    return LayerTable(columns=columns, rows=rows, total=len(layers))
