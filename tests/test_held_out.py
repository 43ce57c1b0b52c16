"""No document asks a model that was trained on it, as far as that is known, and where it is not known a line says so."""

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import platformdirs
import pytest
from conftest import TEXTS
from datasets import Dataset

from text2token.corpus.documents import Document
from text2token.corpus.prepare import Corpus, temporary_corpus
from text2token.corpus.readers import read_documents
from text2token.evaluation.held_out import FILE, held_out_of, unseen_corpus, write_held_out
from text2token.progress import Progress
from text2token.recipe import BackboneSettings, CorpusSettings, Recipe
from text2token.training.run import train

DOCUMENTS = [
    Document(
        f"{number}. {TEXTS[number % len(TEXTS)]} {TEXTS[(number // 7) % len(TEXTS)]} Number {number} is long enough "
        "to be halved because it goes on for a while.",
        str(number),
        title=f"The title of document number {number}" if number % 3 == 0 else "",
    )
    for number in range(120)
]


class Notes:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, message: str) -> None:
        self.said.append(message)

    @contextmanager
    def progress(self, description: str, total: int | None, unit: str) -> Iterator[Progress]:
        yield lambda done: None


def trained(folder: Path, *, seed: int, held_out: int, documents: Sequence[Document] = DOCUMENTS) -> tuple[str, set[str]]:
    """Write what training on all but the held-out documents leaves of them; return the model and the places it has seen."""
    folder.mkdir(parents=True)
    with temporary_corpus(documents, CorpusSettings(held_out=held_out, seed=seed)) as corpus:
        write_held_out(corpus.held_out, seed, folder)
        return str(folder), {document.place for document in documents} - set(corpus.held_out["place"])


def asking(models: Sequence[str], held_out: int = 200) -> tuple[set[str], list[str]]:
    notes = Notes()
    with unseen_corpus(DOCUMENTS, models, CorpusSettings(held_out=held_out), reporter=notes) as corpus:
        return set(corpus.held_out["place"]), notes.said


@pytest.mark.parametrize("asked", [2, 10, 30, 1000])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("held_out", [5, 20, 39])
def test_nothing_that_was_trained_on_asks(tmp_path: Path, seed: int, held_out: int, asked: int) -> None:
    model, seen = trained(tmp_path / "model", seed=seed, held_out=held_out)
    places, said = asking([model], asked)
    assert len(places) == min(asked, held_out)
    assert places.isdisjoint(seen)
    assert said == []


def test_of_several_models_only_what_none_has_seen_asks(tmp_path: Path) -> None:
    one, seen_by_one = trained(tmp_path / "one", seed=0, held_out=39)
    other, seen_by_other = trained(tmp_path / "other", seed=1, held_out=39)
    places, said = asking([one, other])
    assert len(places) >= 2
    assert places.isdisjoint(seen_by_one | seen_by_other)
    assert said == []


def test_what_is_not_known_is_told_in_a_line(tmp_path: Path) -> None:
    known, _ = trained(tmp_path / "known", seed=0, held_out=20)
    elsewhere = [Document(f"Another text altogether, {document.body}", document.place) for document in DOCUMENTS]
    foreign, _ = trained(tmp_path / "foreign", seed=0, held_out=20, documents=elsewhere)
    everything, _ = trained(tmp_path / "everything", seed=0, held_out=0)
    (tmp_path / "unknown").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / FILE).write_text("{", encoding="utf-8")
    for name in ("unknown", "damaged"):
        places, (line,) = asking([known, str(tmp_path / name)])
        assert line.startswith(f"It is not known what {tmp_path / name} was trained on")
        assert places == asking([known])[0]
    for model in (foreign, everything):
        places, (line,) = asking([model])
        assert line.startswith("No document of this text was held out")
        assert len(places) > 2


def test_a_model_brings_its_digests_along_and_no_text(tiny: BackboneSettings, text_file: Path, tmp_path: Path) -> None:
    settings = ["stage1.targets=data_driven", "stage1.tokens_per_batch=512", "lora.rank=4", "corpus.seed=3"]
    recipe = Recipe(tiny, sources=(str(text_file),), corpus=CorpusSettings(held_out=10)).with_settings(settings)
    train(recipe, read_documents(recipe.sources), run_folder=tmp_path / "model.run", output=tmp_path / "model")
    content = json.loads((tmp_path / "model" / FILE).read_text(encoding="utf-8"))
    assert (content["seed"], content["held_out"], len(content["pairs"])) == (3, 10, 10)
    assert all(len(digest) == 16 for digest in content["pairs"])
    beside = held_out_of(str(tmp_path / "model"))
    assert beside == frozenset(content["pairs"])
    (tmp_path / "model" / FILE).unlink()  # as earlier versions left it
    assert held_out_of(str(tmp_path / "model") + "/") == beside
    notes = Notes()
    with unseen_corpus(read_documents(recipe.sources), [str(tmp_path / "model")], reporter=notes) as corpus:
        held_out = Corpus.open(tmp_path / "model.run" / "corpus").held_out
        assert set(corpus.held_out["query"]) == set(held_out["query"])
    assert notes.said == []


def test_a_temporary_corpus_lies_where_there_is_room_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: cache)
    cache.mkdir()
    for name, age in (("corpus-old", 48), ("corpus-young", 1), ("vectors", 48)):
        (cache / name).mkdir()
        (cache / name / "file").touch()
        os.utime(cache / name, (time.time() - age * 3600,) * 2)
    with temporary_corpus(DOCUMENTS) as corpus:
        assert isinstance(corpus.passages, Dataset)
        (made,) = set(cache.iterdir()) - {cache / "corpus-young", cache / "vectors"}
        assert (made / "corpus" / "passages.arrow").exists()
    assert set(cache.iterdir()) == {cache / "corpus-young", cache / "vectors"}
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: Path("/dev/null/cache"))
    with temporary_corpus(DOCUMENTS) as corpus:  # it does without
        assert len(corpus.passages)
