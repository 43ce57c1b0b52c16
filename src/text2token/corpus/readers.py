"""Files, globs, URLs, standard input and dataset folders → documents, one at a time.

What a source is decides its name, or `--format`; where that would be a guess, it is refused with what was found.
"""

import glob
import io
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast
from urllib.parse import unquote, urlsplit

from text2token.corpus.broken import BrokenLines as BrokenLines
from text2token.corpus.docstrings import standard_library_documents
from text2token.corpus.documents import Document
from text2token.corpus.normalisation import whole_characters
from text2token.corpus.published import without_secrets
from text2token.corpus.records import Records, kind_of
from text2token.corpus.remote import failure, is_remote, open_remote, remote_files, remote_state
from text2token.corpus.streams import (
    COMPRESSIONS,
    NO_JSON_LINES,
    check_is_text,
    decompressed,
    head_of,
    lines_of,
    read_json,
    values_of,
)
from text2token.corpus.tables import read_dataset_folder, read_parquet, read_table
from text2token.errors import CorpusError, reason
from text2token.progress import Reporter
from text2token.recipe import Format, ReadingSettings
from text2token.settings import one_or_more

FORMATS: dict[str, Format] = {
    ".txt": "txt",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
STDIN = "-"
STANDARD_LIBRARY = "python:stdlib"
JSON_LIST = re.compile(rb'\s*\[\s*[{"]')
NO_PARTITION = "__HIVE_DEFAULT_PARTITION__"


def read_documents(
    sources: Sequence[str | os.PathLike[str]] | str | os.PathLike[str],
    *,
    text_field: str | None = None,
    format: Format = "auto",
    broken: BrokenLines | None = None,
) -> "Documents":
    """Return every document of `sources`, or of a single source, in the order given (globs: alphabetical).

    They are read while one goes through them, and once more each time.

    A source is a file path, a glob, a URL of either (`s3://…`, `https://…`), a folder saved by `datasets`, `"-"` for
    standard input, or `"python:stdlib"` for the docstrings of the running Python. `text_field` names the JSON key or
    column, with dots where it lies within objects; when None it is found; `CorpusError` where that is not clear. A
    key or column `title` beside it is the document's title. What was taken for granted is in `broken.notes`. Raises
    `CorpusError` for what cannot be opened at all, whatever `broken` says.
    """
    named = tuple(os.fspath(source) for source in one_or_more(sources))
    return Documents(named, text_field, format, broken or BrokenLines())


@dataclass(frozen=True)
class Documents:
    """What `read_documents` returns. `broken` counts what had to be left out, as far as it has been read."""

    sources: tuple[str, ...]
    text_field: str | None
    format: Format
    broken: BrokenLines

    def __iter__(self) -> Iterator[Document]:
        self.broken.begin()
        seen = set[str]()
        for source in expand_sources(self.sources):
            same = source if is_remote(source) else os.path.realpath(source)
            if same in seen:
                self.broken.note(source, "is named twice; its texts count as duplicates the second time")
            seen.add(same)
            empty = True
            for document in _read_source(source, self.format, self.text_field, self.broken):
                empty = False
                yield document
            if empty:
                self.broken.note(source, "holds no document")


def left_out(documents: Iterable[Document]) -> BrokenLines:
    """Return what had to be left out of `documents`, as far as they have been read; nothing of those from memory."""
    return documents.broken if isinstance(documents, Documents) else BrokenLines()


def documents_of(sources: Sequence[str], reading: ReadingSettings, reporter: Reporter) -> Documents:
    """Return the documents of a recipe, whose reader tells `reporter` what it takes for granted."""
    broken = BrokenLines(reading.on_error, tell=reporter.note)
    return read_documents(sources, text_field=reading.text_field, format=reading.format, broken=broken)


def _read_source(source: str, format: Format, text_field: str | None, broken: BrokenLines) -> Iterator[Document]:
    if source == STANDARD_LIBRARY:
        yield from standard_library_documents()
    elif source == STDIN:
        yield from _read_stream(_standard_input(), Records("<stdin>", text_field, broken), format)
    elif is_remote(source):
        yield from _read_remote(source, format, text_field, broken)
    elif Path(source).is_dir():
        yield from read_dataset_folder(source, Records(source, text_field, broken, partitions_of(f"{source}/"), "column"))
    else:
        yield from _read_file(Path(source), format, text_field, broken)


def expand_sources(sources: Sequence[str | os.PathLike[str]] | str | os.PathLike[str]) -> list[str]:
    """Return `sources` with globs expanded; raise `CorpusError` for what does not exist, before anything is read."""
    expanded: list[str] = []
    for source in map(os.fspath, one_or_more(sources)):
        if is_remote(source):
            expanded.extend(remote_files(source))
        elif source in (STDIN, STANDARD_LIBRARY) or _exists(source):
            expanded.append(source)
        elif glob.has_magic(source):
            matches = sorted(glob.glob(source, recursive=True))
            if not matches:
                raise CorpusError(f"{source}: no file matches this pattern")
            expanded.extend(matches)
        else:
            raise CorpusError(f"{source}: no such file or folder")
    if not expanded:
        raise CorpusError("no text given: name a file, a glob, a datasets folder, or - for standard input")
    return expanded


def source_state(sources: Sequence[str]) -> list[tuple[str, int, int]]:
    """Return what shows that a source has changed: path, size and time of change; of folders, those of their files.

    Python's library changes with its version; standard input has no state.
    """
    state = []
    for source in expand_sources(sources):
        if source in (STDIN, STANDARD_LIBRARY):
            state.append((source, sys.hexversion if source == STANDARD_LIBRARY else 0, 0))
            continue
        if is_remote(source):
            state.append(remote_state(source))
            continue
        path = Path(source)
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            status = file.stat() if file.exists() else file.lstat()  # a link may lead nowhere
            state.append((str(file), status.st_size, status.st_mtime_ns))
    return state


def _exists(source: str) -> bool:
    try:
        return bool(source) and Path(source).exists()
    except OSError as error:  # a name too long, a folder that may not be entered
        raise CorpusError(f"{source[:200]}: cannot be read ({reason(error)})") from error


def _read_file(path: Path, format: Format, text_field: str | None, broken: BrokenLines) -> Iterator[Document]:
    format, compression = _kind_of_file(str(path), format)
    try:
        raw = path.open("rb")
    except OSError as error:
        raise CorpusError(f"{path}: cannot be opened ({reason(error)})") from error
    shown = os.fsencode(path).decode("utf-8", "backslashreplace")  # a name may be any bytes
    records = Records(shown, text_field, broken, partitions_of(shown))
    with raw:
        yield from _read_stream(decompressed(raw, compression, shown, broken), records, format)


def _read_remote(source: str, format: Format, text_field: str | None, broken: BrokenLines) -> Iterator[Document]:
    shown = without_secrets(source)
    path = urlsplit(source).path if source.startswith(("http://", "https://")) else shown  # there ? begins a query
    format, compression = _kind_of_file(path, format)
    records = Records(shown, text_field, broken, partitions_of(path))
    try:
        with io.BufferedReader(cast(io.RawIOBase, open_remote(source))) as raw:
            yield from _read_stream(decompressed(raw, compression, shown, broken), records, format)
    except CorpusError:
        raise
    except Exception as error:  # what breaks off on the way here; every provider raises other kinds
        raise CorpusError(failure(source, "cannot be read to its end", error)) from None


def _kind_of_file(name: str, format: Format) -> tuple[Format, str]:
    """Return the format, by the name's ending where it is `auto`, and the ending of a compression, or none."""
    path = Path(name)
    compression = path.suffix.lower() if path.suffix.lower() in COMPRESSIONS else ""
    if format != "auto":
        return format, compression
    suffix = (path.with_suffix("") if compression else path).suffix.lower()
    if suffix not in FORMATS:
        known = " ".join(FORMATS)
        raise CorpusError(
            f"{name}: unknown file type {suffix or 'without a suffix'}; "
            f"known are {known} (also .gz, .zst). "
            "Give it with --format"
        )
    return FORMATS[suffix], compression


def partitions_of(path: str) -> Mapping[str, Any]:
    """Return the fields that a path's folders spell, as Hive, Spark and pyarrow write them: `year=2024/part-0.parquet`."""
    named = (folder.partition("=") for folder in path.split("/")[:-1])
    fields = {unquote(name): unquote(value) for name, sign, value in named if name and sign}
    whole = {
        name: int(value) if str(value).isdecimal() and str(int(value)) == value else value for name, value in fields.items()
    }
    return {name: None if value == NO_PARTITION else value for name, value in whole.items()}


def _standard_input() -> IO[bytes]:
    if sys.stdin is None:
        raise CorpusError("<stdin>: there is no standard input to read from")
    return sys.stdin.buffer


def _read_stream(stream: IO[bytes], records: Records, format: Format) -> Iterator[Document]:
    name, broken = records.name, records.broken
    head = head_of(stream, name, broken)
    if head is None:
        return
    if format == "auto":  # only standard input has no name to tell by
        format = "jsonl" if head.lstrip()[:1] in (b"{", b'"') or JSON_LIST.match(head) else "txt"
    if format == "jsonl" and NO_JSON_LINES.match(head):
        format = "json"
    if format == "parquet":
        records.called = "column"
        yield from read_parquet(stream, records)
        return
    check_is_text(head, name)
    if format == "json":
        for number, (_, value) in enumerate(values_of(stream, name, broken), start=1):
            yield from _json_document(value, f"{name}:item {number}", records)
        return
    lines = lines_of(stream, name, broken)
    if format == "txt":
        for number, line in lines:
            yield Document(body=line.rstrip("\r\n"), place=f"{name}:{number}", fields=records.beside)
    elif format == "jsonl":
        yield from _read_json_lines(lines, records)
    else:
        records.called = "column"
        yield from read_table(lines, records, "," if format == "csv" else "\t")


def _read_json_lines(lines: Iterator[tuple[int, str]], records: Records) -> Iterator[Document]:
    for number, line in lines:
        if not line.strip():
            continue
        place = f"{records.name}:{number}"
        try:
            value = read_json(line.rstrip("\r\n"))
        except json.JSONDecodeError as error:
            further = error.msg == "Extra data" or error.pos >= len(line.rstrip())  # more in a line, or more than a line
            hint = "; if values stand otherwise than one a line, give --format json" if further else ""
            records.broken.report(f"{place}:{error.colno}", f"not JSON ({error.msg}){hint}")
        except ValueError as error:
            records.broken.report(place, f"not JSON that can be read ({reason(error)})")
        except RecursionError:
            records.broken.report(place, "JSON nested too deeply")
        else:
            yield from _json_document(value, place, records)


def _json_document(value: Any, place: str, records: Records) -> Iterator[Document]:
    if isinstance(value, str):
        yield Document(body=whole_characters(value), place=place, fields=records.beside)
    elif isinstance(value, dict):
        yield from records.document(value, place)
    else:
        records.broken.report(place, f"expected a JSON object or string, found {kind_of(value)}")
