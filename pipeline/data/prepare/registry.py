"""Which preparation each task has."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.data.prepare.base import Preparation, Setting
    from pipeline.tasks import Task


def prepare_for(task: Task, setting: Setting) -> Preparation:
    """The preparation of a task's samples.

    Raises:
        StageError: when the checkpoint's files do not let it.
        EnvironmentMissing: when a package that it needs is not installed.
    """
    if task.modality == "image":
        from pipeline.data.prepare.images import ImagePreparation

        return ImagePreparation(setting)
    if task.modality == "audio":
        from pipeline.data.prepare.sounds import SoundPreparation

        return SoundPreparation(setting)
    from pipeline.data.prepare.choices import ChoicePreparation
    from pipeline.data.prepare.decoders import DecoderPreparation
    from pipeline.data.prepare.masks import MaskPreparation
    from pipeline.data.prepare.pairs import PairPreparation
    from pipeline.data.prepare.spans import SpanPreparation
    from pipeline.data.prepare.texts import TextPreparation
    from pipeline.data.prepare.words import WordPreparation

    special = {
        "fill-mask": MaskPreparation,
        "multiple-choice": ChoicePreparation,
        "question-answering": SpanPreparation,
        "text-generation": DecoderPreparation,
        "text2text-generation": PairPreparation,
        "token-classification": WordPreparation,
    }
    return special.get(task.name, TextPreparation)(setting)
