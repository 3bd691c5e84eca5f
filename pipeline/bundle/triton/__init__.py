"""A model repository for NVIDIA's Triton Inference Server, made from an artifact.

`repository.py` writes it, `schema.py` and `rules.py` check every file of it without a server:
the first with the server's own protobuf, the second with the rules its sources have beside that.
"""
