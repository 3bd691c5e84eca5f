"""From the rows of a source to the samples of a set, apart from those of another set."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.data.choose import choose_rows
from pipeline.errors import StageError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from pipeline.data.prepare.base import Prepared
    from pipeline.data.rows import Row
    from pipeline.data.sample_set import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A sample that was taken.

    Attributes:
        number: Of its row in the source.
        where: The row's place, for messages.
        prepared: Its tensors and its label.
        fingerprint: Of its tensors.
        is_shared: The other set has it too.
    """

    number: int
    where: str
    prepared: Prepared
    fingerprint: str
    is_shared: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """Samples in the order of their source, and how many rows that has."""

    samples: tuple[Sample, ...]
    rows_seen: int


def sample_fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of a sample's tensors with their names, types and shapes, as 64 hex digits."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype.name} {list(tensor.shape)}\n".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()


def take_samples(
    read: Callable[[], Iterable[Row]],
    prepare: Callable[[Row], Prepared],
    *,
    count: int | None,
    seed: int,
    columns: Sequence[str],
    others: Collection[str] = frozenset(),
    progress: Callable[[int, int, str], None] = lambda *_: None,
) -> Taken:
    """The samples that the seed chooses; those in `others` only when there are too few without.

    Memory holds the chosen rows, and as many again as `others` has; the source may be of any size.

    Args:
        read: Starts reading the source.
        prepare: Makes a sample of a row.
        count: How many; None for all of them.
        seed: Decides which.
        columns: The columns that `prepare` reads.
        others: Fingerprints of the samples to stay apart from.
        progress: Is told how many samples are done, of how many.

    Raises:
        StageError: when there are no rows, or fewer than asked for; and what `prepare` raises.
    """
    spare = len(others)
    while True:
        wanted = None if count is None else count + spare
        choice = choose_rows(read(), count=wanted, seed=seed, columns=columns)
        _check_count(choice.seen, count)
        total = choice.seen if count is None else count
        fresh: list[Sample] = []
        shared: list[Sample] = []
        for number, row in choice.rows:
            if len(fresh) == total:
                break
            sample = _prepare(number, row, prepare, others)
            (shared if sample.is_shared else fresh).append(sample)
            progress(min(len(fresh) + len(shared), total), total, "samples")
        # Equal rows share one fingerprint, so that more rows may drop out than there are others.
        if len(fresh) == total or len(choice.rows) == choice.seen:
            break
        spare = 2 * spare + len(shared)
    samples = (fresh + shared)[:total]
    progress(total, total, "samples")
    return Taken(
        samples=tuple(sorted(samples, key=lambda sample: sample.number)), rows_seen=choice.seen
    )


def _prepare(
    number: int, row: Row, prepare: Callable[[Row], Prepared], others: Collection[str]
) -> Sample:
    try:
        prepared = prepare(row)
    except StageError as error:
        error.where = error.where or row.where
        raise
    fingerprint = sample_fingerprint(prepared.tensors)
    return Sample(
        number=number,
        where=row.where,
        prepared=prepared,
        fingerprint=fingerprint,
        is_shared=fingerprint in others,
    )


def _check_count(seen: int, count: int | None) -> None:
    if seen == 0:
        raise StageError("there are no rows", hint="give data with rows")
    if count is not None and seen < count:
        raise StageError(
            f"there {'is 1 row' if seen == 1 else f'are {seen} rows'}, {count} are asked for",
            hint=f"write `samples: {seen}` or `samples: all`",
        )
