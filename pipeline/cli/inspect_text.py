"""What `convert inspect` shows, as text and as JSON."""

from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING

from pipeline.cli.lines import columns, counted, one_line, size
from pipeline.errors import ExitCode
from pipeline.inspection import (
    ArtifactInspection,
    EngineInspection,
    ModelInspection,
    RecipeInspection,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pipeline.engines.facts_file import EngineFacts, ProfileFacts
    from pipeline.engines.header import EngineHeader
    from pipeline.graph.model_facts import LayerFacts, ModelFacts, TensorFacts
    from pipeline.hashing import JSON
    from pipeline.inspection import EngineRow, Inspection
    from pipeline.listing import ArtifactFacts

MAX_LISTED = 40
"""Of inputs, outputs and operators each; `--json` has them all."""


def exit_code(found: Inspection) -> int:
    """3 for an artifact with an engine that cannot be read, or is not that of its facts; else 0."""
    is_damaged = isinstance(found, ArtifactInspection) and any(
        row.problem for row in found.engines
    )
    return int(ExitCode.STAGE_FAILED if is_damaged else ExitCode.OK)


def inspection_json(found: Inspection) -> str:
    """One JSON document: `exit_code`, `kind`, `path`, and the facts under the name of the kind."""
    document: dict[str, object] = {"exit_code": exit_code(found)}
    if isinstance(found, RecipeInspection):
        document |= {"kind": "recipe", "sha256": found.digest, "recipe": dict(found.recipe)}
    elif isinstance(found, ArtifactInspection):
        document |= {
            "kind": "artifact",
            "artifact": found.facts.model_dump(mode="json"),
            "engines": [_engine_row_json(row) for row in found.engines],
        }
    elif isinstance(found, ModelInspection):
        document |= {"kind": "model", "model": found.facts.model_dump(mode="json")}
    else:
        document |= {
            "kind": "engine",
            "engine": asdict(found.header),
            **_facts_json(found.facts),
            "can_be_loaded_here": not found.loading_problem,
            "loading_problem": found.loading_problem,
        }
    return json.dumps({**document, "path": str(found.path)}, indent=2)


def _engine_row_json(row: EngineRow) -> dict[str, object]:
    header = None if row.header is None else asdict(row.header)
    return {
        "path": row.path,
        "engine": header,
        **_facts_json(row.facts),
        "problem": row.problem,
    }


def _facts_json(facts: EngineFacts | None) -> dict[str, object]:
    return {"facts": None if facts is None else facts.model_dump(mode="json")}


def inspection_lines(found: Inspection, *, has_layers: bool) -> Iterator[str]:
    """Lines for a terminal; `has_layers` lists every layer of a model."""
    name = one_line(found.path)
    if isinstance(found, RecipeInspection):
        yield f"# recipe {name}, defaults filled in; sha256 {found.digest}"
        yield _yaml(found.recipe)
    elif isinstance(found, ArtifactInspection):
        yield f"artifact  {name}"
        yield from _artifact_lines(found.facts, found.engines)
    elif isinstance(found, ModelInspection):
        yield f"ONNX model  {name}  {size(found.facts.size_bytes)}"
        yield from _model_lines(found.facts, has_layers=has_layers)
    elif isinstance(found, EngineInspection):
        yield f"{found.header.product} engine  {name}  {size(found.header.size_bytes)}"
        yield from _engine_lines(found.header, found.facts)
        problem = found.loading_problem
        yield f"cannot be loaded here: {problem}" if problem else "can be loaded here"


def _yaml(recipe: Mapping[str, JSON]) -> str:
    from ruamel.yaml import YAML

    writer = YAML(pure=True)
    # YAML 1.2 leaves `null` empty by default here; written out it reads better.
    writer.representer.add_representer(
        type(None), lambda maker, _: maker.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    stream = io.StringIO()
    writer.dump(dict(recipe), stream)
    return stream.getvalue().rstrip()


def _artifact_lines(facts: ArtifactFacts, engines: tuple[EngineRow, ...]) -> Iterator[str]:
    environment = facts.environment
    revision = f" at {facts.source.revision}" if facts.source.revision else ""
    yield from columns(
        [
            ("name", facts.name),
            ("version", facts.version),
            ("verdict", facts.verdict),
            ("created", facts.created_at),
            ("source", f"{facts.source.source}{revision}"),
            ("size", f"{size(facts.size_bytes)} in {len(facts.files.files)} files"),
            ("made on", f"{environment.platform}, {environment.cpu_model}"),
            ("Python", environment.python),
        ]
    )
    for reason in facts.reasons:
        yield f"  because {one_line(reason)}"
    yield "targets"
    yield from columns(
        (
            target.name,
            target.runtime,
            target.precision,
            " ".join(target.compute_capability),
            size(sum(file.size_bytes for file in facts.files_of(target.name))),
        )
        for target in facts.targets
    )
    if engines:
        yield "engines"
        yield from columns(_engine_row(row) for row in engines)
    yield "packages"
    yield from columns(sorted(environment.packages.items()))
    yield "not verified; `convert verify` does"


def _model_lines(facts: ModelFacts, *, has_layers: bool) -> Iterator[str]:
    others = ", ".join(f"{one_line(d)} {v}" for d, v in facts.domains.items() if d != "ai.onnx")
    yield f"  opset {facts.opset}, ir_version {facts.ir_version}" + (f"; {others}" * bool(others))
    if facts.producer:
        yield f"  made by {one_line(facts.producer)}"
    for title, tensors in (("inputs", facts.inputs), ("outputs", facts.outputs)):
        yield title
        yield from columns(_tensor_row(tensor) for tensor in tensors[:MAX_LISTED])
        yield from _more(len(tensors))
    total = sum(facts.weight_bytes.values())
    yield f"weights  {facts.parameters:,} parameters"
    yield from columns(
        (dtype, size(count), f"{count / total:.1%}" if total else "")
        for dtype, count in sorted(facts.weight_bytes.items(), key=lambda item: -item[1])
    )
    for file in facts.external_files:
        found = "MISSING" if file.size_bytes is None else size(file.size_bytes)
        yield f"  in {one_line(file.location)}: {found}"
    yield from _layer_lines(facts.layers, has_layers=has_layers)
    yield f"operators  {counted(sum(facts.op_counts.values()), 'node')}"
    yield from columns(list(facts.op_counts.items())[:MAX_LISTED])
    yield from _more(len(facts.op_counts))


def _layer_lines(layers: tuple[LayerFacts, ...], *, has_layers: bool) -> Iterator[str]:
    yield "layers, by operator and the dtype their weight is stored in"
    counts: Counter[tuple[str, str]] = Counter()
    parameters: Counter[tuple[str, str]] = Counter()
    for layer in layers:
        counts[layer.op, layer.dtype] += 1
        parameters[layer.op, layer.dtype] += layer.parameters
    yield from columns(
        (op, dtype, counted(count, "layer"), f"{parameters[op, dtype]:,} parameters")
        for (op, dtype), count in counts.most_common()
    )
    if has_layers:
        yield "each layer"
        yield from columns((la.node, la.op, la.dtype, f"{la.parameters:,}") for la in layers)


def _engine_row(row: EngineRow) -> tuple[str, str, str, str]:
    if row.header is None or row.problem:
        return row.path, "", "", f"cannot be read: {row.problem}"
    version = f"{row.header.product} {row.header.version}"
    if row.facts is None:
        return row.path, " ".join(row.header.compute_capabilities), version, ""
    profiles = "; ".join(_profile_text(profile) for profile in row.facts.profiles)
    return row.path, f"{row.facts.target} {row.facts.precision}", version, profiles


def _engine_lines(header: EngineHeader, facts: EngineFacts | None) -> Iterator[str]:
    rows = [(header.product, header.version)]
    if header.kind == "tensorrt-rtx":
        known = " ".join(header.compute_capabilities) or "none that is known"
        rows += [
            ("compute capabilities", f"{known} (mask {header.capability_mask:#x})"),
            ("weights", size(header.weights_bytes)),
            ("whole file", f"{header.size_bytes:,} bytes, as its header says"),
        ]
    else:
        rows.append(("compute capabilities", "not in the header of full TensorRT"))
    if facts is None:
        rows.append(
            (
                "digest",
                "not stated, and engines have no checksum: no change behind the header is seen",
            )
        )
        yield from columns(rows)
        return
    rows += [
        ("target", facts.target),
        ("precision", facts.precision),
        ("digest", f"{facts.sha256}, as stated beside it"),
        ("layers", f"fingerprint {facts.layer_fingerprint}"),
    ]
    if facts.compatibility:
        rows.append(("compatibility", " ".join(facts.compatibility)))
    if facts.gpu:
        rows.append(("built on", f"{facts.gpu}, driver {facts.driver or 'unknown'}"))
    yield from columns(rows)
    for number, profile in enumerate(facts.profiles):
        yield f"profile {number}  {_profile_text(profile)}"
        yield from columns(
            (name, *("x".join(map(str, shape)) for shape in shapes))
            for name, shapes in profile.inputs.items()
        )
    for title, tensors in (("inputs", facts.inputs), ("outputs", facts.outputs)):
        yield title
        yield from columns(
            (tensor.name, tensor.dtype, f"({', '.join(_dim(dim) for dim in tensor.dims)})")
            for tensor in tensors
        )


def _profile_text(profile: ProfileFacts) -> str:
    """Such as `batch 1..8..32, sequence 1..128..512`: smallest, usual, largest."""
    ranges = (
        f"{axis} {low}..{usual}..{high}" for axis, (low, usual, high) in profile.axes.items()
    )
    return ", ".join(ranges) or "of one size"


def _dim(dim: int | str | None) -> str:
    return "?" if dim is None else str(dim)


def _tensor_row(tensor: TensorFacts) -> tuple[str, str, str]:
    return tensor.name, tensor.dtype, f"({', '.join(map(str, tensor.shape))})"


def _more(count: int) -> Iterator[str]:
    if count > MAX_LISTED:
        yield f"  and {count - MAX_LISTED} more; --json has them all"
