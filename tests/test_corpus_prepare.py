"""Documents become passages by stated rules, each counted."""

import random
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from text2token.corpus.documents import Document
from text2token.corpus.prepare import halves, normalise, pair_digest, prepare_corpus, split_text
from text2token.corpus.readers import read_documents
from text2token.errors import CorpusError, OutputError
from text2token.recipe import CorpusSettings


def documents(count: int) -> list[Document]:
    words = ["amber", "basalt", "cedar", "delta", "ember", "fjord", "glade", "heath", "inlet", "jetty", "knoll", "larch"]
    generator = random.Random(0)
    return [
        Document(body=". ".join(" ".join(generator.choices(words, k=9)) for _ in range(4)) + f". End {i}.", place=str(i))
        for i in range(count)
    ]


def test_empty_and_duplicate_texts_are_left_out_and_counted(tmp_path: Path) -> None:
    given_documents = [Document("one", "1"), Document("  \n ", "2"), Document("one ", "3"), Document("two", "4")]
    corpus = prepare_corpus(given_documents, tmp_path / "corpus", CorpusSettings(held_out=0))
    assert list(corpus.passages["text"]) == ["one", "two"]
    summary = corpus.summary
    assert (summary.documents, summary.empty, summary.duplicates, summary.passages) == (4, 1, 1, 2)
    assert "1 empty, 1 duplicate left out" in summary.sentence()


@pytest.mark.parametrize("nothing", [[], [Document(" ", "1")]])
def test_no_text_at_all_is_an_error_and_leaves_nothing(tmp_path: Path, nothing: list[Document]) -> None:
    with pytest.raises(CorpusError, match="no documents"):
        prepare_corpus(nothing, tmp_path / "corpus")
    assert list(tmp_path.iterdir()) == []


def test_held_out_choice_does_not_depend_on_order_and_is_never_trained_on(tmp_path: Path) -> None:
    given_documents = documents(60)
    settings = CorpusSettings(held_out=12)
    one = prepare_corpus(given_documents, tmp_path / "one", settings)
    two = prepare_corpus(given_documents[::-1], tmp_path / "two", settings)
    assert len(one.held_out) == 12
    assert set(one.held_out["query"]) == set(two.held_out["query"])
    trained = " ".join(one.passages["text"])
    assert not any(
        query in trained or passage in trained
        for query, passage in zip(one.held_out["query"], one.held_out["passage"], strict=True)
    )
    other = prepare_corpus(given_documents, tmp_path / "other", CorpusSettings(held_out=12, seed=1))
    assert set(one.held_out["query"]) != set(other.held_out["query"])


titled = st.sampled_from(["", "a title that names a document"])


@settings(max_examples=20, deadline=None)
@given(st.lists(titled, min_size=6, max_size=60), st.integers(0, 30), st.integers(0, 30), st.integers(0, 3))
def test_fewer_held_out_documents_are_some_of_more(titles: list[str], one: int, other: int, seed: int) -> None:
    given_documents = [
        Document(title=title and f"{title} {number}", body=f"Body {number}. " * 20, place=str(number))
        for number, title in enumerate(titles)
    ]
    with TemporaryDirectory() as folder:
        few, many = (
            prepare_corpus(given_documents, Path(folder) / str(count), CorpusSettings(held_out=count, seed=seed)).held_out
            for count in sorted((one, other))
        )
        assert set(few["place"]) <= set(many["place"])
        assert set(few["query"]) <= set(many["query"])  # and ask the same
        with_title = sum(map(bool, titles))
        assert len(many) == min(max(one, other), with_title // 3 + (len(titles) - with_title) // 3)
        digests = frozenset(map(pair_digest, many["query"], many["passage"]))
        again = prepare_corpus(given_documents, Path(folder) / "again", CorpusSettings(held_out=60), among=digests).held_out
        if len(many) > 1:
            assert set(again["query"]) == set(many["query"])


def test_a_title_or_body_that_occurs_twice_is_not_held_out(tmp_path: Path) -> None:
    shared = "The same body under two different titles, long enough to count."
    given_documents = [Document(shared, str(i), title=f"A title of its own, number {i}") for i in range(2)]
    given_documents += [
        Document(f"A body of its own, number {i}", str(i), title=f"Another title of its own, number {i}") for i in range(9)
    ]
    corpus = prepare_corpus(given_documents, tmp_path / "corpus", CorpusSettings(held_out=100))
    assert len(corpus.held_out) == 3  # a third of the nine that qualify
    assert shared not in list(corpus.held_out["passage"])


@given(st.text(max_size=400), st.integers(min_value=10, max_value=90))
def test_splitting_loses_only_whitespace_and_keeps_the_limit(text: str, limit: int) -> None:
    text = normalise(text)
    pieces = split_text(text, limit)
    assert all(0 < len(piece) <= limit for piece in pieces)
    assert "".join("".join(pieces).split()) == "".join(text.split())


@given(st.text(max_size=200))
def test_normalising_twice_changes_nothing_and_encodes(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
    once.encode("utf-8")


def test_lone_surrogates_do_not_reach_the_tokenizer() -> None:
    assert normalise("a\ud800b\r\nc") == "a\ufffdb\nc"


def test_halves_are_cut_at_a_sentence_end() -> None:
    body = "First one here. Second one here. Third one. Fourth sentence here."
    assert halves(Document(body, "1")) == ("First one here. Second one here.", "Third one. Fourth sentence here.")
    assert halves(Document("body", "1", title="title")) == ("title", "body")
    first, second = halves(Document("x" * 130, "1"))
    assert first
    assert second


@pytest.mark.parametrize("title", ["City {}", "A summary that is the same for every one"])
def test_documents_whose_title_names_them_badly_are_asked_for_by_their_first_half(tmp_path: Path, title: str) -> None:
    bodies = [document.body for document in documents(30)]
    given_documents = [Document(body, str(i), title=title.format(i)) for i, body in enumerate(bodies)]
    corpus = prepare_corpus(given_documents, tmp_path / "corpus", CorpusSettings(held_out=6))
    assert len(corpus.held_out) == 6
    for row in corpus.held_out:
        assert bodies[int(row["place"])].startswith(row["query"])
        assert bodies[int(row["place"])].endswith(row["passage"])


def test_a_document_of_one_passage_becomes_its_halves_where_that_is_asked_for(tmp_path: Path) -> None:
    long = "One sentence of forty characters is this. Another one of about as many as that."
    given_documents = [Document(long, "1"), Document("Too short.", "2"), Document(long + "!", "3", title="With a title")]
    kept = prepare_corpus(given_documents, tmp_path / "kept", CorpusSettings(held_out=0, halves_from=0))
    assert list(kept.passages["text"]) == [long, "Too short.", "With a title", long + "!"]
    cut = prepare_corpus(given_documents, tmp_path / "cut", CorpusSettings(held_out=0, halves_from=60))
    assert list(cut.passages["text"]) == [*halves(Document(long, "1")), "Too short.", "With a title", long + "!"]
    assert list(cut.passages["document"]) == [0, 0, 1, 2, 2]
    assert cut.summary.passages == 5
    assert (cut.summary.split_documents, cut.summary.halved_documents) == (0, 1)
    assert "1 of a single passage halved" in cut.summary.sentence()


@given(st.text(min_size=1, max_size=100))
def test_halves_lose_only_whitespace(text: str) -> None:
    text = normalise(text)
    assert "".join("".join(halves(Document(text, "1"))).split()) == "".join(text.split())


def test_a_title_of_many_is_trained_on_once(tmp_path: Path) -> None:
    given_documents = [Document(f"Body {i}.", str(i), title="Minutes") for i in range(3)]
    corpus = prepare_corpus(given_documents, tmp_path / "corpus", CorpusSettings(held_out=0))
    assert list(corpus.passages["text"]) == ["Minutes", "Body 0.", "Body 1.", "Body 2."]
    assert list(corpus.passages["document"]) == [0, 0, 1, 2]


def test_what_is_read_is_never_deleted_by_what_is_made_of_it(tmp_path: Path) -> None:
    """A corpus goes into the folder that holds its source, which is not ours; then into one that is, and holds it beside."""
    given_documents = [f"A document of its own, number {number}." for number in range(4)]
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "docs.txt").write_text("\n".join(given_documents), encoding="utf-8")
    with pytest.raises(OutputError, match="was not made by text2token"):
        prepare_corpus(read_documents(tmp_path / "corpus" / "docs.txt"), tmp_path / "corpus")
    prepare_corpus(read_documents(tmp_path / "corpus" / "docs.txt"), tmp_path / "ours")
    (tmp_path / "corpus" / "docs.txt").rename(tmp_path / "ours" / "docs.txt")
    corpus = prepare_corpus(read_documents(tmp_path / "ours" / "docs.txt"), tmp_path / "ours")
    assert corpus.summary.passages == 4
    assert (tmp_path / "ours" / "docs.txt").read_text(encoding="utf-8") == "\n".join(given_documents)
