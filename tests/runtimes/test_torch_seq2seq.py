"""Encoders with decoders cut in two, in torch: what they write is what transformers writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from pipeline.errors import ExportError
from pipeline.runtimes.generation import GenerationOptions, generate
from pipeline.runtimes.seq2seq import SourcedDecoder
from pipeline.runtimes.torch_inputs import inputs_taken
from pipeline.runtimes.torch_reference import TorchReferenceRunner
from pipeline.runtimes.torch_seq2seq import CrossEncoder, cut_in_two, require_pair_agreement
from pipeline.tasks import find_task
from tests.pairs import BINS, END, FAMILIES, FRAMES, PAD, SPEECH, TEXTS, build_pair

if TYPE_CHECKING:
    from pathlib import Path

TOKENS = 6


def _sources(family: str) -> dict[str, np.ndarray[Any, Any]]:
    generator = np.random.default_rng(0)
    if family == "whisper":
        return {"input_features": generator.normal(size=(3, BINS, FRAMES)).astype(np.float32)}
    mask = np.ones((3, 9), np.int64)
    mask[1, 5:] = mask[2, 2:] = 0
    ids = np.where(mask, generator.integers(0, PAD, mask.shape), PAD)
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("family", FAMILIES)
def test_padded_sources_are_answered_as_by_transformers(family: str, tmp_path: Path) -> None:
    """`generate` of transformers keeps its own cache, so nothing of ours is in what it writes."""
    import transformers

    path = build_pair(tmp_path / "checkpoint", family)
    task = SPEECH if family == "whisper" else TEXTS
    sources = _sources(family)
    model = getattr(transformers, FAMILIES[family][0]).from_pretrained(path).eval()
    with torch.no_grad():
        wanted = model.generate(
            **{name: torch.from_numpy(array) for name, array in sources.items()},
            max_new_tokens=TOKENS,
            min_new_tokens=TOKENS,
            do_sample=False,
            num_beams=1,
            return_dict_in_generate=True,
            output_logits=True,
        )
    expected = torch.stack(wanted.logits, dim=1).numpy()  # (rows, new tokens, vocabulary)
    if family == "whisper":
        expected = expected[:, :TOKENS]
    with (
        TorchReferenceRunner(path, task=task, component="encoder") as encoder,
        TorchReferenceRunner(path, task=task, component="decoder") as decoder,
    ):
        bound = SourcedDecoder(encoder, decoder, sources)
        options = GenerationOptions(tokens=TOKENS, keeps_logits=True)
        found = generate(bound, [[PAD]] * 3, options)
    np.testing.assert_allclose(np.stack(found.logits)[:, 0], expected[:, 0], rtol=1e-3, atol=1e-4)
    for row, tokens in enumerate(found.tokens):
        theirs = expected[row].argmax(-1).tolist()
        upto = theirs.index(END) if END in theirs else TOKENS  # there transformers takes another
        assert list(tokens[:upto]) == theirs[:upto]


def _pair(tmp_path: Path) -> tuple[Any, Any]:
    from transformers import T5ForConditionalGeneration

    path = build_pair(tmp_path / "checkpoint")
    model = T5ForConditionalGeneration.from_pretrained(path).eval()
    task = find_task(TEXTS)
    return model, cut_in_two(model, task, inputs_taken(model, task, None))


def test_every_weight_is_in_one_of_the_two(tmp_path: Path) -> None:
    """All but the embeddings, which both look up, by autograd."""
    model, pair = _pair(tmp_path)
    used = []
    for module, takes in ((pair.encoder, pair.sources), (pair.decoder, pair.takes)):
        for weight in model.parameters():
            weight.grad = None
        sizes = {"batch": 2, "sequence": 5, "past_sequence": 3, "encoder_sequence": 4}
        sum(tensor.sum() for tensor in module(*(t.example(sizes) for t in takes))).backward()
        used.append({name for name, p in model.named_parameters() if p.grad is not None})
    assert used[0] & used[1] == {"shared.weight"}
    assert used[0] | used[1] == {name for name, _ in model.named_parameters()}


def test_a_decoder_that_sees_other_sources_is_refused(tmp_path: Path) -> None:
    from dataclasses import replace

    class Late(CrossEncoder):
        """Keys and values are those of the token before."""

        def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            states, *crossed = super().forward(*tensors)
            return (states, *(tensor.roll(1, dims=2) for tensor in crossed))

    model, pair = _pair(tmp_path)
    late = Late(model, input_names=pair.encoder.input_names)
    with pytest.raises(ExportError, match="other logits with a cache"):
        require_pair_agreement(replace(pair, encoder=late), model)


def test_a_decoder_without_a_cache_is_refused_by_name(tmp_path: Path) -> None:
    """FSMT of transformers 5.23 keeps a cache of its own making."""
    from transformers import FSMTConfig, FSMTForConditionalGeneration

    config = FSMTConfig(
        langs=["en", "de"],
        src_vocab_size=40,
        tgt_vocab_size=40,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
    )
    model: Any = FSMTForConditionalGeneration(config).eval()
    model.config.vocab_size = 40
    task = find_task(TEXTS)
    with pytest.raises(ExportError, match="FSMTForConditionalGeneration"):
        cut_in_two(model, task, inputs_taken(model, task, None))
