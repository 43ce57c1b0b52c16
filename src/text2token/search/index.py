"""Documents in an embedded engine (Qdrant's, inside the process): dense and sparse vectors, and every hit with its reasons.

    index/
      card.json   which model, which engine, how words are counted
      shard/      the engine's files
      lock        held by whoever has the index open

A document is known by the hash of its text: what is there already is not embedded again, so filling goes on after any
interruption, and the same command twice changes nothing. Two traps. A second process that merely tries to open the engine's
folder damages it for the first (seen with qdrant-edge 0.9), so our own lock is taken before the engine is touched. And the
engine compares numbers, truth values and strings each in its own way, so what filters ask for is kept as text.
"""

import errno
import hashlib
import importlib.metadata
import itertools
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import filelock
import numpy as np
import qdrant_edge as engine
from numpy.typing import NDArray
from torch import Tensor

from text2token.backbone import resolve_dtype
from text2token.corpus.documents import Document
from text2token.encoder import TextEncoder, open_encoder
from text2token.errors import CorpusError, OutputError, RecipeError, Text2TokenError
from text2token.files import atomic_file, atomic_folder, free_bytes, tidy, writing
from text2token.reporter import Reporter, Silent
from text2token.search.explain import DenseExplanation, Reason, dense_reasons, explanation_beside, shared_words
from text2token.search.words import Words, average_length, check_language

Mode = Literal["dense", "sparse", "hybrid"]
MODES: tuple[Mode, ...] = ("dense", "sparse", "hybrid")

CARD, SHARD, LOCK = "card.json", "shard", "lock"
PACKAGE = "qdrant-edge-py"
FORMAT = 1
ROOM = 64 << 20  # bytes that must be free: the engine maps its files into memory, and a full disk would end the process
BATCH = 256  # documents between two moments that a killed run can go on from
DENSE, SPARSE = "dense", "words"
CANDIDATES = 100  # of each half, before they are fused
WAIT_TO_READ, WAIT_TO_WRITE = 10.0, 0.0  # seconds
LONGEST_FILTER = 200  # characters of a value that can be filtered by


@dataclass(frozen=True)
class IndexCard:
    """What an index was made with. `fields` are the names of all fields that its documents have, sorted."""

    model: str
    fingerprint: str
    dtype: str
    dimension: int
    language: str
    average_length: float
    engine: str
    fields: tuple[str, ...] = ()
    documents: int = 0
    format: int = FORMAT


@dataclass(frozen=True)
class Filled:
    """What one filling did, in documents. `duplicates` had the text of another of the same filling."""

    added: int
    unchanged: int
    updated: int
    duplicates: int
    empty: int
    removed: int
    total: int

    def sentence(self) -> str:
        """Return it as one line for people, zeros left out."""
        parts = {
            "added": self.added,
            "there already": self.unchanged,
            "with new fields or place": self.updated,
            "duplicate": self.duplicates,
            "empty": self.empty,
            "removed": self.removed,
        }
        said = ", ".join(f"{count:,} {what}" for what, count in parts.items() if count)
        return f"{self.total:,} documents" + (f" ({said})" if said else "")


@dataclass(frozen=True)
class Hit:
    """A found document, with all that a page needs to show it.

    `score` ranks: the cosine, the BM25 score, or the sum of both on one scale, by the mode. `dense` (the cosine) and
    `sparse` (BM25; 0 where no word is shared) are given in every mode. `reasons` are the strongest first within a half; of
    those of "sparse" the sum is `sparse`. `highlights` are where words of the query stand in `text`, as (start, end).
    """

    id: str
    score: float
    dense: float
    sparse: float
    text: str
    place: str
    fields: Mapping[str, Any]
    reasons: Sequence[Reason]
    highlights: Sequence[tuple[int, int]]


@dataclass
class Index:
    """An open index; nobody else can open it until it is closed. Use it in a `with` block.

    `explain` says what a dense score is made of; where it is None, the reader beside the model does, if there is one.
    """

    folder: Path
    card: IndexCard
    words: Words
    shard: "engine.EdgeShard"
    lock: filelock.BaseFileLock
    explain: DenseExplanation | None = None
    _encoder: TextEncoder | None = field(default=None, repr=False)
    _encoder_is_read: bool = field(default=False, repr=False)  # whether a reader has been looked for

    @classmethod
    def open(cls, folder: Path, model: str | None = None, explain: DenseExplanation | None = None) -> "Index":
        """Open an index to search in it or to add to it; its model is loaded when it is first needed.

        `model` says where the model is now, if it has been moved. Raises `OutputError` where there is no index, or another
        process has it open, and at the first use where the model is another.
        """
        card = read_card(folder)
        return cls._opened(folder, replace(card, model=model or card.model), WAIT_TO_READ, explain)

    @classmethod
    def create(cls, folder: Path, model: str, texts: Sequence[str], language: str = "english") -> "Index":
        """Make an empty index for the embedder `model`, or open the one that is there; `texts` show how long they are.

        Raises `OutputError` where the folder holds anything else, vectors of another model, or another language's words.
        """
        if (folder / CARD).exists():
            card = replace(read_card(folder), model=_lasting(model))
            if card.language != language:
                raise OutputError(
                    f"{folder}: its words are {card.language}, not {language}. Keep to it, or choose another --store"
                )
            index = cls._opened(folder, card, WAIT_TO_WRITE)
            try:
                index.encoder  # noqa: B018 — to know at once whether it is the same model
            except BaseException:
                index.close()
                raise
            return index
        if folder.is_file() or (
            folder.is_dir() and any(path.name != LOCK and path.name[0] != "." for path in folder.iterdir())
        ):
            raise OutputError(f"{folder}: exists and is no index. Choose another --store")
        check_language(language)
        dtype = str(resolve_dtype("auto")).removeprefix("torch.")
        encoder = open_encoder(model, dtype)
        _check_room(folder)
        card = IndexCard(
            model=_lasting(model),
            fingerprint=encoder.fingerprint,
            dtype=dtype,
            dimension=encoder(texts[:1]).shape[1],
            language=language,
            average_length=average_length(texts, language),
            engine=f"{PACKAGE} {importlib.metadata.version(PACKAGE)}",
        )
        index = cls._opened(folder, card, WAIT_TO_WRITE)
        index._encoder = encoder
        return index

    @classmethod
    def _opened(cls, folder: Path, card: IndexCard, wait: float, explain: DenseExplanation | None = None) -> "Index":
        lock = filelock.FileLock(folder / LOCK, timeout=wait)
        try:
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
                (folder / LOCK).touch()
            lock.acquire()
        except filelock.Timeout:
            raise OutputError(f"{folder}: another process has the index open. Wait until it has finished") from None
        try:
            tidy(folder)
            if not (folder / CARD).exists():
                _write_card(folder, card)
            shard = _open_shard(folder / SHARD, card)
        except BaseException:
            lock.release()
            raise
        return cls(folder, card, Words(card.language, card.average_length), shard, lock, explain)

    def close(self) -> None:
        """Write everything and let others open it."""
        try:
            self.shard.flush()
            self.shard.close()
        finally:
            self.lock.release()

    def __enter__(self) -> "Index":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def encoder(self) -> TextEncoder:
        """The model of the card, loaded at the first use; `OutputError` where it has become another."""
        if self._encoder is None:
            encoder = open_encoder(self.card.model, self.card.dtype)
            if encoder.fingerprint != self.card.fingerprint:
                raise OutputError(
                    f"{self.folder}: holds vectors of another model ({self.card.fingerprint}) than {self.card.model} now is "
                    f"({encoder.fingerprint}). Use that model, or choose another --store"
                )
            self._encoder = replace(encoder, memory=None)
        return self._encoder

    @property
    def count(self) -> int:
        """The number of documents."""
        return int(self.shard.count(engine.CountRequest()))

    def add(
        self,
        documents: Iterable[Document],
        *,
        prune: bool = False,
        total: int | None = None,
        reporter: Reporter | None = None,
    ) -> Filled:
        """Add the documents that are not there yet; with `prune`, remove those that are not among `documents`.

        Of documents with the same text the first counts. One that is there, but with another place or other fields, gets the
        new ones and is not embedded again. `total`, where known, is their number, for the time left.
        """
        reporter = reporter or Silent()
        encoder = self.encoder
        counts = dict.fromkeys(("added", "unchanged", "updated", "duplicates", "empty", "removed"), 0)
        seen: set[str] = set()
        names = set(self.card.fields)
        with writing(self.folder), reporter.progress("Indexing", total, "documents") as progress:
            for batch in _batches(documents, BATCH):
                _check_room(self.folder)
                wanted: dict[str, Document] = {}
                for document in batch:
                    text = _clean(document.text)
                    number = _identity(text)
                    if not text.strip():
                        counts["empty"] += 1
                    elif number in seen:
                        counts["duplicates"] += 1
                    else:
                        seen.add(number)
                        wanted[number] = document
                payloads = {number: _payload(document) for number, document in wanted.items()}
                known = {str(found.id): found.payload for found in self.shard.retrieve(list(wanted), True, False)}
                new = [number for number in wanted if number not in known]
                changed = [number for number in known if known[number] != payloads[number]]
                names.update(*(payloads[number]["fields"] for number in [*new, *changed]))
                self._store(new, payloads, encoder)
                for number in changed:
                    self.shard.update(engine.UpdateOperation.overwrite_payload([number], payloads[number]))
                counts["added"] += len(new)
                counts["updated"] += len(changed)
                counts["unchanged"] += len(known) - len(changed)
                progress(len(batch))
            if not seen:
                raise CorpusError("no documents: the input holds no text")
            if prune:
                counts["removed"] = self._remove_all_but(seen)
            reporter.note("Arranging the index …")
            if counts["added"] or counts["updated"] or counts["removed"]:  # then all of it may be written anew
                _check_room(self.folder, _bytes_on_disk(self.folder / SHARD))
            self.shard.optimize()
            self.shard.flush()
            self.card = replace(self.card, documents=self.count, fields=tuple(sorted(names)))
            _write_card(self.folder, self.card)
        return Filled(**counts, total=self.card.documents)

    def search(
        self,
        query: str,
        k: int = 10,
        mode: Mode = "hybrid",
        filters: Mapping[str, Sequence[str]] | None = None,
        *,
        vector: Tensor | None = None,
    ) -> list[Hit]:
        """Return the `k` best documents, best first.

        "dense" ranks by meaning, "sparse" by words (BM25), "hybrid" by the sum of both scores, each on the scale of the
        best hundred of its half (mean ± 3 standard deviations), which keeps more of the better half than their ranks do
        (docs/searching.md). `filters`: a document must have one of the values of every field named; they are compared as
        text, lists by each of their elements. `vector`, shape (dimension,), is the query's embedding where the caller has
        it already. Raises `RecipeError` for a mode or field that there is not.
        """
        if mode not in MODES:
            raise RecipeError(f"mode is {mode!r}; choose {', '.join(MODES)}")
        query = _clean(query)
        if not query.strip():
            raise RecipeError("the query is empty; say what to look for")
        condition = self._condition(filters or {})
        words = self.words.of_query(query)
        asked: NDArray[np.float32] = (self.encoder([query])[0] if vector is None else vector).numpy()
        if self.explain is None and not self._encoder_is_read:
            self.explain, self._encoder_is_read = explanation_beside(self.card.model, self.encoder), True
        halves = {DENSE: engine.Query.Nearest(asked.tolist(), using=DENSE)}
        if words.indices:
            halves[SPARSE] = engine.Query.Nearest(words, using=SPARSE)
        if mode == "sparse" and SPARSE not in halves:
            return []
        if mode == "hybrid":
            fused = [engine.Prefetch(limit=max(CANDIDATES, k), query=half, filter=condition) for half in halves.values()]
            summed: Any = engine.Fusion.Dbsf()  # which the engine's stubs do not count among its queries
            request = engine.QueryRequest(limit=k, prefetches=fused, query=summed, with_payload=True, with_vector=True)
        else:
            ranked = halves[DENSE if mode == "dense" else SPARSE]
            request = engine.QueryRequest(limit=k, query=ranked, filter=condition, with_payload=True, with_vector=True)
        found = self.shard.query(request)
        spelt = {number: word for number, word in self.words.spelt(query).items() if number in set(words.indices)}
        rarity = self._rarity(words.indices)
        stored: list[Any] = [point.vector for point in found]
        dense = np.array([vectors[DENSE] for vectors in stored], dtype=np.float32).reshape(len(stored), len(asked))
        reasons = dense_reasons(self.explain, asked, dense)
        cosines = dense @ asked / max(1e-12, float(np.linalg.norm(asked)))
        return [
            self._hit(point, cosine, spelt, rarity, by_meaning)
            for point, cosine, by_meaning in zip(found, cosines.tolist(), reasons, strict=True)
        ]

    def _hit(
        self,
        point: "engine.ScoredPoint",
        cosine: float,
        spelt: dict[int, str],
        rarity: dict[int, float],
        by_meaning: Sequence[Reason],
    ) -> Hit:
        vectors: Any = point.vector
        payload: Any = point.payload
        weights = dict(zip(vectors[SPARSE].indices, vectors[SPARSE].values, strict=True))
        shared = shared_words(spelt, weights, rarity)
        return Hit(
            id=str(point.id),
            score=point.score,
            dense=cosine,
            sparse=sum(reason.contribution for reason in shared),
            text=payload["text"],
            place=payload["place"],
            fields=payload["fields"],
            reasons=[*shared, *by_meaning],
            highlights=self.words.places(payload["text"], spelt.keys() & weights.keys()),
        )

    def _rarity(self, numbers: Sequence[int]) -> dict[int, float]:
        """Return the inverse document frequency of each word, as the engine has it at the moment.

        The engine does not tell, but the score of a query of one word is rarity · weight in the document.
        """
        rarity = {}
        for number in numbers:
            alone = engine.Query.Nearest(engine.SparseVector([number], [1.0]), using=SPARSE)
            best: Any = self.shard.query(engine.QueryRequest(limit=1, query=alone, with_vector=[SPARSE]))
            if best:
                vector = best[0].vector[SPARSE]
                rarity[number] = best[0].score / dict(zip(vector.indices, vector.values, strict=True))[number]
        return rarity

    def _store(self, numbers: Sequence[str], payloads: Mapping[str, dict[str, Any]], encoder: TextEncoder) -> None:
        if not numbers:
            return
        texts = [payloads[number]["text"] for number in numbers]
        points = [
            engine.Point(
                id=number,
                vector={DENSE: vector.tolist(), SPARSE: self.words.of_document(text)},
                payload=payloads[number],
            )
            for number, text, vector in zip(numbers, texts, encoder(texts), strict=True)
        ]
        self.shard.update(engine.UpdateOperation.upsert_points(points))

    def _remove_all_but(self, kept: set[str]) -> int:
        gone = [number for number in self._identities() if number not in kept]
        for batch in _batches(gone, 1000):
            self.shard.update(engine.UpdateOperation.delete_points(list(batch)))
        return len(gone)

    def _identities(self) -> Iterator[str]:
        offset: Any = None
        while True:
            records, offset = self.shard.scroll(
                engine.ScrollRequest(offset=offset, limit=1000, with_payload=False, with_vector=False)
            )
            yield from (str(record.id) for record in records)
            if offset is None:
                return

    def _condition(self, filters: Mapping[str, Sequence[str]]) -> "engine.Filter | None":
        for name in filters:
            if name not in self.card.fields:
                there = ", ".join(self.card.fields) or "none"
                raise RecipeError(f"no document has a field {name!r}; there are: {there}")
        must: list[Any] = [
            engine.FieldCondition(key="facets", match=engine.MatchAny([f"{name}={value}" for value in values]))
            for name, values in filters.items()
        ]
        return engine.Filter(must=must) if must else None


def read_card(folder: Path) -> IndexCard:
    """Return the card of an index, or raise `OutputError` where there is none."""
    try:
        content = json.loads((folder / CARD).read_text())
        card = IndexCard(**{**content, "fields": tuple(content["fields"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise OutputError(
            f"{folder}: holds no index that can be read ({error}). Make one: text2token index MODEL FILES --store {folder}"
        ) from None
    if card.format != FORMAT:
        raise OutputError(f"{folder}: is an index of format {card.format}; this version reads {FORMAT}. Make it anew")
    return card


def fill_index(
    folder: Path,
    model: str,
    documents: Iterable[Document],
    *,
    language: str = "english",
    prune: bool = False,
    total: int | None = None,
    reporter: Reporter | None = None,
) -> Filled:
    """Make the index in `folder`, or bring it up to date; the same call goes on after an interruption.

    `model` is an embedder's folder, hub id or `pypi:PACKAGE`. Raises a `Text2TokenError` for anything a user can mend: no
    text, another model's index, another process at it.
    """
    remaining, first, texts = iter(documents), list[Document](), list[str]()
    while len(texts) < BATCH and (document := next(remaining, None)) is not None:
        first.append(document)  # an empty one too: it will be counted
        texts += [_clean(document.text)] if document.text.strip() else []
    if not texts:
        raise CorpusError("no documents: the input holds no text")
    with Index.create(folder, model, texts, language) as index:
        return index.add(itertools.chain(first, remaining), prune=prune, total=total, reporter=reporter)


def _open_shard(path: Path, card: IndexCard) -> "engine.EdgeShard":
    try:
        if path.exists():
            return engine.EdgeShard.load(str(path))
        dense = engine.EdgeVectorParams(size=card.dimension, distance=engine.Distance.Cosine)
        words = engine.EdgeSparseVectorParams(modifier=engine.Modifier.Idf)
        with atomic_folder(path) as unfinished:
            settings = engine.EdgeConfig(vectors={DENSE: dense}, sparse_vectors={SPARSE: words})
            shard = engine.EdgeShard.create(str(unfinished), settings)
            facets = engine.UpdateOperation.create_field_index("facets", engine.PayloadSchemaType.Keyword)
            shard.update(facets)
            shard.close()
        return engine.EdgeShard.load(str(path))
    except Text2TokenError:
        raise
    except Exception as error:  # the engine raises nothing more special
        raise OutputError(
            f"{path}: the engine cannot open it ({str(error).splitlines()[0]}). It was made with {card.engine}; here is "
            f"{importlib.metadata.version(PACKAGE)}. If that is not it, make the index anew"
        ) from error


def _check_room(folder: Path, needed: int = 0) -> None:
    needed = max(ROOM, needed)
    if free_bytes(folder) < needed:
        room = f"{needed / 2**20:,.0f} MB must be free for the engine"
        raise OutputError(f"{folder}: cannot be written ({os.strerror(errno.ENOSPC)}: {room})")


def _bytes_on_disk(folder: Path) -> int:
    return sum(512 * path.stat().st_blocks for path in folder.rglob("*") if path.is_file())


def _write_card(folder: Path, card: IndexCard) -> None:
    with atomic_file(folder / CARD) as path:
        path.write_text(json.dumps(asdict(card), indent=2))


def _lasting(model: str) -> str:
    """Return a folder's name as it is from everywhere, and other names as they are."""
    return str(Path(model).resolve()) if Path(model).exists() else model


def _identity(text: str) -> str:
    return str(uuid.UUID(bytes=hashlib.sha256(text.encode()).digest()[:16]))


def _clean(text: str) -> str:
    """Return the text with a mark for every half of a surrogate pair, which neither tokenizer nor engine can read."""
    return text.encode("utf-8", "replace").decode()


def _payload(document: Document) -> dict[str, Any]:
    fields = dict(document.fields)  # plain JSON already
    return {"text": _clean(document.text), "place": document.place, "fields": fields, "facets": list(_facets(fields))}


def _facets(fields: Mapping[str, Any]) -> Iterator[str]:
    """Yield what can be filtered by, "field=value", values as JSON writes them, strings without their marks."""
    for name, value in fields.items():
        for one in value if isinstance(value, list) else [value]:
            said = one if isinstance(one, str) else json.dumps(one)
            if len(said) <= LONGEST_FILTER and not isinstance(one, dict):
                yield f"{name}={said}"


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    remaining = iter(items)
    while batch := list(itertools.islice(remaining, size)):
        yield batch
