"""Runtimes: one file each, with the same contract: feeds in, outputs out."""
