"""Files, globs, URLs, standard input and dataset folders → documents, one at a time.

Nothing is held in memory but the line at hand, and a line may not outgrow `MAX_DOCUMENT_BYTES`: a binary file without
line breaks must end in a clear message, not in swap. Decompression happens in the stream. The trap of this room is the
silent one: a `.gz` cut short reads fine up to the cut, so its end is checked, and every broken line is either an error
with file, line and column or one more in a count that the user is shown.
"""

import csv
import glob
import gzip
import io
import json
import os
import shutil
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import IO, Any, Literal, cast

import pyarrow as pa
import pyarrow.parquet as pq

from text2token.corpus.docstrings import standard_library_documents
from text2token.corpus.documents import Document
from text2token.corpus.remote import is_remote, open_remote, remote_files, remote_state
from text2token.corpus.values import exact_integer, exact_number
from text2token.errors import CorpusError, reason
from text2token.normalisation import whole_characters
from text2token.settings import checked, one_or_more

Format = Literal["auto", "txt", "jsonl", "csv", "tsv", "parquet"]
OnError = Literal["stop", "skip"]

MAX_DOCUMENT_BYTES = 1_000_000  # longer than most novels' chapters; a longer line is far more often a damaged file
LONGEST_ROW = 4 * MAX_DOCUMENT_BYTES  # characters of a row of a table, over all its lines
ROWS_AT_ONCE = 64  # of Parquet: a small file may hold a dictionary of one long text that stands in every row
TITLE_FIELD = "title"
TEXT_FIELDS = ("text", "content", "body", "document", "passage", "sentence")
FORMATS: dict[str, Format] = {
    ".txt": "txt",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
STDIN = "-"
STANDARD_LIBRARY = "python:stdlib"


@dataclass
class BrokenLines:
    """What a broken line means: an error at once (`stop`), or one more in the count (`skip`).

    `incomplete`: a file ended early, or is damaged so that nobody knows what else it holds; one broken line alone, whose
    neighbours were read, does not make it so. After either, what has not been read is not known to be gone.
    """

    on_error: OnError = "stop"
    count: int = 0
    incomplete: bool = False
    first: list[str] = field(default_factory=list)  # at most five messages, so that a summary can show examples

    def report(self, place: str, problem: str, *, rest_unknown: bool = False) -> None:
        """Raise `CorpusError` or count the problem, by `on_error`; `rest_unknown` where more than this line may be lost."""
        message = f"{place}: {problem}"
        self.incomplete |= rest_unknown
        if self.on_error == "stop":
            raise CorpusError(f"{message}. Mend the line, or leave such lines out with --on-error skip")
        self.count += 1
        if len(self.first) < 5:
            self.first.append(message)


@checked
class ReadingSettings:
    """How text is read. `text_field`: the JSON key or column that holds it (None: found). `format`: auto, txt, jsonl, csv,
    tsv or parquet. `on_error`: what a broken line does, stop, or skip (counted and shown).
    """

    text_field: str | None = None
    format: Format = "auto"
    on_error: OnError = "stop"


def read_documents(
    sources: Sequence[str | os.PathLike[str]] | str | os.PathLike[str],
    *,
    text_field: str | None = None,
    format: Format = "auto",
    broken: BrokenLines | None = None,
) -> Iterator[Document]:
    """Yield every document of `sources`, or of a single source, in the order given (globs: alphabetical).

    A source is a file path, a glob, a URL of either (`s3://…`, `https://…`), a folder saved by `datasets`, `"-"` for
    standard input, or `"python:stdlib"` for the docstrings of the running Python. `text_field` names the JSON key or
    column; when None it is found, and a `CorpusError` asks where it is not clear. A key or column `title` beside it is
    the document's title. Raises `CorpusError` for what cannot be opened at all, whatever `broken` says.
    """
    broken = broken or BrokenLines()
    for source in expand_sources(sources):
        if source == STANDARD_LIBRARY:
            yield from standard_library_documents()
        elif source == STDIN:
            yield from _read_stream(_standard_input(), "<stdin>", format, text_field, broken)
        elif is_remote(source):
            yield from _read_remote(source, format, text_field, broken)
        elif Path(source).is_dir():
            yield from _read_dataset_folder(source, text_field, broken)
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

    Standard input and Python's own library have no state.
    """
    state = []
    for source in expand_sources(sources):
        if source in (STDIN, STANDARD_LIBRARY):
            state.append((source, 0, 0))
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
    with raw:
        yield from _read_stream(_decompressed(raw, compression, shown, broken), shown, format, text_field, broken)


def _read_remote(source: str, format: Format, text_field: str | None, broken: BrokenLines) -> Iterator[Document]:
    format, compression = _kind_of_file(source, format)
    try:
        with io.BufferedReader(cast(io.RawIOBase, open_remote(source))) as raw:
            yield from _read_stream(_decompressed(raw, compression, source, broken), source, format, text_field, broken)
    except CorpusError:
        raise
    except Exception as error:  # what breaks off on the way here; every provider raises its own kinds
        raise CorpusError(f"{source}: cannot be read to its end ({reason(error)})") from error


def _kind_of_file(name: str, format: Format) -> tuple[Format, str]:
    """Return the format, by the name's ending where it is `auto`, and the ending of a compression, or none."""
    path = Path(name)
    compression = path.suffix.lower() if path.suffix.lower() in {".gz", ".zst"} else ""
    if format != "auto":
        return format, compression
    suffix = (path.with_suffix("") if compression else path).suffix.lower()
    if suffix not in FORMATS:
        known = " ".join(FORMATS)
        raise CorpusError(
            f"{name}: unknown file type {suffix or 'without a suffix'}; "
            f"known are {known} (also .gz, .zst). "
            "Say which it is with --format"
        )
    return FORMATS[suffix], compression


def _decompressed(raw: IO[bytes], compression: str, name: str, broken: BrokenLines) -> IO[bytes]:
    if compression and not cast(io.BufferedReader, raw).peek(1):  # either kind has a head, even of nothing
        broken.report(name, "the file is empty, which no archive is", rest_unknown=True)
    if compression == ".gz":
        return cast(IO[bytes], gzip.GzipFile(fileobj=raw, mode="rb"))
    if compression == ".zst":
        return io.BufferedReader(cast(io.RawIOBase, pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd")))
    return raw


def _standard_input() -> IO[bytes]:
    if sys.stdin is None:
        raise CorpusError("<stdin>: there is no standard input to read from")
    return sys.stdin.buffer


def _read_stream(
    stream: IO[bytes], name: str, format: Format, text_field: str | None, broken: BrokenLines
) -> Iterator[Document]:
    if format == "auto":  # only standard input has no name to tell by
        start = cast(io.BufferedReader, stream).peek(64).lstrip()
        format = "jsonl" if start[:1] in (b"{", b'"') else "txt"
    if format == "parquet":
        yield from _read_parquet(stream, name, text_field, broken)
        return
    lines = _lines(stream, name, broken)
    if format == "txt":
        for number, line in lines:
            yield Document(body=line.rstrip("\r\n"), place=f"{name}:{number}")
    elif format == "jsonl":
        yield from _read_jsonl(lines, name, text_field, broken)
    else:
        yield from _read_table(lines, name, text_field, broken, delimiter="," if format == "csv" else "\t")


def _lines(stream: IO[bytes], name: str, broken: BrokenLines) -> Iterator[tuple[int, str]]:
    number = 0
    while True:
        number += 1
        try:
            line = stream.readline(MAX_DOCUMENT_BYTES + 1)
            if len(line) > MAX_DOCUMENT_BYTES:
                while line and not line.endswith(b"\n"):
                    line = stream.readline(MAX_DOCUMENT_BYTES)
                broken.report(f"{name}:{number}", f"the line is longer than {MAX_DOCUMENT_BYTES:,} bytes")
                continue
        except (EOFError, OSError, zlib.error, pa.ArrowException) as error:
            broken.report(f"{name}:{number}", f"the file is cut short or damaged here ({reason(error)})", rest_unknown=True)
            return
        if not line:
            return
        if number == 1 and line.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise CorpusError(f"{name}: the file is UTF-16; convert it first: iconv -f UTF-16 -t UTF-8")
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            column = len(line[: error.start].decode("utf-8", "replace")) + 1
            broken.report(f"{name}:{number}:{column}", f"byte 0x{line[error.start]:02X} is not UTF-8")
            continue
        if "\0" in text:
            broken.report(f"{name}:{number}:{text.index(chr(0)) + 1}", "the line holds a NUL byte")
            continue
        yield number, text


def _read_jsonl(
    lines: Iterable[tuple[int, str]], name: str, text_field: str | None, broken: BrokenLines
) -> Iterator[Document]:
    for number, line in lines:
        if not line.strip():
            continue
        place = f"{name}:{number}"
        try:
            record = json.loads(line.rstrip("\r\n"), parse_int=exact_integer, parse_float=exact_number)
        except json.JSONDecodeError as error:
            broken.report(f"{place}:{error.colno}", f"not JSON ({error.msg})")
            continue
        except ValueError as error:
            broken.report(place, f"not JSON that can be read ({reason(error)})")
            continue
        except RecursionError:
            broken.report(place, "JSON nested too deeply")
            continue
        if isinstance(record, str):
            yield Document(body=whole_characters(record), place=place)
            continue
        if not isinstance(record, dict):
            broken.report(place, f"expected a JSON object or string, found {_kind(record)}")
            continue
        if text_field is None:
            empty = {key for key in TEXT_FIELDS if key in record and record[key] is None}  # a text that is missing here
            texts = {key for key, value in record.items() if isinstance(value, str)}
            text_field = _find_text_field(texts | empty, place)
        yield from _field_document(record, text_field, place, broken)


def _read_table(
    lines: Iterable[tuple[int, str]], name: str, text_field: str | None, broken: BrokenLines, delimiter: str
) -> Iterator[Document]:
    csv.field_size_limit(MAX_DOCUMENT_BYTES)
    last_line = size = 0

    def text_of(numbered: tuple[int, str]) -> str:
        nonlocal last_line, size
        last_line, line = numbered
        size += len(line)
        if size > LONGEST_ROW:  # each field may be short: one open quotation mark after the other
            raise csv.Error(f"it is longer than {LONGEST_ROW:,} characters")
        return line

    rows = csv.reader(map(text_of, lines), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        first_line, size = last_line + 1, 0
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            broken.report(f"{name}:{first_line}", f"not a valid row ({error})", rest_unknown=True)
            continue
        if not row:
            continue
        if header is None:
            header = row
            if len(set(header)) != len(header):
                raise CorpusError(f"{name}:{first_line}: the header names a column twice")
            text_field = text_field or _find_text_field(set(header), f"{name}:{first_line}")
            if text_field not in header:
                raise CorpusError(f"{name}:{first_line}: no column {text_field!r}; there are {_listed(header)}")
            continue
        if len(row) != len(header):
            broken.report(f"{name}:{first_line}", f"the row has {len(row)} fields, the header {len(header)}")
            continue
        yield from _field_document(dict(zip(header, row, strict=True)), text_field or "", f"{name}:{first_line}", broken)


def _read_parquet(stream: IO[bytes], name: str, text_field: str | None, broken: BrokenLines) -> Iterator[Document]:
    with tempfile.TemporaryFile() as seekable:
        if not stream.seekable() or isinstance(stream, gzip.GzipFile):  # Parquet is read from its end
            try:
                shutil.copyfileobj(stream, seekable)
            except (EOFError, OSError, zlib.error, pa.ArrowException) as error:
                raise CorpusError(f"{name}: the file is cut short or damaged ({reason(error)})") from error
            stream = seekable
        try:
            table = pq.ParquetFile(stream)
            columns = _columns(table.schema_arrow, name)
            batches = table.iter_batches(batch_size=ROWS_AT_ONCE, columns=columns)
            yield from _read_rows(table.schema_arrow, batches, name, text_field, broken)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise CorpusError(f"{name}: not a readable Parquet file ({reason(error)})") from error


def _columns(schema: pa.Schema, name: str) -> list[str] | None:
    """Return which columns to read, None for all: what is nothing but bytes is no field, and may be long."""
    twice = [column for column, count in Counter(schema.names).items() if count > 1]
    if twice:
        raise CorpusError(f"{name}: there are two columns {twice[0]!r}")
    columns = [column.name for column in schema if not _is_binary(column.type)]
    return columns if len(columns) < len(schema) else None


def _read_rows(
    schema: pa.Schema, batches: Iterable[pa.RecordBatch], name: str, text_field: str | None, broken: BrokenLines
) -> Iterator[Document]:
    columns = [column.name for column in schema if _is_string(column.type)]
    text_field = text_field or _find_text_field(set(columns), name)
    if text_field not in columns:
        raise CorpusError(f"{name}: no text column {text_field!r}; there are {_listed(columns)}")
    row_number = 0
    for batch in batches:
        for record in _records(batch):
            row_number += 1
            place = f"{name}:row {row_number}"
            if isinstance(record, Exception):
                broken.report(place, f"a value in it cannot be read ({reason(record)})")
            else:
                yield from _field_document(record, text_field, place, broken)


def _records(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | Exception]:
    """Yield the rows of a batch; of one whose bytes are not what its column says, why: no writer has to check that."""
    unreadable = (ValueError, OverflowError, KeyError, pa.ArrowException)  # no UTF-8, no date of ours, a key twice in a map
    try:
        yield from batch.to_pylist(maps_as_pydicts="strict")
    except unreadable:
        for number in range(batch.num_rows):
            try:
                record = batch.slice(number, 1).to_pylist(maps_as_pydicts="strict")[0]
            except unreadable as error:
                yield error
            else:
                yield record


def _read_dataset_folder(folder: str, text_field: str | None, broken: BrokenLines) -> Iterator[Document]:
    if not any((Path(folder) / name).exists() for name in ("dataset_dict.json", "state.json")):
        raise CorpusError(
            f"{folder}: is a folder, not a file, and no datasets folder; name its files, e.g. '{folder}/*.jsonl'"
        )
    import datasets

    try:
        dataset: Any = datasets.load_from_disk(folder)
    except Exception as error:  # the library raises a dozen kinds for one cause
        raise CorpusError(f"{folder}: not a readable datasets folder ({reason(error)})") from error
    if isinstance(dataset, datasets.DatasetDict):
        if len(dataset) > 1 and "train" not in dataset:
            raise CorpusError(
                f"{folder}: holds the splits {_listed(sorted(dataset))}; name one: {folder}/{next(iter(dataset))}"
            )
        dataset = dataset["train"] if "train" in dataset else next(iter(dataset.values()))
    schema = dataset.features.arrow_schema
    columns = _columns(schema, folder)
    dataset = dataset.select_columns(columns) if columns is not None else dataset
    batches = (part for rows in dataset.with_format("arrow").iter(ROWS_AT_ONCE) for part in rows.to_batches())
    yield from _read_rows(schema, batches, folder, text_field, broken)


def _field_document(record: dict[str, Any], text_field: str, place: str, broken: BrokenLines) -> Iterator[Document]:
    if text_field not in record:
        broken.report(place, f"no field {text_field!r}; there are {_listed(sorted(record))}")
        return
    value = record[text_field]
    if value is None:
        value = ""  # an empty text, which is counted further on
    if not isinstance(value, str):
        broken.report(place, f"field {text_field!r} is {_kind(value)}, not text")
        return
    if len(value.encode("utf-8", "surrogatepass")) > MAX_DOCUMENT_BYTES:
        broken.report(place, f"the text is longer than {MAX_DOCUMENT_BYTES:,} bytes")
        return
    try:
        document = _document({**record, text_field: whole_characters(value)}, text_field, place)
    except CorpusError as error:
        broken.report(place, str(error.__cause__))
    else:
        yield document


def _document(record: dict[str, Any], text_field: str, place: str) -> Document:
    """Return the document of a row: its text, what stands beside it, and a title where there is one that the text lacks.

    A title without a text is the text.
    """
    fields = {key: value for key, value in record.items() if key != text_field}
    body, title = record[text_field], fields.get(TITLE_FIELD)
    title = whole_characters(title).strip() if isinstance(title, str) else ""
    if not body.strip():
        return Document(body=title, place=place, fields=fields)
    begins, after = body.lstrip().startswith(title), body.lstrip()[len(title) : len(title) + 1]
    return Document(body=body, place=place, title="" if begins and not after.isalnum() else title, fields=fields)


def _find_text_field(candidates: set[str], place: str) -> str:
    for name in TEXT_FIELDS:
        if name in candidates:
            return name
    if len(candidates) == 1:
        return next(iter(candidates))
    if not candidates:
        raise CorpusError(f"{place}: there is no text field; name it with --text-field")
    raise CorpusError(
        f"{place}: which field holds the text? There are {_listed(sorted(candidates))}; name it with --text-field"
    )


def _listed(names: Iterable[str]) -> str:
    shown = [repr(name) for name in names]
    return ", ".join(shown[:12]) + (f" and {len(shown) - 12} more" if len(shown) > 12 else "") if shown else "none"


def _kind(value: object) -> str:
    names = {
        dict: "an object",
        list: "a list",
        bool: "a truth value",
        int: "a number",
        float: "a number",
        Decimal: "a number",
        type(None): "null",
    }
    return names.get(type(value), type(value).__name__)


def _is_binary(type: pa.DataType) -> bool:
    kinds = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
    return any(is_kind(type) for is_kind in kinds)


def _is_string(type: pa.DataType) -> bool:
    if pa.types.is_dictionary(type):  # what pandas calls a categorical
        type = type.value_type
    return bool(pa.types.is_string(type) or pa.types.is_large_string(type) or pa.types.is_string_view(type))
