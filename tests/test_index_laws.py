"""Whatever a document or a query holds, an index opens again, gives back what it took, and explains its scores exactly."""

import datetime
import hashlib
import itertools
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import unicodedata
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import pytest
import qdrant_edge as engine
import torch
from conftest import PATIENCE, TEXTS, BackboneMaker
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from text2token.cli.main import app
from text2token.cli.search import filters_of
from text2token.corpus.documents import Document
from text2token.corpus.readers import BrokenLines, Documents
from text2token.errors import CorpusError, ModelError, OutputError, UsageError
from text2token.export.static import build_static
from text2token.progress import Reporter, Silent
from text2token.recipe import BackboneSettings
from text2token.search.explain import excerpt
from text2token.search.index import Index, fill_index
from text2token.search.one_off import kept_index
from text2token.search.query import Hit
from text2token.search.store import CARD, DENSE, FORMAT, SPARSE, read_card
from text2token.search.words import LATEST_RULE, QUERY_WORDS, RULES, Words

SCRIPTS = (
    "the bicycle's chain-guard, 3.14 a1b2 foo_bar Straße İstanbul ﬁ",
    "हिन्दी भाषा में लिखा ज़रूर",
    "العَرَبِيَّة لغة",
    "ภาษาไทยไม่มีช่องว่าง",
    "自行車のチェーンはスーパーで買えます。東京 2024年",
    "한국어의 고양이가 띄어쓰기",
    "Cafe\u0301 x\u030c \u0301 e\u0301e\u0301",
    "😀👍🏽 ok 👩‍👩‍👧 Ａｂｃ ½ ²",
    "ｶﾞﾗｽの花瓶 of\ufb01ce wind\u00admill \u00ad \ufdfa",
)
json_values: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
few = settings(deadline=None, max_examples=8, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def table(make_backbone: BackboneMaker, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of an embedder without layers."""
    folder = tmp_path_factory.mktemp("models") / "table"
    build_static(BackboneSettings(str(make_backbone("llama_tied")), dtype="float32"), named(*TEXTS), folder)
    return str(folder)


@pytest.fixture(scope="module")
def vector(table: str, tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    """Some vector of the model's dimension, so that a query need not be embedded."""
    fill_index(tmp_path_factory.mktemp("some") / "index", table, named("text"))
    return torch.ones(read_card(next(tmp_path_factory.getbasetemp().glob("some*/index"))).dimension)


def named(*texts: str, **fields: Any) -> list[Document]:
    return [Document(text, f"t:{number}", fields=fields) for number, text in enumerate(texts)]


@given(st.lists(st.dictionaries(st.text(max_size=10), json_values, max_size=3), min_size=1, max_size=4))
@example(
    [{"tree": json.loads("[" * 30 + "]" * 30), "huge": 10**400, "scores": [1.5, float("nan")], "a": {"b": float("inf")}}]
)
@few
def test_an_index_opens_again_and_gives_back_the_fields_it_took(table: str, rows: list[dict[str, Any]]) -> None:
    documents = [Document(f"garden number {number}", f"t:{number}", fields=row) for number, row in enumerate(rows)]
    with tempfile.TemporaryDirectory() as folder:
        fill_index(folder, table, documents)
        assert fill_index(folder, table, documents).unchanged == len(documents)
        with Index.open(folder) as index:
            found = {hit.place: hit.fields for hit in index.search("garden", 10)}
            names = {name for document in documents for name in document.fields}
            assert all(map(index.has_field, names))
    assert found == {document.place: document.fields for document in documents}


@given(st.lists(st.text(max_size=40) | st.sampled_from(SCRIPTS), min_size=1, max_size=4), st.sampled_from(SCRIPTS))
@few
def test_reasons_add_up_and_mark_their_words_in_every_script(
    table: str, vector: torch.Tensor, texts: list[str], query: str
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        fill_index(folder, table, named("a text that is never empty", *SCRIPTS, *texts), language="none")
        with Index.open(folder) as index:
            for asked in (query, *(text for text in texts if text.strip())):
                for hit in index.search(asked, 20, "sparse", vector=vector):
                    parts = [reason.contribution for reason in hit.reasons]
                    assert sum(parts) == pytest.approx(hit.score, rel=1e-4)
                    assert hit.sparse == pytest.approx(hit.score, rel=1e-4)
                    marked = [in_usual_letters(hit.text[start:end]) for start, end in hit.highlights]
                    assert marked
                    for reason in hit.reasons:
                        assert any(in_usual_letters(reason.word) in mark for mark in marked)


def in_usual_letters(text: str) -> str:
    return unicodedata.normalize("NFKD", text).replace("\u00ad", "").lower()


@pytest.mark.parametrize(
    ("query", "marked"),
    [
        ("自行車", "自行車"),
        ("東", "東"),
        ("チェーン", "チェーン"),
        ("ภาษา", "ภาษา"),
        ("고양이", "고양이"),
        ("भाषा", "भाषा"),
        ("हिन्दी", "हिन्दी"),
        ("العَرَبِيَّة", "العَرَبِيَّة"),
        ("Café", "Café"),
        ("cafe\u0301", "Café"),
        ("ガラス", "ｶﾞﾗｽ"),
        ("abc", "Ａｂｃ"),
        ("office", "of\ufb01ce"),
        ("windmill", "wind\u00admill"),
    ],
)
def test_a_word_is_found_whole_in_scripts_without_spaces_and_with_signs(
    table: str, tmp_path: Path, query: str, marked: str
) -> None:
    fill_index(tmp_path / "index", table, named(*SCRIPTS), language="none")
    with Index.open(tmp_path / "index") as index:
        hit = index.search(query, 1, "sparse")[0]
    assert [hit.text[start:end] for start, end in hit.highlights] == [marked]
    assert len(hit.reasons) == max(1, len(query) - 1) if query in ("自行車", "고양이", "東") else hit.reasons


@given(st.text(max_size=30) | st.sampled_from(SCRIPTS), st.sampled_from(["NFC", "NFD", "NFKC", "NFKD"]))
@example("ガラス", "NFKC")
@few
def test_a_document_has_every_word_that_its_query_has_and_no_other_however_it_is_spelt(text: str, form: Any) -> None:
    words = Words("none", 10.0)
    for spelt in (text, unicodedata.normalize(form, text)):
        asked, held = words.of_query(spelt).keys(), set(words.of_document(spelt).indices)
        assert asked <= held
        assert bool(words.places(spelt, asked)) == bool(asked)
        assert held == {words.number_of(spelt[start:end]) for start, end in words._pieces(spelt)} - {None}


def test_a_language_without_a_list_is_refused_with_what_works(table: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--language is 'thai', of which no stop words and stems.*or none"):
        fill_index(tmp_path / "index", table, named(*SCRIPTS), language="thai")
    assert not (tmp_path / "index").exists()


def test_the_same_text_in_two_unicode_forms_is_one_document_whoever_spells_the_query(table: str, tmp_path: Path) -> None:
    text = "Das Café an der Brücke\r\nverkauft Müsli"
    forms = [unicodedata.normalize("NFD", text), unicodedata.normalize("NFC", text), f"  {text}\n"]
    filled = fill_index(tmp_path / "index", table, named(*forms, ort="Köln"), language="german")
    assert (filled.added, filled.duplicates, filled.overshadowed) == (1, 2, 0)
    with Index.open(tmp_path / "index") as index:
        for query, place in itertools.product(("Brücke", "Bru\u0308cke"), ("Köln", "Ko\u0308ln")):
            hit = index.search(query, 5, "sparse", {"ort": place})[0]
            assert [reason.word for reason in hit.reasons] == ["brücke"]


class Counting:
    """An open shard that notes what it is asked."""

    def __init__(self, shard: "engine.EdgeShard") -> None:
        self.shard, self.asked = shard, list[tuple[str, int]]()

    def __getattr__(self, name: str) -> Any:
        def counted(*arguments: Any) -> Any:
            self.asked.append((name, len(arguments[0].queries) if name == "query_batch" else 1))
            return getattr(self.shard, name)(*arguments)

        return counted


@pytest.mark.parametrize("mode", ["sparse", "hybrid"])
def test_what_the_engine_is_asked_does_not_grow_with_the_query(
    table: str, vector: torch.Tensor, tmp_path: Path, mode: Any
) -> None:
    words = [f"word{number}" for number in range(3000)]
    fill_index(tmp_path / "index", table, named("a garden", " ".join(words[:2000]), " ".join(words[1000:])))
    with Index.open(tmp_path / "index") as index:
        calls = []
        for query in ("word1 garden", " ".join(words), " ".join(words * 4), "自行車" * 3000, "the " * 30000 + "garden"):
            index.store.shard = counting = Counting(index.store.shard)  # type: ignore[assignment]
            hits = index.search(query, 10**12, mode, vector=vector)
            index.store.shard = counting.shard
            calls.append([name for name, _ in counting.asked])
            assert max(size for _, size in counting.asked) <= QUERY_WORDS
            for hit in hits:
                assert len(hit.reasons) <= QUERY_WORDS
                assert mode != "sparse" or hit.sparse == pytest.approx(hit.score, rel=1e-4)
        assert max(map(len, calls)) <= 3, calls
        with pytest.raises(UsageError, match="k is 0"):
            index.search("garden", 0)


def test_an_excerpt_shows_what_was_found_where_no_spaces_are() -> None:
    text = "字" * 700 + "自行車" + "字" * 700
    shown, places = excerpt(text, [(700, 703)])
    assert [shown[start:end] for start, end in places] == ["自行車"]


SAME = [[1, 1.0, "1", "1.0"], [True, "true", "True"], [0, -0.0, "0"], ["Müsli", "Mu\u0308sli"], [2**60, float(2**60)]]


@pytest.mark.parametrize("spellings", SAME, ids=str)
def test_a_filter_finds_a_value_however_it_is_spelt(
    table: str, vector: torch.Tensor, tmp_path: Path, spellings: Any
) -> None:
    other = [Document("other text", "o", fields={"f": "another"})]
    documents = [Document(f"text {number}", str(number), fields={"f": value}) for number, value in enumerate(spellings)]
    fill_index(tmp_path / "index", table, documents + other)
    with Index.open(tmp_path / "index") as index:
        for value in spellings:
            hits = index.search("text", 9, "dense", {"f": value}, vector=vector)
            assert {hit.place for hit in hits} == {document.place for document in documents}, value


FIELD_VALUES = [
    datetime.date(2024, 1, 31),
    Decimal("1.50"),
    np.int64(7),
    np.float32(1.1),
    None,
    float("nan"),
    2**70,
    "a\ud800",
]


@pytest.mark.parametrize("value", FIELD_VALUES, ids=repr)
def test_a_document_is_found_by_whatever_value_it_was_given(
    table: str, vector: torch.Tensor, tmp_path: Path, value: Any
) -> None:
    documents = [Document("text a", "a", fields={"f": value}), Document("text b", "b", fields={"f": "other"})]
    fill_index(tmp_path / "index", table, documents)
    with Index.open(tmp_path / "index") as index:
        for filters in ({"f": value}, {"f": [value]}, {"f": (value, "none such")}):
            assert [hit.place for hit in index.search("text", 9, "dense", filters, vector=vector)] == ["a"], filters


@pytest.mark.parametrize(
    "filters",
    [{"f": b"1"}, {"f": {"at least": 1}}, {"f": object()}, [("f", 1)], "f=1"],
    ids=["bytes", "mapping", "object", "pairs", "text"],
)
def test_a_filter_that_no_field_could_meet_is_refused(
    table: str, vector: torch.Tensor, tmp_path: Path, filters: Any
) -> None:
    fill_index(tmp_path / "index", table, [Document("text", "a", fields={"f": 1})])
    with Index.open(tmp_path / "index") as index, pytest.raises(UsageError, match=r"^filters: .*give"):
        index.search("text", 9, "dense", filters, vector=vector)


def test_values_and_fields_of_any_length_and_with_any_sign_can_be_filtered_by(
    table: str, vector: torch.Tensor, tmp_path: Path
) -> None:
    url = "https://example.org/?" + "&".join(f"a{number}={number}" for number in range(99))
    rows = [{"url": url}, {"url": url + "&b=1"}, {"a": "b=1"}, {"a=b": "1"}, {"v": "1.10"}, {"v": "1.1"}, {"x" * 9000: 1}]
    fill_index(tmp_path / "index", table, [Document(f"text {n}", str(n), fields=fields) for n, fields in enumerate(rows)])
    with Index.open(tmp_path / "index") as index:

        def places(*assignments: str) -> set[str]:
            filters = filters_of(assignments, index.has_field)
            return {hit.place for hit in index.search("text", 9, "dense", filters, vector=vector)}

        assert (places(f"url={url}"), places(f"url={url}&b=1")) == ({"0"}, {"1"})
        assert (places('"a"=b=1'), places('"a=b"=1')) == ({"2"}, {"3"})
        assert (places("v=1.10"), places("v=1.1"), places("x" * 9000 + "=1")) == ({"4"}, {"5"}, {"6"})
        with pytest.raises(UsageError, match='which field is meant\\? Write "a"=b=1 or "a=b"=1'):
            places("a=b=1")
        with pytest.raises(UsageError, match=r"no document has a field 'u'; there are: a, a=b, url, v, x+$"):
            places("u=1")


def test_prune_takes_nothing_for_gone_that_could_not_be_read(table: str, tmp_path: Path) -> None:
    fill_index(tmp_path / "index", table, named(*TEXTS[:5]))

    class CutShort(Documents):
        def __iter__(self) -> Iterator[Document]:
            yield from named(*TEXTS[:2], "A new one.")
            self.broken.report("t:3", "the file is cut short")

    with pytest.raises(
        CorpusError, match=r"nothing was pruned, because 1 broken lines.*6 documents \(1 added.*t:3: the file"
    ):
        fill_index(tmp_path / "index", table, CutShort(("t",), None, "auto", BrokenLines("skip")), prune=True)
    assert read_card(tmp_path / "index").documents == 6
    whole = fill_index(tmp_path / "index", table, named(*TEXTS[:2]), prune=True)
    assert (whole.removed, whole.total) == (4, 2)


def test_fields_of_a_filling_that_was_broken_off_can_be_filtered_by(
    table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("text2token.search.fill.BATCH", 2)

    def breaks_off() -> Iterator[Document]:
        yield from named(*TEXTS[:4], early=1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill_index(tmp_path / "index", table, breaks_off())
    card = read_card(tmp_path / "index")
    assert (card.documents, card.fields) == (4, ("early",))
    (tmp_path / "index" / CARD).write_text(
        json.dumps(asdict(replace(card, documents=0, fields=()))), encoding="utf-8"
    )  # as after a kill
    with Index.open(tmp_path / "index") as index:
        assert len(index.search("girl", 9, "dense", {"early": "1"})) == 4
        with pytest.raises(UsageError, match="there are: early"):
            index.search("girl", 9, "dense", {"late": "1"})
    assert read_card(tmp_path / "index") == card


def test_fields_that_pruning_left_to_nobody_are_gone(table: str, tmp_path: Path) -> None:
    fill_index(tmp_path / "index", table, [*named("one", a=1), *named("two", b=1)])
    fill_index(tmp_path / "index", table, named("two", b=1), prune=True)
    assert read_card(tmp_path / "index").fields == ("b",)


def test_duplicates_that_differ_in_their_fields_are_told(table: str, tmp_path: Path) -> None:
    rows = [Document("the same text", str(owner), fields={"owner": owner}) for owner in (1, 2, 1, 3)]
    filled = fill_index(tmp_path / "index", table, rows)
    assert (filled.duplicates, filled.overshadowed) == (3, 2)
    assert "2 of the duplicates have other fields" in filled.sentence()


def test_one_process_has_an_index_at_a_time(table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("text2token.search.index.WAIT_TO_READ", 0.0)
    hold = "held = filelock.FileLock(sys.argv[1], timeout=0)\nheld.acquire()\nprint(1, flush=True)\ninput()"
    script = f"import filelock, sys\n{hold}"
    command = [sys.executable, "-c", script, str(tmp_path / "index" / "lock")]
    fill_index(tmp_path / "index", table, named(*TEXTS))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout
        assert other.stdout.readline() == b"1\n"
        for use in (Index.open, lambda folder: fill_index(folder, table, named("new"))):
            with pytest.raises(OutputError, match="another process has the index open"):
                use(tmp_path / "index")
        other.communicate(b"\n")
    with Index.open(tmp_path / "index") as index:
        assert subprocess.run(command, input=b"\n", capture_output=True).returncode != 0
        assert index.count == len(TEXTS)


def test_an_index_whose_documents_are_gone_is_refused_not_begun_anew(
    table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_index(tmp_path / "index", table, named(*TEXTS))
    shard, kept = tmp_path / "index" / "shard", tmp_path / "kept"
    shard.rename(kept)
    for damage in ("missing", "emptied"):
        if damage == "emptied":
            fill_index(tmp_path / "other", table, named("a text"))
            with Index.open(tmp_path / "other") as other:
                other.store.remove(other.store.numbers())
                other.store.card = replace(other.card, documents=0)
            (tmp_path / "other" / "shard").rename(shard)
        for attempt in (
            lambda: Index.open(tmp_path / "index"),
            lambda: fill_index(tmp_path / "index", table, named("a text")),
        ):
            with pytest.raises(OutputError, match=r"index: shard/ holds none of the \d+ documents .*make the index anew"):
                attempt()
        assert shard.exists() == (damage == "emptied")
    shutil.rmtree(shard)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "touch", lambda path: (_ for _ in ()).throw(OSError(30, "Read-only file system", str(path))))
        with pytest.raises(OutputError, match="shard/ holds none"):
            Index.open(tmp_path / "index")
    kept.rename(shard)
    with Index.open(tmp_path / "index") as index:
        assert index.search(TEXTS[0], 1)[0].text == TEXTS[0]


def test_what_is_no_index_is_told_what_to_do_with_it(table: str, tmp_path: Path) -> None:
    file = tmp_path / "my docs.txt"
    file.write_text("a text\n", encoding="utf-8")
    for place, said in (
        (file, f"is a file.*text2token search MODEL '{file}' QUERY.*text2token index MODEL '{file}' --store"),
        (table, f"is an embedder.*text2token search {table} FILE QUERY"),
        (tmp_path / "nothing", "text2token index MODEL FILES --store"),
    ):
        with pytest.raises(OutputError, match=said):
            Index.open(place)
    for name in ("nothere", "no/there", "./nothere", "not there"):
        with pytest.raises(ModelError, match=f"{name}: no such folder"):
            found_in(name, named("a text"), "text")
        with pytest.raises(ModelError, match=f"{name}: no such folder"):
            fill_index(tmp_path / "index", name, named("a text"))
    assert not (tmp_path / "index").exists()


def test_a_proposed_command_can_be_copied(table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "my docs.txt"
    file.write_text("a garden\n", encoding="utf-8")
    app(["index", table, str(file), "--store", str(tmp_path / "my index")], standalone_mode=False)
    words = shlex.split(capsys.readouterr().out.partition("Search: ")[2])
    app([*words[words.index("search") : -1], "garden", "--json"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)[0]["text"] == "a garden"


def found_in(model: str, documents: list[Document], query: str, reporter: Reporter | None = None) -> list[tuple[str, float]]:
    """Return what a search without an index of one's own finds."""
    with kept_index(model, ["a source"], documents, reporter) as index:
        return [(hit.text, hit.score) for hit in index.search(query, 3)]


class Notes(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def note(self, message: str) -> None:
        self.heard.append(message)


def test_a_search_without_an_index_needs_no_cache(table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents, notes = named(*TEXTS), Notes()
    expected = found_in(table, documents, TEXTS[2], notes)
    (kept,) = (platformdirs.user_cache_path("text2token") / "indexes").iterdir()
    assert "again" not in "".join(notes.heard)
    for damaged in ("half a card", "a lost shard"):
        if damaged == "half a card":
            (kept / CARD).write_bytes((kept / CARD).read_bytes()[:50])  # as a full disk leaves it
        else:
            shutil.rmtree(kept / "shard")
        notes.heard.clear()
        assert found_in(table, documents, TEXTS[2], notes) == expected
        assert [note for note in notes.heard if "embeds the documents again" in note]
        assert not kept.exists()
        assert found_in(table, documents, TEXTS[2]) == expected
        assert read_card(kept).documents == len(TEXTS)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "file").touch()
    notes.heard.clear()
    assert found_in(table, documents, TEXTS[2], notes) == expected
    assert [note for note in notes.heard if "cannot be written" in note]


def test_a_search_without_an_index_finds_what_is_there_now(table: str) -> None:
    for texts in (TEXTS, TEXTS[:2], TEXTS[1:]):
        with kept_index(table, ["a source"], named(*texts)) as index:
            assert {hit.text for hit in index.search("girl", 99, "dense")} == set(texts)
    with pytest.raises(CorpusError, match="no documents"), kept_index(table, ["a source"], named("", " ")):
        pass


def test_two_searches_at_once_find_what_they_would_find_alone(table: str) -> None:
    documents = named(*TEXTS)
    expected = found_in(table, documents, TEXTS[2])
    together = threading.Barrier(4)

    def found(_: int) -> list[Hit]:
        with kept_index(table, ["a source"], documents) as index:
            together.wait(timeout=PATIENCE)  # so that each has one while the others do
            return index.search(TEXTS[2], 3)

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(found, range(4)))
    assert [[(hit.text, hit.score) for hit in hits] for hits in answers] == [expected] * 4
    assert found_in(table, documents, TEXTS[2]) == expected
    assert len(list((platformdirs.user_cache_path("text2token") / "indexes").iterdir())) == 1


def to_format_1(folder: Path, documents: list[Document]) -> None:
    """Make the index in `folder` what an earlier version made of `documents`."""
    with Index.open(folder) as index:
        index.store.remove(index.store.numbers())
        words = Words(index.card.language, index.card.average_length, rule=1)
        for document in documents:
            number = uuid.UUID(bytes=hashlib.sha256(document.text.encode()).digest()[:16])
            payload = {
                "text": document.text,
                "place": document.place,
                "fields": dict(document.fields),
                "facets": [f"{name}={value}" for name, value in document.fields.items()],
            }
            vectors: Any = {DENSE: [1.0] * index.card.dimension, SPARSE: words.of_document(document.text)}
            point = engine.Point(id=str(number), vector=vectors, payload=payload)  # type: ignore[arg-type]
            index.store.shard.update(engine.UpdateOperation.upsert_points([point]))
    card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    del card["word_rule"]
    (folder / CARD).write_text(json.dumps({**card, "format": 1}), encoding="utf-8")


def test_an_index_of_format_1_is_searched_and_brought_up_to_date(table: str, vector: torch.Tensor, tmp_path: Path) -> None:
    store = tmp_path / "index"
    documents = [*named(*TEXTS[:3], "हिन्दी भाषा", kind="a=b"), Document("Mu\u0308sli \r\n", "nfd", fields={"kind": "c"})]
    fill_index(store, table, documents)
    to_format_1(store, documents)

    def check(index: Index) -> None:
        assert index.count == len(documents)
        assert {hit.place for hit in index.search("x", 9, "dense", {"kind": ["c"]}, vector=vector)} == {"nfd"}
        assert len(index.search("x", 9, "dense", {"kind": ["a=b"]}, vector=vector)) == 4
        hit = index.search("भाषा", 1, "sparse", vector=vector)[0]
        assert (hit.sparse, hit.fields) == (pytest.approx(hit.score, rel=1e-4), {"kind": "a=b"})

    with Index.open(store) as index:
        check(index)
    assert read_card(store).format == 1
    filled = fill_index(store, table, documents)
    # the one whose text normalising changes is embedded anew, as the text that training would read
    assert (filled.added, filled.removed, filled.unchanged, filled.updated, filled.total) == (1, 1, 4, 0, 5)
    assert fill_index(store, table, documents).unchanged == 5
    with Index.open(store) as index:
        check(index)
        assert index.search("Müsli", 1, "sparse", vector=vector)[0].place == "nfd"
    assert (read_card(store).format, read_card(store).word_rule) == (FORMAT, 1)


def test_an_index_of_a_later_format_is_refused(table: str, tmp_path: Path) -> None:
    fill_index(tmp_path / "index", table, named("text"))
    card = tmp_path / "index" / CARD
    for other in ({"format": FORMAT + 1}, {"word_rule": LATEST_RULE + 1}):
        kept = card.read_text(encoding="utf-8")
        card.write_text(json.dumps({**json.loads(kept), **other}), encoding="utf-8")
        with pytest.raises(OutputError, match="Make it anew"):
            Index.open(tmp_path / "index")
        card.write_text(kept, encoding="utf-8")
    assert set(RULES) == set(range(1, LATEST_RULE + 1))


def test_an_index_that_may_not_be_written_is_searched(table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_index(tmp_path / "index", table, named(*TEXTS))
    before = {path: path.read_bytes() for path in (tmp_path / "index").rglob("*") if path.is_file()}
    monkeypatch.setattr(Path, "touch", lambda path: (_ for _ in ()).throw(OSError(30, "Read-only file system", str(path))))
    with Index.open(tmp_path / "index") as index:
        assert index.store.copy
        copy = Path(index.store.copy.name)
        assert index.search(TEXTS[0], 1)[0].text == TEXTS[0]
        with pytest.raises(OutputError, match="only searched"):
            index.add(named("new"))
    assert not copy.exists()
    assert {path: path.read_bytes() for path in before} == before
    shutil.rmtree(tmp_path / "index")
    with pytest.raises(OutputError, match="cannot be written"):
        fill_index(tmp_path / "index", table, named("new"))
