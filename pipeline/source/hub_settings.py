"""Which hub, which cache, and whether it may be asked: what the environment says.

Names as in https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import EnvironmentMissing

CACHE_LAYOUT = "models--{}"
"""Folder of a repository in the cache; `/` in its name becomes `--`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HubSettings:
    """How hubs are reached.

    Attributes:
        endpoint: `$HF_ENDPOINT`; https://huggingface.co when it is not set.
        cache: `$HF_HUB_CACHE`, or `hub` in `$HF_HOME`.
        is_offline: `$HF_HUB_OFFLINE` or `$TRANSFORMERS_OFFLINE`: the hub is never asked.
        has_token: There is a token, from `$HF_TOKEN` or from `hf auth login`.
    """

    endpoint: str
    cache: Path
    is_offline: bool
    has_token: bool

    @classmethod
    def from_environment(cls) -> HubSettings:
        """What `huggingface_hub` made of the environment when it was imported.

        Raises:
            EnvironmentMissing: it is not installed.
        """
        # What is installed here, and who runs it, is no business of a hub.
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        try:
            from huggingface_hub import constants
        except ImportError as error:
            raise EnvironmentMissing(
                f"checkpoints of hubs need the package huggingface_hub: {error}",
                hint="pip install huggingface_hub",
            ) from error

        return cls(
            endpoint=constants.ENDPOINT,
            cache=Path(constants.HF_HUB_CACHE).expanduser().absolute(),
            is_offline=constants.is_offline_mode(),
            has_token=bool(os.environ.get("HF_TOKEN")) or Path(constants.HF_TOKEN_PATH).is_file(),
        )

    def folder(self, repository: str) -> Path:
        """Where the cache keeps a repository of a model."""
        return self.cache / CACHE_LAYOUT.format(repository.replace("/", "--"))
