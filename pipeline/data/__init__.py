"""Samples for evaluation: read, tokenise, batch, and the files that hold them."""
