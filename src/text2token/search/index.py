"""Documents in an embedded engine (Qdrant's, inside the process): dense and sparse vectors, and every hit with its reasons.

    index/
      card.json   which model, which engine, how words are counted
      shard/      the engine's files
      lock        held by whoever has the index open

A document is known by the hash of its normalised text: what is there already is not embedded again, so filling goes on after
any interruption, and the same command twice changes nothing. Three traps. A second process that merely tries to open the
engine's folder damages it for the first (seen with qdrant-edge 0.9), so our own lock is taken before the engine is touched.
The engine writes values that it cannot read back, such as deeply nested lists, so fields are one JSON text to it. And it
compares numbers, truth values and strings each in its own way, so what filters ask for is kept as text too.
"""

import datetime
import errno
import hashlib
import importlib.metadata
import itertools
import json
import os
import re
import shlex
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, cast

import filelock
import numpy as np
import qdrant_edge as engine
import torch
from numpy.typing import NDArray
from torch import Tensor

from text2token.corpus.documents import Document
from text2token.corpus.normalisation import normalise, whole_characters
from text2token.corpus.prepare import normalised_text
from text2token.corpus.readers import BrokenLines
from text2token.corpus.values import UnfitField, plain_fields
from text2token.errors import CorpusError, OutputError, Text2TokenError, UsageError, reason
from text2token.files import atomic_file, atomic_folder, free_bytes, tidy, writing
from text2token.model.backbone import resolve_dtype
from text2token.model.encoder import TextEncoder, open_encoder
from text2token.progress import Reporter, Silent
from text2token.recipe import DType
from text2token.search.explain import DenseExplanation, Reason, dense_reasons, explanation_beside, shared_words
from text2token.search.words import LATEST_RULE, RULES, Words, average_length, check_language

Mode = Literal["dense", "sparse", "hybrid"]
MODES: tuple[Mode, ...] = ("dense", "sparse", "hybrid")

CARD, SHARD, LOCK = "card.json", "shard", "lock"
PACKAGE = "qdrant-edge-py"
FORMAT = 2
# of the first, whose payloads held fields as they were, documents may still be there; filling brings them up to date
FORMATS = (1, FORMAT)
ROOM = 64 << 20  # bytes that must be free: the engine maps its files into memory, and a full disk would end the process
BATCH = 256  # documents between two moments that a killed run can go on from
SOME = 4  # documents that show whether vectors are a model's
DENSE, SPARSE = "dense", "words"
CANDIDATES = 100  # of each half, before they are fused
WAIT_TO_READ, WAIT_TO_WRITE = 10.0, 0.0  # seconds
LONGEST_FACET = 200  # characters; of a longer one the hash is kept
NAMED = 12  # fields that a message lists
NOT_TO_BE_WRITTEN = (errno.EROFS, errno.EACCES, errno.EPERM)
WHOLE_NUMBER = re.compile(r"([-+]?[0-9]{1,300})\.0+")
FilterValue = str | int | float | bool | datetime.date | None  # or what else a field may hold


@dataclass(frozen=True)
class IndexCard:
    """What an index was made with, and, as of its last closing, the names of all its fields, sorted, and its documents.

    `word_rule` says how words are cut (`words.RULES`).
    """

    model: str
    fingerprint: str
    dtype: DType
    dimension: int
    language: str
    average_length: float
    engine: str
    fields: tuple[str, ...] = ()
    documents: int = 0
    format: int = FORMAT
    word_rule: int = 1


@dataclass(frozen=True)
class Filled:
    """What one filling did, in documents.

    `duplicates` had the text of another of the same filling; `overshadowed` of them other fields than that one, by which
    they cannot be found. `removed` are those that prune took, and those whose text is now known by its normalised form.
    """

    added: int
    unchanged: int
    updated: int
    duplicates: int
    empty: int
    removed: int
    total: int
    overshadowed: int = 0

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
        shadow = (
            f". {self.overshadowed:,} of the duplicates have other fields than the first of their text, which is kept: "
            "to find them by those, join them to lists in one document, or put what differs into the text"
        )
        return f"{self.total:,} documents" + (f" ({said})" if said else "") + (shadow if self.overshadowed else "")


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

    `explain` says what a dense score is made of; where it is None, the reader beside the model does, if there is one. An
    index that may not be written is searched in a temporary copy.
    """

    folder: Path
    card: IndexCard
    words: Words
    shard: "engine.EdgeShard"
    lock: filelock.BaseFileLock
    explain: DenseExplanation | None = None
    _copy: "tempfile.TemporaryDirectory[str] | None" = field(default=None, repr=False)
    _encoder: TextEncoder | None = field(default=None, repr=False)
    _encoder_is_read: bool = field(default=False, repr=False)  # whether a reader has been looked for

    @classmethod
    def open(cls, folder: Path | str, model: str | None = None, explain: DenseExplanation | None = None) -> "Index":
        """Open an index to search in it or to add to it; its model is loaded when it is first needed.

        `model` says where the model is now, if it has been moved. Raises `OutputError` where there is no index, or another
        process has it open, and at the first use where the model is another.
        """
        folder = Path(folder)
        card = read_card(folder)
        return cls._opened(folder, replace(card, model=model or card.model), WAIT_TO_READ, explain)

    @classmethod
    def create(cls, folder: Path, model: str, texts: Sequence[str], language: str = "english") -> "Index":
        """Make an empty index for the embedder `model`, or open the one that is there; `texts` show how long they are.

        Raises `OutputError` where the folder holds anything else, vectors of another model, or another language's words.
        """
        with writing(folder):
            there = (folder / CARD).exists()
            foreign = folder.is_dir() and any(path.name != LOCK and path.name[0] != "." for path in folder.iterdir())
        if there:
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
        if folder.is_file() or foreign:
            raise OutputError(f"{folder}: exists and is no index. Choose another --store")
        check_language(language)
        dtype: DType = "float32" if resolve_dtype("auto") == torch.float32 else "bfloat16"
        encoder = open_encoder(model, dtype)
        _check_room(folder)
        card = IndexCard(
            model=_lasting(model),
            fingerprint=encoder.fingerprint,
            dtype=dtype,
            dimension=encoder(texts[:1], role="document").shape[1],
            language=language,
            average_length=average_length(texts, language),
            engine=f"{PACKAGE} {importlib.metadata.version(PACKAGE)}",
            word_rule=LATEST_RULE,
        )
        index = cls._opened(folder, card, WAIT_TO_WRITE)
        index._encoder = encoder
        return index

    @classmethod
    def _opened(cls, folder: Path, card: IndexCard, wait: float, explain: DenseExplanation | None = None) -> "Index":
        lock = filelock.FileLock(folder / LOCK, timeout=wait)
        words = Words(card.language, card.average_length, card.word_rule)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / LOCK).touch()
            lock.acquire()
        except filelock.Timeout:
            raise OutputError(f"{folder}: another process has the index open. Wait until it has finished") from None
        except OSError as error:
            if error.errno not in NOT_TO_BE_WRITTEN or not (folder / CARD).exists():
                raise OutputError(f"{folder}: cannot be written ({os.strerror(error.errno or 0)})") from error
            _check_shard(folder, card)
            copy = _copied(folder)  # the engine cannot open what it may not write to
            return cls(folder, card, words, _open_shard(Path(copy.name) / SHARD, card), lock, explain, _copy=copy)
        try:
            tidy(folder)
            if not (folder / CARD).exists():
                _write_card(folder, card)
            _check_shard(folder, card)
            shard = _open_shard(folder / SHARD, card)
            if card.documents and not shard.count(engine.CountRequest()):
                shard.close()
                raise _emptied(folder, card)
        except BaseException:
            lock.release()
            raise
        return cls(folder, card, words, shard, lock, explain)

    def close(self) -> None:
        """Write everything and let others open it."""
        try:
            if not self._copy and self.count != self.card.documents:  # a filling was interrupted
                self._write_down(self._field_names())
            self.shard.flush()
            self.shard.close()
        finally:
            self.lock.release()
            if self._copy:
                self._copy.cleanup()

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
            if not encoder.made(self.card.fingerprint, self._some):
                raise OutputError(
                    f"{self.folder}: holds vectors of another model ({self.card.fingerprint}) than {self.card.model} now is "
                    f"({encoder.fingerprint}). Use that model, or choose another --store"
                )
            self._encoder = replace(encoder, memory=None)
            self.card = replace(self.card, fingerprint=encoder.fingerprint)
        return self._encoder

    def _some(self) -> tuple[list[str], Tensor]:
        """Return the texts of a few documents, and their vectors."""
        request = engine.ScrollRequest(limit=SOME, with_payload=True, with_vector=True)
        found: list[Any] = self.shard.scroll(request)[0]
        return [point.payload["text"] for point in found], torch.tensor([point.vector[DENSE] for point in found])

    @property
    def count(self) -> int:
        """The number of documents."""
        return int(self.shard.count(engine.CountRequest()))

    def has_field(self, name: str) -> bool:
        """Say whether a document has a field of this name."""
        return name in self.card.fields or self._counted(_named(name)) > 0

    def add(
        self,
        documents: Iterable[Document],
        *,
        prune: bool = False,
        broken: BrokenLines | None = None,
        total: int | None = None,
        reporter: Reporter | None = None,
    ) -> Filled:
        """Add the documents that are not there yet; with `prune`, remove those that are not among `documents`.

        Of documents with the same normalised text the first counts. One that is there, but with another place or other
        fields, gets the new ones and is not embedded again. `broken` is what the reader of `documents` counts in: where it
        left something out, what was not read is not taken for gone, and prune ends in a `CorpusError`, after all else is
        done. `total`, where known, is the number of documents, for the time left.
        """
        reporter = reporter or Silent()
        if self._copy:
            raise OutputError(f"{self.folder}: cannot be written, only searched")
        encoder = self.encoder
        counts = dict.fromkeys(("added", "unchanged", "updated", "duplicates", "empty", "removed", "overshadowed"), 0)
        seen: dict[str, int] = {}  # id → hash of its fields
        names: set[str] = set()
        with writing(self.folder), reporter.progress("Indexing", total, "documents") as progress:
            self._bring_up_to_date()
            for batch in _batches(documents, BATCH):
                _check_room(self.folder)
                payloads: dict[str, dict[str, Any]] = {}
                former: set[str] = set()
                for document in batch:
                    payload = _payload(document)
                    number, fields = _identity(payload["text"]), hash(payload["fields"])
                    if not payload["text"]:
                        counts["empty"] += 1
                        continue
                    former.add(_identity(document.text.encode("utf-8", "replace").decode()))
                    if number in seen:
                        counts["duplicates"] += 1
                        counts["overshadowed"] += seen[number] != fields
                    else:
                        seen[number] = fields
                        payloads[number] = payload
                        names.update(payload["names"])
                found = self.shard.retrieve(list(payloads.keys() | former), True, False)
                there = {str(record.id): record.payload or {} for record in found}
                known = there.keys() & payloads.keys()
                renamed = there.keys() & former - seen.keys()
                self._store([number for number in payloads if number not in known], payloads, encoder)
                self._remove(renamed)  # as its text was hashed before it was normalised
                for number in known:
                    if there[number] != payloads[number]:
                        self.shard.update(engine.UpdateOperation.overwrite_payload([number], payloads[number]))
                        counts["updated"] += _shown(there[number]) != _shown(payloads[number])
                    counts["unchanged"] += _shown(there[number]) == _shown(payloads[number])
                counts["added"] += len(payloads) - len(known)
                counts["removed"] += len(renamed)
                progress(len(batch))
            if not seen:
                raise CorpusError("no documents: the input holds no text")
            incomplete = prune and broken is not None and broken.count > 0
            if prune and not incomplete:
                counts["removed"] += self._remove(number for number in self._identities() if number not in seen)
            reporter.note("Arranging the index …")
            if counts["added"] or counts["updated"] or counts["removed"]:  # then all of it may be written anew
                _check_room(self.folder, _bytes_on_disk(self.folder / SHARD))
            self.shard.optimize()
            self.shard.flush()
            self._write_down(names if prune and not incomplete else names | set(self.card.fields))
        filled = Filled(**counts, total=self.card.documents)
        if broken and incomplete:
            raise CorpusError(
                f"{self.folder}: nothing was pruned, because {broken.count:,} broken lines were left out, and what stands "
                f"there may not be gone. All else is done: {filled.sentence()}. The first: {broken.first[0]}"
            )
        return filled

    def search(
        self,
        query: str,
        k: int = 10,
        mode: Mode = "hybrid",
        filters: Mapping[str, FilterValue | Sequence[FilterValue]] | None = None,
        *,
        vector: Tensor | None = None,
    ) -> list[Hit]:
        """Return the `k` best documents, best first.

        "dense" ranks by meaning, "sparse" by words (BM25), "hybrid" by the sum of both scores, each on the scale of the
        best hundred of its half (mean ± 3 standard deviations), which keeps more of the better half than their ranks do
        (docs/searching.md). Of the query's words the first 256 that count are looked for. `filters`: a document must have
        one of the values of every field named; they are compared as text, whole numbers and truth values however they
        are spelt (1, 1.0, "1"), lists by each of their elements. `vector`, shape (dimension,), is the query's embedding
        where the caller has it already. Raises `UsageError` for a mode or field that there is not.
        """
        if mode not in MODES:
            raise UsageError(f"mode is {mode!r}; choose {', '.join(MODES)}")
        query = normalise(query)
        if not query:
            raise UsageError("the query is empty; say what to look for")
        if k < 1:
            raise UsageError(f"k is {k}; at least one hit must be wanted")
        k = min(k, max(1, self.count))
        condition = self._condition(filters or {})
        spelt = self.words.of_query(query)
        asked: NDArray[np.float32] = (self.encoder([query], role="query")[0] if vector is None else vector).numpy()
        if self.explain is None and not self._encoder_is_read:
            self.explain, self._encoder_is_read = explanation_beside(self.card.model, self.encoder), True
        halves = {DENSE: engine.Query.Nearest(asked.tolist(), using=DENSE)}
        if spelt:
            halves[SPARSE] = engine.Query.Nearest(engine.SparseVector(list(spelt), [1.0] * len(spelt)), using=SPARSE)
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
        stored: list[Any] = [point.vector for point in found]
        weights = [dict(zip(vectors[SPARSE].indices, vectors[SPARSE].values, strict=True)) for vectors in stored]
        rarity = self._rarity(sorted(spelt.keys() & set().union(*weights)))
        dense = np.array([vectors[DENSE] for vectors in stored], dtype=np.float32).reshape(len(stored), len(asked))
        reasons = dense_reasons(self.explain, asked, dense)
        cosines = dense @ asked / max(1e-12, float(np.linalg.norm(asked)))
        return [
            self._hit(point, cosine, shared_words(spelt, weight, rarity), spelt.keys() & weight.keys(), by_meaning)
            for point, cosine, weight, by_meaning in zip(found, cosines.tolist(), weights, reasons, strict=True)
        ]

    def _hit(
        self,
        point: "engine.ScoredPoint",
        cosine: float,
        shared: Sequence[Reason],
        numbers: Set[int],
        by_meaning: Sequence[Reason],
    ) -> Hit:
        payload: Any = point.payload
        return Hit(
            id=str(point.id),
            score=point.score,
            dense=cosine,
            sparse=sum(reason.contribution for reason in shared),
            text=payload["text"],
            place=payload["place"],
            fields=_fields(payload),
            reasons=[*shared, *by_meaning],
            highlights=self.words.places(payload["text"], numbers),
        )

    def _rarity(self, numbers: Sequence[int]) -> dict[int, float]:
        """Return the inverse document frequency of each word, as the engine has it at the moment.

        The engine does not tell, but the score of a query of one word is rarity · weight in the document.
        """
        if not numbers:
            return {}
        words = (engine.Query.Nearest(engine.SparseVector([number], [1.0]), using=SPARSE) for number in numbers)
        alone = [engine.QueryRequest(limit=1, query=word, with_vector=[SPARSE]) for word in words]
        rarity = {}
        for number, best in zip(numbers, self.shard.query_batch(engine.QueryBatchRequest(alone)), strict=True):
            vector = cast(Any, best[0].vector)[SPARSE]
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
            for number, text, vector in zip(numbers, texts, encoder(texts, role="document"), strict=True)
        ]
        self.shard.update(engine.UpdateOperation.upsert_points(points))

    def _remove(self, numbers: Iterable[str]) -> int:
        gone = list(numbers)  # before any is gone: they may be read from the engine
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

    def _condition(self, filters: Mapping[str, FilterValue | Sequence[FilterValue]]) -> "engine.Filter | None":
        try:
            plain = plain_fields(filters)
        except (UnfitField, AttributeError) as problem:
            raise UsageError(f"filters: {reason(problem)}; give each field with its value, or a list of values") from None
        unfit = [name for name, value in filters.items() if isinstance(value, Mapping | bytes | bytearray | memoryview)]
        if unfit:
            raise UsageError(f"filters: {unfit[0]!r} is asked for by {type(filters[unfit[0]]).__name__}; give values")
        for name in plain:
            if not self.has_field(name):
                raise UsageError(f"no document has a field {name[:200]!r}; there are: {self._some_fields()}")
        must: list[Any] = []
        for name, given in plain.items():
            values = given if isinstance(given, list) else [given]
            spelt = [spelling for value in values for spelling in _spellings(value)]
            former = [f"{name}={spelling}" for spelling in spelt]  # of documents that were stored in format 1
            must.append(_having("facets", [*(_facet(name, spelling) for spelling in spelt), *former]))
        return engine.Filter(must=must) if must else None

    def _counted(self, condition: Any) -> int:
        return int(self.shard.count(engine.CountRequest(filter=engine.Filter(must=[condition]))))

    def _field_names(self, limit: int = 1_000_000) -> set[str]:
        hits = self.shard.facet(engine.FacetRequest("names", limit=limit)).hits
        return {*self.card.fields, *(str(hit.value) for hit in hits)}

    def _some_fields(self) -> str:
        names = sorted(self._field_names(NAMED + 1))
        return (", ".join(names[:NAMED]) or "none") + (" and others" if len(names) > NAMED else "")

    def _write_down(self, names: Iterable[str]) -> None:
        self.card = replace(self.card, documents=self.count, fields=tuple(sorted(names)))
        _write_card(self.folder, self.card)

    def _bring_up_to_date(self) -> None:
        if self.card.format < FORMAT:
            self.shard.update(_names_index())
            self.card = replace(self.card, format=FORMAT)
            _write_card(self.folder, self.card)


def read_card(folder: Path) -> IndexCard:
    """Return the card of an index, or raise `OutputError` where there is none."""
    quoted = shlex.quote(str(folder))
    try:
        if folder.is_file():
            raise OutputError(
                f"{folder}: is a file, not an index. Search it once: text2token search MODEL {quoted} QUERY. "
                f"Or make an index: text2token index MODEL {quoted} --store INDEX"
            )
        if (folder / "modules.json").exists():
            raise OutputError(
                f"{folder}: is an embedder, not an index. Search with it: text2token search {quoted} FILE QUERY"
            )
        content = json.loads((folder / CARD).read_text(encoding="utf-8"))
        if content["format"] not in FORMATS or content.get("word_rule", 1) not in RULES:
            raise OutputError(
                f"{folder}: is an index of format {content['format']}; this version reads {FORMAT}. Make it anew"
            )
        return IndexCard(**{**content, "fields": tuple(content["fields"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise OutputError(
            f"{folder}: holds no index that can be read ({reason(error)}). "
            f"Make one: text2token index MODEL FILES --store {quoted}"
        ) from None


def fill_index(
    folder: Path | str,
    model: str,
    documents: Iterable[Document],
    *,
    language: str = "english",
    prune: bool = False,
    broken: BrokenLines | None = None,
    total: int | None = None,
    reporter: Reporter | None = None,
) -> Filled:
    """Make the index in `folder`, or bring it up to date; the same call goes on after an interruption.

    `model` is an embedder's folder, hub id or `pypi:PACKAGE`; the rest is as in `Index.add`. Raises a `Text2TokenError` for
    anything a user can mend: no text, another model's index, another process at it.
    """
    remaining, first, texts = iter(documents), list[Document](), list[str]()
    while len(texts) < BATCH and (document := next(remaining, None)) is not None:
        first.append(document)  # an empty one too: it will be counted
        texts += [text] if (text := normalised_text(document)) else []
    if not texts:
        raise CorpusError("no documents: the input holds no text")
    with Index.create(Path(folder), model, texts, language) as index:
        return index.add(itertools.chain(first, remaining), prune=prune, broken=broken, total=total, reporter=reporter)


def _open_shard(path: Path, card: IndexCard) -> "engine.EdgeShard":
    try:
        if path.exists():
            return engine.EdgeShard.load(str(path))
        dense = engine.EdgeVectorParams(size=card.dimension, distance=engine.Distance.Cosine)
        words = engine.EdgeSparseVectorParams(modifier=engine.Modifier.Idf)
        with atomic_folder(path) as unfinished:
            settings = engine.EdgeConfig(vectors={DENSE: dense}, sparse_vectors={SPARSE: words})
            shard = engine.EdgeShard.create(str(unfinished), settings)
            shard.update(engine.UpdateOperation.create_field_index("facets", engine.PayloadSchemaType.Keyword))
            shard.update(_names_index())
            shard.close()
        return engine.EdgeShard.load(str(path))
    except Text2TokenError:
        raise
    except Exception as error:  # the engine raises nothing more special
        raise OutputError(
            f"{path}: the engine cannot open it ({reason(error)}). It was made with {card.engine}; here is "
            f"{importlib.metadata.version(PACKAGE)}. If that is not it, make the index anew"
        ) from error


def _check_shard(folder: Path, card: IndexCard) -> None:
    """Raise `OutputError` where the engine's files are gone, of which a new, empty one would tell nobody."""
    if card.documents and not (folder / SHARD).is_dir():
        raise _emptied(folder, card)


def _emptied(folder: Path, card: IndexCard) -> OutputError:
    return OutputError(
        f"{folder}: {SHARD}/ holds none of the {card.documents:,} documents of which {CARD} tells. Restore it, or delete "
        f"{folder} and make the index anew: text2token index MODEL FILES --store {shlex.quote(str(folder))}"
    )


def _copied(folder: Path) -> "tempfile.TemporaryDirectory[str]":
    """Return a temporary folder that holds the engine's files of the index."""
    copy = tempfile.TemporaryDirectory(prefix="text2token-")
    try:
        with writing(Path(copy.name)):
            shutil.copytree(folder / SHARD, Path(copy.name) / SHARD)
    except BaseException:
        copy.cleanup()
        raise
    return copy


def _check_room(folder: Path, needed: int = 0) -> None:
    needed = max(ROOM, needed)
    if free_bytes(folder) < needed:
        room = f"{needed / 2**20:,.0f} MB must be free for the engine"
        raise OutputError(f"{folder}: cannot be written ({os.strerror(errno.ENOSPC)}: {room})")


def _bytes_on_disk(folder: Path) -> int:
    states = [path.stat() for path in folder.rglob("*") if path.is_file()]
    return sum(
        512 * state.st_blocks if hasattr(state, "st_blocks") else state.st_size for state in states
    )  # none on Windows


def _write_card(folder: Path, card: IndexCard) -> None:
    with atomic_file(folder / CARD) as path:
        path.write_text(json.dumps(asdict(card), indent=2), encoding="utf-8")


def _lasting(model: str) -> str:
    """Return a folder's name as it is from everywhere, and other names as they are."""
    return str(Path(model).resolve()) if Path(model).exists() else model


def _identity(text: str) -> str:
    return str(uuid.UUID(bytes=hashlib.sha256(text.encode()).digest()[:16]))


def _payload(document: Document) -> dict[str, Any]:
    return {
        "text": normalised_text(document),
        "place": whole_characters(document.place),
        "fields": json.dumps(dict(document.fields), ensure_ascii=False),  # plain JSON already
        "facets": sorted(set(_facets(document.fields))),
        "names": sorted({normalise(name) for name in document.fields}),
    }


def _fields(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a document; in format 1 they were not a text."""
    fields = payload["fields"]
    return cast(dict[str, Any], json.loads(fields) if isinstance(fields, str) else fields)


def _shown(payload: Mapping[str, Any]) -> tuple[Any, ...]:
    return payload["text"], payload["place"], _fields(payload)


def _facets(fields: Mapping[str, Any]) -> Iterator[str]:
    """Yield what can be filtered by: every field with its value, or with each element of its list."""
    for name, value in fields.items():
        for one in value if isinstance(value, list) else [value]:
            if not isinstance(one, dict):
                yield from (_facet(name, spelling) for spelling in _spellings(one))


def _facet(name: str, spelling: str) -> str:
    facet = json.dumps([normalise(name), normalise(spelling)], ensure_ascii=False)
    return facet if len(facet) <= LONGEST_FACET else hashlib.sha256(facet.encode()).hexdigest()


def _spellings(value: Any) -> set[str]:
    """Return the texts that stand for a value: as JSON writes it, strings without their marks, and plainer where it can be.

    A document is found where it shares one with the filter, so 1 finds 1.0, as pandas makes it of a column with gaps.
    """
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    spellings = {text}
    if isinstance(value, float) and value.is_integer():
        spellings.add(str(int(value)))
    elif whole := WHOLE_NUMBER.fullmatch(text):
        spellings.add(str(int(whole[1])))
    elif text in ("True", "False"):
        spellings.add(text.lower())
    return spellings


def _having(key: str, values: Sequence[str]) -> "engine.FieldCondition":
    return engine.FieldCondition(key=key, match=engine.MatchAny(list(values)))


def _named(name: str) -> "engine.FieldCondition":
    return _having("names", [normalise(name)])


def _names_index() -> "engine.UpdateOperation":
    return engine.UpdateOperation.create_field_index("names", engine.PayloadSchemaType.Keyword)


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    remaining = iter(items)
    while batch := list(itertools.islice(remaining, size)):
        yield batch
