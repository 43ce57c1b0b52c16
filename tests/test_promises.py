"""What README and docs promise, asked of the public names and of the command line alone."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import urllib.request
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from commands import COMMAND, call
from conftest import PATIENCE, TEXTS, BackboneMaker, write_corpus
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer, SparseEncoder

import text2token
from text2token import BackboneSettings, Document, Index, Recipe, Text2TokenError, read_documents, read_recipe

FAST = ["stage1.tokens_per_batch=512", "stage1.steps_per_checkpoint=3", "corpus.held_out=10", "lora.rank=4"]
TINY = ["backbone.dtype=float32", "backbone.max_length=64", *FAST]

# ---- spellings that the redesign changes: here and nowhere else


def train(recipe: Recipe, documents: Sequence[Document] | None, output: Path, **options: Any) -> Any:
    return text2token.train(recipe, documents, output=output, **options)


def evaluate(models: list[str], documents: Sequence[Document]) -> Any:
    return text2token.evaluate(models, text2token.EvaluationSettings(held_out=10), documents)


def fill(store: Path, model: Path, documents: Sequence[Document]) -> Any:
    return text2token.fill_index(store, str(model), documents)


ONNX, SPARSE = ["export", "onnx", "--output"], ["export", "sparse", "--output"]
PAIR, FIT = ["lens", "pair"], ["lens", "fit"]

# ----


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred and twenty documents with a field."""
    folder = tmp_path_factory.mktemp("corpus")
    lines = write_corpus(folder / "docs.txt").read_text(encoding="utf-8").splitlines()
    rows = [{"text": line, "year": 2000 + number % 3} for number, line in enumerate(lines)]
    path = folder / "docs.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def backbone(make_backbone: BackboneMaker) -> Path:
    return make_backbone("llama_tied")


@pytest.fixture(scope="module")
def said(corpus: Path, backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of an embedder that the command line has trained, and what it printed."""
    model = tmp_path_factory.mktemp("trained") / "model"
    settings = [word for setting in TINY for word in ("--set", setting)]
    done = call("train", corpus, "--backbone", backbone, "--output", model, "--quiet", "--json", *settings)
    assert (done.returncode, done.stderr) == (0, "")
    return model, json.loads(done.stdout)


@pytest.fixture(scope="module")
def model(said: tuple[Path, dict[str, Any]]) -> Path:
    return said[0]


@pytest.fixture(scope="module")
def plain(model: Path) -> SentenceTransformer:
    return SentenceTransformer(str(model))


@pytest.fixture(scope="module")
def store(model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("index") / "store"
    assert call("index", model, corpus, "--store", store, "--quiet").returncode == 0
    return store


@pytest.fixture(scope="module")
def static(corpus: Path, backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("static") / "static"
    done = call("static", corpus, "--backbone", backbone, "--output", folder, "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return folder


@pytest.fixture
def recipe(backbone: Path, corpus: Path) -> Recipe:
    """The recipe of `model`, from Python."""
    return replace(Recipe(BackboneSettings(str(backbone))), sources=(str(corpus),)).with_settings(TINY)


def files(folder: Path) -> dict[str, str]:
    """Return a digest of every file, but for what a clock writes."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(
            re.sub(rb'"seconds": ([\d.]+|\{[^}]*\})|[\d.,]+ s; loss', b"", path.read_bytes())
        ).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def refused(code: int, *words: object) -> str:
    """Return the one line with which a command ends; its exit code must be `code`."""
    done = call(*words)
    assert done.returncode == code, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("text2token: ")
    return line


# ---- the embedder


def test_an_embedder_is_a_plain_sentence_transformer(model: Path, plain: SentenceTransformer) -> None:
    assert [type(module).__name__ for module in plain] == ["Transformer", "Pooling", "Dense", "Normalize"]
    modules = json.loads((model / "modules.json").read_text(encoding="utf-8"))
    assert {module["type"].rpartition(".")[0] for module in modules} == {"sentence_transformers.models"}
    assert not [path.name for path in model.rglob("*.py")]
    assert np.linalg.norm(plain.encode(TEXTS), axis=1) == pytest.approx(1, abs=1e-5)


def test_it_embeds_without_the_package(model: Path, plain: SentenceTransformer) -> None:
    script = (
        "import sys, json; sys.modules['text2token'] = None; from sentence_transformers import SentenceTransformer;"
        f"print(json.dumps(SentenceTransformer({str(model)!r}).encode('a girl').tolist()))"
    )
    done = subprocess.run([COMMAND[0], "-c", script], capture_output=True, text=True, timeout=PATIENCE)
    assert json.loads(done.stdout.splitlines()[-1]) == pytest.approx(plain.encode("a girl").tolist(), abs=1e-5)


def test_white_space_and_unicode_forms_do_not_change_a_vector(plain: SentenceTransformer) -> None:
    one, *others = plain.encode(["Wait for the café.", "  Wait for the café. \n", "\tWait for the cafe\u0301.\r\n"])
    for other in others:
        assert other == pytest.approx(one, abs=1e-5)


def test_a_vector_does_not_depend_on_its_company(plain: SentenceTransformer) -> None:
    assert plain.encode(TEXTS)[3] == pytest.approx(plain.encode(TEXTS[3]), abs=1e-5)


def test_what_lies_beyond_the_limit_is_not_read_and_the_prompt_stays_whole(plain: SentenceTransformer) -> None:
    long = "word " * 200
    assert plain.encode(long) == pytest.approx(plain.encode(long + "and more"), abs=1e-5)
    assert plain.tokenizer("")["input_ids"][-1] == plain.tokenizer(long, truncation=True, max_length=64)["input_ids"][-1]


def test_a_control_token_in_a_text_is_text(plain: SentenceTransformer) -> None:
    assert len(plain.tokenizer("</s>")["input_ids"]) > len(plain.tokenizer("")["input_ids"]) + 1


# ---- training


def test_a_run_leaves_its_settings_targets_weights_and_results(said: tuple[Path, dict[str, Any]]) -> None:
    model, printed = said
    run = model.with_name("model.run")
    assert json.loads((run / "results.json").read_text(encoding="utf-8")) == printed
    assert {"recipe.toml", "steps.json", "corpus", "targets", "stages"} <= {path.name for path in run.iterdir()}
    assert printed["stages"]["stage1"]["last_loss"] < printed["stages"]["stage1"]["first_loss"]
    assert printed["evaluation"]["trained"]["queries"] == 10
    assert load_file(run / "stages" / "stage1" / "weights.safetensors")


def test_what_a_run_wrote_down_repeats_it_to_the_same_files(model: Path, tmp_path: Path) -> None:
    written = read_recipe(str(model.with_name("model.run") / "recipe.toml"))
    train(written, None, tmp_path / "model")
    made, expected = (files(folder) for folder in (tmp_path / "model", model))
    assert made == expected


def test_another_seed_trains_other_weights(recipe: Recipe, model: Path, tmp_path: Path) -> None:
    train(replace(recipe, seed=1), None, tmp_path / "model")
    assert files(tmp_path / "model")["model.safetensors"] != files(model)["model.safetensors"]


class Stopping:
    """A reporter that stops a run in the middle of a phase."""

    def __init__(self, phase: str) -> None:
        self.phase = phase
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def progress(self, description: str, total: int | None, unit: str) -> AbstractContextManager[Any]:
        done = 0

        def count(units: int) -> None:
            nonlocal done
            done += units
            if description == self.phase and total and done > total / 2:
                raise KeyboardInterrupt

        return nullcontext(count)


@pytest.mark.parametrize("phase", ["Targets, corpus-derived", "Training", "Embedding, trained"])
def test_a_stopped_run_resumes_to_the_same_files(phase: str, recipe: Recipe, model: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(recipe, None, tmp_path / "model", reporter=Stopping(phase))
    assert not (tmp_path / "model").exists()
    train(recipe, None, tmp_path / "model")
    assert files(tmp_path / "model") == files(model)


def test_a_finished_run_is_not_done_again_and_a_changed_setting_costs_only_what_follows(
    recipe: Recipe, model: Path, tmp_path: Path
) -> None:
    for name in ("model", "model.run"):
        shutil.copytree(model.with_name(name), tmp_path / name)
    (tmp_path / "model.run" / "results.json").unlink()
    first = train(recipe, None, tmp_path / "model")
    again = Stopping("")
    assert train(recipe, None, tmp_path / "model", reporter=again) == first
    assert again.notes == ["Nothing has changed since this run was finished."]
    before = json.loads((tmp_path / "model.run" / "steps.json").read_text(encoding="utf-8"))
    train(recipe.with_settings(["stage1.learning_rate=0.001"]), None, tmp_path / "model")
    after = json.loads((tmp_path / "model.run" / "steps.json").read_text(encoding="utf-8"))
    assert {step for step in after if after[step] != before[step]} == {"stage1", "result"}


def test_documents_from_memory_train_and_changed_ones_are_noticed(recipe: Recipe, corpus: Path, tmp_path: Path) -> None:
    given, documents = replace(recipe, sources=()), list(read_documents(corpus))
    whole = train(given, documents, tmp_path / "model")
    assert train(given, documents, tmp_path / "model") == whole
    assert train(given, documents[10:], tmp_path / "model").corpus["documents"] == whole.corpus["documents"] - 10


def test_somebody_elses_folder_is_refused_and_left_as_it_is(recipe: Recipe, tmp_path: Path) -> None:
    for name in ("model", "model.run"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.txt").write_text("mine", encoding="utf-8")
        for options in ({}, {"overwrite": True}):
            with pytest.raises(Text2TokenError, match=f"{name}: "):
                train(recipe, None, tmp_path / "model", **options)
        assert [path.name for path in (tmp_path / name).iterdir()] == ["mine.txt"]
        shutil.rmtree(tmp_path / name)


def test_recipes_come_along_and_settings_are_told_by_name(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(recipe.to_toml(), encoding="utf-8")
    assert read_recipe(str(tmp_path / "recipe.toml")) == recipe
    assert [stage.targets for stage in read_recipe("paper").stages] == ["data_driven", "likelihood_ratio"]
    with pytest.raises(Text2TokenError, match=r"learning_rat.*did you mean 'learning_rate'"):
        recipe.with_settings(["stage1.learning_rat=1"])
    with pytest.raises(Text2TokenError, match=r"stage1\.epochs is '0'"):
        recipe.with_settings(["stage1.epochs=0"])


def test_an_untrained_backbone_embeds(recipe: Recipe) -> None:
    assert text2token.load_embedder(recipe.backbone).encode(TEXTS).shape == (len(TEXTS), 32)


# ---- mistakes


def test_a_missing_file_is_one_line_and_code_3(backbone: Path, tmp_path: Path) -> None:
    line = refused(3, "train", tmp_path / "none.txt", "--backbone", backbone, "--output", tmp_path / "model")
    assert "none.txt: no such file" in line
    assert list(tmp_path.iterdir()) == []


def test_a_misspelt_setting_is_one_line_and_code_2(corpus: Path, backbone: Path, tmp_path: Path) -> None:
    wanted = ("train", corpus, "--backbone", backbone, "--output", tmp_path / "model")
    assert "did you mean 'learning_rate'" in refused(2, *wanted, "--set", "stage1.learning_rat=1")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_cannot_be_used_is_one_line_and_code_4(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "empty" in refused(4, "train", corpus, "--backbone", tmp_path / "empty", "--output", tmp_path / "model")


def test_a_taken_folder_is_one_line_and_code_6(corpus: Path, backbone: Path, tmp_path: Path) -> None:
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "mine.txt").write_text("mine", encoding="utf-8")
    line = refused(6, "static", corpus, "--backbone", backbone, "--output", tmp_path / "table")
    assert "table: exists" in line
    assert "was not made by text2token" in refused(
        6, "static", corpus, "--backbone", backbone, "--output", tmp_path / "table", "--overwrite"
    )


def test_a_broken_line_is_told_with_its_place_or_skipped_and_counted(backbone: Path, tmp_path: Path) -> None:
    (tmp_path / "docs.jsonl").write_text("\n".join([*map(json.dumps, TEXTS), '{"text": ']), encoding="utf-8")
    wanted = ("static", tmp_path / "docs.jsonl", "--backbone", backbone, "--output", tmp_path / "table")
    assert f"docs.jsonl:{len(TEXTS) + 1}:" in refused(3, *wanted)
    done = call(*wanted, "--on-error", "skip")
    assert done.returncode == 0
    assert "Left out 1 broken lines" in done.stderr


def test_help_names_every_command() -> None:
    named = re.findall(r"^  ([a-z]+) ", call("--help").stdout, re.MULTILINE)
    expected = {"train", "targets", "static", "export", "embed", "index", "search", "lens", "evaluate", "report", "serve"}
    assert expected <= set(named)


# ---- targets


def test_targets_are_parquet_with_a_card_and_every_row_sums_to_one(corpus: Path, backbone: Path, tmp_path: Path) -> None:
    settings = ["--set", "stage1.targets=data_driven"]
    done = call("targets", corpus, "--backbone", backbone, "--output", tmp_path / "made", "--json", *settings)
    assert done.returncode == 0, done.stderr
    card = json.loads((tmp_path / "made" / "card.json").read_text(encoding="utf-8"))
    assert json.loads(done.stdout) == card
    for shard in card["shards"]:
        path = tmp_path / "made" / shard["file"]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == shard["sha256"]
        for row in pq.read_table(path).to_pylist():
            assert sum(row["weights"]) == pytest.approx(1, abs=1e-5)
            assert len(set(row["token_ids"])) == len(row["token_ids"]) == len(row["weights"])


# ---- other forms of an embedder


def test_static_embeddings_need_no_training_and_load_in_plain_sentence_transformers(static: Path) -> None:
    vectors = SentenceTransformer(str(static)).encode([*TEXTS, ""])
    assert vectors.shape == (len(TEXTS) + 1, 32)
    assert np.isfinite(vectors).all()


def test_an_onnx_export_gives_the_vectors_of_the_model(model: Path, plain: SentenceTransformer, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    from tokenizers import Tokenizer

    assert call(*ONNX, tmp_path / "onnx", model, "--bits", 32, "--quiet").returncode == 0
    ids = Tokenizer.from_file(str(tmp_path / "onnx" / "tokenizer.json")).encode(TEXTS[1]).ids
    session = onnxruntime.InferenceSession(str(tmp_path / "onnx" / "model.onnx"))
    fed = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), dtype=np.int64)}
    (vector,) = session.run(None, fed)[0]
    assert vector == pytest.approx(plain.encode(TEXTS[1]), abs=1e-3)


def test_a_sparse_export_is_a_plain_sparse_encoder(model: Path, corpus: Path, tmp_path: Path) -> None:
    assert call(*SPARSE, tmp_path / "sparse", model, "--quiet").returncode == 0  # learns from model.run
    encoder = SparseEncoder(str(tmp_path / "sparse"))
    rows = encoder.encode(TEXTS[:3]).to_dense()
    assert (rows >= 0).all()
    assert 0 < int((rows > 0).sum(1).max()) <= 128


def test_vectors_on_disk_are_those_of_the_model_in_the_order_of_the_corpus(
    model: Path, plain: SentenceTransformer, corpus: Path, tmp_path: Path
) -> None:
    wanted = ("embed", model, corpus, "--output", tmp_path / "vectors", "--dtype", "float32", "--quiet")
    assert call(*wanted, "--json").returncode == 0
    rows = pq.read_table(tmp_path / "vectors" / "vectors-00000.parquet").to_pylist()
    texts = [document.text for document in read_documents(corpus)]
    assert [row["text"] for row in rows] == texts
    assert rows[7]["vector"] == pytest.approx(plain.encode(texts[7]).tolist(), abs=1e-4)
    before = files(tmp_path / "vectors")
    assert call(*wanted, "--resume").returncode == 0
    assert files(tmp_path / "vectors") == before


# ---- search


def test_a_search_finds_a_text_and_says_why(store: Path) -> None:
    done = call("search", store, TEXTS[1], "-k", "3", "--json", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    hits = json.loads(done.stdout)
    assert len(hits) == 3
    assert "guitar" in hits[0]["text"]
    assert "docs.jsonl:" in hits[0]["place"]
    by_words = [reason["contribution"] for reason in hits[0]["reasons"] if reason["half"] == "sparse"]
    assert sum(by_words) == pytest.approx(hits[0]["sparse"], abs=1e-3)
    assert any(reason["half"] == "dense" for reason in hits[0]["reasons"])


def test_every_mode_answers_and_a_filter_holds(store: Path) -> None:
    with Index.open(store) as index:
        for mode in ("dense", "sparse", "hybrid"):
            hits = index.search("a girl plays the guitar", 5, mode, {"year": ["2001"]})
            assert hits
            assert {hit.fields["year"] for hit in hits} == {2001}


def test_only_new_documents_are_embedded_and_pruning_removes_what_is_gone(model: Path, corpus: Path, tmp_path: Path) -> None:
    lines = corpus.read_text(encoding="utf-8").splitlines()
    part = tmp_path / "part.jsonl"
    for kept, prune, added, removed in ((10, [], 10, 0), (14, [], 4, 0), (5, ["--prune"], 0, 9)):
        part.write_text("\n".join(lines[:kept]), encoding="utf-8")
        done = call("index", model, part, "--store", tmp_path / "store", "--json", "--quiet", *prune)
        filled = json.loads(done.stdout)
        assert (filled["added"], filled["removed"]) == (added, removed)


def test_an_index_belongs_to_its_model(store: Path, static: Path, corpus: Path) -> None:
    assert "holds vectors of another model" in refused(6, "index", static, corpus, "--store", store, "--quiet")


def test_from_python_an_index_is_filled_and_searched(static: Path, tmp_path: Path) -> None:
    documents = [Document(text, f"memory:{number}", fields={"n": number}) for number, text in enumerate(TEXTS)]
    fill(tmp_path / "store", static, documents)
    with Index.open(tmp_path / "store") as index:
        assert index.count == len(TEXTS)
        assert index.search(TEXTS[4], 1)[0].place == "memory:4"


# ---- the lens


def test_the_lens_shows_words_of_a_text(model: Path) -> None:
    done = call("lens", model, TEXTS[1], "--json", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    words = json.loads(done.stdout)[0]["texts"][0]["words"]
    assert len(words) == 8
    assert any(word["in_text"] for word in words)


def test_the_words_of_a_pair_share_its_cosine(model: Path, plain: SentenceTransformer) -> None:
    done = call(*PAIR, model, TEXTS[0], TEXTS[1], "--json", "--quiet")
    pair = json.loads(done.stdout)[0]["pair"]
    assert pair["common"] + pair["explained"] + pair["rest"] == pytest.approx(pair["cosine"], abs=1e-5)
    a, b = plain.encode(TEXTS[:2])
    assert pair["cosine"] == pytest.approx(float(a @ b), abs=2e-2)  # bfloat16 where the processor has it


def test_a_reader_comes_with_the_model_and_is_learnt_for_any_other(
    model: Path, static: Path, corpus: Path, plain: SentenceTransformer, tmp_path: Path
) -> None:
    reader = text2token.open_reader(model)
    assert len(reader.words(plain.encode(TEXTS, convert_to_tensor=True), 3)) == len(TEXTS)
    other = shutil.copytree(static, tmp_path / "static")
    shutil.rmtree(other / "lens", ignore_errors=True)
    assert call(*FIT, "--corpus", corpus, other, "--save", "--quiet").returncode == 0
    assert text2token.open_reader(other).lexicon


# ---- evaluation, report, server


def test_models_are_scored_without_labels_on_documents_they_have_not_seen(model: Path, static: Path, corpus: Path) -> None:
    done = call("evaluate", model, static, "--corpus", corpus, "--json", "--quiet")
    assert done.returncode == 0, done.stderr
    scores = {report["model"]: report["label_free"] for report in json.loads(done.stdout) if report["label_free"]}
    assert {str(model), str(static)} < set(scores)
    assert all(0 <= score["mrr_at_10"] <= 100 and score["queries"] <= 10 for score in scores.values())


def test_from_python_models_are_scored_too(static: Path, corpus: Path) -> None:
    reports = evaluate([str(static)], list(read_documents(corpus)))
    assert reports[0].label_free.queries == 10


def test_a_report_is_one_page_that_loads_nothing(model: Path, tmp_path: Path) -> None:
    done = call("report", model.with_name("model.run"), "--output", tmp_path / "page.html", "--map-texts", 20)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<svg" in page
    assert "<script" not in page
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!#)""", page.replace("xlink:href", ""))


def test_a_server_gives_the_vectors_of_the_model_and_stops_in_order(static: Path) -> None:
    command = [*COMMAND, "serve", str(static), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ})
    try:
        assert process.stderr
        address = None
        while address is None:
            line = process.stderr.readline()
            assert line
            address = re.search(r"http://127\.0\.0\.1:\d+", line)
        body = json.dumps({"input": TEXTS[1], "model": "static"}).encode()
        request = urllib.request.Request(f"{address[0]}/v1/embeddings", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            vector = json.load(answer)["data"][0]["embedding"]
        assert vector == pytest.approx(SentenceTransformer(str(static)).encode(TEXTS[1]).tolist(), abs=1e-3)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.communicate()


# ---- reading


def test_documents_are_read_with_their_places_titles_and_fields(corpus: Path, tmp_path: Path) -> None:
    first = next(iter(read_documents(corpus)))
    assert (first.place, first.fields["year"], first.title) == (f"{corpus}:1", 2000, "")
    (tmp_path / "docs.csv").write_text("title,body\nOne,A girl.\nTwo,A boy.\n", encoding="utf-8")
    assert [(document.title, document.body) for document in read_documents(tmp_path / "docs.csv")] == [
        ("One", "A girl."),
        ("Two", "A boy."),
    ]
