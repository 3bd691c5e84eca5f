"""An encoder and its decoder as OpenVINO GenAI's Whisper runs them: the source's cache is state too.

GenAI's decoder takes `encoder_hidden_states`, where ours takes keys and values that the encoder made of
them. What makes these moves from one model into the other, and fills a state that the decoder reads from
then on; GenAI resets it between two sounds.
Source: `optimum.exporters.openvino.stateful.patch_stateful_encoder_decoder`, optimum-intel, and
`src/cpp/src/whisper/models/statefull_decoder.cpp`, openvino.genai 2026.4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline.data.decoder_inputs import CACHE_PREFIX, PRESENT_PREFIX, is_source
from pipeline.errors import ArtifactError
from pipeline.runtimes.openvino_conversion import make_stateful, past_names, read_sizes_by_gather

if TYPE_CHECKING:
    from pathlib import Path

ENCODER_FILE: Final = "openvino_encoder_model.xml"
DECODER_FILE: Final = "openvino_decoder_model.xml"
STATES: Final = "last_hidden_state"
SOURCE_STATES: Final = "encoder_hidden_states"
SCORES: Final = "cross_attention_qk_scaled_scores"
_TO_SCORES: Final = {"Transpose", "Reshape", "MatMul", "Multiply", "Divide", "Add", "Convert"}
_HUGE: Final = 1e30
_STEP: Final = 1e28


def convert_pair(encoder_graph: Path, decoder_graph: Path, folder: Path) -> None:
    """Write `openvino_encoder_model.xml`, `openvino_decoder_model.xml` and their weights.

    The decoder takes `input_ids`, int64 (texts, new tokens), `beam_idx`, int32 (texts,), and
    `encoder_hidden_states`, float32 (1 or texts, positions, hidden size), and gives `logits`, float32
    (texts, new tokens, vocabulary).

    Args:
        encoder_graph: ONNX, as `pipeline.runtimes.torch_seq2seq` cuts it.
        decoder_graph: The same of its decoder.
        folder: Where to; it exists.

    Raises:
        ArtifactError: keys and values of the source are made of more than the encoder's states.
        RuntimeError: OpenVINO cannot read a graph.
    """
    import openvino

    core = openvino.Core()
    encoder, decoder = core.read_model(encoder_graph), core.read_model(decoder_graph)
    read_sizes_by_gather(decoder)
    maker = core.read_model(encoder_graph)
    decoder = _join(decoder, *_cut(maker))
    make_stateful(decoder, past_names(decoder))
    for result in list(encoder.get_results()):
        if STATES not in result.input_value(0).get_names():
            encoder.remove_result(result)
    openvino.save_model(encoder, folder / ENCODER_FILE, compress_to_fp16=False)
    openvino.save_model(decoder, folder / DECODER_FILE, compress_to_fp16=False)
    del encoder, decoder  # they map the weights of the graphs


def _cut(maker: Any) -> tuple[Any, dict[str, Any]]:
    """Let the part of an encoder that makes keys and values begin at its states.

    Nothing is shared between them: what fills one state alone is computed once for each sound, as the
    CPU's plugin makes a model of it, and anything else in every step.

    Returns:
        The parameter that stands for the states, and what is made of it: the decoder's name of each key
        and value -> an output of OpenVINO.

    Raises:
        ArtifactError: something else of the source goes into them.
    """
    from openvino import opset13

    whole = maker.output(STATES)
    states = opset13.parameter(whole.get_partial_shape(), whole.get_element_type(), SOURCE_STATES)
    states.output(0).get_tensor().set_names({SOURCE_STATES})
    made = {}
    for number, name in enumerate(tensor.get_any_name() for tensor in maker.outputs):
        if name == STATES:
            continue
        alone = maker.clone()
        begin = _apart(states, number)
        for reader in alone.output(STATES).get_node().input_value(0).get_target_inputs():
            if reader.get_node().get_type_name() != "Result":
                reader.replace_source_output(begin.output(0))
        _read_batch_of(states, alone)
        output = alone.output(name).get_node().input_value(0)
        strange = _parameters(output.get_node()) - {SOURCE_STATES}
        if strange:
            raise ArtifactError(
                f"`{name}` is made of `{min(strange)}` beside the encoder's states, so the decoder cannot "
                "make it"
            )
        made[f"{CACHE_PREFIX}{name.removeprefix(PRESENT_PREFIX)}"] = output
    return states, made


def _apart(states: Any, number: int) -> Any:
    """The states as they are, by an operation of which there is no second one.

    OpenVINO makes one of equal operations. Where states are rounded to 8 bits, that would leave nodes with
    several outputs outside of the states' models, at which the CPU's plugin of 2026.4 ends.
    """
    from openvino import opset13

    return opset13.clamp(states, -_HUGE - number * _STEP, _HUGE + number * _STEP)


def _read_batch_of(states: Any, maker: Any) -> None:
    """Where the shape of the source is read, take the batch of the states; its other sizes are fixed."""
    from openvino import opset13

    batch = opset13.gather(
        opset13.shape_of(states, output_type="i64"), opset13.constant([0]), opset13.constant(0)
    )
    for taken in maker.inputs:
        sizes = list(taken.get_partial_shape())[1:]
        if any(size.is_dynamic for size in sizes):
            continue
        rest = opset13.constant(np.array([size.get_length() for size in sizes], np.int64))
        shape = opset13.concat([batch, rest], axis=0)
        for target in taken.get_target_inputs():
            reader = target.get_node()
            if reader.get_type_name() == "ShapeOf":
                kind = reader.get_output_element_type(0)
                is_same = kind == shape.get_output_element_type(0)
                new = shape if is_same else opset13.convert(shape, kind)
                for user in reader.output(0).get_target_inputs():
                    user.replace_source_output(new.output(0))


def _parameters(node: Any) -> set[str]:
    """Names of the parameters that a node's values come from."""
    found, seen, left = set(), set(), [node]
    while left:
        one = left.pop()
        if one.get_name() in seen:
            continue
        seen.add(one.get_name())
        if one.get_type_name() == "Parameter":
            found.add(one.output(0).get_any_name())
        left += [value.get_node() for value in one.input_values()]
    return found


def _join(decoder: Any, states: Any, made: dict[str, Any]) -> Any:
    """The decoder with what makes its source's keys and values, each of them in a state.

    Raises:
        ArtifactError: it does not take exactly those that are made.
    """
    import openvino
    from openvino import opset13

    taken = [name for name in past_names(decoder) if is_source(name)]
    odd = sorted(set(taken) ^ set(made))
    if odd:
        raise ArtifactError(f"encoder and decoder do not fit: only one of them has `{odd[0]}`")
    kept = []
    for name in taken:
        parameter = decoder.input(name).get_node()
        # As many rows as there were at the first step: later ones are beams of one sound, and read the
        # same row.
        read = opset13.read_value(made[name], name)
        for reader in parameter.output(0).get_target_inputs():
            reader.replace_source_output(read.output(0))
        if name.endswith(".key"):
            _name_scores(read, name)
        kept.append(opset13.assign(read, name))
    others = [
        node for node in decoder.get_parameters() if node.output(0).get_any_name() not in taken
    ]
    return openvino.Model(decoder.get_results(), kept, [*others, states], "decoder")


def _name_scores(keys: Any, name: str) -> None:
    """Let GenAI find the scores of the source's keys, by which it times words.

    It takes each `Add` whose output's name begins with `SCORES`, in the order of layers, and makes such
    ones of operators of attention with `encoder_attn` in their names. Where words are not timed, OpenVINO
    leaves out the sum with 0.

    Raises:
        ArtifactError: no attention reads these keys.
    """
    from openvino import opset13

    left = [keys]
    for node in left:  # it grows
        for target in node.output(0).get_target_inputs():
            reader = target.get_node()
            if reader.get_type_name() == "ScaledDotProductAttention":
                reader.set_friendly_name(f"{reader.get_friendly_name()}.encoder_attn")
                return
            if reader.get_type_name() == "Softmax":
                zero = opset13.constant(0.0, dtype=node.get_output_element_type(0))
                scores = opset13.add(node, zero)
                scores.output(0).get_tensor().set_names({f"{SCORES}.{name}"})
                target.replace_source_output(scores.output(0))
                return
            if reader.get_type_name() in _TO_SCORES:
                left.append(reader)
    raise ArtifactError(f"no attention to the source is found that reads `{name}`")
