"""The embedder as one ONNX file: the same vectors, without torch."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import TEXTS, BackboneMaker
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer

from text2token.errors import ModelError, OutputError, UsageError
from text2token.export.folder import export_embedder
from text2token.export.onnx import PortableEmbedder, export_portable
from text2token.model.backbone import embed, load_embedder
from text2token.model.whitening import fit_postprocessing
from text2token.recipe import BackboneSettings


@pytest.fixture(scope="module")
def model(make_backbone: BackboneMaker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "embedder"
    embedder = load_embedder(BackboneSettings(str(make_backbone("llama_tied")), dtype="float32", max_length=32))
    export_embedder(embedder, fit_postprocessing(embed(embedder, TEXTS), "none"), folder, "")
    return folder


@pytest.fixture(scope="module")
def portable(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("portable") / "embedder"
    export_portable(str(model), folder)
    return folder


def test_its_vectors_are_the_model_s_alone_and_in_any_company(model: Path, portable: Path) -> None:
    expected = SentenceTransformer(str(model)).encode(TEXTS)
    embedder = PortableEmbedder(portable)
    together = embedder.encode(TEXTS)
    assert (expected * together).sum(1).min() > 0.995
    alone = np.concatenate([embedder.encode([text]) for text in TEXTS])
    assert (alone * together).sum(1).min() > 0.9999
    assert json.loads((portable / "card.json").read_text(encoding="utf-8"))["least_cosine"] > 0.99


def test_unquantised_it_is_the_model_to_rounding(model: Path, tmp_path: Path) -> None:
    card = export_portable(str(model), tmp_path / "whole", bits=32)
    expected = SentenceTransformer(str(model)).encode(TEXTS)
    assert np.abs(PortableEmbedder(tmp_path / "whole").encode(TEXTS) - expected).max() < 1e-5
    assert (card.dimension, card.max_tokens, card.bits) == (32, 32, 32)


@pytest.mark.parametrize("bits", ["8", "32"])
def test_quiet_says_nothing_and_nobodys_logging_is_changed(model: Path, tmp_path: Path, bits: str) -> None:
    probe = (
        "import logging, sys; from text2token.cli.main import main\n"
        "before = [*logging.root.handlers], logging.root.level\n"
        "try: main()\nexcept SystemExit as end: assert not end.code\n"
        "assert ([*logging.root.handlers], logging.root.level) == before and not logging.root.manager.disable"
    )
    command = [sys.executable, "-c", probe, "export", str(model), "--onnx", str(tmp_path / "out"), "--bits", bits, "--quiet"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert (ended.stdout, ended.stderr, ended.returncode) == ("", "", 0)
    assert (tmp_path / "out" / "card.json").exists()


def test_what_does_not_survive_eight_bits_is_told_of_more(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("text2token.export.onnx.LEAST_COSINE", 2.0)
    with pytest.raises(ModelError, match=r"does not survive 8 bits .* --bits 32"):
        export_portable(str(model), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_code_in_its_readme_runs_without_torch(model: Path, portable: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (portable / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    probe = (
        "\nimport sys, json\nassert 'torch' not in sys.modules\nprint(json.dumps(encode(['Close the socket.'])[0].tolist()))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code + probe], cwd=portable, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert output[0] == "(2, 32)"
    assert np.dot(json.loads(output[1]), SentenceTransformer(str(model)).encode("Close the socket.")) > 0.995


def test_what_cannot_be_exported_is_refused_in_one_line(
    model: Path, portable: Path, tmp_path: Path, byte_level_tokenizer: object
) -> None:
    with pytest.raises(OutputError, match="exists and is not empty"):
        export_portable(str(model), portable)
    with pytest.raises(UsageError, match="8 and 32"):
        export_portable(str(model), tmp_path / "new", bits=4)
    backend = Tokenizer.from_str(byte_level_tokenizer.backend_tokenizer.to_str())  # type: ignore[attr-defined]
    table = SentenceTransformer(modules=[StaticEmbedding(backend, embedding_dim=8)])
    table.save(str(tmp_path / "table"), create_model_card=False)
    with pytest.raises(ModelError, match="no transformer"):
        export_portable(str(tmp_path / "table"), tmp_path / "new")
    assert not (tmp_path / "new").exists()
