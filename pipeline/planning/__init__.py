"""Recipe -> Plan: the nodes, their keys, and the reason why each must run.

Pure: nothing is run, nothing heavy is imported.
"""

from __future__ import annotations

from pipeline.planning.keys import (
    attempt_key,
    explain,
    input_digests,
    node_address,
    node_preimage,
    node_status,
    plan_status,
)
from pipeline.planning.layout import build_plan
from pipeline.planning.types import (
    ATTEMPT_TAG,
    CANDIDATE_GROUP,
    DATA_GROUP,
    KEY_TAG,
    Node,
    NodeStatus,
    Plan,
    Records,
    TargetCheck,
    TargetPlan,
    TorchRunPlan,
)

__all__ = [
    "ATTEMPT_TAG",
    "CANDIDATE_GROUP",
    "DATA_GROUP",
    "KEY_TAG",
    "Node",
    "NodeStatus",
    "Plan",
    "Records",
    "TargetCheck",
    "TargetPlan",
    "TorchRunPlan",
    "attempt_key",
    "build_plan",
    "explain",
    "input_digests",
    "node_address",
    "node_preimage",
    "node_status",
    "plan_status",
]
