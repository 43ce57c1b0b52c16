"""What a target constructor is, and how it reads passages."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Protocol, TypeAlias

import numpy as np
import pyarrow as pa
from datasets import Dataset
from numpy.typing import NDArray

from text2token.engine import Engine, LocalEngine
from text2token.progress import Progress

HERE = LocalEngine()
TEXTS_PER_PART = 25_000  # of a constructor that is not expensive: 2 to 4 MB of targets, seconds of work
Passages: TypeAlias = Iterable[str] | Dataset  # texts, or rows with `text` and perhaps the `document` that each was cut from


class Constructor(Protocol):
    """Learns from a corpus and gives each text its target, in scikit-learn's manner.

    `name` is its module's, and that of its settings in `TargetSettings`. `expensive`: a target costs a model's forward pass,
    or a comparison with all other texts. So only those rows are transformed that will be trained on, and a part of the work
    is smaller.
    """

    name: str
    expensive: bool

    def fit(self, passages: Passages, engine: Engine = HERE) -> Any:
        """Learn what is needed of the whole corpus and return self."""

    def transform(
        self, passages: Passages, progress: Progress | None = None, rows: NDArray[np.int64] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Yield the targets of `passages`, or of those `rows` of them, in batches of the store's schema."""

    def describe(self) -> dict[str, Any]:
        """Return all that decides a target, settings and what was learnt: for the card, and parts of a killed work are
        taken up again only by an equal one.
        """


def parts_of(passages: Passages, size: int) -> Iterator[Passages]:
    """Yield `passages` in their order, `size` at a time; parts of a dataset stay on disk."""
    if isinstance(passages, Dataset):
        yield from (passages.select(range(start, stop)) for start, stop in bounds(len(passages), size))
        return
    yield from text_batches(passages, size)


def bounds(count: int, size: int) -> list[tuple[int, int]]:
    """Return where each part of `count` rows, `size` at a time, starts and stops."""
    return [(start, min(start + size, count)) for start in range(0, count, size)]


def text_batches(passages: Passages, size: int) -> Iterator[list[str]]:
    """Yield the texts of `passages` in their order, `size` at a time."""
    if isinstance(passages, Dataset):
        yield from (list(batch["text"]) for batch in passages.iter(size))
        return
    remaining: Iterator[str] = iter(passages)
    while batch := list(islice(remaining, size)):
        yield batch


def as_dataset(passages: Passages) -> Dataset:
    """Return `passages` as a dataset with the column `text`."""
    return passages if isinstance(passages, Dataset) else Dataset.from_dict({"text": list(passages)})


def chosen(passages: Passages, rows: NDArray[np.int64] | None) -> Passages:
    """Return those `rows` of `passages`; None stands for all."""
    return passages if rows is None else as_dataset(passages).select(rows)


def evenly(size: int, count: int) -> NDArray[np.int64]:
    """Return the numbers of `count` rows spread evenly over `size`, or of all where there are no more."""
    return np.unique(np.linspace(0, size - 1, min(count, size)).astype(np.int64))
