"""Names that every stage shares which compares a model with the reference."""

from __future__ import annotations

PARITY_FILE = "parity.json"
MODEL_PORT = "model"
SAMPLES_PORT = "samples"
REFERENCE_PORT = "reference"
PROBES_PORT = "probes"
