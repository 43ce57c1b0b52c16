"""Vectors of a corpus on disk, made a shard at a time: memory does not grow with the corpus, and a stopped run resumes.

    vectors/
      vectors-00000.parquet   {"place": string, "text": string, "vector": fixed_size_list<float32>}
      card.json               which encoder made them, from what, how many

A shard takes its name when it is complete, so what stands there is finished; the card is written first and names whose
vectors these are, so that no other encoder's are added to them.
"""

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from text2token import steps
from text2token.corpus.documents import Document
from text2token.corpus.published import published_model, published_source
from text2token.engine import Engine, LocalEngine
from text2token.errors import CorpusError, OutputError, reason
from text2token.files import real
from text2token.model.encoder import TextEncoder
from text2token.progress import Progress, Reporter, Silent
from text2token.shards import shards_in, write_shards
from text2token.steps import write_card

CARD, SHARDS = "card.json", "vectors"
ROWS_PER_SHARD = 10_000
SOME = 4  # texts that show whether vectors are a model's
OTHER_TEXTS = "holds vectors of other texts: the input has changed since. Choose another --output, or delete the folder"


@dataclass(frozen=True)
class VectorCard:
    """Whose vectors a folder holds. `rows` is 0 until all are there."""

    model: str
    fingerprint: str
    dimension: int
    sources: tuple[str, ...]
    rows_per_shard: int
    rows: int = 0


def embed_corpus(
    encoder: TextEncoder,
    documents: Iterable[Document],
    folder: Path,
    *,
    sources: tuple[str, ...] = (),
    total: int | None = None,
    rows_per_shard: int = ROWS_PER_SHARD,
    reporter: Reporter | None = None,
    engine: Engine | None = None,
) -> VectorCard:
    """Write the vector of each document's text to `folder`, in their order, and return the card.

    Empty texts are left out. Finished shards are reused, if their texts are the same still; the result is the same as
    without the interruption. `total`, where known, is the number of texts, for the time left. `engine`, where
    set, makes the shards. Raises `OutputError` when the folder holds other vectors or those of other texts, `CorpusError`
    when there is no text.
    """
    reporter = reporter or Silent()
    folder = real(folder)  # a worker stands elsewhere
    encoder = replace(encoder, memory=None)
    texts = (document for document in documents if document.text.strip())
    first = next(texts, None)
    if first is None:
        raise CorpusError("no documents: the input holds no text")
    dimension = encoder([first.text], role="document").shape[1]
    read = tuple(map(published_source, sources))
    card = VectorCard(published_model(encoder.name), encoder.fingerprint, dimension, read, rows_per_shard)
    _check(folder, card, encoder)
    write_card(card, folder / CARD)
    engine = engine or LocalEngine()
    shards = _shards(itertools.chain([first], texts), rows_per_shard)
    table_of, finished = partial(_table_of, encoder), _rows_of_the_same_texts
    with reporter.progress("Embedding", total, "texts") as progress:
        rows = write_shards(folder, SHARDS, shards, table_of, engine, progress, finished=finished, runs_model=True)
    if len(shards_in(folder, SHARDS)) > len(rows):
        raise OutputError(f"{folder}: {OTHER_TEXTS}")
    card = replace(card, rows=sum(rows))
    write_card(card, folder / CARD)
    return card


def read_card(folder: Path) -> VectorCard:
    """Return the card of a folder of vectors, or raise `OutputError` where there is none."""
    return steps.read_card(VectorCard, folder / CARD, OutputError, "vectors", "Make them: text2token embed")


def read_vectors(folder: Path) -> Iterator[pa.RecordBatch]:
    """Yield the rows of all shards in their order, a few thousand at a time."""
    for path in shards_in(folder, SHARDS):
        with _opened(path) as shard:
            yield from shard.iter_batches(4096)


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    """Yield a finished shard to read; `OutputError` where it is damaged."""
    try:
        with pq.ParquetFile(path) as shard:
            yield shard
    except (OSError, pa.ArrowException) as error:
        raise OutputError(f"{path}: cannot be read ({reason(error)}). Delete it; the same command makes it anew") from error


def _check(folder: Path, card: VectorCard, encoder: TextEncoder) -> None:
    if not folder.exists() or all(path.name.startswith(".") for path in folder.iterdir()):
        return
    found = read_card(folder)
    # the texts themselves are compared with those of each shard
    same = replace(found, rows=0, model=card.model, sources=card.sources, fingerprint=card.fingerprint) == card
    if not same or not encoder.made(found.fingerprint, partial(_some, folder)):
        raise OutputError(f"{folder}: holds vectors of another model or corpus ({found.model}, {found.fingerprint})")


def _some(folder: Path) -> tuple[list[str], Tensor]:
    """Return a few texts of a folder of vectors, and their vectors."""
    for batch in read_vectors(folder):
        some = batch.slice(0, SOME)
        vectors = torch.from_numpy(some["vector"].flatten().to_numpy().copy())
        return some["text"].to_pylist(), vectors.reshape(len(some), -1)
    return [], torch.empty(0, 0)


class _Texts(NamedTuple):
    """What a shard will hold, but for the vectors."""

    places: list[str]
    texts: list[str]


def _shards(documents: Iterable[Document], rows: int) -> Iterator[_Texts]:
    remaining = iter(documents)
    while chunk := list(itertools.islice(remaining, rows)):
        yield _Texts([document.place for document in chunk], [document.text for document in chunk])


def _rows_of_the_same_texts(path: Path, shard: _Texts) -> int:
    with _opened(path) as finished:
        texts = finished.read(["text"])["text"].to_pylist()
    if texts != shard.texts:
        raise OutputError(f"{path}: {OTHER_TEXTS}")
    return len(texts)


def _table_of(encoder: TextEncoder, shard: _Texts, progress: Progress) -> pa.Table:
    vectors = encoder(shard.texts, progress, "document")
    columns = {
        "place": pa.array(shard.places, pa.large_string()),
        "text": pa.array(shard.texts, pa.large_string()),
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.numpy().ravel(), pa.float32()), vectors.shape[1]),
    }
    return pa.table(columns)
