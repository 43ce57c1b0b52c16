"""What is served: a model, what reads it, and an index to search in, where there are any.

Everything here blocks and may be called from several threads at once, but for the encoder, which the batcher alone may call.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from text2token.errors import ModelError
from text2token.lens.open import DecodedToken
from text2token.lens.pair import Contributions
from text2token.lens.reader import FOLDER, TokenReader, open_reader
from text2token.model.encoder import TextEncoder, open_encoder, token_counter
from text2token.recipe import DType
from text2token.search import Mode
from text2token.search.explain import explained_by

if TYPE_CHECKING:  # the engine is an extra
    from text2token.search.index import Index
    from text2token.search.query import Hit

READ_AT_ONCE = 32  # texts


@dataclass
class Service:
    """An open model, to be closed; `name` is what clients call it, `dimension` the length of its vectors."""

    name: str
    encoder: TextEncoder
    count_tokens: Callable[[Sequence[str]], list[int]]
    dimension: int
    reader: TokenReader | None = None
    index: "Index | None" = None
    _tokenizer: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def decode(self, texts: Sequence[str], vectors: Tensor, k: int) -> list[list[DecodedToken]]:
        """Return the top `k` decoded tokens of each of `vectors`, shape (texts, dimension), strongest first."""
        reader = self._reader
        with self._tokenizer:  # its settings are changed at every call, which another thread must not see
            there = reader.words_in(texts)
        decoded = [
            row for part in torch.split(vectors, READ_AT_ONCE) for row in reader.words(part, k)
        ]  # a score for every word of all
        return [
            [DecodedToken(one.word, one.weight, one.word in words) for one in row]
            for row, words in zip(decoded, there, strict=True)
        ]

    def pair(self, a: Tensor, b: Tensor, k: int) -> Contributions:
        """Return the words that make two vectors, each shape (dimension,), similar."""
        return self._reader.contributions(a, b, k)

    def search(self, query: str, vector: Tensor, k: int, mode: "Mode", filters: Mapping[str, Sequence[str]]) -> "list[Hit]":
        """Return the `k` best documents; `vector`, shape (dimension,), is the query's. `UsageError` for a bad filter."""
        assert self.index
        return self.index.search(query, k, mode, filters, vector=vector)

    def close(self) -> None:
        """Let others open the index; it cannot be searched any more."""
        index, self.index = self.index, None
        if index:
            index.close()

    @property
    def _reader(self) -> TokenReader:
        assert self.reader
        return self.reader


def open_service(model: str, index: Path | None = None, dtype: DType = "auto") -> Service:
    """Load the embedder `model` (folder, hub id, `pypi:PACKAGE`), the reader beside it, and the `index` made with it.

    The index, which nobody else can open meanwhile, determines the number format of the model; without one it is `dtype`.
    Raises a `Text2TokenError` when something cannot be used, or the index was made with another model.
    """
    opened: Index | None = None
    if index:
        from text2token.search.index import Index as _Index

        opened = _Index.open(index, model)
    try:
        encoder = opened.encoder if opened else replace(open_encoder(model, dtype), memory=None)
        if encoder.model is None:
            raise ModelError(f"{model}: has no tokenizer, so the length of a text is unknown")
        folder = Path(model).expanduser()
        reader = open_reader(folder, encoder) if (folder / FOLDER).is_dir() else None
        if opened and reader:
            opened.explain = explained_by(reader)
        dimension = encoder(["warm"]).shape[1]
    except BaseException:
        if opened:
            opened.close()
        raise
    name = folder.resolve().name if folder.is_dir() else model
    return Service(name, encoder, token_counter(encoder.model), dimension, reader, opened)
