"""Thresholds of a comparison: what the new artifact may lose. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.diffing.types import Crossed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.diffing.types import Difference, TargetChange


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """What the new artifact may lose against the old one; None: nothing is asked.

    Attributes:
        max_slowdown: Largest time of the new one over that of the old one.
        max_growth: Largest size of the new one over that of the old one.
        max_cosine_loss: How much the worst cosine with the checkpoint may be smaller.
        max_quality_loss: How much any figure of quality may be smaller.
        no_removed: Every target of the old one must be there.
    """

    max_slowdown: float | None = None
    max_growth: float | None = None
    max_cosine_loss: float | None = None
    max_quality_loss: float | None = None
    no_removed: bool = False

    def crossed(self, found: Difference) -> tuple[Crossed, ...]:
        """Every threshold that does not hold. What could not be measured does not hold either."""
        crossed: list[Crossed] = []
        for target in found.targets:
            if target.state == "removed" and self.no_removed:
                crossed.append(
                    Crossed(
                        target=target.name,
                        threshold="no_removed",
                        sentence="it is not in the new artifact",
                    )
                )
            if target.state == "both":
                crossed += self._of_target(target)
        return tuple(crossed)

    def _of_target(self, target: TargetChange) -> Iterator[Crossed]:
        yield from self._size(target)
        yield from self._speed(target)
        losses = (
            ("max_cosine_loss", self.max_cosine_loss, target.parity, ".cosine_similarity"),
            ("max_quality_loss", self.max_quality_loss, target.quality, ""),
        )
        for name, limit, numbers, suffix in losses:
            if limit is None:
                continue
            wanted = [number for number in numbers if number.name.endswith(suffix)]
            if not wanted:
                yield Crossed(
                    target=target.name, threshold=name, sentence="there is no number to compare"
                )
            for number in wanted:
                if number.change is None or -number.change > limit:
                    lost = "unknown" if number.change is None else f"{-number.change:.6g}"
                    yield Crossed(
                        target=target.name,
                        threshold=name,
                        sentence=f"{number.name} lost {lost}, at most {limit:g} is allowed",
                    )

    def _size(self, target: TargetChange) -> Iterator[Crossed]:
        size = target.size
        if self.max_growth is None or size is None or not size.old:
            return
        growth = (size.new or 0.0) / size.old
        if growth > self.max_growth:
            yield Crossed(
                target=target.name,
                threshold="max_growth",
                sentence=f"it is {growth:.3f} times as large, at most {self.max_growth:g} is allowed",
            )

    def _speed(self, target: TargetChange) -> Iterator[Crossed]:
        """Slower only counts when it is certain: the whole interval lies beyond the limit."""
        if self.max_slowdown is None:
            return
        if target.speed is None:
            is_same = bool(target.graphs) and all(graph.is_same_file for graph in target.graphs)
            if not is_same:
                yield Crossed(
                    target=target.name,
                    threshold="max_slowdown",
                    sentence=f"its speed was not measured: {target.not_run_reason}",
                )
            return
        for shape in target.speed.shapes:
            if shape.speedup_interval.high < 1.0 / self.max_slowdown:
                yield Crossed(
                    target=target.name,
                    threshold="max_slowdown",
                    sentence=f"at {shape.description} it takes {1 / shape.speedup:.3f} times as long "
                    f"(at least {1 / shape.speedup_interval.high:.3f}), at most "
                    f"{self.max_slowdown:g} is allowed",
                )
