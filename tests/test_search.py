"""An index is exact about what it holds, goes on after a kill, and gives for every hit reasons that add up."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from conftest import TEXTS, BackboneMaker
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer, SparseEncoder

from text2token.cli.main import app
from text2token.corpus.documents import Document
from text2token.corpus.readers import read_documents
from text2token.errors import CorpusError, ModelError, OutputError, UsageError
from text2token.export.folder import export_embedder
from text2token.export.sparse import fit_words, sparse_embedder
from text2token.export.static import build_static
from text2token.model.backbone import cut_last_layers, embed, load_embedder, open_embedder
from text2token.model.whitening import fit_postprocessing
from text2token.recipe import BackboneSettings
from text2token.search.explain import excerpt
from text2token.search.fill import BATCH
from text2token.search.index import Index, fill_index
from text2token.search.query import MODES
from text2token.search.store import read_card
from text2token.search.words import Words, average_length
from text2token.targets.data_driven import DataDrivenTargets
from text2token.tokens.vocabulary import TargetVocabulary

DOCUMENTS = [
    Document(text, f"docs.jsonl:{number}", fields={"year": 2000 + number % 3, "read": number < 5, "tags": ["all", number]})
    for number, text in enumerate(TEXTS, start=1)
]


@pytest.fixture(scope="module")
def table(make_backbone: BackboneMaker, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of an embedder without layers."""
    folder = tmp_path_factory.mktemp("models") / "table"
    backbone = BackboneSettings(str(make_backbone("llama_tied")), dtype="float32")
    build_static(backbone, DOCUMENTS, folder)
    return str(folder)


@pytest.fixture
def index(table: str, tmp_path: Path) -> Iterator[Index]:
    fill_index(tmp_path / "index", table, DOCUMENTS)
    with Index.open(tmp_path / "index") as opened:
        yield opened


def test_only_what_is_new_is_embedded(table: str, tmp_path: Path) -> None:
    store = tmp_path / "index"
    first = fill_index(store, table, [*DOCUMENTS[:6], DOCUMENTS[0], Document(" ", "empty")])
    assert (first.added, first.duplicates, first.empty, first.total) == (6, 1, 1, 6)
    assert first.sentence() == "6 documents (6 added, 1 duplicate, 1 empty)"
    again = fill_index(store, table, DOCUMENTS[:6])
    assert (again.added, again.unchanged, again.total) == (0, 6, 6)
    moved = Document(TEXTS[0], "elsewhere:1", fields={"year": 1999})
    third = fill_index(store, table, [moved, *DOCUMENTS[5:]])
    assert (third.updated, third.unchanged, third.added, third.total) == (1, 1, 4, 10)
    with Index.open(store) as index:
        hit = index.search(TEXTS[0], 1)[0]
        assert (hit.place, hit.fields) == ("elsewhere:1", {"year": 1999})
    pruned = fill_index(store, table, DOCUMENTS[:2], prune=True)
    assert (pruned.removed, pruned.updated, pruned.total) == (8, 1, 2)


def test_every_mode_finds_a_document_by_its_own_text(index: Index) -> None:
    for document, mode in itertools.product(DOCUMENTS[:8], MODES):
        best = index.search(document.text, 3, mode)[0]
        assert best.text == document.text, (mode, document.text)
        assert best.dense == pytest.approx(1, abs=1e-5)


def test_reasons_add_up_to_the_score_of_words(index: Index) -> None:
    hits = index.search("a girl with a guitar closes the socket", 10, "sparse")
    assert len(hits) == 3
    for hit in hits:
        parts = [reason.contribution for reason in hit.reasons]
        assert sum(parts) == pytest.approx(hit.score, rel=1e-5)
        assert parts == sorted(parts, reverse=True)
        assert min(parts) > 0
    assert {reason.word for hit in hits for reason in hit.reasons} == {"girl", "guitar", "closes", "socket"}
    rarer = {reason.word: reason.contribution for reason in hits[0].reasons}
    if {"girl", "guitar"} <= rarer.keys():
        assert rarer["guitar"] > rarer["girl"]  # which is in two documents


def test_words_of_the_query_are_marked_in_the_text(index: Index) -> None:
    hit = index.search("brush the hair", 1, "sparse")[0]
    assert [hit.text[start:end] for start, end in hit.highlights] == ["hair", "brushes", "hair"]
    shown, places = excerpt("x " * 300 + hit.text, [(start + 600, end + 600) for start, end in hit.highlights], 80)
    assert [shown[start:end] for start, end in places] == ["hair", "brushes", "hair"]
    assert shown.startswith("… ")
    assert len(shown) < 100


def test_what_a_dense_score_is_made_of_comes_from_whoever_can_tell(table: str, tmp_path: Path) -> None:
    fill_index(tmp_path / "index", table, DOCUMENTS)
    asked: list[float] = []

    def explain(query: NDArray[np.float32], documents: NDArray[np.float32]) -> list[list[tuple[str, float]]]:
        asked.extend((documents @ query).tolist())
        return [[("hair", float(query @ document))] for document in documents]

    with Index.open(tmp_path / "index", explain=explain) as index:
        hits = index.search("qwertz", 3, "dense")
    assert [hit.dense for hit in hits] == pytest.approx(asked, abs=1e-5)
    assert [[(reason.half, reason.word) for reason in hit.reasons] for hit in hits] == [[("dense", "hair")]] * 3
    assert [hit.reasons[0].contribution for hit in hits] == pytest.approx([hit.dense for hit in hits], abs=1e-5)
    with Index.open(tmp_path / "index") as index:
        assert [list(hit.reasons) for hit in index.search("qwertz", 3, "dense")] == [[], [], []]


def test_filters_compare_as_text_and_join_by_and_of_ors(index: Index) -> None:
    def years(**filters: list[str]) -> set[tuple[int, bool]]:
        return {(hit.fields["year"], hit.fields["read"]) for hit in index.search("text", 10, "dense", filters)}

    assert years(year=["2001"]) == {(2001, True), (2001, False)}
    assert years(year=["2001", "2002"], read=["true"]) == {(2001, True), (2002, True)}
    assert years(tags=["3"]) == {(2000, True)}
    assert years(year=["1900"]) == set()
    with pytest.raises(UsageError, match="no document has a field 'yaer'; there are: read, tags, year"):
        years(yaer=["2001"])


def test_a_query_of_stop_words_is_no_error(index: Index) -> None:
    assert index.search("the of and", 3, "sparse") == []
    assert len(index.search("the of and", 3)) == 3
    for wrong, message in ((("", 1), "query is empty"), (("a", 1, "both"), "choose hybrid, dense, sparse")):
        with pytest.raises(UsageError, match=message):
            index.search(*wrong)  # type: ignore[arg-type]


def test_empty_texts_before_the_first_one_are_counted(table: str, tmp_path: Path) -> None:
    documents = [Document("", str(number)) for number in range(2 * BATCH)] + [Document("A girl plays a guitar.", "last")]
    filled = fill_index(tmp_path / "index", table, documents)
    assert (filled.added, filled.empty) == (1, 2 * BATCH)


def test_odd_texts_and_fields_are_kept_as_they_can_be(table: str, tmp_path: Path) -> None:
    odd = Document("half a pair \ud800 here", "x:1", fields={"a b=c.d": 'say "x"', "n": float("nan"), "deep": {"k": [1]}})
    fill_index(tmp_path / "index", table, [odd, *DOCUMENTS])
    with Index.open(tmp_path / "index") as index:
        hit = index.search("half a pair", 1, filters={"a b=c.d": ['say "x"']})[0]
    assert hit.text == "half a pair \ufffd here"
    assert hit.fields == {"a b=c.d": 'say "x"', "n": None, "deep": {"k": [1]}}


def test_an_index_is_known_by_its_vectors_where_a_release_gives_another_fingerprint(table: str, tmp_path: Path) -> None:
    fill_index(tmp_path / "index", table, DOCUMENTS)
    place = tmp_path / "index" / "card.json"
    card = json.loads(place.read_text(encoding="utf-8"))
    place.write_text(json.dumps({**card, "fingerprint": "of another release"}), encoding="utf-8")
    with Index.open(tmp_path / "index") as opened:
        assert opened.search(DOCUMENTS[0].text, 1)[0].text == DOCUMENTS[0].text
    assert fill_index(tmp_path / "index", table, DOCUMENTS).added == 0
    assert json.loads(place.read_text(encoding="utf-8"))["fingerprint"] == card["fingerprint"]


def test_an_index_asks_and_keeps_with_the_prompts_of_its_model(tiny: BackboneSettings, tmp_path: Path) -> None:
    SentenceTransformer(
        modules=[*load_embedder(tiny)], prompts={"query": "Ask: ", "passage": "Read: "}, default_prompt_name="query"
    ).save(str(tmp_path / "prompted"))
    model = SentenceTransformer(str(tmp_path / "prompted"))
    fill_index(tmp_path / "index", str(tmp_path / "prompted"), DOCUMENTS)
    with Index.open(tmp_path / "index") as opened:
        hits = opened.search("a cat", len(DOCUMENTS), "dense")
    asked = model.encode_query("a cat", convert_to_tensor=True)
    for hit in hits:
        read = model.encode(hit.text, prompt="Read: ", convert_to_tensor=True)
        assert hit.dense == pytest.approx(float(torch.cosine_similarity(asked, read, dim=0)), abs=2e-2)  # bfloat16, maybe


def test_an_index_belongs_to_one_model_and_one_process(
    table: str, index: Index, tmp_path: Path, tiny: BackboneSettings
) -> None:
    with pytest.raises(OutputError, match="another process has the index open"):
        fill_index(index.folder, table, DOCUMENTS)
    index.close()
    other = tmp_path / "other"
    build_static(tiny, DOCUMENTS, other, dimensions=8)
    with pytest.raises(OutputError, match="holds vectors of another model"):
        fill_index(index.folder, str(other), DOCUMENTS)
    with pytest.raises(OutputError, match="its words are english, not german"):
        fill_index(index.folder, table, DOCUMENTS, language="german")
    with pytest.raises(OutputError, match="exists and is no index"):
        fill_index(other, table, DOCUMENTS)
    with pytest.raises(OutputError, match=r"holds no index that can be read.*text2token index MODEL FILES"):
        Index.open(tmp_path / "nothing")
    with pytest.raises(CorpusError, match="no text"):
        fill_index(tmp_path / "new", table, [Document(" ", "1")])
    with pytest.raises(UsageError, match=r"klingon.*or none"):
        fill_index(tmp_path / "new", table, DOCUMENTS, language="klingon")
    assert not (tmp_path / "new").exists()
    index.store.lock.acquire()
    index.store.shard = type(index.store.shard).load(str(index.folder / "shard"))  # what the fixture closes


def test_words_weigh_by_frequency_and_length_as_bm25_says() -> None:
    texts = ["cat cat dog", "dog bird fish horse"]
    mean = average_length(texts, "none")
    assert mean == pytest.approx(3.5, rel=1e-4)
    words = Words("none", mean)
    vector = words.of_document(texts[0])
    weights = dict(zip(vector.indices, vector.values, strict=True))
    for word, frequency in (("cat", 2), ("dog", 1)):
        number = words.number_of(word)
        assert number is not None
        expected = frequency * 2.2 / (frequency + 1.2 * (1 - 0.75 + 0.75 * 3 / 3.5))
        assert weights[number] == pytest.approx(expected, rel=1e-4)
    assert words.number_of("Cat") == words.number_of("cat")
    assert Words("english", mean).number_of("the") is None


KILLED = """
import os, signal, sys
from pathlib import Path
from text2token.corpus.readers import read_documents
from text2token.search import fill, index
from text2token.search.store import Store

fill.BATCH = 16
put = Store.put

def put_some(self, points):
    put(self, points)
    if self.count >= 64:
        os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[4] == "filling":
    Store.put = put_some
else:  # before anything is flushed for good
    index.Index.close = lambda self: os.kill(os.getpid(), signal.SIGKILL)
index.fill_index(Path(sys.argv[1]), sys.argv[2], read_documents([sys.argv[3]]))
"""


@pytest.mark.parametrize("moment", ["filling", "closing"])
def test_a_killed_filling_goes_on_to_the_same_documents(table: str, text_file: Path, tmp_path: Path, moment: str) -> None:
    store = tmp_path / "index"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(store), table, str(text_file), moment], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    documents = list(read_documents([str(text_file)]))
    resumed = fill_index(store, table, documents)
    assert resumed.total == len(documents) == 120
    assert resumed.unchanged == (64 if moment == "filling" else 120)
    with Index.open(store) as index:
        assert {hit.place for hit in index.search("girl", 200, "dense")} == {document.place for document in documents}


def test_the_command_line_fills_searches_and_explains(
    table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*words: object) -> str:
        app(list(map(str, words)), standalone_mode=False)
        return capsys.readouterr().out

    source, store = tmp_path / "docs.jsonl", tmp_path / "index"
    rows = [{"text": text, "kind": "odd" if number % 2 else "even"} for number, text in enumerate(TEXTS)]
    source.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    assert json.loads(said("index", table, source, "--store", store, "--json"))["added"] == len(TEXTS)
    hit = json.loads(said("search", store, "the girl's guitar", "-k", "2", "--json", "--filter", "kind=odd"))[0]
    assert {reason["word"] for reason in hit["reasons"]} == {"girl", "guitar"}
    assert (hit["fields"], hit["place"]) == ({"kind": "odd"}, f"{source}:2")
    shown = said("search", store, "the girl's guitar", "-k", "1", "--mode", "sparse")
    assert f"{source}:2" in shown
    assert "guitar " in shown.splitlines()[-1]
    once = json.loads(said("search", table, source, "the girl's guitar", "-k", "2", "--json", "--filter", "kind=odd"))[0]
    assert once | {"score": 0, "dense": 0} == hit | {"score": 0, "dense": 0}
    assert once["score"] == pytest.approx(hit["score"], abs=1e-4)
    for wrong, message in (
        ((store, "x", "--filter", "kind"), "it must be field=value"),
        ((store, "x", "--filter", "kin=odd"), "no document has a field 'kin'"),
        ((table, source, "x", "--model", table), "after an index comes the query alone"),
        ((store, "two", "words", "more"), "quotation marks"),
    ):
        with pytest.raises(UsageError, match=message):
            said("search", *wrong)
    with pytest.raises(typer.BadParameter, match="'all' is not one of 'hybrid', 'dense', 'sparse'"):
        said("search", store, "x", "--mode", "all")


@pytest.fixture
def embedder(tiny: BackboneSettings, tmp_path: Path) -> Path:
    """A finished embedder: one layer left out, whitened."""
    model = load_embedder(tiny)
    cut_last_layers(model, 1)
    export_embedder(model, fit_postprocessing(embed(model, TEXTS), strength="half"), tmp_path / "embedder", "card")
    return tmp_path / "embedder"


def test_a_sparse_export_loads_in_plain_sentence_transformers_and_decodes(
    embedder: Path, text_file: Path, tmp_path: Path
) -> None:
    def export(*words: object) -> None:
        app(["export", "sparse", str(embedder), *map(str, words)], standalone_mode=False)

    export("--output", tmp_path / "sparse", "--corpus", text_file, "--active", "12")
    modules = json.loads((tmp_path / "sparse" / "modules.json").read_text(encoding="utf-8"))
    assert all(module["type"].startswith("sentence_transformers.") for module in modules)
    encoder = SparseEncoder(str(tmp_path / "sparse"))
    vectors = encoder.encode(TEXTS)
    assert vectors.shape == (len(TEXTS), len(encoder.tokenizer))
    tokens = encoder.decode(vectors, top_k=12)
    vocabulary = TargetVocabulary.from_tokenizer(encoder.tokenizer)
    for said in tokens:
        assert 0 < len(said) <= 12
        numbers = encoder.tokenizer.convert_tokens_to_ids([token for token, _ in said])
        assert set(numbers) <= set(vocabulary.target_ids.tolist())
    active = (vectors.to_dense() > 0).sum(1)
    assert 0 < int(active.min()) <= int(active.max()) <= 12
    assert encoder.similarity_fn_name == "cosine"
    with pytest.raises(OutputError, match="is not empty"):
        export("--output", tmp_path / "sparse", "--corpus", text_file)
    with pytest.raises(UsageError, match="--corpus FILE"):
        export("--output", tmp_path / "second")


def test_the_decoder_solves_its_least_squares(embedder: Path) -> None:
    model = open_embedder(str(embedder))
    vocabulary = TargetVocabulary.from_tokenizer(model.tokenizer)  # type: ignore[arg-type]
    targets = DataDrivenTargets(model.tokenizer, vocabulary).fit(TEXTS).rows(TEXTS)  # type: ignore[arg-type]
    z = embed(model, TEXTS).double()
    t = torch.from_numpy(targets.toarray())
    t = t / t.norm(dim=1, keepdim=True)
    t = t - t.mean(0)
    gram = z.T @ z
    ridge = 10 * gram.trace() / len(gram)
    expected = torch.linalg.solve(gram + ridge * torch.eye(len(gram), dtype=torch.float64), z.T @ t)
    assert torch.allclose(fit_words(embed(model, TEXTS), targets).double(), expected, atol=1e-6)


def test_a_sparse_export_wants_layers_and_texts(table: str, embedder: Path) -> None:
    with pytest.raises(ModelError, match="static embeddings"):
        sparse_embedder(open_embedder(table), TEXTS * 9)
    with pytest.raises(CorpusError, match="10 texts are too few"):
        sparse_embedder(open_embedder(str(embedder)), TEXTS)


@pytest.mark.slow
def test_the_real_backbone_is_indexed_killed_and_searched(real_backbone: str, tmp_path: Path) -> None:
    model, source, store = tmp_path / "model", tmp_path / "docs.txt", tmp_path / "index"
    documents = list(itertools.islice(read_documents(["python:stdlib"]), 150))
    source.write_text(
        "\n".join(dict.fromkeys(" ".join(document.text.split())[:300] for document in documents)), encoding="utf-8"
    )
    total = len(source.read_text(encoding="utf-8").splitlines())
    embedder = load_embedder(BackboneSettings(real_backbone))
    cut_last_layers(embedder, 24)  # the first six are enough to be slow
    export_embedder(embedder, fit_postprocessing(embed(embedder, TEXTS), strength="half"), model, "card")
    command = [sys.executable, "-m", "text2token", "index", str(model), str(source), "--store", str(store), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while not (store / "shard").exists() and process.poll() is None:
        time.sleep(0.05)
    time.sleep(1)  # any moment will do
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    resumed = subprocess.run(command, capture_output=True, text=True, check=True)
    filled = json.loads(resumed.stdout)
    assert filled["total"] == total
    assert filled["added"] + filled["unchanged"] == total
    with Index.open(store) as index:
        assert index.count == total == read_card(store).documents
        assert len({hit.text for hit in index.search("return", total, "dense")}) == total
        assert index.search(source.read_text(encoding="utf-8").splitlines()[7], 1)[0].place == f"{source}:8"
