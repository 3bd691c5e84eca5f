"""What others need to take an artifact into service: each package is one consumer.

An artifact is read here and never changed; what is made lies outside of it.
"""
