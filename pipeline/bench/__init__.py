"""Honest benchmarking: launches in processes of their own, statistics over launches."""
