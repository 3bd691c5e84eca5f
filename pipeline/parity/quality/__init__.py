"""How well a model does its task, beside the checkpoint on the same samples.

The checkpoint is asked the same questions, so every figure is a paired one: what matters is on how
many samples only one of the two is right, not how hard the samples are. Every drop has its 95 %
confidence interval, because a drop of one sample in 200 is not a finding.
"""
