"""Small models that are really trained, with their data: what accuracy and gates are tested on.

`tests.trained_models` hands them out; `scripts/train_fixtures` makes them all.
"""
