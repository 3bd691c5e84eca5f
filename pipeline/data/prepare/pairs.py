"""A text and the text that is to be made of it: a translation, a summary."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.data.decoder_inputs import TARGET_AXIS, TARGET_IDS
from pipeline.data.prepare.targets import TargetTokens
from pipeline.data.prepare.texts import TextPreparation, joined

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.data.prepare.base import Prepared, Setting
    from pipeline.data.rows import Row
    from pipeline.data.sample_set import InputSpec


class PairPreparation(TextPreparation):
    """As the base, with the tokens of the text to be written."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._targets = TargetTokens(setting)

    @property
    def inputs(self) -> Mapping[str, InputSpec]:
        """Those of the source, and `decoder_input_ids`."""
        return {**super().inputs, TARGET_IDS: self._targets.spec}

    def prepare(self, row: Row) -> Prepared:
        """The tokens of both texts."""
        source = super().prepare(row)
        ids, text, is_cut = self._targets.read(row)
        return replace(
            source,
            tensors={**source.tensors, TARGET_IDS: ids},
            text=joined(source.text, text),
            extents={**source.extents, TARGET_AXIS: len(ids)},
            is_cut=source.is_cut or is_cut,
        )
