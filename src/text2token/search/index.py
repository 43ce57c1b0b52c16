"""Documents with dense and sparse vectors in one folder: fill it, search it, and every hit has its reasons."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from text2token.corpus.documents import Document
from text2token.corpus.readers import BrokenLines, left_out
from text2token.errors import OutputError
from text2token.model.backbone import resolve_dtype
from text2token.model.encoder import TextEncoder, open_encoder
from text2token.progress import Reporter, Silent
from text2token.recipe import DType
from text2token.search import LANGUAGE, Mode
from text2token.search.explain import DenseExplanation, explanation_beside
from text2token.search.fill import Filled, fill, first_texts
from text2token.search.query import Hit, checked_query, find
from text2token.search.records import Filters
from text2token.search.store import (
    WAIT_TO_READ,
    WAIT_TO_WRITE,
    IndexCard,
    Store,
    check_room,
    engine_name,
    is_foreign,
    is_index,
    read_card,
)
from text2token.search.words import LATEST_RULE, Words, average_length, check_language


@dataclass
class Index:
    """An open index; nobody else can open it until it is closed. Use it in a `with` block.

    `explain` decomposes a dense score; where it is None, the reader beside the model does, if there is one. An
    index that may not be written is searched in a temporary copy.
    """

    store: Store
    words: Words
    explain: DenseExplanation | None = None
    _encoder: TextEncoder | None = field(default=None, repr=False)
    _reader_was_looked_for: bool = field(default=False, repr=False)

    @classmethod
    def open(cls, folder: Path | str, model: str | None = None, explain: DenseExplanation | None = None) -> "Index":
        """Open an index to search in it or to add to it; its model is loaded when it is first needed.

        `model` is where the model is now, if it has been moved. Raises `OutputError` where there is no index, or another
        process has it open, and at the first use where the model is another.
        """
        folder = Path(folder)
        card = read_card(folder)
        return cls._opened(folder, replace(card, model=model or card.model), WAIT_TO_READ, explain)

    @classmethod
    def create(
        cls,
        folder: Path,
        model: str,
        texts: Sequence[str],
        language: str = LANGUAGE,
        encoder: TextEncoder | None = None,
    ) -> "Index":
        """Make an empty index for the embedder `model`, or open the one that is there; `texts` show how long they are.

        `encoder` is the model, where it is loaded already. Raises `OutputError` where the folder holds anything else,
        vectors of another model, or another language's words.
        """
        foreign = is_foreign(folder)
        if is_index(folder):
            card = replace(read_card(folder), model=lasting(model))
            if card.language != language:
                raise OutputError(
                    f"{folder}: its words are {card.language}, not {language}. Keep to it, or choose another --store"
                )
            index = cls._opened(folder, card, WAIT_TO_WRITE)
            try:
                index._use(encoder or open_encoder(card.model, card.dtype))  # to know at once whether it is the same model
            except BaseException:
                index.close()
                raise
            return index
        if foreign:
            raise OutputError(f"{folder}: exists and is no index. Choose another --store")
        check_language(language)
        encoder = encoder or open_encoder(model, usual_dtype())
        check_room(folder)
        card = IndexCard(
            model=lasting(model),
            fingerprint=encoder.fingerprint,
            dtype=usual_dtype(),
            dimension=encoder(texts[:1], role="document").shape[1],
            language=language,
            average_length=average_length(texts, language),
            engine=engine_name(),
            word_rule=LATEST_RULE,
        )
        index = cls._opened(folder, card, WAIT_TO_WRITE)
        index._encoder = encoder
        return index

    @classmethod
    def _opened(cls, folder: Path, card: IndexCard, wait: float, explain: DenseExplanation | None = None) -> "Index":
        words = Words(card.language, card.average_length, card.word_rule)
        return cls(Store.open(folder, card, wait), words, explain)

    def close(self) -> None:
        """Write everything and let others open it."""
        self.store.close()

    def __enter__(self) -> "Index":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def folder(self) -> Path:
        """Where the index is."""
        return self.store.folder

    @property
    def card(self) -> IndexCard:
        """What the index was made with."""
        return self.store.card

    @property
    def encoder(self) -> TextEncoder:
        """The model of the card, loaded at the first use; `OutputError` where it has become another."""
        return self._encoder or self._use(open_encoder(self.card.model, self.card.dtype))

    def _use(self, encoder: TextEncoder) -> TextEncoder:
        if not encoder.made(self.card.fingerprint, self.store.some):
            raise OutputError(
                f"{self.folder}: holds vectors of another model ({self.card.fingerprint}) than {self.card.model} now is "
                f"({encoder.fingerprint}). Use that model, or choose another --store"
            )
        self._encoder = replace(encoder, memory=None)
        self.store.card = replace(self.card, fingerprint=encoder.fingerprint)
        return self._encoder

    @property
    def count(self) -> int:
        """The number of documents."""
        return self.store.count

    def has_field(self, name: str) -> bool:
        """Return whether a document has a field of this name."""
        return self.store.has_field(name)

    def add(
        self,
        documents: Iterable[Document],
        *,
        prune: bool = False,
        total: int | None = None,
        reporter: Reporter | None = None,
    ) -> Filled:
        """Add the documents that are not there yet; with `prune`, remove those that are not among `documents`.

        Of documents with the same normalised text the first counts. One that is there, but with another place or other
        fields, gets the new ones and is not embedded again. Where their reader left something out, what was not read is not
        taken for gone, and prune ends in a `CorpusError`, after all else is done. `total`, where known, is the number of
        documents, for the time left.
        """
        reporter = reporter or Silent()
        return self._add(documents, left_out(documents), prune=prune, total=total, reporter=reporter)

    def _add(
        self, documents: Iterable[Document], broken: BrokenLines, *, prune: bool, total: int | None, reporter: Reporter
    ) -> Filled:
        store, words, encoder = self.store, self.words, self.encoder
        return fill(store, words, encoder, documents, prune=prune, broken=broken, total=total, reporter=reporter)

    def search(
        self,
        query: str,
        k: int = 10,
        mode: Mode = "hybrid",
        filters: Filters | None = None,
        *,
        vector: Tensor | None = None,
    ) -> list[Hit]:
        """Return the `k` best documents, best first.

        "dense" ranks by meaning, "sparse" by words (BM25), "hybrid" by the sum of both scores, each on the scale of the
        best hundred of its half (mean ± 3 standard deviations), which keeps more of the better half than their ranks do
        (docs/searching.md). Of the query's words the first 256 that count are searched. `filters`: a document must have
        one of the values of every field named; they are compared as text, whole numbers and truth values however they
        are spelt (1, 1.0, "1"), lists by each of their elements. `vector`, shape (dimension,), is the query's embedding
        where the caller has it already. Raises `UsageError` for a mode or field that there is not.
        """
        query = checked_query(query, k, mode)
        condition = self.store.condition(filters or {})
        embedded = self.encoder([query], role="query")[0] if vector is None else vector
        if self.explain is None and not self._reader_was_looked_for:
            self.explain, self._reader_was_looked_for = explanation_beside(self.card.model, self.encoder), True
        return find(self.store, self.words, query, embedded.numpy(), self.explain, k, mode, condition)


def fill_index(
    folder: Path | str,
    model: str,
    documents: Iterable[Document],
    *,
    language: str = LANGUAGE,
    prune: bool = False,
    total: int | None = None,
    reporter: Reporter | None = None,
) -> Filled:
    """Make the index in `folder`, or bring it up to date; the same call resumes after an interruption.

    `model` is an embedder's folder, hub id or `pypi:PACKAGE`; the rest is as in `Index.add`. Raises a `Text2TokenError` for
    anything a user can mend: no text, another model's index, another process at it.
    """
    texts, remaining = first_texts(documents)
    with Index.create(Path(folder), model, texts, language) as index:
        return index._add(remaining, left_out(documents), prune=prune, total=total, reporter=reporter or Silent())


def usual_dtype() -> DType:
    """Return the number format that an index is made in on this machine."""
    return "float32" if resolve_dtype("auto") == torch.float32 else "bfloat16"


def lasting(place: str) -> str:
    """Return the absolute path of a folder or file, and other names unchanged."""
    return str(Path(place).resolve()) if Path(place).exists() else place
