"""Sounds with the text that is spoken in them, through the checkpoint's own feature extractor.

WAV files are read by Python's own library, so that nothing else has to be installed.
"""

from __future__ import annotations

import io
import wave
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline.data.decoder_inputs import TARGET_AXIS, TARGET_IDS
from pipeline.data.prepare.base import Prepared, describe
from pipeline.data.prepare.targets import TargetTokens
from pipeline.data.prepare.texts import joined
from pipeline.data.sample_set import InputSpec
from pipeline.errors import StageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from pipeline.data.prepare.base import Setting
    from pipeline.data.rows import Row
    from pipeline.data.sample_set import Tensor

FEATURES: Final = "input_features"
_HINT: Final = "save it as WAV of 16-bit integers: ffmpeg -i FILE -c:a pcm_s16le FILE.wav"
_FULL: Final = {1: 2.0**7, 2: 2.0**15, 4: 2.0**31}
"""Bytes of a sample -> what is 1.0."""


class SoundPreparation:
    """Sounds to float32 (mel bins, frames), all of one size, and the tokens of what is said."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._extractor = load_extractor(setting.checkpoint)
        self._rate = int(self._extractor.sampling_rate)
        self._targets = TargetTokens(setting)

    @property
    def inputs(self) -> Mapping[str, InputSpec]:
        """One sound without named axes, and `decoder_input_ids`."""
        return {
            FEATURES: InputSpec(dtype="float32", axes=(None, None)),
            TARGET_IDS: self._targets.spec,
        }

    @property
    def notes(self) -> Mapping[str, str | None]:
        """The class of the feature extractor, and the padding token."""
        return {
            "feature_extractor": type(self._extractor).__name__,
            "pad_token": self._targets.pad_token,
        }

    def prepare(self, row: Row) -> Prepared:
        """The spectrogram of the row's sound, and the tokens of its text."""
        column = self._setting.fields.audio
        assert column is not None
        source, name = self._find(row, column)
        sound = read_wav(source, name, self._rate, row.where)
        try:
            made = self._extractor(sound, sampling_rate=self._rate, return_tensors="np")[FEATURES]
        except (ValueError, TypeError, KeyError, IndexError) as err:
            raise StageError(
                f"the checkpoint's feature extractor refuses `{name}`: {err}", where=row.where
            ) from err
        ids, text, is_cut = self._targets.read(row)
        tensors: dict[str, Tensor] = {
            FEATURES: np.asarray(made, dtype=np.float32)[0],
            TARGET_IDS: ids,
        }
        longest = int(getattr(self._extractor, "n_samples", 0)) or len(sound)
        return Prepared(
            tensors=tensors,
            text=joined(name, text),
            extents={TARGET_AXIS: len(ids)},
            is_cut=is_cut or len(sound) > longest,
        )

    def _find(self, row: Row, column: str) -> tuple[Path | bytes, str]:
        """The file or the bytes in a column, and a name for messages."""
        value = row.values[column]
        if isinstance(value, dict):  # as the library `datasets` keeps it
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes) and value:
            return value, row.where
        if not isinstance(value, str) or not value:
            raise StageError(
                f"column `{column}` holds {describe(value)}, a sound is needed: the path of a WAV "
                "file, or its bytes",
                where=row.where,
            )
        root = self._setting.data
        assert root is not None
        path = root / value
        if not path.is_relative_to(root) or ".." in path.parts:
            raise StageError(
                f"the sound's path `{value}` leads out of the folder of the data",
                where=row.where,
                hint="give paths relative to the file that names them",
            )
        if Path(value).suffix.lower() not in {".wav", ".wave"}:
            raise StageError(
                f"`{value}` is no WAV file, and others are not read", where=row.where, hint=_HINT
            )
        if not path.is_file():
            raise StageError(
                f"there is no sound `{value}`",
                where=row.where,
                hint="paths are relative to the file that names them; name the column in the "
                f"recipe, so that sounds are looked for: `audio: {column}`",
            )
        return path, value


def read_wav(source: Path | bytes, name: str, rate: int, where: str) -> NDArray[np.float32]:
    """Samples within [-1, 1], float32 (samples,); several channels are averaged.

    Args:
        source: A file, or its content.
        name: For messages.
        rate: Samples a second that the model wants.
        where: The row.

    Raises:
        StageError: when it is no WAV of integers, of another rate, or empty.
    """
    try:
        data = source if isinstance(source, bytes) else source.read_bytes()
        with wave.open(io.BytesIO(data), "rb") as file:
            width, channels, own = file.getsampwidth(), file.getnchannels(), file.getframerate()
            raw = file.readframes(file.getnframes())
    except (OSError, EOFError, wave.Error) as err:
        raise StageError(
            f"the sound `{name}` cannot be read: {str(err) or 'it ends too early'}",
            where=where,
            hint=_HINT,
        ) from err
    if own != rate:
        raise StageError(
            f"the sound `{name}` has {own} samples a second, and the model wants {rate}",
            where=where,
            hint=f"ffmpeg -i FILE -ar {rate} -c:a pcm_s16le FILE.wav",
        )
    if width not in _FULL:
        raise StageError(
            f"the sound `{name}` has {8 * width} bits a sample, which are not read",
            where=where,
            hint=_HINT,
        )
    if len(raw) < width * channels:
        raise StageError(f"the sound `{name}` is empty", where=where, hint="leave the row out")
    if width == 1:  # the only width without a sign
        whole = np.frombuffer(raw, np.uint8).astype(np.float64) - 128.0
    else:
        whole = np.frombuffer(raw, f"<i{width}").astype(np.float64)
    made: NDArray[np.float32] = (whole.reshape(-1, channels).mean(axis=1) / _FULL[width]).astype(
        np.float32
    )
    return made


def load_extractor(directory: Path) -> Any:
    """The feature extractor of a checkpoint.

    Raises:
        StageError: its files are missing or damaged, or name none that transformers knows.
    """
    from transformers import AutoFeatureExtractor

    try:
        return AutoFeatureExtractor.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, ImportError, TypeError, KeyError) as err:
        raise StageError(
            f"the checkpoint's feature extractor cannot be loaded: {err}",
            where="preprocessor_config.json",
            hint="AutoFeatureExtractor.from_pretrained(...).save_pretrained(CHECKPOINT)",
        ) from err
