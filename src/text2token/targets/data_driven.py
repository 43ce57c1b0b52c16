"""Data-driven targets: the meaningful tokens of the text itself.

    candidates(x) = unique target tokens among the tokens of x
    q(v | x)      = weight(v) / sum of weight over candidates(x)

The authors' form takes everything but letters and digits and all stop words out of the text, tokenises the rest anew, and
gives all its tokens the same weight, every piece and spelling by itself: `read = "words"`, `weight = "uniform"`. Weights:
inverse document frequency learnt on the corpus, smoothed as in scikit-learn,

    idf(v) = ln((1 + documents) / (1 + documents with v)) + 1

or one.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.sparse import csr_array
from transformers import PreTrainedTokenizerBase

from text2token.engine import Engine
from text2token.errors import UsageError
from text2token.files import atomic_file
from text2token.model.bundle import Backbone
from text2token.progress import Progress
from text2token.recipe import DataDrivenSettings, TargetSettings
from text2token.targets.base import HERE, TEXTS_PER_PART, Passages, chosen, parts_of, text_batches
from text2token.targets.sparse import distributions, largest, record_batch
from text2token.tokens.vocabulary import (
    NOT_A_TARGET,
    TargetVocabulary,
    folded,
    is_of_a_word,
    remember_more_words,
    seen_parts,
    stop_words_of,
    tokenise,
    tokenised_ahead,
)

TEXTS_PER_BATCH = 2048
CANDIDATE_SCHEMA = pa.schema([("text", pa.large_string()), ("token_ids", pa.list_(pa.int32()))])


class DataDrivenTargets:
    """Builds data-driven targets, in scikit-learn's manner: `fit` learns document frequencies, `transform` uses them.

    `max_tokens` is how many tokens of a text the model will see; what it cannot see must not be in a target.
    After `fit`, `document_frequencies_` has shape (vocabulary size,) and `documents_` is their number. While `remember` is a
    folder, `fit` leaves the candidates of each part there, so that `transform` need not tokenise it again.
    """

    name = "data_driven"
    expensive = False

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        vocabulary: TargetVocabulary,
        settings: DataDrivenSettings | None = None,
        max_tokens: int = 256,
    ) -> None:
        self.tokenizer = tokenizer
        self.vocabulary = vocabulary
        self.settings = settings or DataDrivenSettings()
        self.max_tokens = max_tokens
        self.remember: Path | None = None
        self.documents_ = 0
        self.document_frequencies_: NDArray[np.int64] = np.zeros(vocabulary.size, dtype=np.int64)
        self.representatives, self.form_shares = vocabulary.representatives, vocabulary.form_shares
        if self.settings.read == "words":
            self.representatives = np.full((vocabulary.size, 2), NOT_A_TARGET, dtype=np.int32)
            own = np.array(sorted(set(range(vocabulary.size)) - vocabulary.special_ids), dtype=np.int32)
            self.representatives[own, 0] = own
            self.form_shares = np.ones(vocabulary.size, dtype=np.float32)
        self.stop_words = stop_words_of(vocabulary.settings.stop_words)
        self.is_target = np.zeros(vocabulary.size, dtype=np.bool_)
        self.is_target[self.representatives[self.representatives != NOT_A_TARGET]] = True
        remember_more_words(tokenizer)

    def fit(self, texts: Passages, engine: Engine = HERE) -> "DataDrivenTargets":
        """Count in how many texts each target token occurs, part by part, and return self."""
        self.documents_ = 0
        self.document_frequencies_ = np.zeros(self.vocabulary.size, dtype=np.int64)
        parts = ((number * TEXTS_PER_PART, part) for number, part in enumerate(parts_of(texts, TEXTS_PER_PART)))
        for documents, frequencies in engine.map(self._counted, parts):
            self.documents_ += documents
            self.document_frequencies_ += frequencies
        return self

    def transform(
        self, texts: Passages, progress: Progress | None = None, rows: NDArray[np.int64] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Yield the targets of `texts`, or of those `rows` of them, in batches of the store's schema.

        A text without a target token falls back to all its tokens that are not special; one without any is left out.
        """
        weights = self.token_weights() * self.form_shares
        for batch, candidates in self._remembered(rows) or self._found(chosen(texts, rows)):
            yield record_batch(batch, self._rows(candidates, weights))
            if progress:
                progress(len(batch))

    def rows(self, texts: Sequence[str]) -> csr_array:
        """Return the targets of `texts` as a sparse matrix, shape (texts, vocabulary size), each row summing to 1."""
        candidates = self._candidates(self._token_ids(texts))
        return distributions(self._rows(candidates, self.token_weights() * self.form_shares))

    def token_weights(self) -> NDArray[np.float32]:
        """Return the unnormalised weight of every token id, shape (vocabulary size,)."""
        if self.settings.weight == "uniform":
            return np.ones(self.vocabulary.size, dtype=np.float32)
        if not self.documents_:
            raise UsageError("idf weights need document frequencies: call fit first, or choose uniform")
        idf: NDArray[np.float64] = np.log((1 + self.documents_) / (1 + self.document_frequencies_)) + 1
        return idf.astype(np.float32)

    def describe(self) -> dict[str, Any]:
        """Return the settings and what was learnt, for the card."""
        return {**asdict(self.settings), "max_tokens": self.max_tokens, "fitted_on": self.documents_}

    def _counted(self, part: tuple[int, Passages], progress: Progress) -> tuple[int, NDArray[np.int64]]:
        """Return how many texts the part has and in how many of them each target token occurs, shape (vocabulary size,)."""
        first, texts = part
        documents, frequencies = 0, np.zeros(self.vocabulary.size, dtype=np.int64)
        with _writing(self.remember / _candidate_file(first) if self.remember else None) as write:
            for batch, candidates in self._found(texts):
                write(batch, candidates)
                ids = candidates.ids[self.is_target[candidates.ids]]  # tokens that a text falls back to are none
                frequencies += np.bincount(ids, minlength=self.vocabulary.size)
                documents += len(batch)
                progress(len(batch))
        return documents, frequencies

    def _found(self, texts: Passages) -> Iterator[tuple[Sequence[str], "_Candidates"]]:
        """Yield the texts in batches, with their candidates."""
        batches = text_batches(texts, TEXTS_PER_BATCH)
        if self.settings.read == "tokens":
            tokenised = tokenised_ahead(self.tokenizer, batches)
        else:
            tokenised = ((batch, self._token_ids(batch)) for batch in batches)
        return ((batch, self._candidates(token_ids)) for batch, token_ids in tokenised)

    def _remembered(self, rows: NDArray[np.int64] | None) -> Iterator[tuple[pa.Array, "_Candidates"]] | None:
        """Return what `fit` left of the part that `rows` are; None where it left nothing."""
        if self.remember is None or rows is None:
            return None
        path = self.remember / _candidate_file(int(rows[0]))
        return _reading(path) if path.exists() else None

    def _token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each text from which its candidates are taken."""
        if self.settings.read == "words":
            texts = [self._words(text) or text for text in seen_parts(self.tokenizer, texts, self.max_tokens)]
        return tokenise(self.tokenizer, texts)

    def _words(self, text: str) -> str:
        """Return the text without stop words and what is no letter or digit."""
        return " ".join(word for word in text.translate(_APART).split() if folded(word) not in self.stop_words)

    def _candidates(self, token_ids: list[list[int]]) -> "_Candidates":
        token_ids = [ids[: self.max_tokens] for ids in token_ids]
        lengths = [len(ids) for ids in token_ids]
        flat = np.fromiter(chain.from_iterable(token_ids), dtype=np.int64, count=sum(lengths))
        represented = self.representatives[flat]  # (tokens, 2)
        keys = np.repeat(np.arange(len(token_ids)) * self.vocabulary.size, lengths)[:, None] + represented
        keys = np.sort(keys[represented != NOT_A_TARGET])
        keys = keys[np.diff(keys, prepend=-1) > 0]  # several times as fast as np.unique
        counts = np.bincount(keys // self.vocabulary.size, minlength=len(token_ids))
        for row in np.flatnonzero(counts == 0):
            others = sorted(set(token_ids[row]) - self.vocabulary.special_ids)
            keys = np.concatenate([keys, row * self.vocabulary.size + np.array(others, dtype=np.int64)])
            counts[row] = len(others)
        bounds = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        return _Candidates(bounds, (np.sort(keys) % self.vocabulary.size).astype(np.int32))

    def _rows(self, candidates: "_Candidates", weights: NDArray[Any]) -> csr_array:
        shape = (len(candidates.bounds) - 1, self.vocabulary.size)
        rows = csr_array((weights[candidates.ids].astype(np.float64), candidates.ids, candidates.bounds), shape=shape)
        return largest(rows, self.settings.top_k)


class _Apart(dict[int, str]):
    """What `str.translate` makes of each character: a space of what is of no word."""

    def __missing__(self, code: int) -> str:
        self[code] = chr(code) if is_of_a_word(chr(code)) else " "
        return self[code]


_APART = _Apart()


class _Candidates(NamedTuple):
    """Target tokens of a batch of texts: those of text i are `ids[bounds[i]:bounds[i + 1]]`, ascending."""

    bounds: NDArray[np.int32]
    ids: NDArray[np.int32]


def _candidate_file(first_row: int) -> str:
    return f"candidates-{first_row}.arrow"


def _reading(path: Path) -> Iterator[tuple[pa.Array, _Candidates]]:
    with pa.OSFile(str(path)) as file:  # a memory map would count as large as the corpus
        for batch in pa.ipc.open_stream(file):
            lists = batch["token_ids"]
            yield batch["text"], _Candidates(lists.offsets.to_numpy(), lists.values.to_numpy())


@contextmanager
def _writing(path: Path | None) -> Iterator[Callable[[Sequence[str], _Candidates], None]]:
    """Yield what writes texts and their candidates to `path`, or, without one, does nothing."""
    if path is None:
        yield lambda texts, candidates: None
        return
    with (
        atomic_file(path) as unfinished,
        pa.OSFile(str(unfinished), "wb") as file,
        pa.ipc.new_stream(file, CANDIDATE_SCHEMA) as stream,
    ):

        def write(texts: Sequence[str], candidates: _Candidates) -> None:
            lists = pa.ListArray.from_arrays(candidates.bounds, candidates.ids)
            stream.write_batch(pa.record_batch([pa.array(texts, pa.large_string()), lists], schema=CANDIDATE_SCHEMA))

        yield write


def build(backbone: Backbone, settings: TargetSettings) -> DataDrivenTargets:
    """Return the constructor of the text's meaningful tokens."""
    return DataDrivenTargets(backbone.tokenizer, backbone.vocabulary, settings.data_driven, max_tokens=backbone.room)
