"""Documents → a corpus folder: normalised, counted, without duplicates, cut into passages, a part held out.

    corpus/
      passages.arrow    {"text", "document"}          what is trained on; passages of a document stand in a row
      held_out.arrow    {"query", "passage", "place"} documents training never sees, for the label-free evaluation, in
                        random order: the first so many are a choice too
      summary.json      what was read, left out and kept

Arrow files are memory-mapped by `datasets`, so a corpus larger than memory costs only the hashes kept for duplicates
(about 100 bytes a document).
"""

import hashlib
import json
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import platformdirs
import pyarrow as pa
from datasets import Dataset

from text2token.corpus.documents import Document
from text2token.corpus.normalisation import normalise
from text2token.corpus.readers import left_out
from text2token.errors import CorpusError
from text2token.files import atomic_folder, real
from text2token.recipe import CorpusSettings

DOCUMENT_SCHEMA = pa.schema([("title", pa.large_string()), ("body", pa.large_string()), ("place", pa.large_string())])
PASSAGE_SCHEMA = pa.schema([("text", pa.large_string()), ("document", pa.int64())])
HELD_OUT_SCHEMA = pa.schema([("query", pa.large_string()), ("passage", pa.large_string()), ("place", pa.large_string())])

MIN_HALVED_CHARACTERS = 120  # a shorter document has no two halves to match
MIN_TITLE_CHARACTERS = 20  # shorter titles ("Return self.") name no document
# with spaces behind them also the danda of Hindi, the question mark of Arabic and the full stop of Urdu
SENTENCE_END = re.compile(r"(?<=[.!?।॥؟۔])\s+|\n+|(?<=[。！？])\s*")


@dataclass
class CorpusSummary:
    """Counts of one reading: documents read, left out and why, and what came of the rest."""

    documents: int = 0
    broken: int = 0
    empty: int = 0
    duplicates: int = 0
    split_documents: int = 0
    halved_documents: int = 0
    held_out: int = 0
    passages: int = 0

    def sentence(self) -> str:
        """Return the counts as one line for people, zeros left out."""
        left_out = [f"{self.broken:,} broken", f"{self.empty:,} empty", f"{self.duplicates:,} duplicate"]
        left_out = [part for part in left_out if not part.startswith("0 ")]
        return (
            f"{self.documents:,} documents"
            + (f" ({', '.join(left_out)} left out)" if left_out else "")
            + f" → {self.passages:,} passages to train on, {self.held_out:,} documents held out"
            + (f"; {self.split_documents:,} long ones split" if self.split_documents else "")
            + (f"; {self.halved_documents:,} of a single passage halved" if self.halved_documents else "")
        )


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus folder: `passages` to train on, `held_out` pairs to evaluate on, and how they came about."""

    passages: Dataset
    held_out: Dataset
    summary: CorpusSummary

    @classmethod
    def open(cls, folder: Path) -> "Corpus":
        """Open a folder written by `prepare_corpus`; what reads the texts may be sent to workers, which stand elsewhere."""
        folder = real(folder)
        summary = CorpusSummary(**json.loads((folder / "summary.json").read_text(encoding="utf-8")))
        return cls(
            passages=Dataset.from_file(str(folder / "passages.arrow")),
            held_out=Dataset.from_file(str(folder / "held_out.arrow")),
            summary=summary,
        )


def prepare_corpus(
    documents: Iterable[Document],
    folder: Path,
    settings: CorpusSettings | None = None,
    *,
    among: frozenset[str] | None = None,
) -> Corpus:
    """Write `documents` into `folder` (all or nothing) and open it.

    Rules, each counted: text is NFC-normalised and stripped; an empty one is left out; an exact duplicate (title and
    body) is left out; a document longer than `passage_characters` is split at paragraph or sentence ends; one that would
    be a single passage, of at least `halves_from` characters, becomes its two halves. Held-out
    documents are those with the smallest hash of seed and text, so the choice does not depend on the order, and fewer are
    always some of more; their titles and bodies occur nowhere else in the corpus. With `among`, digests of pairs
    (`pair_digest`), they are chosen among those, if at least two are there. Raises `CorpusError` when no text is left.
    """
    settings = settings or CorpusSettings()
    summary = CorpusSummary()
    with atomic_folder(folder) as unfinished:
        unique = _write_unique(documents, unfinished / "documents.arrow", summary)
        summary.broken = left_out(documents).count
        if not summary.documents:
            raise CorpusError(
                "no documents: the input holds no text"
                + (f", {summary.broken:,} broken lines apart" if summary.broken else "")
            )
        if summary.documents == summary.empty:
            raise CorpusError(f"no documents: all {summary.empty:,} texts are empty")
        held_out = _choose_held_out(unique, settings, among)
        summary.held_out = len(held_out)
        titles: set[int] = set()
        with _ArrowWriter(unfinished / "passages.arrow", PASSAGE_SCHEMA) as passages:
            for index, document in enumerate(_iterate(unique)):
                if index in held_out:
                    continue
                # Title and body are trained on as two texts: they are what will be searched with and for. A title that
                # many share is trained on once: they would be negatives of themselves.
                known, title = len(titles), _hash(document.title)
                titles.add(title)
                parts = [document.title] if document.title and len(titles) > known else []
                parts.append(document.body)
                pieces = [piece for part in parts for piece in split_text(part, settings.passage_characters)]
                summary.split_documents += len(pieces) > len(parts)
                if settings.halves_from and len(pieces) == 1 and len(pieces[0]) >= settings.halves_from:
                    pieces = [half for half in halves(Document(pieces[0], document.place)) if half]
                    summary.halved_documents += 1
                summary.passages += len(pieces)
                passages.write([(piece, index) for piece in pieces])
        with _ArrowWriter(unfinished / "held_out.arrow", HELD_OUT_SCHEMA) as pairs:
            for index, by_title in held_out.items():
                row = unique[index]
                query, passage = halves(Document(**row if by_title else {**row, "title": ""}))
                pairs.write([(query, passage, row["place"])])
        (unfinished / "documents.arrow").unlink()
        (unfinished / "summary.json").write_text(json.dumps(asdict(summary), indent=2), encoding="utf-8")
    return Corpus.open(folder)


@contextmanager
def temporary_corpus(
    documents: Iterable[Document],
    settings: CorpusSettings | None = None,
    *,
    among: frozenset[str] | None = None,
) -> Iterator[Corpus]:
    """Yield the corpus of `documents` as `prepare_corpus` makes it, in a folder that is gone afterwards.

    But no document is halved, which is for training. The folder is in the user's cache directory, where there is room for a
    corpus, and only where none can be written in the system's place for temporary files. What killed processes left there
    a day ago is deleted.
    """
    with TemporaryDirectory(prefix=PREFIX, dir=_roomy(), ignore_cleanup_errors=True) as folder:
        settings = replace(settings or CorpusSettings(), halves_from=0)
        yield prepare_corpus(documents, Path(folder) / "corpus", settings, among=among)


PREFIX = "corpus-"
LEFT = 24 * 3600  # seconds


def _roomy() -> Path | None:
    cache = platformdirs.user_cache_path("text2token")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        for left in cache.glob(f"{PREFIX}*"):
            if time.time() - left.stat().st_mtime > LEFT:
                shutil.rmtree(left, ignore_errors=True)
        TemporaryDirectory(dir=cache).cleanup()
    except OSError:
        return None
    return cache


def normalised_text(document: Document) -> str:
    """Return the whole text of `document`, title and body each normalised as for training."""
    return normalise(Document(body=normalise(document.body), place="", title=normalise(document.title)).text)


def split_text(text: str, limit: int) -> list[str]:
    """Cut `text` into pieces of at most `limit` characters, at sentence ends or line breaks, else at spaces.

    Nothing but whitespace at the cuts is lost, and no piece is empty.
    """
    pieces = []
    while len(text) > limit:
        window = text[: limit + 1]
        ends = [match.end() for match in SENTENCE_END.finditer(window) if limit // 3 < match.end() <= limit]
        cut = ends[-1] if ends else window.rfind(" ", limit // 3, limit)
        cut = cut if cut > 0 else limit
        pieces.append(text[:cut].strip())
        text = text[cut:].lstrip()
    pieces.append(text)
    return [piece for piece in pieces if piece]


def halves(document: Document) -> tuple[str, str]:
    """Return what is searched with and what must be found: title and body, or first and second half of the body."""
    if document.title:
        return document.title, document.body
    body = document.body
    middle = len(body) // 2
    ends = [match.end() for match in SENTENCE_END.finditer(body)] or [match.end() for match in re.finditer(r"\s+", body)]
    cut = min((end for end in ends if 0 < end < len(body)), key=lambda end: abs(end - middle), default=middle)
    return body[:cut].strip(), body[cut:].strip()


def _write_unique(documents: Iterable[Document], path: Path, summary: CorpusSummary) -> Dataset:
    seen: set[int] = set()
    with _ArrowWriter(path, DOCUMENT_SCHEMA) as writer:
        for document in documents:
            summary.documents += 1
            title, body = normalise(document.title), normalise(document.body)
            if not body:
                summary.empty += 1
                continue
            key = _hash(title, body)
            if key in seen:
                summary.duplicates += 1
                continue
            seen.add(key)
            writer.write([(title, body, document.place)])
    return Dataset.from_file(str(path))


def pair_digest(query: str, passage: str) -> str:
    """Return 16 hex digits of a query and its passage."""
    return f"{_hash(query, passage):016x}"


def _choose_held_out(documents: Dataset, settings: CorpusSettings, among: frozenset[str] | None = None) -> dict[int, bool]:
    """Return the numbers of the held-out documents, and whether the title is the query (else the first half)."""
    if not settings.held_out:
        return {}
    occurrences: dict[int, int] = {}
    for document in _iterate(documents):
        for part in (document.title, document.body):
            occurrences[_hash(part)] = occurrences.get(_hash(part), 0) + 1
    by_title: list[tuple[int, int]] = []
    by_half: list[tuple[int, int]] = []
    allowed: set[int] = set()
    for index, document in enumerate(_iterate(documents)):
        if occurrences[_hash(document.body)] > 1:
            continue
        place = (_hash(str(settings.seed), document.title, document.body), index)
        asks_by_title = len(document.title) >= MIN_TITLE_CHARACTERS and occurrences[_hash(document.title)] == 1
        if not asks_by_title and len(document.body) < MIN_HALVED_CHARACTERS:
            continue
        (by_title if asks_by_title else by_half).append(place)
        if among and pair_digest(*halves(document if asks_by_title else replace(document, title=""))) in among:
            allowed.add(index)
    # A title makes the better question. A third of each kind at most, for they are to be trained on.
    order = [place for kind in (by_title, by_half) for place in sorted(kind)[: len(kind) // 3]]
    if len(allowed) > 1:
        order = [place for kind in (by_title, by_half) for place in sorted(kind) if place[1] in allowed]
    titled = {index for _, index in by_title}
    return {index: index in titled for _, index in order[: settings.held_out]}


def _iterate(documents: Dataset) -> Iterator[Document]:
    for batch in documents.iter(1000):
        for title, body, place in zip(batch["title"], batch["body"], batch["place"], strict=True):
            yield Document(title=title, body=body, place=place)


def _hash(*parts: str) -> int:
    digest = hashlib.blake2b("\0".join(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


class _ArrowWriter:
    """An Arrow stream file that is written row by row and flushed every thousand rows."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.schema = schema
        self.rows: list[tuple[str | int, ...]] = []
        self.file = pa.OSFile(str(path), "wb")
        self.stream = pa.ipc.new_stream(self.file, schema)

    def write(self, rows: Sequence[tuple[str | int, ...]]) -> None:
        self.rows += rows
        if len(self.rows) >= 1000:
            self.flush()

    def flush(self) -> None:
        if self.rows:
            columns = [
                pa.array(column, type) for column, type in zip(zip(*self.rows, strict=True), self.schema.types, strict=True)
            ]
            self.stream.write_batch(pa.record_batch(columns, schema=self.schema))
            self.rows = []

    def __enter__(self) -> "_ArrowWriter":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.flush()
        self.stream.close()
        self.file.close()
