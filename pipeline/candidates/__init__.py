"""Models that somebody else made: which file it is, what it computes with, what it takes and gives.

A candidate is foreign until proven otherwise. Nothing here parses a model: that is done in a process
of its own (`pipeline.foreign_models`), and what is known of it then is a `ModelFacts`.
"""

from pipeline.candidates.interface import match_interface
from pipeline.candidates.layout import Place, find_place
from pipeline.candidates.precision import Precision, precision_of
from pipeline.candidates.records import (
    AdoptedCache,
    AdoptedInput,
    AdoptedOutput,
    Interface,
    SuppliedInput,
)
from pipeline.candidates.types import Candidate, read_files

__all__ = [
    "AdoptedCache",
    "AdoptedInput",
    "AdoptedOutput",
    "Candidate",
    "Interface",
    "Place",
    "Precision",
    "SuppliedInput",
    "find_place",
    "match_interface",
    "precision_of",
    "read_files",
]
