"""Drafts a recipe for a checkpoint: what `convert init` writes, planned before it is written."""

from pipeline.drafting.columns import ColumnOptions
from pipeline.drafting.draft import Draft, DraftOptions, draft_recipe

__all__ = ["ColumnOptions", "Draft", "DraftOptions", "draft_recipe"]
