"""The tokenizer as a model of Triton's python backend; written by `convert export-triton`.

This file is copied into the repository and runs in the server, so it knows nothing of `convert`. The
server's Python needs `numpy` and `tokenizers`. Beside it lie `tokenizer.json`, the checkpoint's own,
and `settings.json`:

    texts       names of the text inputs, one or two; each is TYPE_STRING (batch, 1)
    padding     name of each output -> the value of padded positions; outputs are TYPE_INT64
                (batch, sequence)
    max_length  longest sample in tokens, special tokens included; what is longer is cut
    min_length  shortest that the model takes; what is shorter is padded
    cut         which of two texts is cut
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import triton_python_backend_utils as pb_utils

_COLUMNS = {
    "input_ids": "ids",
    "attention_mask": "attention_mask",
    "token_type_ids": "type_ids",
}


class TritonPythonModel:
    """What the python backend looks for by this name."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read tokenizer and settings; see the python backend's README for `args`."""
        folder = Path(args["model_repository"]) / args["model_version"]
        settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        self.texts: list[str] = settings["texts"]
        self.padding: dict[str, int] = settings["padding"]
        self.min_length: int = settings["min_length"]
        tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        # The file may carry the padding and truncation of its author's last call.
        tokenizer.no_padding()
        tokenizer.enable_truncation(settings["max_length"], strategy=settings["cut"])
        self.tokenizer = tokenizer

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response for each request.

        All requests of a batch are padded to one length: only tensors of one shape are batched by
        the server, and the model behind this one is to see them together.
        """
        encoded: list[Any] = []
        for request in requests:
            try:
                encoded.append(self._encode(request))
            except Exception as error:  # noqa: BLE001 - one bad request must not fail the others
                encoded.append(pb_utils.TritonError(f"the text cannot be tokenised: {error}"))
        lengths = [len(one.ids) for rows in encoded if isinstance(rows, list) for one in rows]
        length = max([self.min_length, *lengths])
        return [
            self._response(rows, length)
            if isinstance(rows, list)
            else pb_utils.InferenceResponse(output_tensors=[], error=rows)
            for rows in encoded
        ]

    def _encode(self, request: Any) -> list[Any]:
        columns = []
        for name in self.texts:
            tensor = pb_utils.get_input_tensor_by_name(request, name)
            columns.append([bytes(text).decode("utf-8") for text in tensor.as_numpy().reshape(-1)])
        return [self.tokenizer.encode(*texts) for texts in zip(*columns, strict=True)]

    def _response(self, rows: list[Any], length: int) -> Any:
        outputs = []
        for name, fill in self.padding.items():
            values = np.full((len(rows), length), fill, dtype=np.int64)
            for place, one in enumerate(rows):
                tokens = getattr(one, _COLUMNS[name])
                values[place, : len(tokens)] = tokens
            outputs.append(pb_utils.Tensor(name, values))
        return pb_utils.InferenceResponse(output_tensors=outputs)
