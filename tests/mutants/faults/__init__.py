"""The faults, one file for each sort of place where they are made."""
