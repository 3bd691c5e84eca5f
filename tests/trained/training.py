"""What all trainings share: the loop, batches of like length, reading and writing of data.

A training runs in a process of its own (`tests.trained.job`), on one thread and with fixed seeds, so
that the same machine gives the same weights again.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from transformers import BertTokenizer, PreTrainedModel

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
IGNORED = -100
"""Label of positions that have none; `torch.nn.CrossEntropyLoss` skips it."""

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a training found.

    Attributes:
        accuracy: Share of the test split that is right, 0 to 1.
        facts: Counts and further scores, as JSON.
    """

    accuracy: float
    facts: Mapping[str, Any]


def make_deterministic(seed: int) -> None:
    """Fix all that could make two trainings on one machine differ.

    The number of threads decides in which order sums are taken, so it is one; the trainings of
    several models run side by side instead.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)


def fit(
    model: PreTrainedModel,
    batches: Callable[[], Iterator[Batch]],
    *,
    epochs: int,
    peak_rate: float,
    weight_decay: float = 0.01,
) -> None:
    """Train with AdamW; the rate rises over the first tenth of the steps, then falls to 0.

    Args:
        model: Changed in place; left in evaluation mode.
        batches: Gives the batches of one epoch; asked once an epoch.
        epochs: How often the training split is seen.
        peak_rate: The highest learning rate.
        weight_decay: Of all parameters.
    """
    steps = epochs * sum(1 for _ in batches())
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_rate, weight_decay=weight_decay)
    warm_up = max(1, steps // 10)

    def share_of_peak(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share_of_peak)
    model.train()
    for _ in range(epochs):
        for batch in batches():
            optimizer.zero_grad()
            model(**batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    model.eval()


def batch_by_length(lengths: Sequence[int], batch_size: int, *, shuffled: bool) -> list[list[int]]:
    """Indices of samples in batches; a batch holds samples of like length, so little is padded.

    Args:
        lengths: Length of each sample.
        batch_size: Samples in a batch; the last one may have fewer.
        shuffled: Whether the order of batches, and of samples of like length, is drawn by chance.

    Returns:
        Each index once.
    """
    order = list(range(len(lengths)))
    if shuffled:
        order = torch.randperm(len(lengths)).tolist()
    order.sort(key=lambda index: lengths[index])
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if shuffled:
        batches = [batches[index] for index in torch.randperm(len(batches)).tolist()]
    return batches


def write_json_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write one JSON object a line, ASCII only."""
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="ascii")


def train_tokenizer(
    texts: Sequence[str], *, vocabulary: int, lowercase: bool, max_length: int
) -> BertTokenizer:
    """A WordPiece tokenizer that is trained on these texts, with the template of BERT.

    Args:
        texts: The training split only.
        vocabulary: How many pieces, at most.
        lowercase: Whether case and accents are dropped.
        max_length: Longest sequence of the model, special tokens included.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer
    from tokenizers.trainers import WordPieceTrainer
    from transformers import BertTokenizer

    learner = Tokenizer(WordPiece(unk_token="[UNK]"))
    learner.normalizer = BertNormalizer(lowercase=lowercase)
    learner.pre_tokenizer = BertPreTokenizer()
    # The trainer numbers inner characters in the order of a hash map, and numbers break ties: named
    # as if they were special, they have their numbers before it starts, and each run is the same.
    characters = sorted(
        {character for text in texts for character in (text.lower() if lowercase else text)}
    )
    fixed = [*SPECIAL_TOKENS, *characters, *(f"##{character}" for character in characters)]
    trainer = WordPieceTrainer(
        vocab_size=vocabulary,
        special_tokens=[token for token in fixed if not token.removeprefix("##").isspace()],
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    return BertTokenizer(
        vocab=learner.get_vocab(), do_lower_case=lowercase, model_max_length=max_length
    )


def bert_config(tokenizer: BertTokenizer, labels: Sequence[str] = (), **changes: Any) -> Any:
    """The config of a BERT of hidden size 128 for a tokenizer and named labels."""
    from transformers import BertConfig

    values: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 512,
        "max_position_embeddings": tokenizer.model_max_length,
        "pad_token_id": tokenizer.pad_token_id,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.0,
        # BERT's 0.02 is for 768; at this width attention would be flat for long.
        "initializer_range": 0.08,
    }
    if labels:
        values["id2label"] = dict(enumerate(labels))
        values["label2id"] = {label: index for index, label in enumerate(labels)}
    return BertConfig(**(values | changes))
