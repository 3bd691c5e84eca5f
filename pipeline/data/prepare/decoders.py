"""A text for a model that continues it: its tokens, their positions, and an empty cache."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.data.decoder_inputs import POSITIONS, completed
from pipeline.data.empty_caches import empty_caches
from pipeline.data.prepare.texts import TextPreparation
from pipeline.data.sample_set import InputSpec
from pipeline.tasks import PAST_AXIS, SEQUENCE_AXIS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.data.prepare.base import Prepared, Setting
    from pipeline.data.rows import Row


class DecoderPreparation(TextPreparation):
    """As the base, with what else a decoder takes."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._caches = empty_caches(setting.checkpoint)

    @property
    def inputs(self) -> Mapping[str, InputSpec]:
        """Those of tokens, positions, and keys and values of a past without tokens."""
        return {
            **super().inputs,
            POSITIONS: InputSpec(dtype="int64", axes=(SEQUENCE_AXIS,)),
            **{
                name: InputSpec(dtype="float32", axes=(None, PAST_AXIS, None))
                for name in self._caches
            },
        }

    def prepare(self, row: Row) -> Prepared:
        """The tokens of the row's text."""
        prepared = super().prepare(row)
        return replace(prepared, tensors=completed(prepared.tensors, self._caches))
