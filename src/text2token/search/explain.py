"""Why a hit was found, in words, and where they stand in its text.

For the sparse half this is exact: a score is the sum over shared words of rarity · weight in the document, and these are the
parts of the sum. A dense score is explained by a reader of the embeddings (`text2token.lens`), where the model has one
beside it.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from text2token.lens.reader import FOLDER, TokenReader, open_reader
from text2token.model.encoder import TextEncoder

DENSE_WORDS = 6
EXPLAINED_AT_ONCE = 256  # documents, each of which is scored for every word that the reader knows
Half = Literal["sparse", "dense"]
# query (dimension,) and documents (hits, dimension), of unit length → for each document words with their part of the cosine
DenseExplanation = Callable[[NDArray[np.float32], NDArray[np.float32]], Sequence[Sequence[tuple[str, float]]]]


@dataclass(frozen=True)
class Reason:
    """A word, what it adds to the score of its half, and which half that is."""

    word: str
    contribution: float
    half: Half


def shared_words(query: dict[int, str], document: dict[int, float], rarity: dict[int, float]) -> list[Reason]:
    """Return the words of the query that the document has, strongest first; the contributions add up to its BM25 score.

    `query` spells words by their number, `document` has the weight of each of its words, `rarity` the inverse document
    frequency of each.
    """
    shared = [
        Reason(word, rarity[number] * document[number], "sparse") for number, word in query.items() if number in document
    ]
    return sorted(shared, key=lambda reason: -reason.contribution)


def explanation_beside(model: str, encoder: TextEncoder) -> DenseExplanation | None:
    """Return the function that finds the words two vectors of `encoder` share; None where `model` has no reader.

    Raises `ModelError` when the reader is damaged or another model's.
    """
    if not (Path(model) / FOLDER).is_dir():
        return None
    return explained_by(open_reader(model, encoder))


def explained_by(reader: TokenReader) -> DenseExplanation:
    """Return the function that finds the words a query shares with each document, by `reader`."""

    def explain(query: NDArray[np.float32], documents: NDArray[np.float32]) -> Sequence[Sequence[tuple[str, float]]]:
        return reader.contributions_to_each(torch.from_numpy(query), torch.from_numpy(documents), DENSE_WORDS)

    return explain


def dense_reasons(
    explain: DenseExplanation | None, query: NDArray[np.float32], documents: NDArray[np.float32]
) -> list[list[Reason]]:
    """Return the reasons by `explain` of each document; none where it is None."""
    if explain is None or not len(documents):
        return [[] for _ in documents]
    return [
        [Reason(word, part, "dense") for word, part in parts]
        for start in range(0, len(documents), EXPLAINED_AT_ONCE)
        for parts in explain(query, documents[start : start + EXPLAINED_AT_ONCE])
    ]


def excerpt(text: str, places: Sequence[tuple[int, int]], length: int = 160) -> tuple[str, list[tuple[int, int]]]:
    """Return the part of `text` where most of `places` are, about `length` characters in one line, and its places.

    `places` are in the order of the text.
    """
    starts = [place[0] for place in places]
    start = max(starts, key=lambda at: bisect_left(starts, at + length) - bisect_left(starts, at), default=0)
    if start < length // 3:
        start = 0
    else:  # some words before it, or characters where no spaces are
        start -= length // 6
        start = text.rfind(" ", start - length // 6, start) + 1 or start
    end = start + length
    before, after = "… " if start else "", " …" if end < len(text) else ""
    shown = [(max(a, start) - start + len(before), min(b, end) - start + len(before)) for a, b in places if start <= a < end]
    return before + re.sub(r"\s", " ", text[start:end]) + after, shown
