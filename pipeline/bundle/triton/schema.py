"""Reads a `config.pbtxt` with the server's own protobuf.

`vendor/model_config.binpb` is the descriptor inside of tritonclient's `model_config_pb2.py`, byte for
byte. tritonclient itself cannot be a dependency: 2.73 wants ml-dtypes <= 0.5.4 and, for the module
with the descriptor, protobuf < 7, and onnx and ONNX Runtime bring newer ones.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from pipeline.errors import ArtifactError

_DESCRIPTOR = Path(__file__).parent / "vendor" / "model_config.binpb"


def parse_config(text: str, *, where: str) -> Any:
    """The `inference.ModelConfig` that a text is.

    Args:
        text: protobuf's text format.
        where: The file, for the message.

    Raises:
        ArtifactError: with line and column of what the server would not read.
    """
    from google.protobuf import text_format

    message = _config_class()()
    try:
        return text_format.Parse(text, message)
    except text_format.ParseError as error:
        line, column = error.GetLine(), error.GetColumn()
        place = f"{where}:{line}:{column}" if line and column else where
        reason = str(error).removeprefix(f"{line}:{column} : ")
        raise ArtifactError(f"Triton cannot read it: {reason}", where=place) from error


def data_type_name(number: int) -> str:
    """Such as `TYPE_INT64`; the number itself when it has no name."""
    names = _config_class().DESCRIPTOR.file.enum_types_by_name["DataType"].values_by_number
    return str(names[number].name) if number in names else str(number)


@functools.cache
def _config_class() -> Any:
    """The message class, from a pool of its own: tritonclient may be imported in the same process."""
    from google.protobuf import descriptor_pool, message_factory

    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(_DESCRIPTOR.read_bytes())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))
