"""The explicit list of stages; a new stage is a new file here and a line in `STAGES`."""

from __future__ import annotations
