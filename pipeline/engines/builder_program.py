"""The program that builds one engine. Run as a script, in a process of its own, by `build.py`.

It stands alone on purpose: nothing but the standard library and the TensorRT package, and no
import from `pipeline`. The bytes of an engine depend on *addresses*: TensorRT-RTX 1.7.1 iterates
over sets keyed by pointers, and one model came out in three variants that differ in 12 bytes.
What was allocated before, by whatever was imported before, decides which. So this program always
does the same things in the same order, with fixed relative paths, in a process whose address
space is not randomised (docs/decisions/0003-engines-without-a-gpu.md).

One program for `tensorrt` (10.13 and later, 11) and `tensorrt_rtx`: it looks at the attributes that
a package has, and never at its version.

Protocol: the current directory holds `package.json`, which says what to import. That is done at once,
so that a caller can look at the graph meanwhile; then the program waits for a byte on stdin, and ends
when stdin ends without one. With the byte, `request.json` and the graph under `model/` are there. The
program leaves `result.json`, and `model.engine` when it has built one, with `timing.cache` on request.
Exit code 0 says that the result can be read, whatever it says, or that nothing was asked for. Records of the log, but for the verbose ones, go to stderr as they
come, so that they are there when the process is killed.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

PACKAGE_FILE = "package.json"
REQUEST_FILE = "request.json"
RESULT_FILE = "result.json"
ENGINE_FILE = "model.engine"
TIMING_CACHE_FILE = "timing.cache"
MODEL_DIRECTORY = "model"

_ADDR_NO_RANDOMIZE = 0x0040000  # <linux/personality.h>
_QUERY_PERSONALITY = 0xFFFFFFFF
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_STACK_BYTES = 8 << 20  # what Linux gives; the kernel places libraries by this limit


def _die_with_parent() -> None:
    """A stage that is killed must not leave a builder behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _fix_addresses() -> bool:
    """Start this program again with the address space laid out as always, where that is allowed.

    Returns:
        Whether addresses are fixed now. A sandbox may refuse: Docker's default profile does.
    """
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None)
    persona = libc.personality(_QUERY_PERSONALITY)
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    if persona & _ADDR_NO_RANDOMIZE and soft == _STACK_BYTES:
        return True
    if hard != resource.RLIM_INFINITY and hard < _STACK_BYTES:
        return False
    if persona == -1 or libc.personality(persona | _ADDR_NO_RANDOMIZE) == -1:
        return False
    if not libc.personality(_QUERY_PERSONALITY) & _ADDR_NO_RANDOMIZE:
        return False
    resource.setrlimit(resource.RLIMIT_STACK, (_STACK_BYTES, hard))
    os.execv(sys.executable, sys.orig_argv)  # noqa: S606 - this very program, no shell
    raise AssertionError  # execv does not come back


def _make_logger(trt: Any, records: list[tuple[str, str]], layers: list[str]) -> Any:
    """The one logger of the process: TensorRT ignores every later one.

    Verbose records are dropped, but for the one with the table of fused layers: a large model has
    a gigabyte of them.
    """

    class RecordingLogger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:  # TensorRT calls it by this name
            if severity.name == "VERBOSE":
                if message.startswith("Layers:"):
                    layers.append(message)
                return
            records.append((severity.name, message))
            print(f"{severity.name}: {message}", file=sys.stderr, flush=True)  # noqa: T201

    return RecordingLogger()


def _parse(trt: Any, request: dict[str, Any], network: Any, logger: Any) -> list[dict[str, Any]]:
    """Fill the network from the graph.

    Returns:
        The parser's errors, by node; empty when it has understood everything.
    """
    parser = trt.OnnxParser(network, logger)
    if parser.parse_from_file(request["model"]):
        return []
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    if not errors:
        return [{"code": "UNKNOWN", "description": "no reason given", "node": "", "operator": ""}]
    return [
        {
            "code": error.code().name,
            "description": error.desc(),
            "node": error.node_name(),
            "operator": error.node_operator(),
        }
        for error in errors
    ]


def _is_rtx(trt: Any) -> bool:
    """Whether engines are built for named compute capabilities, not for the GPU that is there."""
    return hasattr(trt, "ComputeCapability")


def _refused_target(trt: Any, request: dict[str, Any], config: Any) -> str:
    """Set the compute capabilities; the name of the first one that is refused, or nothing."""
    names = request["compute_capabilities"]
    if not names or not _is_rtx(trt):  # unset, RTX builds for every GPU from Ampere on
        return ""
    config.num_compute_capabilities = len(names)
    for index, name in enumerate(names):
        value = getattr(trt.ComputeCapability, name.upper(), None)
        if value is None or not config.set_compute_capability(value, index):
            return str(name)
    return ""


def _set_flags(trt: Any, request: dict[str, Any], config: Any) -> str:
    """Set and clear flags by name; the name of one that this version does not have, or nothing."""
    for name, is_set in request["flags"].items():
        flag = getattr(trt.BuilderFlag, name, None)
        if flag is None:
            return str(name)
        if is_set:
            config.set_flag(flag)
        else:
            config.clear_flag(flag)
    return ""


def _set_compatibility(trt: Any, request: dict[str, Any], config: Any) -> str:
    """Set on which other GPUs the engine runs; the level when it is unknown here, or nothing."""
    level = request["hardware_compatibility"]
    if level is None:
        return ""
    value = getattr(trt.HardwareCompatibilityLevel, level, None)
    if value is None or _is_rtx(trt):  # RTX ignores it with a warning
        return str(level)
    config.hardware_compatibility_level = value
    return ""


def _load_timing_cache(trt: Any, request: dict[str, Any], config: Any) -> str:
    """Start from the timings of an earlier build, or from none; why not, or nothing.

    RTX times nothing while it builds, and ignores a cache with a warning.
    """
    if not request["keeps_timing_cache"]:
        return ""
    if _is_rtx(trt):
        return "a timing cache is of no use to TensorRT-RTX"
    content = Path(request["timing_cache"]).read_bytes() if request["timing_cache"] else b""
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, False):
        return "the timing cache is damaged, or of another TensorRT or GPU"
    return ""


def _allow_decomposition(trt: Any, network: Any) -> str:
    """Let every `Attention` fall apart where no kernel computes it; why that cannot be, or nothing.

    There is none in float32, and unless it is allowed the build fails.
    """
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type.name != "ATTENTION_OUTPUT":
            continue
        if not hasattr(trt, "IAttentionOutputLayer"):
            return "this version of TensorRT cannot take `Attention` apart"
        layer.__class__ = trt.IAttentionOutputLayer  # get_layer gives the base class
        layer.attention.decomposable = True
    return ""


def _configure(trt: Any, request: dict[str, Any], builder: Any) -> tuple[Any, str]:
    """The builder's config, and why it is refused; empty when it is not."""
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if request["workspace_bytes"] is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request["workspace_bytes"])
    if refused := _refused_target(trt, request, config):
        return config, f"compute capability {refused} is refused"
    if refused := _set_flags(trt, request, config):
        return config, f"this version of TensorRT has no builder flag {refused}"
    if refused := _set_compatibility(trt, request, config):
        return config, f"hardware compatibility {refused} is unknown to this TensorRT"
    if refused := _load_timing_cache(trt, request, config):
        return config, refused
    for number, shapes in enumerate(request["profiles"]):
        profile = builder.create_optimization_profile()
        for name, (smallest, usual, largest) in shapes.items():
            profile.set_shape(name, smallest, usual, largest)
        if config.add_optimization_profile(profile) < 0:
            return config, f"optimization profile {number} is refused: {json.dumps(shapes)}"
    return config, ""


def _inspect(trt: Any, request: dict[str, Any], logger: Any, plan: Any) -> str:
    """What the inspector says of an engine of full TensorRT; needs the GPU that built it."""
    runtime = trt.Runtime(logger)
    if request["flags"].get("VERSION_COMPATIBLE"):
        # It has a runtime of its own in it, and none is loaded unless this is said.
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        return ""
    inspector = engine.create_engine_inspector()
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def _import_package() -> Any:
    """TensorRT. Nothing of the request is known yet: the same is done ahead of every build."""
    package = json.loads(Path(PACKAGE_FILE).read_text(encoding="utf-8"))
    sys.path.extend(package["search_path"])
    return importlib.import_module(package["module"])


def _build(trt: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Build; see the module's text for what is left behind."""
    records: list[tuple[str, str]] = []
    layers: list[str] = []
    result: dict[str, Any] = {
        "version": trt.__version__,
        "parser_errors": [],
        "refused": "",
        "is_built": False,
        "records": records,
        "layers": "",
        "inspection": "",
    }
    logger = _make_logger(trt, records, layers)
    builder = trt.Builder(logger)
    builder.max_threads = 1  # more threads, more variants of the same engine
    # Required by TensorRT 10, the only kind there is in 11 and in RTX.
    strongly_typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(strongly_typed)
    result["parser_errors"] = _parse(trt, request, network, logger)
    if result["parser_errors"]:
        return result
    config, result["refused"] = _configure(trt, request, builder)
    if request["decomposable_attention"] and not result["refused"]:
        result["refused"] = _allow_decomposition(trt, network)
    if result["refused"]:
        return result
    plan = builder.build_serialized_network(network, config)
    result["layers"] = layers[-1] if layers else ""
    if plan is None:
        return result
    Path(ENGINE_FILE).write_bytes(plan)
    result["is_built"] = True
    if request["keeps_timing_cache"]:
        Path(TIMING_CACHE_FILE).write_bytes(config.get_timing_cache().serialize())
    if not layers and not _is_rtx(trt):
        result["inspection"] = _inspect(trt, request, logger, plan)
    return result


def main() -> int:
    """Build what `request.json` asks for, once it does; the exit code of the process."""
    _die_with_parent()
    is_fixed = _fix_addresses()
    trt = _import_package()
    if not os.read(sys.stdin.fileno(), 1):
        return 0  # the graph was refused
    request = json.loads(Path(REQUEST_FILE).read_text(encoding="utf-8"))
    result = _build(trt, request)
    result["addresses_are_fixed"] = is_fixed
    Path(RESULT_FILE).write_text(json.dumps(result), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
