"""Drafts a recipe for a checkpoint: what `convert init` writes, planned before it is written.

And for a model that exists already: what `convert check` runs, which stays in memory.
"""

from pipeline.drafting.checking import CheckDraft, CheckOptions, draft_check
from pipeline.drafting.columns import ColumnOptions
from pipeline.drafting.draft import Draft, DraftOptions, draft_recipe

__all__ = [
    "CheckDraft",
    "CheckOptions",
    "ColumnOptions",
    "Draft",
    "DraftOptions",
    "draft_check",
    "draft_recipe",
]
