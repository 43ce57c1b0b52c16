"""The sparse half of an index: BM25 over words, by the engine that keeps the vectors.

A word is a dimension, whose number is the hash of its stem; the engine weighs it by how rare it is among the documents it
holds at the moment. The trap is the average length: BM25 compares every document with it, and the engine's 256 words for
any corpus cost two points of nDCG@10 on short abstracts (docs/searching.md), so it is measured on the first documents
and kept.
"""

import re
from collections.abc import Collection, Iterable
from functools import lru_cache

from qdrant_edge import Bm25, Bm25Config, DisabledStemmer, SparseVector, StopwordsSet

from text2token.errors import RecipeError

WORD = re.compile(r"[^\W_]+")  # what the engine takes for one
NO_LANGUAGE = "none"
REMEMBERED_WORDS = 100_000


class Words:
    """Texts to weighted words. `language` chooses stop words and stemmer ("english", …; "none" for neither)."""

    def __init__(self, language: str, average_length: float) -> None:
        self.model = _bm25(language, average_length=average_length)
        self.number_of = lru_cache(REMEMBERED_WORDS)(self._number_of)

    def of_document(self, text: str) -> SparseVector:
        """Return the words of a document with BM25's weight of their frequency, rarity not yet counted."""
        return self.model.embed_document(text)

    def of_query(self, text: str) -> SparseVector:
        """Return the words of a query, each with weight 1."""
        return self.model.embed_query(text)

    def spelt(self, text: str) -> dict[int, str]:
        """Return by number how the words of `text` are first spelt there, small."""
        found: dict[int, str] = {}
        for word in WORD.findall(text):
            number = self.number_of(word)
            if number is not None:
                found.setdefault(number, word.lower())
        return found

    def places(self, text: str, numbers: Collection[int]) -> list[tuple[int, int]]:
        """Return where those words stand in `text`, as (start, end) in characters."""
        return [match.span() for match in WORD.finditer(text) if self.number_of(match[0]) in numbers]

    def _number_of(self, word: str) -> int | None:
        numbers = self.model.embed_query(word).indices
        return numbers[0] if numbers else None  # a stop word has none


def average_length(texts: Iterable[str], language: str) -> float:
    """Return the mean number of words, stop words apart; at least 1."""
    counting = _bm25(language, k=1e6, b=0.0)  # so that a word's weight is how often it occurs
    lengths = [sum(counting.embed_document(text).values) for text in texts]
    return max(1.0, sum(lengths) / max(1, len(lengths)))


def check_language(language: str) -> None:
    """Raise `RecipeError` where the engine has no stop words and stemmer for `language`."""
    _bm25(language)


def _bm25(language: str, k: float = 1.2, b: float = 0.75, average_length: float = 256.0) -> Bm25:
    try:
        if language == NO_LANGUAGE:
            plain = Bm25Config(k=k, b=b, avg_len=average_length, stemmer=DisabledStemmer(), stopwords=StopwordsSet())
            return Bm25(plain)
        return Bm25(Bm25Config(k=k, b=b, avg_len=average_length, language=language))
    except ValueError as error:
        raise RecipeError(f"--language is {language!r}: {error}. Name one in English and small letters, or none") from None
