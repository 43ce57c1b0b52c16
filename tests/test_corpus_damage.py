"""Whatever a file holds, reading it ends in texts or in a `CorpusError`, and in little memory.

A kind of damage is a way to spoil bytes, before or after they are compressed, in one of the formats: every kind is tried,
and hypothesis puts several together.
"""

import contextlib
import gzip
import io
import json
import os
import random
import socket
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from test_corpus_readers import contents

from text2token.corpus.prepare import prepare_corpus
from text2token.corpus.readers import BrokenLines, read_documents, source_state
from text2token.errors import CorpusError
from text2token.recipe import CorpusSettings

Damage = Callable[[bytes, random.Random], bytes]
FORMATS = ("txt", "jsonl", "json", "csv", "tsv", "parquet")
COMPRESS: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}


def inserted(piece: bytes) -> Damage:
    """Return what puts `piece` anywhere."""

    def damage(content: bytes, chance: random.Random) -> bytes:
        place = chance.randint(0, len(content))
        return content[:place] + piece + content[place:]

    return damage


def line(content: bytes) -> Damage:
    """Return what adds a line of that content, at the beginning, the end, or between."""

    def damage(before: bytes, chance: random.Random) -> bytes:
        lines = before.split(b"\n")
        lines.insert(chance.randint(0, len(lines)), content)
        return b"\n".join(lines)

    return damage


def flipped(content: bytes, chance: random.Random) -> bytes:
    spoilt = bytearray(content)
    for _ in range(min(len(spoilt), chance.randint(1, 8))):
        spoilt[chance.randrange(len(spoilt))] ^= 1 << chance.randrange(8)
    return bytes(spoilt)


def without_a_piece(content: bytes, chance: random.Random) -> bytes:
    start = chance.randint(0, len(content))
    return content[:start] + content[start + chance.randint(1, 40) :]


DAMAGES: dict[str, Damage] = {
    "nothing": lambda content, chance: content,
    "empty": lambda content, chance: b"",
    "cut at the end": lambda content, chance: content[: chance.randint(0, len(content))],
    "cut at the beginning": lambda content, chance: content[chance.randint(0, len(content)) :],
    "a piece missing": without_a_piece,
    "bits flipped": flipped,
    "doubled": lambda content, chance: content * 2,
    "reversed": lambda content, chance: content[::-1],
    "zeros after it": lambda content, chance: content + bytes(chance.randint(1, 600)),
    "noise after it": lambda content, chance: content + chance.randbytes(chance.randint(1, 600)),
    "noise before it": lambda content, chance: chance.randbytes(chance.randint(1, 600)) + content,
    "only noise": lambda content, chance: chance.randbytes(chance.randint(1, 600)),
    "NUL inside": inserted(b"\0"),
    "a run of NULs": inserted(bytes(5000)),
    "a byte order mark first": lambda content, chance: b"\xef\xbb\xbf" + content,
    "two byte order marks": lambda content, chance: b"\xef\xbb\xbf" * 2 + content,
    "a byte order mark inside": inserted(b"\xef\xbb\xbf"),
    "the mark of UTF-16": lambda content, chance: b"\xff\xfe" + content,
    "UTF-16": lambda content, chance: content.decode("latin-1").encode("utf-16"),
    "UTF-16 without a mark": lambda content, chance: content.decode("latin-1").encode("utf-16-be"),
    "UTF-32": lambda content, chance: content.decode("latin-1").encode("utf-32"),
    "UTF-7": lambda content, chance: content.decode("latin-1").encode("utf-7"),
    "Latin-1": inserted("naïve café".encode("latin-1")),
    "Shift-JIS": inserted("日本語".encode("shift-jis")),
    "a lone continuation byte": inserted(b"\x80"),
    "an overlong slash": inserted(b"\xc0\xaf"),
    "an encoded surrogate": inserted(b"\xed\xa0\x80"),
    "beyond Unicode": inserted(b"\xf7\xbf\xbf\xbf"),
    "half a character at the end": lambda content, chance: content + b"\xf0\x9f",
    "escape codes of a terminal": inserted(b"\x1b[2J\x1b]0;title\x07"),
    "a vertical tab and a form feed": inserted(b"\x0b\x0c"),
    "a line separator": inserted("\u2028\u2029\x85".encode()),
    "Windows line ends": lambda content, chance: content.replace(b"\n", b"\r\n"),
    "old Mac line ends": lambda content, chance: content.replace(b"\n", b"\r"),
    "mixed line ends": lambda content, chance: content.replace(b"\n", b"\r\n\r", 1),
    "a carriage return inside": inserted(b"\r"),
    "an end of file of DOS": inserted(b"\x1a"),
    "a line too long": line(b"x" * 1_000_001),
    "a string too long": line(b'{"text": "' + b"y" * 999_999 + b'"}'),
    "a thousand empty lines": inserted(b"\n" * 1000),
    "a quotation mark": inserted(b'"'),
    "many quotation marks": inserted(b'"' * 501),
    "a backslash": inserted(b"\\"),
    "a delimiter too many": inserted(b",\t"),
    "thousands of fields": line(b",\t" * 20_000),
    "another header": lambda content, chance: b"a,b\na\tb\n" + content,
    "a column twice": lambda content, chance: b"text,text\ttext\n" + content,
    "nameless columns": lambda content, chance: b",,\t\t\n" + content,
    "one line without an end": lambda content, chance: content.replace(b"\n", b" "),
    "deep lists": line(b"[" * 100_000),
    "deep objects": line(b'{"text":' * 100_000),
    "deep and closed": line(b"[" * 5_000 + b"]" * 5_000),
    "an object half-way": line(b'{"text": "a"'),
    "a key twice": line(b'{"text": "a", "text": 3}'),
    "no key": line(b'{"": ""}'),
    "an empty object": line(b"{}"),
    "not a number": line(b'{"text": NaN, "n": -Infinity}'),
    "a number for a text": line(b'{"text": 3}'),
    "a truth value for a text": line(b'{"text": true}'),
    "null for a text": line(b'{"text": null}'),
    "a list for a text": line(b'{"text": ["a", "b"]}'),
    "an object for a text": line(b'{"text": {"text": "a"}}'),
    "a number too large for a float": line(b'{"text": 1e999999, "n": 1E400}'),
    "a number of ten thousand digits": line(b'{"text": "a", "n": ' + b"9" * 10_000 + b"}"),
    "half a surrogate pair": line(rb'{"text": "a \ud800 b", "\udfff": "\ud83d"}'),
    "a surrogate pair the wrong way round": line(rb'{"text": "\ude00\ud83d"}'),
    "an escaped NUL": line(rb'{"text": "a\u0000b"}'),
    "a bad escape": line(rb'{"text": "\x41 \u12"}'),
    "a raw tab in a string": line(b'{"text": "a\tb"}'),
    "single quotation marks": line(b"{'text': 'a'}"),
    "a comment": line(b'// {"text": "a"}'),
    "a comma at the end": line(b'{"text": "a",}'),
    "two objects in a line": line(b'{"text": "a"} {"text": "b"}'),
    "a string alone": line(b'"only a string"'),
    "null alone": line(b"null"),
    "one document over many lines": line(b'[\n{"text":\n"a"}\n]'),
    "XML": line(b"<?xml version='1.0'?><!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]><a>&b;</a>"),
    "a page": line(b"<script>alert(1)</script>"),
    "a formula of a spreadsheet": line(b"=HYPERLINK(\"http://example.org\"),@SUM(1+1)*cmd|' /C calc'!A0"),
    "a pickle": line(b"cos\nsystem\n(S'true'\ntR."),
    "a path": line(b"../../../../etc/passwd"),
    "another gzip": lambda content, chance: content + gzip.compress(content),
    "gzip in it": lambda content, chance: gzip.compress(content),
    "zstd in it": lambda content, chance: zstandard.compress(content),
    "gzip cut short in it": lambda content, chance: gzip.compress(content)[:-4],
    "a ZIP archive": lambda content, chance: b"PK\x03\x04" + content,
    "a tar archive": lambda content, chance: b"docs.txt".ljust(512, b"\0") + content.ljust(1024, b"\0"),
    "half of Parquet": lambda content, chance: b"PAR1" + content,
    "Parquet without an inside": lambda content, chance: b"PAR1" + content + b"\xff\xff\xff\x7fPAR1",
    "an Arrow file": lambda content, chance: b"ARROW1\0\0" + content,
}
KINDS = [
    (format, suffix, name, compressed)
    for format in FORMATS
    for suffix in COMPRESS
    for name in DAMAGES
    for compressed in ([False, True] if suffix else [False])
]


def read(sources: list[Path], **options: Any) -> int:
    """Read in both ways and return how many texts there are; anything but a `CorpusError` comes through."""
    names, texts = [str(source) for source in sources], 0
    for on_error in ("stop", "skip"):
        with contextlib.suppress(CorpusError):
            for document in read_documents(names, broken=BrokenLines(on_error), **options):  # type: ignore[arg-type]
                document.body.encode()
                document.place.encode()
                json.dumps(document.fields, ensure_ascii=False, allow_nan=False).encode()
                texts += 1
    return texts


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("format", FORMATS)
def test_every_kind_of_damage_is_texts_or_a_corpus_error(tmp_path: Path, format: str, suffix: str) -> None:
    assert len(KINDS) >= 200
    path = tmp_path / f"docs.{format}{suffix}"
    for number, (_, _, name, compressed) in enumerate(kind for kind in KINDS if kind[:2] == (format, suffix)):
        for seed in range(2):
            chance, content = random.Random(1000 * number + seed), contents(format)
            if compressed:
                content = DAMAGES[name](COMPRESS[suffix](content), chance)
            else:
                content = COMPRESS[suffix](DAMAGES[name](content, chance))
            path.write_bytes(content)
            try:
                texts = read([path])
            except Exception as error:
                raise AssertionError(f"{name} (seed {seed}, compressed {compressed}): {error!r}") from error
            assert texts == 6 or name != "nothing"


@given(
    format=st.sampled_from(FORMATS),
    suffix=st.sampled_from(list(COMPRESS)),
    before=st.lists(st.sampled_from(list(DAMAGES)), max_size=3),
    after=st.lists(st.sampled_from(list(DAMAGES)), max_size=2),
    field=st.sampled_from([None, "text", "id", "none such"]),
    chance=st.randoms(use_true_random=False),
)
@settings(deadline=None, max_examples=200)
def test_damage_upon_damage(
    tmp_path_factory: pytest.TempPathFactory,
    format: str,
    suffix: str,
    before: list[str],
    after: list[str],
    field: str | None,
    chance: random.Random,
) -> None:
    content = contents(format)
    for name in before:
        content = DAMAGES[name](content, chance)
    content = COMPRESS[suffix](content)
    for name in after:
        content = DAMAGES[name](content, chance)
    path = tmp_path_factory.getbasetemp() / f"damaged.{format}{suffix}"
    path.write_bytes(content)
    read([path], text_field=field)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(), max_size=5) | st.just("text"), inner)
    ),
    max_leaves=12,
)


@given(st.lists(anything, max_size=6), st.booleans())
@settings(deadline=None)
def test_any_json_becomes_a_corpus_or_a_corpus_error(
    tmp_path_factory: pytest.TempPathFactory, records: list[Any], ascii_only: bool
) -> None:
    folder = tmp_path_factory.getbasetemp()
    lines = [json.dumps(record, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass") for record in records]
    (folder / "any.jsonl").write_bytes(b"\n".join(lines))
    read([folder / "any.jsonl"])
    broken = BrokenLines("skip")
    with contextlib.suppress(CorpusError):
        documents = read_documents([str(folder / "any.jsonl")], broken=broken)
        prepare_corpus(documents, folder / "any.corpus", CorpusSettings(held_out=1))


def strings(*values: bytes) -> pa.Array:
    """Return an array of strings of any bytes, as a careless writer makes them."""
    return pa.array(values, pa.binary()).view(pa.string())


TABLES: dict[str, Callable[[], pa.Table]] = {
    "bytes that are not UTF-8": lambda: pa.table({"text": strings(b"fine", b"na\xefve", b"\xed\xa0\x80")}),
    "a NUL": lambda: pa.table({"text": ["fine", "a\0b"]}),
    "no rows": lambda: pa.table({"text": pa.array([], pa.string())}),
    "no columns": lambda: pa.table({}),
    "nulls": lambda: pa.table({"text": pa.array([None, "a", None])}),
    "only nulls": lambda: pa.table({"text": pa.nulls(3)}),
    "numbers": lambda: pa.table({"text": [1, 2, 3]}),
    "bytes": lambda: pa.table({"text": [b"a", b"\xff"]}),
    "lists": lambda: pa.table({"text": [["a"], ["b", "c"]]}),
    "structures": lambda: pa.table({"text": [{"text": "a"}, {"text": "b"}]}),
    "a dictionary": lambda: pa.table({"text": pa.array(["a", "b", "a"]).dictionary_encode()}),
    "large strings": lambda: pa.table({"text": pa.array(["a"], pa.large_string())}),
    "views of strings": lambda: pa.table({"text": pa.array(["a"], pa.string_view())}),
    "a column twice": lambda: pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]),
    "another column twice": lambda: pa.Table.from_arrays([pa.array(["a"])] * 3, names=["text", "n", "n"]),
    "nameless": lambda: pa.table({"": ["a"]}),
    "two text columns": lambda: pa.table({"one": ["a"], "two": ["b"]}),
    "numbers that are none": lambda: pa.table({"text": ["a", "b"], "n": [float("nan"), float("inf")]}),
    "half floats": lambda: pa.table({"text": ["a"], "n": pa.array([1.5], pa.float16())}),
    "times": lambda: pa.table({"text": ["a"], "when": pa.array([2**62], pa.timestamp("ns"))}),
    "a dot in a name": lambda: pa.table({"text": ["a"], "a.b": [1], "a": [{"b": 2}]}),
    "too long a text": lambda: pa.table({"text": ["a", "x" * 1_000_001]}),
}


@pytest.mark.parametrize("kind", TABLES)
def test_odd_tables_of_parquet(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "docs.parquet"
    pq.write_table(TABLES[kind](), path)
    read([path])
    read([path], text_field="text")


@given(st.binary(max_size=60), st.integers(0, 2000), st.sampled_from(["snappy", "zstd", "none"]))
@settings(deadline=None, max_examples=150)
def test_parquet_with_any_bytes_anywhere(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, place: int, compression: str
) -> None:
    buffer = io.BytesIO()
    columns = {"text": ["a text", None, "another"] * 9, "n": list(range(27)), "tags": [["a"], [], None] * 9}
    pq.write_table(pa.table(columns), buffer, compression=compression)
    content = bytearray(buffer.getvalue())
    place %= len(content)
    content[place : place + len(noise)] = noise
    path = tmp_path_factory.getbasetemp() / "noise.parquet"
    path.write_bytes(content)
    read([path])


def folder_named_like_a_file(at: Path) -> Path:
    (at / "docs.jsonl").mkdir()
    (at / "docs.jsonl" / "inner.jsonl").write_text('{"text": "a"}', encoding="utf-8")
    return at / "docs.jsonl"


def link_to_nothing(at: Path) -> Path:
    (at / "docs.txt").symlink_to(at / "none.txt")
    return at / "docs.txt"


def link_to_itself(at: Path) -> Path:
    (at / "docs.txt").symlink_to(at / "docs.txt")
    return at / "docs.txt"


def a_socket(at: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(at / "docs.txt"))
    return at / "docs.txt"


def dataset(*spoilt: tuple[str, bytes | None]) -> Callable[[Path], Path]:
    """Return what saves a dataset and spoils some of its files; None deletes one."""

    def make(at: Path) -> Path:
        datasets.Dataset.from_dict({"text": ["a", "b"], "n": [1, 2]}).save_to_disk(str(at / "set"))
        for name, content in spoilt:
            (at / "set" / name).unlink()
            if content is not None:
                (at / "set" / name).write_bytes(content)
        return at / "set"

    return make


ARROW = "data-00000-of-00001.arrow"
PLACES: dict[str, Callable[[Path], Path | str]] = {
    "a folder named like a file": folder_named_like_a_file,
    "an empty folder": lambda at: at,
    "a link to nothing": link_to_nothing,
    "a link to itself": link_to_itself,
    "a socket": a_socket,
    "a name too long": lambda at: at / ("x" * 300 + ".txt"),
    "a path too long": lambda at: "x/" * 3000 + "docs.txt",
    "no name": lambda at: "",
    "a NUL in the name": lambda at: "docs\0.txt",
    "a pattern that is none": lambda at: at / "[z-a]*[.txt",
    "under a file": lambda at: Path(__file__) / "docs.txt",
    "a device without an end that is no text": lambda at: "/dev/null",
    "a dataset without its state": dataset(("state.json", None)),
    "a dataset with half a state": dataset(("state.json", b"{")),
    "a dataset with another state": dataset(("state.json", b'{"_data_files": [{"filename": "../../x"}]}')),
    "a dataset with a state that is a list": dataset(("state.json", b"[]")),
    "a dataset without its table": dataset((ARROW, None)),
    "a dataset with an empty table": dataset((ARROW, b"")),
    "a dataset with noise for a table": dataset((ARROW, os.urandom(500))),
    "a dataset without its features": dataset(("dataset_info.json", None)),
    "a dataset with other features": dataset(("dataset_info.json", b'{"features": {"text": 3}}')),
    "a dataset with unknown features": dataset(("dataset_info.json", b'{"features": {"text": {"_type": "Nothing"}}}')),
    "a dataset with half its features": dataset(("dataset_info.json", b"{")),
}


@pytest.mark.parametrize("kind", PLACES)
def test_what_is_no_readable_file_is_a_corpus_error(tmp_path: Path, kind: str) -> None:
    source, told = str(PLACES[kind](tmp_path)), []
    for reading in (lambda: list(read_documents([source])), lambda: source_state([source, str(tmp_path)])):
        try:
            reading()
        except CorpusError as error:
            told.append(str(error))
    assert all(len(message.splitlines()) == 1 and len(message) < 7000 for message in told)
    assert told or kind in ("a device without an end that is no text", "a dataset with another state")


def test_a_file_whose_name_is_not_unicode_is_read_and_named(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/na\xefve.txt"
    Path(os.fsdecode(path)).write_text("a text\n", encoding="utf-8")
    assert [document.place.encode()[-12:] for document in read_documents([os.fsdecode(path)])] == [rb"na\xefve.txt:1"[-12:]]


def test_half_a_surrogate_pair_is_marked(tmp_path: Path) -> None:
    (tmp_path / "docs.jsonl").write_text(r'{"text": "a \ud800 b \ud83d\ude00"}', encoding="utf-8")
    assert [document.body for document in read_documents([str(tmp_path / "docs.jsonl")])] == ["a \ufffd b \U0001f600"]


def test_standard_input_that_is_closed_is_a_corpus_error() -> None:
    script = "from text2token.corpus.readers import read_documents as read\nlist(read(['-']))"
    command = [sys.executable, "-c", f"{script}"]
    ended = subprocess.run(["sh", "-c", 'exec "$0" "$@" <&-', *command], capture_output=True, text=True)
    assert "CorpusError: <stdin>" in ended.stderr


def repeated(piece: bytes, megabytes: int, first: bytes = b"") -> bytes:
    """Return a gzip file that unpacks to so many megabytes of `piece`, and is small itself."""
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb") as file:
        file.write(first)
        for _ in range(megabytes):
            file.write(piece * (1_000_000 // len(piece)))
    return packed.getvalue()


BOMBS: dict[str, tuple[str, bytes, bytes]] = {
    "one line": ("txt", b"x", b""),
    "one string": ("jsonl", b"x", b'{"text": "'),
    "an open quotation mark": ("csv", b"x" * 99_999 + b"\n", b'id,text\n1,"'),
    "a row that never ends": ("csv", b"x" * 99_995 + b'\n","', b'id,text\n1,"'),
    "lists in lists": ("jsonl", b"[", b""),
    "a string in a list": ("json", b"x", b'[{"text": "'),
    "a number without an end": ("json", b"7", b"[1"),
    "nothing but space": ("json", b" ", b"["),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_small_file_that_unpacks_to_a_hundred_megabytes_costs_little_memory(tmp_path: Path, kind: str) -> None:
    format, piece, first = BOMBS[kind]
    path = tmp_path / f"docs.{format}.gz"
    path.write_bytes(repeated(piece, 100, first))
    tracemalloc.start()
    with contextlib.suppress(CorpusError):
        for _ in read_documents([str(path)], broken=BrokenLines("skip")):
            pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30_000_000


def test_long_texts_in_parquet_are_read_a_few_at_a_time(tmp_path: Path) -> None:
    """A hundred thousand times the same megabyte is a small file: a dictionary of one value."""
    path = tmp_path / "docs.parquet"
    table = pa.table({"text": pa.DictionaryArray.from_arrays(pa.array([0] * 4000, pa.int32()), ["x" * 500_000])})
    pq.write_table(table, path, row_group_size=4000)
    assert path.stat().st_size < 100_000
    before = pa.total_allocated_bytes()
    documents: Iterator[Any] = read_documents([str(path)])
    most = max(pa.total_allocated_bytes() - before for _, _ in zip(documents, range(300), strict=False))
    assert most < 200_000_000
