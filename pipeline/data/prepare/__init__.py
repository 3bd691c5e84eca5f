"""Rows to samples, one way for each kind of task."""
