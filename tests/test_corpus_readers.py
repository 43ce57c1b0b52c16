"""Every format reads the same texts, and every kind of damage is told with its place."""

import contextlib
import datetime
import decimal
import gzip
import io
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from text2token.corpus.readers import BrokenLines, expand_sources, read_documents, source_state
from text2token.corpus.records import MAX_DOCUMENT_BYTES
from text2token.errors import CorpusError

EXPECTED = ["A first text.", 'Ein zweiter, mit "Zitat" und Komma.', "第三个文本。"]


def bodies(*sources: object, **options: object) -> list[str]:
    return [document.body.strip() for document in read_documents([str(source) for source in sources], **options)]  # type: ignore[arg-type]


def contents(format: str) -> bytes:
    if format == "txt":
        return "\n".join(EXPECTED).encode()
    if format == "jsonl":
        return "\n".join(json.dumps({"id": i, "text": text}) for i, text in enumerate(EXPECTED)).encode()
    if format == "json":
        return json.dumps([{"id": i, "text": text} for i, text in enumerate(EXPECTED)], indent=1).encode()
    if format in ("csv", "tsv"):
        quoted = ['"' + text.replace('"', '""') + '"' for text in EXPECTED]
        return (
            "\n".join(
                [f"id{',' if format == 'csv' else chr(9)}text"]
                + [f"{i}{',' if format == 'csv' else chr(9)}{text}" for i, text in enumerate(quoted)]
            )
        ).encode()
    buffer = io.BytesIO()
    pq.write_table(pa.table({"id": [0, 1, 2], "text": EXPECTED}), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize("format", ["txt", "jsonl", "json", "csv", "tsv", "parquet"])
def test_every_format_and_compression_gives_the_same_texts(tmp_path: Path, format: str, compression: str) -> None:
    path = tmp_path / f"docs.{format}{compression}"
    compress = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[compression]
    path.write_bytes(compress(contents(format)))
    assert bodies(path) == EXPECTED


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_a_title_beside_the_text_belongs_to_the_document(tmp_path: Path, ending: str) -> None:
    rows = {
        "title": ["Zinc", "", "Tin and lead"],
        "text": ["A metal.", "Another.", "Tin and lead melt early."],
        "n": [1, 2, 3],
    }
    path = tmp_path / f"docs.{ending}"
    if ending == "parquet":
        pq.write_table(pa.table(rows), path)
    elif ending == "csv":
        path.write_text(
            "\n".join(",".join(map(str, row)) for row in [tuple(rows), *zip(*rows.values(), strict=True)]), encoding="utf-8"
        )
    else:
        path.write_text(
            "\n".join(json.dumps(dict(zip(rows, row, strict=True))) for row in zip(*rows.values(), strict=True)),
            encoding="utf-8",
        )
    documents = list(read_documents([str(path)]))
    assert [document.title for document in documents] == ["Zinc", "", ""]  # the last text begins with its title
    assert [document.text for document in documents] == ["Zinc\n\nA metal.", "Another.", "Tin and lead melt early."]
    assert documents[0].fields["title"] == "Zinc"


def test_a_title_that_is_no_text_is_a_field_like_others(tmp_path: Path) -> None:
    path = tmp_path / "docs.jsonl"
    path.write_text('{"title": 7, "text": "one"}\n{"title": "seven", "other": "two"}\n', encoding="utf-8")
    (document,) = read_documents([str(path)], text_field="text", broken=BrokenLines("skip"))
    assert (document.text, document.fields) == ("one", {"title": 7})
    assert [document.title for document in read_documents([str(path)], text_field="title", broken=BrokenLines("skip"))] == [
        ""
    ]


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize("format", ["txt", "jsonl", "json", "csv", "parquet"])
def test_a_url_reads_like_a_file(tmp_path: Path, format: str, compression: str) -> None:
    compress = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[compression]
    url = f"memory://corpus/{tmp_path.name}/docs.{format}{compression}"
    with fsspec.open(url, "wb") as file:
        file.write(compress(contents(format)))
    documents = list(read_documents([url]))
    assert [document.body.strip() for document in documents] == EXPECTED
    assert documents[1].place.startswith(url)
    assert expand_sources([f"memory://corpus/{tmp_path.name}/*.{format}*"]) == [url.replace("memory://", "memory:///")]
    before = source_state([url])
    assert source_state([url]) == before
    with fsspec.open(url, "wb") as file:
        file.write(compress(contents(format) + b"\n"))
    assert source_state([url]) != before


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("memory://nowhere/docs.jsonl", r"memory://nowhere/docs.jsonl: no such file"),
        ("memory://nowhere/*.jsonl", r"no file matches this pattern"),
        ("gopher://host/docs.jsonl", r"gopher://host/docs.jsonl: Protocol not known: gopher"),
        ("oss://bucket/docs.jsonl", r"oss://bucket/docs.jsonl: Install ossfs"),
    ],
)
def test_a_url_that_leads_nowhere_is_said_in_one_line(url: str, said: str) -> None:
    with pytest.raises(CorpusError, match=said) as caught:
        expand_sources([url])
    assert "\n" not in str(caught.value)


def test_a_connection_that_breaks_is_said_with_its_url(monkeypatch: pytest.MonkeyPatch) -> None:
    class Breaking(io.BytesIO):
        def readinto(self, buffer: Any) -> int:
            if self.tell():
                raise RuntimeError("the peer went away")
            return super().readinto(buffer)

    monkeypatch.setattr("text2token.corpus.readers.open_remote", lambda _: Breaking(b"one\ntwo\n"))
    with fsspec.open("memory://breaking/docs.txt", "wb") as file:
        file.write(b"one\n")
    with pytest.raises(CorpusError, match=r"memory://breaking/docs.txt: cannot be read to its end \(the peer went away\)"):
        list(read_documents(["memory://breaking/docs.txt"]))


def test_globs_and_several_files_are_read_in_order(tmp_path: Path) -> None:
    for name in "cab":
        (tmp_path / f"{name}.txt").write_text(f"text {name}\n", encoding="utf-8")
    assert bodies(tmp_path / "*.txt", tmp_path / "a.txt") == ["text a", "text b", "text c", "text a"]


@pytest.mark.parametrize("content", ["one\ntwo\n", '{"text": "one"}\n{"text": "two"}\n'])
def test_standard_input_is_lines_or_json(monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(content.encode())), encoding="utf-8"))  # type: ignore[type-var]
    assert bodies("-") == ["one", "two"]


def test_datasets_folder(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": EXPECTED, "id": [1, 2, 3]}).save_to_disk(str(tmp_path / "set"))
    assert bodies(tmp_path / "set") == EXPECTED


def test_standard_library_has_titles_and_bodies() -> None:
    documents = list(read_documents(["python:stdlib"]))
    by_place = {document.place: document for document in documents}
    assert len(documents) > 3000
    assert by_place["json.dump"].title.startswith("Serialize")
    assert "ensure_ascii" in by_place["json.dump"].body
    assert not any("._" in place or ".tests." in place for place in by_place)


def test_text_field_is_found_named_or_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "docs.jsonl"
    path.write_text('{"title": "a", "abstract": "b", "n": 1}\n', encoding="utf-8")
    assert bodies(path, text_field="abstract") == ["b"]
    with pytest.raises(CorpusError, match=r"docs.jsonl:1: which field holds the text\? There are 'abstract', 'title'"):
        bodies(path)
    path.write_text('{"n": 1, "anything": "b"}\n', encoding="utf-8")
    assert bodies(path) == ["b"]


DAMAGE = {
    "bad JSON": (b'{"text": "fine"}\n{"text": "cut\n', r"docs.jsonl:2:10: not JSON"),
    "missing field": (b'{"text": "fine"}\n{"body2": "x"}\n', r"docs.jsonl:2: no field 'text'; there are 'body2'"),
    "number for text": (b'{"text": "fine"}\n{"text": 3}\n', r"docs.jsonl:2: field 'text' is a number"),
    "list for object": (b'{"text": "fine"}\n[1]\n', r"docs.jsonl:2: expected a JSON object or string, found a list"),
    "NUL byte": (b'{"text": "fine"}\n{"text": "a\0b"}\n', r"docs.jsonl:2:12: the line holds a NUL byte"),
    "not UTF-8": ('{"text": "fine"}\n{"text": "é'.encode() + b'\xe9"}\n', r"docs.jsonl:2:12: byte 0xE9 is not UTF-8"),
    "too long": (b'{"text": "fine"}\n{"text": "' + b"x" * MAX_DOCUMENT_BYTES + b'"}\n', r"docs.jsonl:2: the line is longer"),
    "too deep": (b'{"text": "fine"}\n' + b"[" * 200_000 + b"\n", r"docs.jsonl:2: JSON nested too deeply"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_line_stops_with_its_place_or_is_counted(tmp_path: Path, kind: str) -> None:
    content, message = DAMAGE[kind]
    path = tmp_path / "docs.jsonl"
    path.write_bytes(content + b'{"text": "last"}\n')
    with pytest.raises(CorpusError, match=message):
        bodies(path)
    broken = BrokenLines("skip")
    assert bodies(path, broken=broken) == ["fine", "last"]
    assert broken.count == 1


def test_table_with_a_short_row_or_an_open_quote(tmp_path: Path) -> None:
    path = tmp_path / "docs.csv"
    path.write_text('id,text\n1,fine\n2\n3,"open\n4,x\n', encoding="utf-8")
    with pytest.raises(CorpusError, match=r"docs.csv:3: the row has 1 fields, the header 2"):
        bodies(path)
    broken = BrokenLines("skip")
    assert bodies(path, broken=broken) == ["fine"]
    assert "docs.csv:4: not a valid row" in broken.first[1]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_archive_cut_short_is_never_taken_for_its_end(tmp_path: Path, suffix: str) -> None:
    compress = {".gz": gzip.compress, ".zst": zstandard.compress}[suffix]
    whole = compress("".join(f"line {os.urandom(8).hex()}\n" for _ in range(20_000)).encode())
    path = tmp_path / f"docs.txt{suffix}"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorpusError, match=r"docs\.txt\.\w+:\d+: the file is cut short or damaged here"):
        bodies(path)
    broken = BrokenLines("skip")
    assert 0 < len(bodies(path, broken=broken)) < 20_000
    assert broken.count == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("docs.parquet", b"not parquet at all", "not a readable Parquet file"),
        ("docs.pdf", b"%PDF", "unknown file type .pdf"),
        ("docs.txt", "text".encode("utf-16"), "the file is UTF-16"),
        ("docs.csv", b"a,a\n1,2\n", "the header names two columns 'a'"),
        ("docs.csv", b"a,b\n1,2\n", "which field holds the text"),
    ],
)
def test_unusable_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        bodies(path)


def test_missing_file_empty_glob_and_folder(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no such file"):
        bodies(tmp_path / "none.txt")
    with pytest.raises(CorpusError, match="no file matches"):
        bodies(tmp_path / "*.txt")
    with pytest.raises(CorpusError, match="is a folder"):
        bodies(tmp_path)


@given(st.binary(max_size=400))
def test_any_bytes_give_texts_or_a_corpus_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.getbasetemp()
    for suffix in ("txt", "jsonl", "csv", "parquet", "txt.gz", "jsonl.zst"):
        path = folder / f"fuzz.{suffix}"
        path.write_bytes(content)
        with contextlib.suppress(CorpusError):
            assert all(isinstance(body, str) for body in bodies(path, broken=BrokenLines("skip")))


def test_a_text_that_is_missing_in_the_first_record_is_still_the_text(tmp_path: Path) -> None:
    path = tmp_path / "docs.jsonl"
    path.write_text('{"title": "Paris", "text": null}\n{"title": "Rome", "text": "A city."}\n', encoding="utf-8")
    assert [document.text for document in read_documents([str(path)])] == ["Paris", "Rome\n\nA city."]


def test_a_line_of_text_ends_before_its_line_break(tmp_path: Path) -> None:
    path = tmp_path / "docs.txt"
    path.write_bytes(b"one\r\n two \nthree")
    assert [document.body for document in read_documents([str(path)])] == ["one", " two ", "three"]


def test_a_title_is_in_the_text_only_as_a_whole_word(tmp_path: Path) -> None:
    path = tmp_path / "docs.jsonl"
    rows = [{"title": "Go", "text": "Google was founded."}, {"title": "Go", "text": "Go: a game."}]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert [document.title for document in read_documents([str(path)])] == ["Go", ""]


rows = st.lists(
    st.fixed_dictionaries(
        {
            "text": st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9),
            "tags": st.none() | st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=3), max_size=3),
            "n": st.none() | st.integers(-(2**63), 2**63 - 1),
            "x": st.none() | st.floats(),
            "grid": st.lists(st.lists(st.floats(), max_size=2), max_size=2),
            "about": st.none()
            | st.fixed_dictionaries({"read": st.booleans(), "pages": st.none() | st.lists(st.integers(0, 9))}),
        }
    ),
    min_size=1,
    max_size=5,
)
TYPES = pa.schema(
    {
        "text": pa.string(),
        "tags": pa.list_(pa.string()),
        "n": pa.int64(),
        "x": pa.float64(),
        "grid": pa.list_(pa.list_(pa.float64())),
        "about": pa.struct({"read": pa.bool_(), "pages": pa.list_(pa.int64())}),
    }
)


@given(rows)
@settings(deadline=None)
def test_the_same_rows_have_the_same_fields_in_every_format(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    table = pa.Table.from_pylist(rows, TYPES)
    pq.write_table(table, folder / "rows.parquet")
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    datasets.Dataset(table).save_to_disk(str(folder / "set"))
    expected = [(document.body, document.fields) for document in read_documents([str(folder / "rows.jsonl")])]
    for name in ("rows.parquet", "set"):
        assert [(document.body, document.fields) for document in read_documents([str(folder / name)])] == expected


def test_columns_that_json_has_no_word_for_are_fields_as_text(tmp_path: Path) -> None:
    table = pa.table(
        {
            "text": ["a bicycle needs a chain"],
            "day": pa.array([datetime.date(2024, 1, 1)]).dictionary_encode(),
            "when": [datetime.datetime(2024, 1, 1, 12)],
            "price": [decimal.Decimal("1.50")],
            "number": pa.array([2**64 - 1], pa.uint64()),
            "by_name": pa.array([[("a", 1), ("b", 2)]], pa.map_(pa.string(), pa.int64())),
            "image": [{"bytes": b"\x89PNG", "path": "a.png"}],
            "raw": [b"\xff"],
            "": ["nameless"],
        }
    )
    pq.write_table(table, tmp_path / "docs.parquet")
    (document,) = read_documents([str(tmp_path / "docs.parquet")])
    assert document.fields == {
        "day": "2024-01-01",
        "when": "2024-01-01T12:00:00",
        "price": "1.50",
        "number": "18446744073709551615",
        "by_name": {"a": 1, "b": 2},
        "image": {"path": "a.png"},
        "": "nameless",
    }


@given(st.lists(st.floats(width=32) | st.none(), min_size=1))
@settings(deadline=None)
def test_numbers_of_32_bits_have_no_digits_that_nobody_gave(
    tmp_path_factory: pytest.TempPathFactory, numbers: list[float | None]
) -> None:
    path = tmp_path_factory.mktemp("numbers") / "docs.parquet"
    single = pa.array(numbers, pa.float32())
    nested = pa.array([{"of": [number]} for number in numbers], pa.struct({"of": pa.list_(pa.float32())}))
    pq.write_table(pa.table({"text": ["a"] * len(single), "x": single, "about": nested}), path)
    for document, number in zip(read_documents([str(path)]), numbers, strict=True):
        shortest = float(str(np.float32(number))) if number is not None and math.isfinite(number) else None
        assert document.fields == {"x": shortest, "about": {"of": [shortest]}}


def test_class_labels_are_read_by_their_names(tmp_path: Path) -> None:
    label = datasets.ClassLabel(names=["bad", "good"])
    features = datasets.Features(
        {"text": datasets.Value("string"), "y": label, "several": datasets.List(label), "about": {"y": label}}
    )
    rows = [
        {"text": "a", "y": 1, "several": [0, 1], "about": {"y": 0}},
        {"text": "b", "y": -1, "several": None, "about": None},
    ]
    made = datasets.Dataset.from_list(rows, features=features)
    made.save_to_disk(str(tmp_path / "set"))
    made.to_parquet(str(tmp_path / "set.parquet"))
    for name in ("set", "set.parquet"):
        first, second = read_documents([str(tmp_path / name)])
        assert first.fields == {"y": "good", "several": ["bad", "good"], "about": {"y": "bad"}}
        assert second.fields["y"] == -1  # as the library has it of what nobody labelled


def test_a_map_whose_keys_are_objects_is_told_with_its_place(tmp_path: Path) -> None:
    keyed = pa.array([[], [({"a": 1}, 1)]], pa.map_(pa.struct([("a", pa.int64())]), pa.int64()))
    pq.write_table(pa.table({"text": ["one", "two"], "m": keyed}), tmp_path / "docs.parquet")
    broken = BrokenLines("skip")
    assert bodies(tmp_path / "docs.parquet", broken=broken) == ["one"]
    assert broken.first[0].startswith(f"{tmp_path / 'docs.parquet'}:row 2: a value in it cannot be read")


def test_a_row_that_holds_a_date_beyond_any_calendar_is_told_with_its_place(tmp_path: Path) -> None:
    table = pa.table({"text": ["one", "two", "three"], "when": pa.array([0, 2**50, 1], pa.timestamp("s"))})
    pq.write_table(table, tmp_path / "docs.parquet")
    with pytest.raises(CorpusError, match=r"docs.parquet:row 2: a value in it cannot be read"):
        bodies(tmp_path / "docs.parquet")
    broken = BrokenLines("skip")
    assert bodies(tmp_path / "docs.parquet", broken=broken) == ["one", "three"]
    assert (broken.count, broken.incomplete) == (1, False)


def test_a_field_that_no_store_gives_back_is_kept_as_text_or_told(tmp_path: Path) -> None:
    deep = '{"text": "deep", "tree": ' + "[" * 40 + "]" * 40 + "}"
    twice = r'{"text": "twice", "\ud800": 1, "\udc00": 2}'
    (tmp_path / "docs.jsonl").write_text(
        deep + "\n" + twice + '\n{"text": "two", "n": ' + "7" * 5000 + "}\n", encoding="utf-8"
    )
    with pytest.raises(CorpusError, match=r"docs.jsonl:2: two fields are named '\ufffd'"):
        bodies(tmp_path / "docs.jsonl")
    broken = BrokenLines("skip")
    tree, number = [document.fields for document in read_documents([str(tmp_path / "docs.jsonl")], broken=broken)]
    assert json.dumps(tree["tree"]).replace('"', "") == "[" * 40 + "]" * 40
    assert number == {"n": "7" * 5000}
    assert (broken.count, broken.incomplete) == (1, False)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_an_archive_cut_anywhere_is_known_to_be_incomplete(tmp_path: Path, suffix: str) -> None:
    """Nothing that stood behind the cut may be taken for gone."""
    compress = {".gz": gzip.compress, ".zst": zstandard.compress}[suffix]
    whole = compress(b"".join(b'{"text": "%s"}\n' % os.urandom(4).hex().encode() for _ in range(20)))
    path = tmp_path / f"docs.jsonl{suffix}"
    path.write_bytes(whole)
    assert len(bodies(path)) == 20
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        broken = BrokenLines("skip")
        assert len(bodies(path, broken=broken)) <= 20
        assert broken.incomplete, f"cut at {end} of {len(whole)}"
