"""Comparison with the reference: metrics, and the gates that judge them."""
