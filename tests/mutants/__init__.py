"""Known-bad conversions: each is a small fault in one stage of a real plan, and must be caught.

`scripts/mutants` runs all of them and prints a table; the tests run some.
"""
