"""An artifact is held against its manifest before anything is taken from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import ArtifactError, RecipeError
from pipeline.listing import read_facts
from pipeline.verification import verify_published

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.listing import ArtifactFacts


def require_whole(directory: Path) -> Mapping[str, str]:
    """Verify every file of an artifact.

    Returns:
        Path -> SHA-256, as the manifest states them.

    Raises:
        ArtifactError: it is damaged.
    """
    verified = verify_published(directory)
    problems = verified.problems
    if problems:
        raise ArtifactError(
            f"the artifact is not what its manifest says: {problems[0]}"
            + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""),
            where=str(directory),
            hint="build it again; convert verify names every file",
        )
    return verified.digests


def require_passed(directory: Path) -> ArtifactFacts:
    """What an artifact says of itself, once it is verified and is one that passed.

    Raises:
        ArtifactError: it is damaged.
        RecipeError: it failed.
    """
    require_whole(directory)
    facts = read_facts(directory)
    if facts.verdict != "passed":
        raise RecipeError(
            f"`{facts.name}/{facts.version}` did not pass ({facts.verdict}: "
            f"{'; '.join(facts.reasons) or 'no reason is given'}), and what failed is not served",
            hint="build again until its gates hold, or change them: convert judge ARTIFACT",
        )
    return facts
