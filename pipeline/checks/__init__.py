"""Checks: what else is looked at besides the distance to the checkpoint, one file a check.

A check is a value (`pipeline.checks.base.Check`): which stage measures it, for which graphs of a target's
chain, and how its numbers are judged. What it measures stands in the facts of its node, so that
`convert judge` can judge it again. A new check is a new file here, a line in
`pipeline.checks.catalogue.CHECKS`, and its limits in `pipeline.checks.limits.CheckLimits`.
"""
