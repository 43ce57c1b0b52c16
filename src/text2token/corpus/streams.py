"""Bytes → lines or JSON values, with their places; what is no text in UTF-8 is named.

Nothing is held in memory but the line at hand, and a line may not outgrow `MAX_DOCUMENT_BYTES`: a binary file without
line breaks must end in a clear message, not in swap. A silent case: a `.gz` cut short reads fine up to the
cut, so its end is checked, and what is cut is reported with `rest_unknown`.
"""

import codecs
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from typing import IO, Any, cast

import pyarrow as pa

from text2token.corpus.broken import BrokenLines
from text2token.corpus.records import MAX_DOCUMENT_BYTES
from text2token.corpus.values import exact_integer, exact_number
from text2token.errors import CorpusError, reason

DAMAGED = (EOFError, OSError, zlib.error, pa.ArrowException)  # what a stream raises where its bytes are not as they were
CHUNK = 1 << 16  # bytes
COMPRESSIONS = (".gz", ".zst")
UTF8_MARK = "\ufeff"
MARKS = {  # the longer first: that of UTF-32 begins like that of UTF-16
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
NO_TEXT = {
    b"\x1f\x8b": "gzip data (end its name in .gz, or unpack it)",
    b"\x28\xb5\x2f\xfd": "zstd data (end its name in .zst, or unpack it)",
    b"BZh91AY&SY": "bzip2 data (unpack it)",
    b"\xfd7zXZ\0": "xz data (unpack it)",
    b"PK\x03\x04": "a ZIP archive, as .xlsx, .docx and .epub are (unpack it, or save it as CSV or text)",
    b"\xd0\xcf\x11\xe0": "an old Office file (save it as CSV or text)",
    b"%PDF-": "a PDF (extract its text)",
    b"SQLite format 3\0": "an SQLite database (export a table as CSV)",
    b"PAR1": "Parquet (end its name in .parquet, or give --format parquet)",
    b"ARROW1": "Arrow (save it as Parquet)",
}
BETWEEN_VALUES = re.compile(rf"[\s,{UTF8_MARK}]*")
NO_JSON_LINES = re.compile(rb"(\xef\xbb\xbf)?\s*(\[|\{\s*\r?\n)")  # a list, or an object over several lines


def decompressed(raw: IO[bytes], compression: str, name: str, broken: BrokenLines) -> IO[bytes]:
    """Return what a file holds whose name ends in `compression`, or `raw` where that is nothing."""
    if compression and not cast(io.BufferedReader, raw).peek(1):  # either kind has a head, even of nothing
        broken.report(name, "the file is empty, which no archive is", rest_unknown=True)
    if compression == ".gz":
        return cast(IO[bytes], gzip.GzipFile(fileobj=raw, mode="rb"))
    if compression == ".zst":
        return io.BufferedReader(cast(io.RawIOBase, pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd")))
    return raw


def head_of(stream: IO[bytes], name: str, broken: BrokenLines) -> bytes | None:
    """Return the first bytes of a stream and leave them there; None, and a report, where nothing of it can be read."""
    try:
        return cast(io.BufferedReader, stream).peek(64)
    except DAMAGED as error:
        broken.report(name, f"the file is cut short or damaged ({reason(error)})", rest_unknown=True)
        return None


def check_is_text(head: bytes, name: str) -> None:
    """Raise `CorpusError` for what begins like another kind of file, saying what and what to do."""
    for mark, encoding in MARKS.items():
        if head.startswith(mark):
            raise CorpusError(f"{name}: the file is {encoding}; convert it first: iconv -f {encoding} -t UTF-8")
    for mark, kind in NO_TEXT.items():
        if head.startswith(mark):
            raise CorpusError(f"{name}: holds no text but {kind}")


def lines_of(stream: IO[bytes], name: str, broken: BrokenLines) -> Iterator[tuple[int, str]]:
    r"""Yield the lines, which may end in \n, \r\n or \r, with their numbers; report those that are no text."""
    stream, number = io.BufferedReader(_LineEnds(stream), CHUNK), 0
    while True:
        number += 1
        try:
            line = stream.readline(MAX_DOCUMENT_BYTES + 1)
            if len(line) > MAX_DOCUMENT_BYTES:
                while line and not line.endswith(b"\n"):
                    line = stream.readline(MAX_DOCUMENT_BYTES)
                broken.report(f"{name}:{number}", f"the line is longer than {MAX_DOCUMENT_BYTES:,} bytes")
                continue
        except DAMAGED as error:
            broken.report(f"{name}:{number}", f"the file is cut short or damaged here ({reason(error)})", rest_unknown=True)
            return
        if not line:
            return
        try:
            text = line.decode("utf-8").removeprefix(UTF8_MARK)  # files put together have one in their midst
        except UnicodeDecodeError as error:
            column = len(line[: error.start].decode("utf-8", "replace")) + 1
            broken.report(f"{name}:{number}:{column}", f"byte 0x{line[error.start]:02X} is not UTF-8")
            continue
        if "\0" in text:
            broken.report(f"{name}:{number}:{text.index(chr(0)) + 1}", "the line holds a NUL byte")
            continue
        yield number, text


def read_json(text: str) -> Any:
    """Return the value of a JSON text, numbers exactly; `ValueError` or `RecursionError` where it cannot be read."""
    return json.loads(text, parse_int=exact_integer, parse_float=exact_number)


def values_of(stream: IO[bytes], name: str, broken: BrokenLines) -> Iterator[tuple[int, Any]]:
    """Yield the JSON values of a stream with the numbers of their lines: one after the other, or the items of a list.

    Behind what cannot be read nobody knows where the next value begins, so the reading ends there.
    """
    scan = json.JSONDecoder(parse_int=exact_integer, parse_float=exact_number).raw_decode
    decode = codecs.getincrementaldecoder("utf-8")().decode
    text, at, counted, line = "", 0, 0, 1
    ended, in_list, damage = False, False, ""
    while True:
        while not ended and len(text) - at <= MAX_DOCUMENT_BYTES:  # so that no value is cut by the end of what is read
            line, text, at, counted = line + text.count("\n", counted, at), text[at:], 0, 0
            pieces, size = [], 0
            try:
                while not ended and size <= MAX_DOCUMENT_BYTES:
                    piece = cast(io.BufferedReader, stream).read1(CHUNK)
                    ended = not piece
                    pieces.append(decode(piece, ended))
                    size += len(piece)
            except (*DAMAGED, UnicodeDecodeError) as error:
                ended, damage = True, f"the file is cut short or damaged ({reason(error)})"
            text += "".join(pieces)
        between = BETWEEN_VALUES.match(text, at)
        at = between.end() if between else at
        line, counted = line + text.count("\n", counted, at), at
        if at == len(text):
            if ended:
                break
        elif text[at] == "[" and not in_list:
            in_list, at = True, at + 1
        elif text[at] == "]" and in_list:
            in_list, at = False, at + 1
        else:
            try:
                value, end = scan(text, at)
            except (ValueError, RecursionError) as error:
                problem = "JSON nested too deeply" if isinstance(error, RecursionError) else f"not JSON ({_message(error)})"
                broken.report(f"{name}:{line}", damage or problem, rest_unknown=True)
                return
            if end - at > MAX_DOCUMENT_BYTES:
                broken.report(f"{name}:{line}", f"the value is longer than {MAX_DOCUMENT_BYTES:,} characters")
            else:
                yield line, value
            at = end
    if damage or in_list:
        broken.report(f"{name}:{line}", damage or "the list does not end: the file is cut short", rest_unknown=True)


def _message(error: ValueError) -> str:
    return error.msg if isinstance(error, json.JSONDecodeError) else reason(error)


class _LineEnds(io.RawIOBase):
    r"""A stream whose lines all end in \n, as Python's text mode has it: old spreadsheets write \r alone."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self.after_return = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        chunk = b""
        while not chunk:
            read = cast(io.BufferedReader, self.stream).read1(len(buffer))
            if not read:
                return 0
            chunk = read[1:] if self.after_return and read.startswith(b"\n") else read
            self.after_return = read.endswith(b"\r")
        chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        buffer[: len(chunk)] = chunk
        return len(chunk)
