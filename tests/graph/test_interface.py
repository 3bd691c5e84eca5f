from __future__ import annotations

import pytest
from onnx import TensorProto

from pipeline.errors import ExportError, StageError
from pipeline.graph.interface import require_interface, require_same_interface
from pipeline.tasks import TensorSpec
from tests.graph.models import embedding_model

AXES = ("batch", "sequence")
INPUTS = tuple(TensorSpec(name=name, axes=AXES) for name in ("input_ids", "attention_mask"))
OUTPUTS = (TensorSpec(name="last_hidden_state", axes=AXES),)


def test_the_interface_that_was_asked_for_passes() -> None:
    require_interface(embedding_model(), inputs=INPUTS, outputs=OUTPUTS)


def test_inputs_in_another_order_are_refused() -> None:
    with pytest.raises(ExportError, match="inputs are input_ids, attention_mask; expected are"):
        require_interface(embedding_model(), inputs=INPUTS[::-1], outputs=OUTPUTS)


def test_an_input_that_was_dropped_is_noticed() -> None:
    model = embedding_model()
    del model.graph.input[1]
    with pytest.raises(ExportError, match="inputs are input_ids; expected are"):
        require_interface(model, inputs=INPUTS, outputs=OUTPUTS)


def test_axes_with_names_of_their_own_are_refused() -> None:
    model = embedding_model()
    model.graph.input[1].type.tensor_type.shape.dim[0].dim_param = "s43"
    with pytest.raises(ExportError, match=r"`attention_mask` has shape \(s43, sequence\)"):
        require_interface(model, inputs=INPUTS, outputs=OUTPUTS)


def test_an_axis_that_got_a_fixed_size_is_refused() -> None:
    model = embedding_model()
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 11
    with pytest.raises(ExportError, match=r"`input_ids` has shape \(batch, 11\)"):
        require_interface(model, inputs=INPUTS, outputs=OUTPUTS)


@pytest.mark.parametrize("dtype", [TensorProto.INT32, TensorProto.FLOAT])
def test_an_input_of_another_type_is_refused(dtype: int) -> None:
    model = embedding_model()
    model.graph.input[0].type.tensor_type.elem_type = dtype
    with pytest.raises(ExportError, match=r"`input_ids` is \w+; expected is int64"):
        require_interface(model, inputs=INPUTS, outputs=OUTPUTS)


def test_an_output_of_another_type_is_refused() -> None:
    model = embedding_model()
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    with pytest.raises(ExportError, match="`last_hidden_state` is float16; expected is float"):
        require_interface(model, inputs=INPUTS, outputs=OUTPUTS)


def test_an_edit_that_renames_an_axis_is_noticed() -> None:
    after = embedding_model()
    after.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "n"
    with pytest.raises(StageError, match="`last_hidden_state` changed"):
        require_same_interface(embedding_model(), after)


def test_an_edit_that_changes_the_opset_is_noticed() -> None:
    after = embedding_model()
    after.opset_import[0].version = 21
    with pytest.raises(StageError, match="opset changed from 20 to 21"):
        require_same_interface(embedding_model(), after)


def test_an_edit_that_drops_an_output_is_noticed() -> None:
    after = embedding_model()
    del after.graph.output[0]
    with pytest.raises(StageError, match="had 1 outputs and now has 0"):
        require_same_interface(embedding_model(), after)
