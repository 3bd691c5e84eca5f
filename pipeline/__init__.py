"""`convert`: turns a Hugging Face checkpoint into engine artifacts that can be trusted.

`convert(recipe)` builds, verifies and publishes; `plan(recipe)` says what would run and why;
`load_recipe(path)` checks a recipe; `Artifact` is what comes out. All errors are `PipelineError`s.
"""

from __future__ import annotations

from pipeline.api import Artifact, convert, convert_all, load_recipe, plan
from pipeline.errors import (
    ArtifactError,
    DigestMismatch,
    EngineBuildError,
    EnvironmentMissing,
    ExportError,
    GateFailed,
    PipelineError,
    QuantizationError,
    RecipeError,
    StageError,
    StoreError,
)

__all__ = [
    "Artifact",
    "ArtifactError",
    "DigestMismatch",
    "EngineBuildError",
    "EnvironmentMissing",
    "ExportError",
    "GateFailed",
    "PipelineError",
    "QuantizationError",
    "RecipeError",
    "StageError",
    "StoreError",
    "convert",
    "convert_all",
    "load_recipe",
    "plan",
]
