"""Executes a plan: one child process a stage, events while it goes on, nothing filed on failure."""
