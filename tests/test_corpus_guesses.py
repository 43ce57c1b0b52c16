"""What a file leaves open is read off it and told, or refused with what was found; nothing is taken silently."""

import codecs
import gzip
import io
import json
import sys
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from text2token.corpus.documents import Document
from text2token.corpus.readers import BrokenLines, read_documents
from text2token.errors import CorpusError

MARK = codecs.BOM_UTF8.decode()


def read(folder: Path, name: str, content: str | bytes, **options: Any) -> tuple[list[Document], BrokenLines]:
    """Write a file and return its documents, and what was told."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    broken = BrokenLines()
    return list(read_documents(path, broken=broken, **options)), broken


def refused(folder: Path, name: str, content: str | bytes, **options: Any) -> str:
    """Return in which words a file is refused: one line that begins with its place."""
    with pytest.raises(CorpusError) as caught:
        read(folder, name, content, **options)
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).startswith(str(folder / name))
    return str(caught.value)


TABLES = {  # content, what is told of it
    "commas": ("docs.csv", "id,text\n1,one; and more\n2,two\n", ""),
    "semicolons": ("docs.csv", 'id;text\n1;"one, and more"\n2;two\n', "columns are separated by a semicolon"),
    "tabs": ("docs.csv", "id\ttext\n1\tone, and more\n2\ttwo\n", "columns are separated by a tab"),
    "commas in .tsv": ("docs.tsv", 'id,text\n1,"one, and more"\n2,two\n', "columns are separated by a comma"),
    "bars": ("docs.csv", "id|text\n1|one, and more\n2|two\n", "columns are separated by a bar"),
    "a line for Excel": ("docs.csv", "sep=;\nid;text\n1;one, and more\n2;two\n", ""),
    "a mark before a quoted header": ("docs.csv", MARK + '"id","text"\n1,one\n2,two\n', ""),
    "a comma within a name": ("docs.csv", 'id;"what, when";text\n1;x;one\n2;x;two\n', "separated by a semicolon"),
    "spaces around names": ("docs.csv", " id , text \n1,one\n2,two\n", ""),
    "capitals": ("docs.csv", "ID,Text\n1,one\n2,two\n", ""),
    "returns alone": ("docs.csv", "id,text\r1,one\r2,two\r", ""),
    "blank lines before the header": ("docs.csv", "\n \nid,text\n1,one\n2,two\n", ""),
    "two files put together": (
        "docs.csv",
        MARK + "id,text\n1,one\n" + MARK + "id,text\n2,two\n",
        "docs.csv:3: the names of the columns come once more, and are left out",
    ),
    "one column": ("docs.csv", "Beschreibung\none\ntwo\n", "docs.csv:1: column 'Beschreibung' is taken for the text"),
}


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_is_read_as_it_is_and_what_was_taken_for_granted_is_told(tmp_path: Path, kind: str) -> None:
    name, content, told = TABLES[kind]
    documents, broken = read(tmp_path, name, content)
    assert [document.body.partition(",")[0].partition(";")[0] for document in documents] == ["one", "two"]
    assert told in "".join(broken.notes)
    assert bool(told) == bool(broken.notes)


@given(
    st.sampled_from([",", ";", "\t", "|"]),
    st.lists(st.lists(st.text(st.characters(exclude_characters="\0i", codec="utf-8")), min_size=3, max_size=3), min_size=1),
)
@settings(deadline=None)
def test_any_separator_gives_the_same_rows(
    tmp_path_factory: pytest.TempPathFactory, separator: str, rows: list[list[str]]
) -> None:
    import csv

    table = io.StringIO()
    csv.writer(table, delimiter=separator, quoting=csv.QUOTE_ALL).writerows([["id", "text", "where"], *rows])
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_text(table.getvalue(), encoding="utf-8", newline="")
    found = [(document.fields["id"], document.body, document.fields["where"]) for document in read_documents(path)]
    as_lines = [tuple(value.replace("\r\n", "\n").replace("\r", "\n") for value in row) for row in rows]
    expected = [(one, text if text.strip() else "", where) for one, text, where in as_lines]
    assert found == expected


REFUSED_TABLES = {
    "two separators": ("text,id;text\n", r"columns may be separated by a comma and a semicolon"),
    "a header that is a text": ("The garden grows tomatoes.\nA bicycle\n", r"reads like a text, not like its name"),
    "a long header": ("a bicycle needs a chain\nAnother\n", r"Give --format txt, a text a line, or --text-field"),
    "no header": ("1,The garden\n2,A bicycle\n", r"which field holds the text\? There are '1', 'The garden'.*--format txt"),
    "a name twice": ("id,text,id\n1,2,3\n", r"the header names two columns 'id'"),
    "a name twice but for spaces": ("id,text, id\n1,2,3\n", r"the header names two columns 'id'"),
    "two texts but for capitals": ("Text,TEXT\n1,2\n", r"which holds the text, 'TEXT', 'Text'\?"),
}


@pytest.mark.parametrize("kind", REFUSED_TABLES)
def test_a_table_that_could_be_read_in_two_ways_is_refused(tmp_path: Path, kind: str) -> None:
    content, said = REFUSED_TABLES[kind]
    with pytest.raises(CorpusError, match=said):
        read(tmp_path, "docs.csv", content)


def test_columns_without_a_name_are_fields_only_where_they_hold_something(tmp_path: Path) -> None:
    documents, _ = read(tmp_path, "docs.csv", ",text,,\n1,one,,\n,two,,x\n")
    assert [document.fields for document in documents] == [{"column 1": "1"}, {"column 4": "x"}]


def test_the_only_column_may_be_named_whatever_it_is_called(tmp_path: Path) -> None:
    documents, broken = read(tmp_path, "docs.csv", "What is it about?\none\n", text_field="what is it about?")
    assert [document.body for document in documents] == ["one"]
    assert not broken.notes


def test_a_parquet_column_twice_is_refused_like_one_of_csv(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_arrays([pa.array(["a"])] * 3, names=["text", "n", "n"]), buffer)
    assert "there are two columns 'n'" in refused(tmp_path, "docs.parquet", buffer.getvalue())


RECORDS = [{"id": 1, "text": 'one, "quoted" [and] {more}'}, {"id": 2, "text": "zwei \\ \u2028"}, {"id": 3, "text": "三"}]
LAYOUTS = {
    "lines": "\n".join(map(json.dumps, RECORDS)),
    "a list": json.dumps(RECORDS),
    "a list over lines": json.dumps(RECORDS, indent=2, ensure_ascii=False),
    "objects over lines": "\n".join(json.dumps(record, indent=2) for record in RECORDS),
    "joined objects": "".join(map(json.dumps, RECORDS)),
    "objects with commas between": ",\n".join(map(json.dumps, RECORDS)),
    "marks between": "\n".join(MARK + json.dumps(record) for record in RECORDS),
}


@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstandard.compress])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_json_is_read_however_its_values_stand(tmp_path: Path, layout: str, compress: Any) -> None:
    suffix = {bytes: "", gzip.compress: ".gz"}.get(compress, ".zst")
    documents, _ = read(tmp_path, f"docs.json{suffix}", compress(LAYOUTS[layout].encode()))
    assert [{**document.fields, "text": document.body} for document in documents] == RECORDS


@pytest.mark.parametrize("layout", ["a list", "a list over lines", "objects over lines", "marks between"])
def test_json_lines_that_are_a_list_or_objects_over_lines_are_read_too(tmp_path: Path, layout: str) -> None:
    documents, _ = read(tmp_path, "docs.jsonl", LAYOUTS[layout])
    assert [document.body for document in documents] == [record["text"] for record in RECORDS]


def test_json_lines_that_hold_several_objects_name_the_format_that_reads_them(tmp_path: Path) -> None:
    assert "docs.jsonl:1:" in refused(tmp_path, "docs.jsonl", LAYOUTS["joined objects"])
    assert "give --format json" in refused(tmp_path, "docs.jsonl", LAYOUTS["joined objects"])
    assert len(read(tmp_path, "docs.jsonl", LAYOUTS["joined objects"], format="json")[0]) == 3


values = st.dictionaries(st.text(max_size=3), st.text(st.characters(codec="utf-8"), max_size=9) | st.integers(), max_size=3)


@given(st.lists(values.map(lambda record: record | {"text": "x"}), max_size=5), st.sampled_from([None, 1]), st.data())
@settings(deadline=None)
def test_a_list_cut_anywhere_is_known_to_be_cut(
    tmp_path_factory: pytest.TempPathFactory, records: list[Any], indent: int | None, data: st.DataObject
) -> None:
    content = json.dumps(records, indent=indent, ensure_ascii=False).encode()
    path = tmp_path_factory.getbasetemp() / "cut.json"
    path.write_bytes(content)
    assert len(list(read_documents(path))) == len(records)
    path.write_bytes(content[: data.draw(st.integers(1, len(content) - 1))])
    broken = BrokenLines("skip")
    assert len(list(read_documents(path, broken=broken))) <= len(records)
    assert broken.incomplete


def test_a_list_larger_than_memory_is_read_item_by_item(tmp_path: Path) -> None:
    class Endless(io.RawIOBase):
        """A list on one line that never ends."""

        sent = 0

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            piece = b'[{"text": "first"}' if not self.sent else b', {"text": "one more"}' * 100
            self.sent += len(piece)
            assert self.sent < 20_000_000
            buffer[: len(piece)] = piece
            return len(piece)

    stdin = sys.stdin
    try:
        sys.stdin = io.TextIOWrapper(io.BufferedReader(Endless()), encoding="utf-8")
        documents = iter(read_documents("-"))
        assert next(documents).body == "first"
        assert all(next(documents).body == "one more" for _ in range(100_000))
    finally:
        sys.stdin = stdin


def test_a_text_within_objects_is_named_with_dots(tmp_path: Path) -> None:
    rows = [{"id": 7, "data": {"title": "Zinc", "text": "A metal.", "lang": "en", "more": {"a.b": {"c": "deep"}}}}]
    documents, _ = read(tmp_path, "docs.jsonl", json.dumps(rows[0]), text_field="data.text")
    assert [(document.title, document.body) for document in documents] == [("Zinc", "A metal.")]
    assert documents[0].fields == {"id": 7, "data": {"title": "Zinc", "lang": "en", "more": {"a.b": {"c": "deep"}}}}
    assert read(tmp_path, "docs.jsonl", json.dumps(rows[0]), text_field="data.more.a.b.c")[0][0].body == "deep"
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    assert read(tmp_path, "docs.parquet", buffer.getvalue(), text_field="data.text")[0][0].fields == documents[0].fields


NO_TEXT_FIELD = {
    "within an object": ({"data": {"text": "x"}}, r"no field holds text; there are 'data' \(an object\).*data\.text"),
    "a number": ({"text": 5, "id": "x"}, r"field 'text' is a number, not text; name another with --text-field"),
    "a list": ({"Text": ["x"]}, r"field 'Text' is a list, not text"),
    "two": ({"abstract": "x", "summary": "y"}, r"which field holds the text\? There are 'abstract', 'summary'"),
    "none": ({}, r"no field holds text; there are none"),
}


@pytest.mark.parametrize("kind", NO_TEXT_FIELD)
def test_what_stands_where_the_text_should_is_said(tmp_path: Path, kind: str) -> None:
    record, said = NO_TEXT_FIELD[kind]
    with pytest.raises(CorpusError, match=said):
        read(tmp_path, "docs.jsonl", json.dumps(record))


def test_a_first_record_without_a_text_is_one_broken_line(tmp_path: Path) -> None:
    path = tmp_path / "docs.jsonl"
    path.write_text('{"n": 1}\n{"text": "one"}\n', encoding="utf-8")
    broken = BrokenLines("skip")
    assert [document.body for document in read_documents(path, broken=broken)] == ["one"]
    assert broken.count == 1


@pytest.mark.parametrize(("column", "kind"), [([1, 2], "int64"), ([["a"], ["b"]], "list<"), ([b"a", b"b"], "binary")])
def test_a_column_that_holds_no_text_is_said_with_its_type(tmp_path: Path, column: list[Any], kind: str) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": column, "id": ["x", "y"]}), buffer)
    assert f"column 'text' is {kind}" in refused(tmp_path, "docs.parquet", buffer.getvalue())
    assert f"column 'text' is {kind}" in refused(tmp_path, "docs.parquet", buffer.getvalue(), text_field="text")


def test_lines_end_as_any_system_ends_them(tmp_path: Path) -> None:
    for ending in ("\n", "\r\n", "\r"):
        documents, _ = read(tmp_path, "docs.txt", ending.join(["one", "two", "", "three"]))
        assert [(document.body, document.place.rpartition(":")[2]) for document in documents] == [
            ("one", "1"),
            ("two", "2"),
            ("", "3"),
            ("three", "4"),
        ]


@given(st.lists(st.text("ab\r\n", max_size=20)), st.integers(1, 9))
@settings(deadline=None)
def test_lines_are_those_of_pythons_text_mode_however_the_bytes_arrive(pieces: list[str], size: int) -> None:
    from text2token.corpus.streams import lines_of

    content = "".join(pieces).encode()

    class InPieces(io.BytesIO):
        def read1(self, _: int | None = -1) -> bytes:
            return super().read1(size)

    found = [line for _, line in lines_of(InPieces(content), "here", BrokenLines())]
    assert found == list(io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))


@pytest.mark.parametrize("name", ["docs.txt", "docs.jsonl", "docs.csv"])
def test_a_byte_order_mark_is_left_out_wherever_a_line_begins(tmp_path: Path, name: str) -> None:
    lines = {
        "docs.txt": ["one", "two"],
        "docs.jsonl": ['{"text": "one"}', '{"text": "two"}'],
        "docs.csv": ["text", "one", "two"],
    }
    content = "\n".join(MARK + line for line in lines[name])
    assert [document.body for document in read(tmp_path, name, content)[0]] == ["one", "two"]
    with fsspec.open(f"memory://marks/{name}", "wb") as file:
        file.write(content.encode())
    assert [document.body for document in read_documents(f"memory://marks/{name}")] == ["one", "two"]


@pytest.mark.parametrize("encoding", ["UTF-16", "UTF-32"])
@pytest.mark.parametrize("order", ["LE", "BE"])
def test_another_encoding_is_named_with_what_converts_it(tmp_path: Path, encoding: str, order: str) -> None:
    content = MARK.encode(f"{encoding}-{order}") + "a text\n".encode(f"{encoding}-{order}")
    assert f"iconv -f {encoding} -t UTF-8" in refused(tmp_path, "docs.txt", content)


NO_TEXT = {
    "gzip in zstd": ("docs.txt.zst", zstandard.compress(gzip.compress(b"a text")), "gzip data"),
    "zstd in gzip": ("docs.jsonl.gz", gzip.compress(zstandard.compress(b'{"text": "x"}')), "zstd data"),
    "gzip without its ending": ("docs.txt", gzip.compress(b"a text"), r"end its name in .gz"),
    "a spreadsheet": ("docs.csv", b"PK\x03\x04" + b"\0" * 50, "xlsx"),
    "a PDF": ("docs.txt", b"%PDF-1.7\n", "a PDF"),
    "Parquet of another name": ("docs.csv", b"PAR1....PAR1", "--format parquet"),
}


@pytest.mark.parametrize("kind", NO_TEXT)
def test_a_file_that_is_no_text_is_named_with_what_to_do(tmp_path: Path, kind: str) -> None:
    name, content, said = NO_TEXT[kind]
    assert said in refused(tmp_path, name, content)


@pytest.mark.parametrize("name", ["docs.txt", "docs.jsonl", "docs.csv", "docs.json"])
def test_a_file_without_a_document_is_told(tmp_path: Path, name: str) -> None:
    assert read(tmp_path, name, "")[1].notes == [f"{tmp_path / name}: holds no document"]
    (tmp_path / "more.txt").write_text("one\n", encoding="utf-8")
    broken = BrokenLines()
    assert len(list(read_documents([tmp_path / name, tmp_path / "more.txt"], broken=broken))) == 1
    assert broken.notes == [f"{tmp_path / name}: holds no document"]


def test_a_file_that_is_named_twice_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n", encoding="utf-8")
    broken = BrokenLines()
    assert len(list(read_documents([tmp_path / "a.txt", tmp_path / ".." / tmp_path.name / "*.txt"], broken=broken))) == 2
    assert "is named twice" in broken.notes[0]


def test_the_same_note_of_many_files_is_told_once_and_at_once(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.csv").write_text("Abstract\none\n", encoding="utf-8")
    told: list[str] = []
    documents = iter(read_documents(tmp_path / "*.csv", broken=BrokenLines(tell=told.append)))
    assert next(documents).body == "one"
    assert len(told) == 1
    assert len(list(documents)) == 4
    assert len(told) == 1


@pytest.mark.parametrize("name", ["docs.jsonl", "docs.parquet", "docs.txt"])
def test_folders_that_spell_a_field_give_it_to_every_document(tmp_path: Path, name: str) -> None:
    folder = "lang=en%20gb/year=2024/day=007/none=__HIVE_DEFAULT_PARTITION__"
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": ["one"], "day": ["own"]}), buffer)
    content = {"docs.jsonl": b'{"text": "one", "day": "own"}', "docs.parquet": buffer.getvalue(), "docs.txt": b"one"}[name]
    read(tmp_path, f"{folder}/{name}", content)
    (document,) = read_documents(tmp_path / "lang=*" / "**" / name)
    own = "007" if name == "docs.txt" else "own"
    assert document.fields == {"lang": "en gb", "year": 2024, "day": own, "none": None}


def test_the_kind_of_a_web_address_is_told_by_its_path_not_by_its_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("text2token.corpus.readers.remote_files", lambda source: [source])
    monkeypatch.setattr("text2token.corpus.readers.open_remote", lambda _: io.BytesIO(gzip.compress(b'{"text": "one"}')))
    (document,) = read_documents("https://host/year=2024/docs.jsonl.gz?X-Amz-Signature=ab.c/d=e")
    assert (document.body, document.fields) == ("one", {"year": 2024})


def test_what_a_web_address_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("aiohttp", "fsspec.implementations.http"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(CorpusError, match=r"pip install 'text2token\[http\]'") as caught:
        list(read_documents("https://host/docs.jsonl?signature=secret"))
    assert len(str(caught.value).splitlines()) == 1


def test_a_command_that_counts_before_it_reads_tells_a_note_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from text2token.cli import search as cli

    def taken(folder: Path, model: str, documents: Any, *, total: int | None, **_: Any) -> Any:
        assert total == len(list(documents)) == 1
        raise CorpusError("far enough")

    (tmp_path / "docs.csv").write_text("id;text\n1;one\n", encoding="utf-8")
    monkeypatch.setattr("text2token.search.index.fill_index", taken)
    with pytest.raises(CorpusError, match="far enough"):
        cli.index("model", [str(tmp_path / "docs.csv")], tmp_path / "store", quiet=True)
    assert capsys.readouterr().err.count("columns are separated by a semicolon") == 1
