"""The sparse half of an index: BM25 over words, weighed by the engine that keeps the vectors.

We cut the words, so that what is found, counted and marked in a text is one thing; the engine stems, weighs and hashes them.
A word is a dimension, whose number is the hash of its stem; the engine weighs it by how rare it is among the documents it
holds at the moment. The average length moves: BM25 compares every document with it, and the engine's 256 words for
any corpus cost two points of nDCG@10 on short abstracts (docs/searching.md), so it is measured on the first documents
and kept.
"""

import itertools
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from functools import lru_cache
from typing import Any

import regex
from qdrant_edge import Bm25, Bm25Config, DisabledStemmer, SparseVector, StopwordsSet, TokenizerType

from text2token.errors import UsageError

NO_LANGUAGE = "none"
REMEMBERED_WORDS = 100_000
QUERY_WORDS = 256  # of a query, the first ones, are searched: the client must not choose what a search costs
MARKED_CHARACTERS = 100_000  # of a text are searched for words to mark
# Scripts whose words no space divides, and Korean, whose particles none divides from the noun: their words are cut to pairs.
UNSPACED = (
    r"[[\p{scx=Han}\p{scx=Hira}\p{scx=Kana}\p{scx=Bopo}\p{scx=Hang}\p{scx=Thai}\p{scx=Laoo}\p{scx=Khmr}\p{scx=Mymr}]"
    r"&&[\p{Alphabetic}\p{N}]]"
)
SIGNS = r"[\p{M}\uFF9E\uFF9F]"  # with those of half-width kana, which are letters to Unicode
SOFT_HYPHEN = "\u00ad"  # where a word may be broken, shown only there
CHARACTER = regex.compile(rf"(?V1){UNSPACED}{SIGNS}*")
LATEST_RULE = 2
RULES = {  # how words are cut, by the number that the card of an index has
    1: regex.compile(r"[\p{Alphabetic}\p{N}]+"),  # as the engine does, which breaks many words at the signs in them
    LATEST_RULE: regex.compile(
        rf"(?V1)(?P<run>(?:{UNSPACED}\p{{M}}*)+)|"
        rf"[[\p{{Alphabetic}}\p{{N}}]--{UNSPACED}][[\p{{Alphabetic}}\p{{N}}\p{{M}}{SOFT_HYPHEN}]--{UNSPACED}]*"
    ),
}


class Words:
    """Texts to weighted words. `language` chooses stop words and stemmer ("english", …; "none" for neither)."""

    def __init__(self, language: str, average_length: float, rule: int = LATEST_RULE) -> None:
        self.model = _bm25(language, average_length=average_length)
        self.rule = RULES[rule]
        self.plain = _plain if rule > 1 else str
        self.number_of = lru_cache(REMEMBERED_WORDS)(self._number_of)

    def of_document(self, text: str) -> SparseVector:
        """Return the words of a document with BM25's weight of their frequency, rarity not yet counted."""
        return self.model.embed_document(" ".join(self.plain(text[start:end]) for start, end in self._pieces(text)))

    def of_query(self, text: str) -> dict[int, str]:
        """Return by number how the words of a query are first spelt there, small; of the first `QUERY_WORDS` that count."""
        found: dict[int, str] = {}
        for start, end in self._pieces(text, of_query=True):
            number = self.number_of(text[start:end])
            if number is not None:
                found.setdefault(number, text[start:end].lower())
            if len(found) == QUERY_WORDS:
                break
        return found

    def places(self, text: str, numbers: Collection[int]) -> list[tuple[int, int]]:
        """Return where those words stand in `text`, as (start, end) in characters; what overlaps is one place."""
        found = (place for place in self._pieces(text[:MARKED_CHARACTERS]) if self.number_of(text[slice(*place)]) in numbers)
        places: list[tuple[int, int]] = []
        for start, end in sorted(found):
            if places and start < places[-1][1]:
                places[-1] = places[-1][0], max(end, places[-1][1])
            else:
                places.append((start, end))
        return places

    def _pieces(self, text: str, *, of_query: bool = False) -> Iterator[tuple[int, int]]:
        """Yield where words stand. Of a run of a script without spaces these are its characters and the pairs of them; of a
        query's run the pairs alone, where it has any.
        """
        for match in self.rule.finditer(text):
            if match.lastgroup != "run":
                yield match.span()
                continue
            characters = [character.span() for character in CHARACTER.finditer(text, *match.span())]
            if not of_query or len(characters) == 1:
                yield from characters
            yield from ((first, end) for (first, _), (_, end) in itertools.pairwise(characters))

    def _number_of(self, word: str) -> int | None:
        numbers = self.model.embed_query(self.plain(word)).indices
        return numbers[0] if numbers else None  # a stop word has none


def _plain(word: str) -> str:
    """Return the word in its usual letters: no ligatures, no full-width or half-width ones, no soft hyphens, no space."""
    if word.isascii():
        return word
    return "".join(unicodedata.normalize("NFKC", word).replace(SOFT_HYPHEN, "").split())


def average_length(texts: Iterable[str], language: str) -> float:
    """Return the mean number of words, stop words apart; at least 1."""
    words = Words(language, 1.0)
    words.model = _bm25(language, k=1e6, b=0.0)  # so that a word's weight is how often it occurs
    lengths = [sum(words.of_document(text).values) for text in texts]
    return max(1.0, sum(lengths) / max(1, len(lengths)))


def check_language(language: str) -> None:
    """Raise `UsageError` where the engine has no stop words and stemmer for `language`."""
    _bm25(language)


def _bm25(language: str, k: float = 1.2, b: float = 0.75, average_length: float = 256.0) -> Bm25:
    """Return the engine's model, which takes what stands between spaces for a word."""
    given: dict[str, Any] = {"k": k, "b": b, "avg_len": average_length, "tokenizer": TokenizerType.Whitespace}
    try:
        if language == NO_LANGUAGE:
            return Bm25(Bm25Config(**given, stemmer=DisabledStemmer(), stopwords=StopwordsSet()))
        return Bm25(Bm25Config(**given, language=language))
    except ValueError:
        raise UsageError(
            f"--language is {language!r}, of which no stop words and stems are known. Name one in English and small letters "
            "(german), or none, with which words of every language are found as they are spelt"
        ) from None
