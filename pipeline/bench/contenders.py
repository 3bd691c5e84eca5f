"""The two models of a launch, each as one callable. Used in launch processes only.

The libraries are imported here at call time, because the memory of a launch is measured when only
one of the two models, and only its library, is in the process.
"""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from pipeline.bench.job import CPU_PROVIDER
from pipeline.stages.base import ENGINE_FILE, MODEL_FILE

if TYPE_CHECKING:
    from pipeline.bench.feeds import Feeds
    from pipeline.bench.job import Contender, Runtime
    from pipeline.runtimes.tensorrt import CallTimes

Call: TypeAlias = Callable[[], object]
"""One inference on inputs that are already where the runtime wants them."""
TimedCall: TypeAlias = "Callable[[], CallTimes]"
"""One inference, and how long each part of it took on the device."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that is ready to run.

    Attributes:
        description: Library, version and how it runs, for the report.
        input_names: The inputs it takes.
        load_time_ns: From file to ready; the library was imported before.
        bind: Makes the callable that runs the model on given inputs, with all its outputs.
        bind_timed: The same with a callable that tells the parts of each call; None where the
            runtime cannot tell.
    """

    description: str
    input_names: tuple[str, ...]
    load_time_ns: int
    bind: Callable[[Feeds], Call]
    bind_timed: Callable[[Feeds], TimedCall] | None = None


def load_contender(contender: Contender, *, threads: int) -> Loaded:
    """Load a model with `threads` threads.

    Raises:
        PipelineError: of the runtime's own kind, when the model cannot be loaded.
    """
    return _LOADERS[contender.runtime](contender, threads)


def _load_onnxruntime(contender: Contender, threads: int) -> Loaded:
    if contender.provider != CPU_PROVIDER:
        return _load_provider(contender, threads)
    import onnxruntime

    from pipeline.data.decoder_inputs import CACHE_POSITION, MASK

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # The pool spins while it runs, as it does for a user, and stops when a run is over, so that it
    # does not take a core from the other model. `allow_spinning=0` would stop it too, but would
    # make every run of a small model slower than a user sees it. Numbers: docs/decisions/0004.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    path = str(Path(contender.path) / MODEL_FILE)
    started = time.perf_counter_ns()
    session = onnxruntime.InferenceSession(
        path, sess_options=options, providers=["CPUExecutionProvider"]
    )
    load_time_ns = time.perf_counter_ns() - started

    names = tuple(item.name for item in session.get_inputs())
    is_static = CACHE_POSITION in names

    def bind(feeds: Feeds) -> Call:
        if is_static:  # nothing is in the cache yet, but all of it is given
            from pipeline.runtimes.static_cache import fit_feeds

            feeds = fit_feeds(feeds, session.get_inputs()[names.index(MASK)].shape[1])
        return lambda: session.run(None, feeds)

    return Loaded(
        description=f"onnxruntime {onnxruntime.__version__} {session.get_providers()[0]}",
        input_names=tuple(name for name in names if name != CACHE_POSITION),
        load_time_ns=load_time_ns,
        bind=bind,
    )


def _load_provider(contender: Contender, threads: int) -> Loaded:
    """A provider for GPUs; a call brings the inputs to the GPU and the outputs back."""
    from pipeline.runtimes.onnxruntime import OnnxRuntimeRunner

    started = time.perf_counter_ns()
    runner = OnnxRuntimeRunner(
        Path(contender.path) / MODEL_FILE,
        provider=contender.provider,
        provider_options=contender.provider_options,
        threads=threads,
    ).__enter__()  # until the launch ends
    load_time_ns = time.perf_counter_ns() - started

    def bind(feeds: Feeds) -> Call:
        return lambda: runner.run(feeds)

    return Loaded(
        description=runner.session,
        input_names=tuple(spec.name for spec in runner.inputs),
        load_time_ns=load_time_ns,
        bind=bind,
    )


def _load_tensorrt(contender: Contender, threads: int) -> Loaded:
    """An engine; its inputs lie in pinned memory, and a call brings them to the GPU and back."""
    from pipeline.engines.header import read_engine_header
    from pipeline.engines.preflight import MODULES
    from pipeline.engines.vouching import vouched_digest
    from pipeline.runtimes.tensorrt import TensorRTRunner

    del threads  # the work is the GPU's
    engine = Path(contender.path) / ENGINE_FILE
    digest = vouched_digest(engine.parent)
    importlib.import_module(MODULES[read_engine_header(engine).kind].import_name)
    started = time.perf_counter_ns()
    runner = TensorRTRunner(
        engine, sha256=digest, uses_cuda_graph=contender.uses_cuda_graph
    ).__enter__()  # until the launch ends
    load_time_ns = time.perf_counter_ns() - started
    return Loaded(
        description=runner.session,
        input_names=tuple(spec.name for spec in runner.inputs),
        load_time_ns=load_time_ns,
        bind=lambda feeds: runner.bind(feeds).run,
        bind_timed=lambda feeds: runner.bind(feeds).run_timed,
    )


def _load_torch(contender: Contender, threads: int) -> Loaded:
    import torch

    from pipeline.runtimes.torch_model import load_torch_model
    from pipeline.runtimes.torch_variants import PlacedModel

    torch.set_num_threads(threads)
    if torch.get_num_interop_threads() != 1:  # torch refuses to be told again once it has worked
        torch.set_num_interop_threads(1)
    checkpoint = Path(contender.path)
    import_torch_model(checkpoint)
    started = time.perf_counter_ns()
    loaded = load_torch_model(checkpoint, contender.task, contender.component)
    placed = PlacedModel(
        loaded, contender.variant, device=contender.device, number=contender.device_number
    )
    load_time_ns = time.perf_counter_ns() - started

    def bind(feeds: Feeds) -> Call:
        # Ids and pixels alike: each tensor keeps the type and the memory of its array, unless the
        # model is narrower, or a GPU reads it.
        tensors = placed.prepare([torch.from_numpy(feeds[name]) for name in loaded.input_names])
        return lambda: placed(tensors)

    return Loaded(
        description=placed.description,
        input_names=loaded.input_names,
        load_time_ns=load_time_ns,
        bind=bind,
    )


def import_torch_model(checkpoint: Path) -> None:
    """Import torch and the code of the model, which else happens while the clock is running."""
    import torch  # noqa: F401
    import transformers

    import pipeline.runtimes.torch_model  # noqa: F401

    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    for name in config.get("architectures") or ():
        # A name that transformers does not know only means that the import is timed as well.
        getattr(transformers, name, None)


_LOADERS: Final[dict[Runtime, Callable[[Contender, int], Loaded]]] = {
    "torch": _load_torch,
    "onnxruntime": _load_onnxruntime,
    "tensorrt": _load_tensorrt,
}
