"""Ranges of activations: streaming statistics, and the methods that choose a range by them."""
