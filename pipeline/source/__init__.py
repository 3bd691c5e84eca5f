"""The checkpoint: where it is, which of its files are used, what they hold.

Only files on the allow-list are ever seen by a stage, or fetched from a hub; weights come from
safetensors only. `config.json` is checked before any library reads it (`pipeline.source_checks`).

A kind of source is a module here that turns what the recipe says into a `Location`: `directory`,
`package`, `hub`. A new kind is a new module and a line in `resolve.RESOLVERS`.
"""

from pipeline.file_names import (
    CONFIG_FILES,
    PROCESSOR_FILES,
    TOKENIZER_FILES,
    TOKENIZER_VOCABULARIES,
)
from pipeline.source.files import SourceFile
from pipeline.source.hub_settings import HubSettings
from pipeline.source.resolve import fetch_source, resolve_source
from pipeline.source.types import Source

__all__ = [
    "CONFIG_FILES",
    "PROCESSOR_FILES",
    "TOKENIZER_FILES",
    "TOKENIZER_VOCABULARIES",
    "HubSettings",
    "Source",
    "SourceFile",
    "fetch_source",
    "resolve_source",
]
