"""Rows of CSV, TSV, Parquet and `datasets` folders → documents.

Which sign separates the columns is read off the first line: the one under which the text is found there.
"""

import csv
import gzip
import itertools
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from text2token.corpus.documents import Document
from text2token.corpus.records import MAX_DOCUMENT_BYTES, TEXT_FIELDS, OtherType, Records, folded, listed, looked_up
from text2token.corpus.streams import DAMAGED
from text2token.errors import CorpusError, reason

LONGEST_ROW = 4 * MAX_DOCUMENT_BYTES  # characters of a row of a table, over all its lines
ROWS_AT_ONCE = 64  # of Parquet: a small file may hold a dictionary of one long text that stands in every row
SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}
LONGEST_NAME, MOST_WORDS = 40, 3  # of a column's name; what is longer reads like a text
# no UTF-8, no date that Python has, a key twice in a map, a key that is an object
UNREADABLE = (ValueError, OverflowError, KeyError, TypeError, pa.ArrowException)
FEATURES = b"huggingface"  # what `datasets` calls its part of a schema's metadata


def read_table(lines: Iterator[tuple[int, str]], records: Records, separator: str) -> Iterator[Document]:
    """Yield the documents of a table with a line of names; `separator` is the usual one of its kind."""
    csv.field_size_limit(MAX_DOCUMENT_BYTES)
    name, broken = records.name, records.broken
    lines, separator = _separated(lines, records, separator)
    first_line = size = 0

    def text_of(numbered: tuple[int, str]) -> str:
        nonlocal first_line, size
        number, line = numbered
        first_line = first_line if size else number
        size += len(line)
        if size > LONGEST_ROW:  # each field may be short: one open quotation mark after the other
            raise csv.Error(f"it is longer than {LONGEST_ROW:,} characters")
        return line

    rows = csv.reader(map(text_of, lines), delimiter=separator, strict=True)
    header: list[str] = []
    while True:
        size = 0
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            broken.report(f"{name}:{first_line}", f"not a valid row ({error})", rest_unknown=True)
            continue
        place = f"{name}:{first_line}"
        if not row:
            continue
        if not header:
            header = _header(row, place, records)
        elif [value.strip() for value in row] == header:
            broken.note(place, "the names of the columns come once more, and are left out")
        elif len(row) != len(header):
            broken.report(place, f"the row has {len(row)} fields, the header {len(header)}")
        else:
            yield from records.document(_named(header, row), place)


def read_parquet(stream: IO[bytes], records: Records) -> Iterator[Document]:
    """Yield the documents of a Parquet file, which may come as a stream."""
    name = records.name
    with tempfile.TemporaryFile() as seekable:
        if not stream.seekable() or isinstance(stream, gzip.GzipFile):  # Parquet is read from its end
            try:
                shutil.copyfileobj(stream, seekable)
            except DAMAGED as error:
                raise CorpusError(f"{name}: the file is cut short or damaged ({reason(error)})") from error
            stream = seekable
        try:
            table = pq.ParquetFile(stream)
            columns = _columns(table.schema_arrow, name)
            batches = table.iter_batches(batch_size=ROWS_AT_ONCE, columns=columns)
            yield from _read_rows(table.schema_arrow, batches, records)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise CorpusError(f"{name}: not a readable Parquet file ({reason(error)})") from error


def read_dataset_folder(folder: str, records: Records) -> Iterator[Document]:
    """Yield the documents of a folder saved by `datasets`; of several splits, that of "train"."""
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
                f"{folder}: holds the splits {listed(sorted(dataset))}; name one: {folder}/{next(iter(dataset))}"
            )
        dataset = dataset["train"] if "train" in dataset else next(iter(dataset.values()))
    schema = dataset.features.arrow_schema
    columns = _columns(schema, folder)
    dataset = dataset.select_columns(columns) if columns is not None else dataset
    batches = (part for rows in dataset.with_format("arrow").iter(ROWS_AT_ONCE) for part in rows.to_batches())
    try:
        yield from _read_rows(schema, batches, records)
    except (pa.ArrowException, OSError) as error:
        raise CorpusError(f"{folder}: not a readable datasets folder ({reason(error)})") from error


def _separated(lines: Iterator[tuple[int, str]], records: Records, usual: str) -> tuple[Iterator[tuple[int, str]], str]:
    """Return the lines from the header on, and what separates their columns."""
    number, first = next(((number, line) for number, line in lines if line.strip()), (0, ""))
    if first.strip().startswith("sep=") and len(first.strip()) == 5:  # how Excel says it
        return lines, first.strip()[4]
    split = {separator: next(csv.reader([first.rstrip("\n")], delimiter=separator), []) for separator in SEPARATORS}
    several = {separator: names for separator, names in split.items() if len(names) > 1}
    fitting = [separator for separator, names in several.items() if _holds_text(names, records.text_field)]
    if len(fitting) > 1:
        separators = " and ".join(SEPARATORS[separator] for separator in fitting)
        raise CorpusError(
            f"{records.name}:{number}: columns may be separated by {separators}; write the names with one of them"
        )
    separator = fitting[0] if fitting else usual if usual in several or len(several) != 1 else next(iter(several))
    if separator != usual:
        records.broken.note(f"{records.name}:{number}", f"columns are separated by {SEPARATORS[separator]}")
    return itertools.chain([(number, first)], lines), separator


def _holds_text(names: list[str], text_field: str | None) -> bool:
    columns = {name.strip(): "" for name in names}
    return any(looked_up(columns, wanted) for wanted in ([text_field] if text_field else TEXT_FIELDS))


def _header(row: list[str], place: str, records: Records) -> list[str]:
    """Return the names of the columns; `CorpusError` where one comes twice, or the only one is no name but a text."""
    header = [name.strip() for name in row]
    twice = [name for name, count in Counter(header).items() if name and count > 1]
    if twice:
        raise CorpusError(f"{place}: the header names two columns {twice[0]!r}; give one another name")
    if (
        len(header) == 1
        and records.text_field is None
        and folded(header[0]) not in TEXT_FIELDS
        and (len(header[0]) > LONGEST_NAME or len(header[0].split()) > MOST_WORDS or header[0].endswith(tuple(".!?。！？")))
    ):
        raise CorpusError(
            f"{place}: the first line of the only column reads like a text, not like its name: {header[0][:60]!r}. "
            "Give --format txt, a text a line, or --text-field with the name"
        )
    records.settle({name: "" for name in header if name}, place)
    return header


def _named(header: list[str], row: list[str]) -> dict[str, str]:
    """Return the row by its columns' names; a column without one, as Excel leaves behind, only where it holds something."""
    named = zip(header, row, range(1, len(row) + 1), strict=True)
    return {name or f"column {number}": value for name, value, number in named if name or value.strip()}


def _columns(schema: pa.Schema, name: str) -> list[str] | None:
    """Return which columns to read, None for all: what is nothing but bytes is no field, and may be long."""
    twice = [column for column, count in Counter(schema.names).items() if count > 1]
    if twice:
        raise CorpusError(f"{name}: there are two columns {twice[0]!r}; give one another name")
    columns = [column.name for column in schema if not _is_binary(column.type)]
    return columns if len(columns) < len(schema) else None


def _read_rows(schema: pa.Schema, batches: Iterable[pa.RecordBatch], records: Records) -> Iterator[Document]:
    records.settle({column.name: _like(column.type) for column in schema}, records.name)
    features = _features(schema)
    meant = {column.name: _meant(column.type, features.get(column.name)) for column in schema}
    changed = {name: mean for name, mean in meant.items() if mean}
    row_number = 0
    for batch in batches:
        for record in _records(batch):
            row_number += 1
            place = f"{records.name}:row {row_number}"
            if isinstance(record, Exception):
                records.broken.report(place, f"a value in it cannot be read ({reason(record)})")
            else:
                for name in changed.keys() & record.keys():
                    record[name] = changed[name](record[name])
                yield from records.document(record, place)


def _records(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | Exception]:
    """Yield the rows of a batch; of one whose bytes do not fit its column's type, why: no writer has to check that."""
    try:
        yield from batch.to_pylist(maps_as_pydicts="strict")
    except UNREADABLE:
        for number in range(batch.num_rows):
            try:
                record = batch.slice(number, 1).to_pylist(maps_as_pydicts="strict")[0]
            except UNREADABLE as error:
                yield error
            else:
                yield record


def _features(schema: pa.Schema) -> dict[str, Any]:
    """Return what `datasets` has written down of the columns beyond their types, where it made them."""
    if FEATURES not in (schema.metadata or {}):
        return {}
    import datasets

    try:
        return dict(datasets.Features.from_arrow_schema(schema))
    except Exception:  # what another release wrote, of which the columns themselves tell enough
        return {}


def _meant(type: pa.DataType, feature: Any) -> Callable[[Any], Any] | None:
    """Return what turns a value of `type` into what its writer meant, None where it is that already.

    A class label is its name, as a reader of the table sees it; a number of 16 or 32 bits is no double of other digits.
    """
    if names := getattr(feature, "names", None):
        return lambda value: names[value] if value in range(len(names)) else value
    if pa.types.is_float16(type) or pa.types.is_float32(type):
        number = np.float16 if pa.types.is_float16(type) else np.float32
        return lambda value: None if value is None else number(value)
    if pa.types.is_struct(type):
        of = feature if isinstance(feature, dict) else {}
        parts = {part.name: mean for part in type if (mean := _meant(part.type, of.get(part.name)))}
        if not parts:
            return None
        return lambda value: value and {name: parts[name](one) if name in parts else one for name, one in value.items()}
    if pa.types.is_list(type) or pa.types.is_large_list(type) or pa.types.is_fixed_size_list(type):
        inner = _meant(type.value_type, getattr(feature, "feature", None))
        return (lambda value: value and [inner(one) for one in value]) if inner else None
    return None


def _like(type: pa.DataType) -> Any:
    """Return something of the kind that a column holds: a text, an object, or the name of its type."""
    if pa.types.is_struct(type):
        return {field.name: _like(field.type) for field in type}
    if pa.types.is_null(type):
        return None
    inner = type.value_type if pa.types.is_dictionary(type) else type  # what pandas calls a categorical
    is_text = pa.types.is_string(inner) or pa.types.is_large_string(inner) or pa.types.is_string_view(inner)
    return "" if is_text else OtherType(str(type))


def _is_binary(type: pa.DataType) -> bool:
    kinds = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
    return any(is_kind(type) for is_kind in kinds)
