"""See which nodes of a graph one of ONNX Runtime's providers for GPUs takes, and which stay on the CPU.

ONNX Runtime says nothing when a provider leaves a node to the CPU: the graph runs, only slower, with
copies to and fro. It tells when it is asked, once the graph is loaded
(`session.record_ep_graph_assignment_info` of onnxruntime_session_options_config_keys.h, since 1.24).

Port: `model`, the graph as the provider gets it; `cache`, for TensorRT, as `validate_provider` has it.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from pipeline.runtimes.ort_providers import NAMES, ProviderPlan
from pipeline.stages.base import MODEL_FILE, Footprint, Stage, StageConfig
from pipeline.stages.provider_engine import LIBRARIES, MACHINE, PACKAGES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from pipeline.hashing import JSON
    from pipeline.runtimes.onnxruntime import AssignedNode
    from pipeline.stages.base import StageContext

PRODUCTS: Final = frozenset(
    {
        *(
            "Attention",
            "Conv",
            "ConvTranspose",
            "Einsum",
            "FusedConv",
            "FusedMatMul",
            "GRU",
            "Gemm",
        ),
        *("GroupQueryAttention", "LSTM", "MatMul", "MatMulNBits", "MultiHeadAttention", "RNN"),
    }
)
"""Operators that multiply matrices: of ONNX opset 25 and of ONNX Runtime's own, in floats."""
_MAX_LISTED: Final = 50


class CheckAssignmentConfig(StageConfig):
    """How the graph is loaded.

    Attributes:
        plan: The provider with its options.
        profile: Axis name -> (min, opt, max).
    """

    plan: ProviderPlan
    profile: dict[str, tuple[int, int, int]]

    @property
    def gpu_number(self) -> int:
        """That of the provider's options."""
        return self.plan.options.device_id


def run(
    config: CheckAssignmentConfig, inputs: Mapping[str, Path], output: Path, context: StageContext
) -> dict[str, JSON]:
    """Load the graph as it is delivered, and ask; facts as `assignment_facts` has them.

    Raises:
        EnvironmentMissing: the provider does not start here.
        StageError: ONNX Runtime cannot load the graph.
    """
    from pipeline.runtimes.onnxruntime import OnnxRuntimeRunner
    from pipeline.runtimes.ort_profile import profile_of_inputs
    from pipeline.runtimes.ort_providers import copy_cache

    del output
    model = inputs["model"] / MODEL_FILE
    cache = context.scratch / "cache"
    if "cache" in inputs:  # the provider writes into it
        copy_cache(inputs["cache"], cache)
    options = config.plan.session_options(profile_of_inputs(model, config.profile), cache)
    with OnnxRuntimeRunner(
        model,
        provider=config.plan.name,
        provider_options=options,
        threads=context.threads,
        spins=False,
    ).recording() as runner:
        return {"session": runner.session, **assignment_facts(runner.assignment())}


def assignment_facts(nodes: Iterable[AssignedNode]) -> dict[str, Any]:
    """Who runs how many nodes.

    Args:
        nodes: All nodes of a graph.

    Returns:
        `nodes` and `products`: ONNX Runtime's name of a provider -> how many it has; `on_cpu`: the
        first of those that the CPU has, products first, each with `node`, `op` and `is_product`.
    """
    nodes = list(nodes)
    left = sorted(
        (node for node in nodes if node.provider == NAMES["cpu"]),
        key=lambda node: not is_product(node),
    )
    return {
        "nodes": dict(Counter(node.provider for node in nodes)),
        "products": dict(Counter(node.provider for node in nodes if is_product(node))),
        "on_cpu": [
            {"node": node.name, "op": node.op_type, "is_product": is_product(node)}
            for node in left[:_MAX_LISTED]
        ],
    }


def is_product(node: AssignedNode) -> bool:
    """Whether it multiplies matrices, which is what a GPU is for."""
    return node.op_type in PRODUCTS


CHECK_ASSIGNMENT = Stage(
    name="check_assignment",
    version=1,
    footprint=Footprint(base_mib=1500, memory_per_weight=2.8),
    config_type=CheckAssignmentConfig,
    run=run,
    packages=PACKAGES,
    extra="gpu",
    optional_packages=("tensorrt", *LIBRARIES),
    machine=MACHINE,
)
"""Ports `model` and `cache` -> facts only."""
