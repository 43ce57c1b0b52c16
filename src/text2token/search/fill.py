"""Filling an index: only documents that are not there yet are embedded, so filling resumes after any interruption."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import qdrant_edge as engine

from text2token.corpus.documents import Document
from text2token.corpus.prepare import normalised_text
from text2token.corpus.readers import BrokenLines
from text2token.errors import CorpusError, OutputError
from text2token.files import writing
from text2token.model.encoder import TextEncoder
from text2token.progress import Reporter
from text2token.search.records import former_identity, identity, payload_of, shown
from text2token.search.store import DENSE, SPARSE, Store, batches
from text2token.search.words import Words

BATCH = 256  # documents between two moments from which a killed filling resumes
COUNTED = ("added", "unchanged", "updated", "duplicates", "empty", "removed", "overshadowed")


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
        details = ", ".join(f"{count:,} {what}" for what, count in parts.items() if count)
        shadow = (
            f". {self.overshadowed:,} of the duplicates have other fields than the first of their text, which is kept: "
            "to find them by those, join them to lists in one document, or put what differs into the text"
        )
        return f"{self.total:,} documents" + (f" ({details})" if details else "") + (shadow if self.overshadowed else "")


def first_texts(documents: Iterable[Document]) -> tuple[list[str], Iterator[Document]]:
    """Return the texts of the first documents, and all documents; `CorpusError` where none has a text."""
    remaining, first, texts = iter(documents), list[Document](), list[str]()
    while len(texts) < BATCH and (document := next(remaining, None)) is not None:
        first.append(document)  # an empty one too: it will be counted
        texts += [text] if (text := normalised_text(document)) else []
    if not texts:
        raise CorpusError("no documents: the input holds no text")
    return texts, itertools.chain(first, remaining)


def fill(
    store: Store,
    words: Words,
    encoder: TextEncoder,
    documents: Iterable[Document],
    *,
    prune: bool,
    broken: BrokenLines,
    total: int | None,
    reporter: Reporter,
) -> Filled:
    """Bring `store` up to date; see `Index.add`."""
    if store.copy:
        raise OutputError(f"{store.folder}: cannot be written, only searched")
    counts = dict.fromkeys(COUNTED, 0)
    seen: dict[str, int] = {}  # number → hash of its fields
    names: set[str] = set()
    with writing(store.folder), reporter.progress("Indexing", total, "documents") as progress:
        store.bring_up_to_date()
        for batch in batches(documents, BATCH):
            store.check_room()
            payloads: dict[str, dict[str, Any]] = {}
            former: set[str] = set()
            for document in batch:
                payload = payload_of(document)
                number, fields = identity(payload["text"]), hash(payload["fields"])
                if not payload["text"]:
                    counts["empty"] += 1
                    continue
                former.add(former_identity(document))
                if number in seen:
                    counts["duplicates"] += 1
                    counts["overshadowed"] += seen[number] != fields
                else:
                    seen[number] = fields
                    payloads[number] = payload
                    names.update(payload["names"])
            there = store.payloads(payloads.keys() | former)
            known = there.keys() & payloads.keys()
            renamed = there.keys() & former - seen.keys()
            store.put(_points({number: payloads[number] for number in payloads if number not in known}, words, encoder))
            store.remove(renamed)
            for number in known:
                if there[number] != payloads[number]:
                    store.overwrite(number, payloads[number])
                    counts["updated"] += shown(there[number]) != shown(payloads[number])
                counts["unchanged"] += shown(there[number]) == shown(payloads[number])
            counts["added"] += len(payloads) - len(known)
            counts["removed"] += len(renamed)
            progress(len(batch))
        if not seen:
            raise CorpusError("no documents: the input holds no text")
        incomplete = prune and broken.count > 0
        if prune and not incomplete:
            counts["removed"] += store.remove(number for number in store.numbers() if number not in seen)
        reporter.note("Arranging the index …")
        store.arrange(changed=bool(counts["added"] or counts["updated"] or counts["removed"]))
        store.write_card(names if prune and not incomplete else names | set(store.card.fields))
    filled = Filled(**counts, total=store.card.documents)
    if incomplete:
        raise CorpusError(
            f"{store.folder}: nothing was pruned, because {broken.count:,} broken lines were left out, and what stands "
            f"there may not be gone. All else is done: {filled.sentence()}. The first: {broken.first[0]}"
        )
    return filled


def _points(payloads: dict[str, dict[str, Any]], words: Words, encoder: TextEncoder) -> "list[engine.Point]":
    """Return new documents, by number, with their vectors."""
    if not payloads:
        return []
    texts = [payload["text"] for payload in payloads.values()]
    return [
        engine.Point(
            id=number,
            vector={DENSE: vector.tolist(), SPARSE: words.of_document(payload["text"])},
            payload=payload,
        )
        for (number, payload), vector in zip(payloads.items(), encoder(texts, role="document"), strict=True)
    ]
