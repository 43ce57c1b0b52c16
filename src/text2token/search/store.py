"""The folder of an index: its card, its lock, and the engine inside (Qdrant's, in the same process).

    index/
      card.json   which model, which engine, how words are counted
      shard/      the engine's files
      lock        held by whoever has the index open

A second process that merely tries to open the engine's folder damages it for the first (seen with qdrant-edge
0.9), so a lock is taken before the engine is touched.
"""

import errno
import importlib.metadata
import itertools
import json
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import filelock
import qdrant_edge as engine
import torch
from torch import Tensor

from text2token.errors import OutputError, Text2TokenError, UsageError, reason
from text2token.files import atomic_file, atomic_folder, free_bytes, tidy, writing
from text2token.recipe import DType
from text2token.search.records import Filters, conditions, named
from text2token.search.words import RULES

CARD, SHARD, LOCK = "card.json", "shard", "lock"
PACKAGE = "qdrant-edge-py"
FORMAT = 2
# of the first, whose payloads held fields as they were, documents may still be there; filling brings them up to date
FORMATS = (1, FORMAT)
ROOM = 64 << 20  # bytes that must be free: the engine maps its files into memory, and a full disk would end the process
SOME = 4  # documents that show whether vectors are a model's
DENSE, SPARSE = "dense", "words"
WAIT_TO_READ, WAIT_TO_WRITE = 10.0, 0.0  # seconds
NAMED = 12  # fields that a message lists
AT_ONCE = 1000  # documents that are listed or removed by one request to the engine
NOT_TO_BE_WRITTEN = (errno.EROFS, errno.EACCES, errno.EPERM)


@dataclass(frozen=True)
class IndexCard:
    """What an index was made with, and, as of its last closing, the names of all its fields, sorted, and its documents.

    `word_rule`: how words are cut (`words.RULES`).
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


def engine_name() -> str:
    """Return the engine's package with its version, for the card."""
    return f"{PACKAGE} {importlib.metadata.version(PACKAGE)}"


def read_card(folder: Path) -> IndexCard:
    """Return the card of an index, or raise `OutputError` where there is none."""
    quoted = shlex.quote(str(folder))
    try:
        if folder.is_file():
            raise OutputError(
                f"{folder}: is a file, not an index. Search it without one: text2token search MODEL {quoted} QUERY. "
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


def is_index(folder: Path) -> bool:
    """Return whether an index was made in `folder`."""
    return (folder / CARD).exists()


def is_foreign(folder: Path) -> bool:
    """Return whether `folder` is a file, or holds anything that no index has."""
    with writing(folder):
        others = folder.is_dir() and any(path.name != LOCK and path.name[0] != "." for path in folder.iterdir())
    return folder.is_file() or others


@dataclass
class Store:
    """An open folder, which nobody else can open until it is closed; one that may not be written is read from a copy."""

    folder: Path
    card: IndexCard
    shard: "engine.EdgeShard"
    lock: filelock.BaseFileLock
    copy: "tempfile.TemporaryDirectory[str] | None" = field(default=None, repr=False)

    @classmethod
    def open(cls, folder: Path, card: IndexCard, wait: float) -> "Store":
        """Open the folder, made if it is not there; `OutputError` where another process keeps it for `wait` seconds."""
        lock = filelock.FileLock(folder / LOCK, timeout=wait)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / LOCK).touch()
            lock.acquire()
        except filelock.Timeout:
            raise OutputError(f"{folder}: another process has the index open. Wait until it has finished") from None
        except OSError as error:
            if error.errno not in NOT_TO_BE_WRITTEN or not is_index(folder):
                raise OutputError(f"{folder}: cannot be written ({os.strerror(error.errno or 0)})") from error
            _check_shard(folder, card)
            copy = _copied(folder)  # the engine cannot open what it may not write to
            return cls(folder, card, _open_shard(Path(copy.name) / SHARD, card), lock, copy)
        try:
            tidy(folder)
            if not is_index(folder):
                _write_card(folder, card)
            _check_shard(folder, card)
            shard = _open_shard(folder / SHARD, card)
            if card.documents and not shard.count(engine.CountRequest()):
                shard.close()
                raise _emptied(folder, card)
        except BaseException:
            lock.release()
            raise
        return cls(folder, card, shard, lock)

    def close(self) -> None:
        """Write everything and let others open it."""
        try:
            if not self.copy and self.count != self.card.documents:  # a filling was interrupted
                self.write_card(self._field_names())
            self.shard.flush()
            self.shard.close()
        finally:
            self.lock.release()
            if self.copy:
                self.copy.cleanup()

    @property
    def count(self) -> int:
        """The number of documents."""
        return int(self.shard.count(engine.CountRequest()))

    def has_field(self, name: str) -> bool:
        """Return whether a document has a field of this name."""
        return name in self.card.fields or self._counted(named(name)) > 0

    def condition(self, filters: Filters) -> "engine.Filter | None":
        """Return what a hit must meet; `UsageError` for a field that no document has."""
        must = conditions(filters, self._check_field)
        return engine.Filter(must=must) if must else None

    def some(self) -> tuple[list[str], Tensor]:
        """Return the texts of a few documents, and their vectors, shape (texts, dimension)."""
        request = engine.ScrollRequest(limit=SOME, with_payload=True, with_vector=True)
        found: list[Any] = self.shard.scroll(request)[0]
        return [point.payload["text"] for point in found], torch.tensor([point.vector[DENSE] for point in found])

    def payloads(self, numbers: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Return by number the payloads of those documents that are there."""
        return {str(record.id): record.payload or {} for record in self.shard.retrieve(list(numbers), True, False)}

    def put(self, points: "Sequence[engine.Point]") -> None:
        """Add documents."""
        if points:
            self.shard.update(engine.UpdateOperation.upsert_points(list(points)))

    def overwrite(self, number: str, payload: Mapping[str, Any]) -> None:
        """Give a document another payload; its vectors stay."""
        self.shard.update(engine.UpdateOperation.overwrite_payload([number], dict(payload)))

    def remove(self, numbers: Iterable[str]) -> int:
        """Remove documents and return how many they were."""
        gone = list(numbers)  # before any is gone: they may be read from the engine
        for batch in batches(gone, AT_ONCE):
            self.shard.update(engine.UpdateOperation.delete_points(list(batch)))
        return len(gone)

    def numbers(self) -> Iterator[str]:
        """Yield the number of every document."""
        offset: Any = None
        while True:
            records, offset = self.shard.scroll(
                engine.ScrollRequest(offset=offset, limit=AT_ONCE, with_payload=False, with_vector=False)
            )
            yield from (str(record.id) for record in records)
            if offset is None:
                return

    def check_room(self) -> None:
        """Raise `OutputError` where the disk is too full for some more documents."""
        check_room(self.folder)

    def arrange(self, changed: bool) -> None:
        """Let the engine merge its files, of which all may be written anew where documents have `changed`."""
        if changed:
            check_room(self.folder, _bytes_on_disk(self.folder / SHARD))
        self.shard.optimize()
        self.shard.flush()

    def bring_up_to_date(self) -> None:
        """Make an index of an earlier format one of this."""
        if self.card.format < FORMAT:
            self.shard.update(_names_index())
            self.card = replace(self.card, format=FORMAT)
            _write_card(self.folder, self.card)

    def write_card(self, names: Iterable[str]) -> None:
        """Write down the number of documents, and `names`, those of all fields."""
        self.card = replace(self.card, documents=self.count, fields=tuple(sorted(names)))
        _write_card(self.folder, self.card)

    def _check_field(self, name: str) -> None:
        if not self.has_field(name):
            names = sorted(self._field_names(NAMED + 1))
            there = (", ".join(names[:NAMED]) or "none") + (" and others" if len(names) > NAMED else "")
            raise UsageError(f"no document has a field {name[:200]!r}; there are: {there}")

    def _counted(self, condition: Any) -> int:
        return int(self.shard.count(engine.CountRequest(filter=engine.Filter(must=[condition]))))

    def _field_names(self, limit: int = 1_000_000) -> set[str]:
        hits = self.shard.facet(engine.FacetRequest("names", limit=limit)).hits
        return {*self.card.fields, *(str(hit.value) for hit in hits)}


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


def _names_index() -> "engine.UpdateOperation":
    return engine.UpdateOperation.create_field_index("names", engine.PayloadSchemaType.Keyword)


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


def check_room(folder: Path, needed: int = 0) -> None:
    """Raise `OutputError` where less than `needed` bytes, or what the engine always wants, are free."""
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


def batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Yield `items` in lists of `size`, of which the last may be shorter."""
    remaining = iter(items)
    while batch := list(itertools.islice(remaining, size)):
        yield batch
