"""Where stage results live: content-addressed, verified, safe against kills and power cuts."""

from __future__ import annotations

from pipeline.store.layout import MANIFEST_FILE, resolve_store_root
from pipeline.store.records import KEY_TAG, StageRecord
from pipeline.store.store import Store
from pipeline.store.workspace import Workspace

__all__ = [
    "KEY_TAG",
    "MANIFEST_FILE",
    "StageRecord",
    "Store",
    "Workspace",
    "resolve_store_root",
]
