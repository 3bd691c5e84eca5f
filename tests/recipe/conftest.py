"""`--update-goldens`: write the expected messages anew, to be reviewed like code."""

from __future__ import annotations

import contextlib

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    # Another package's tests may have added the same option before.
    with contextlib.suppress(ValueError):
        parser.addoption("--update-goldens", action="store_true", help="write expected texts anew")


@pytest.fixture
def update_goldens(request: pytest.FixtureRequest) -> bool:
    """Whether expected texts are to be written instead of compared."""
    return bool(request.config.getoption("--update-goldens", default=False))
