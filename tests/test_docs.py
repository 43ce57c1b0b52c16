"""The site is whole and loads nothing from elsewhere, and its reference says what the code does."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from conftest import PATIENCE, BackboneMaker
from reference import FOLDER, names_page, settings_page
from sentence_transformers import SentenceTransformer

from text2token import BackboneSettings, Document, Recipe, read_documents, train
from text2token.cli.main import app

LOADING = {"link": "href", "script": "src", "img": "src", "iframe": "src", "source": "src", "object": "data"}
ELSEWHERE = re.compile(r"(?:https?:)?//")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; a warning is an error, so every link between pages leads somewhere and every page is listed."""
    out = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "--keep-going",
        "-d",
        str(out / "trees"),
        str(FOLDER),
        str(out / "html"),
    ]
    built = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert built.returncode == 0, built.stderr
    return out / "html"


class Loaded(HTMLParser):
    """Collects what a page loads by itself; links that a reader may follow are no matter."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        address = dict(attributes).get(LOADING.get(tag, ""))
        if address:
            self.addresses.append(address)


def test_every_page_is_built_and_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.glob("*.html"))
    assert {page.stem for page in pages} >= {page.stem for page in FOLDER.glob("*.md")}
    addresses = [address for page in pages for address in Loaded(page).addresses]
    assert any(address.startswith("_static/") for address in addresses)
    assert [address for address in addresses if ELSEWHERE.match(address)] == []
    styles = "".join(style.read_text(encoding="utf-8") for style in site.rglob("*.css"))
    assert re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", styles) == []


def test_pages_name_only_files_that_there_are() -> None:
    for page in FOLDER.glob("*.md"):
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (FOLDER / link).exists(), (page.name, link)


@pytest.mark.parametrize(("page", "written"), [("settings.md", settings_page), ("python.md", names_page)])
def test_the_reference_is_what_the_code_says(page: str, written) -> None:  # type: ignore[no-untyped-def]
    assert (FOLDER / page).read_text(encoding="utf-8") == written(), "run python docs/reference.py"


def shown_commands(group: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the commands that are not hidden, and the verbs of those that have some, by the words that are typed."""
    for name, command in group.commands.items():
        if not command.hidden:
            yield before + name, command
            yield from shown_commands(command, f"{before}{name} ") if hasattr(command, "commands") else ()


def test_the_reference_has_every_command_option_and_help() -> None:
    _, program, *sections = re.split(r"^## text2token", (FOLDER / "cli.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    told = {section.splitlines()[0].strip(): section for section in sections}
    commands = dict(shown_commands(typer.main.get_command(app)))
    assert list(told) == list(commands)
    for name, command in commands.items():
        assert name.split()[0] in program
        shown = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
        options = {option for parameter in shown for option in parameter.opts if option.startswith("-")}
        assert set(re.findall(r"^  (?:-\w, )?(--?[\w-]+)", told[name], re.MULTILINE)) - {"--help"} == options, name
        words = " ".join(told[name].split())
        for parameter in shown:
            assert " ".join((parameter.help or "").split()) in words, (name, parameter.name, "run python docs/reference.py")


def python_on(page: str) -> list[str]:
    """Return the Python that a page shows, a text for each block."""
    return re.findall(r"```python\n(.*?)```", (FOLDER / page).read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def workplace(make_backbone: BackboneMaker, text_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, the current one, with what the pages speak of: docs.jsonl, my-embedder, my-embedder.run."""
    folder = text_file.parent
    texts = text_file.read_text(encoding="utf-8").splitlines()
    (folder / "docs.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    backbone = BackboneSettings(str(make_backbone("llama_tied")), dtype="float32", max_length=64)
    # whole texts: an index is made in bfloat16, and what a net of random weights learns of halves moves too much in it
    recipe = Recipe(backbone).with_settings(["stage1.max_tokens=2000", "evaluation_steps=0", "corpus.halves_from=0"])
    train(
        recipe,
        read_documents([str(folder / "docs.jsonl")]),
        run_folder=folder / "my-embedder.run",
        output=folder / "my-embedder",
    )
    monkeypatch.chdir(folder)
    return folder


def test_the_python_of_the_how_tos_does_what_they_say(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["a girl", "Prices of coffee rose sharply after frost.", "我的猫"]
    before = SentenceTransformer("my-embedder")
    documents = [Document(text, "here", fields={"section": "net"}) for text in [*texts, "flash the router"]]

    (whitened,) = python_on("adapt.md")
    exec(whitened.replace("sentence-transformers/all-MiniLM-L6-v2", "my-embedder"), {})
    after = SentenceTransformer("my-minilm")
    assert [type(module).__name__ for module in after][-3:] == ["Normalize", "Dense", "Normalize"]
    assert not np.allclose(before.encode(texts), after.encode(texts), atol=0.01)

    (one_target,) = python_on("files.md")
    exec(one_target, {})
    assert capsys.readouterr().out.strip().endswith("}")

    (searched,) = python_on("searching.md")
    exec(searched, {"documents": documents})
    assert "Reason(" in capsys.readouterr().out

    by_hand, compared = python_on("other_servers.md")
    names: dict[str, Any] = {}
    exec(by_hand, names)
    bare = before.tokenizer.backend_tokenizer
    states = []
    for text in texts:  # what llama.cpp would be asked: the transformer alone, on ids that the caller made
        ids = torch.tensor([names["token_ids"](bare.encode(text, add_special_tokens=False).ids)])
        with torch.no_grad():
            states.append(before[0].model(input_ids=ids).last_hidden_state[0, -1].numpy())
    served = names["postprocessed"](np.stack(states))
    np.testing.assert_allclose(served, before.encode(texts), atol=1e-5)
    exec(compared, {"ask_the_server": lambda given: before.encode(given).tolist()})
    assert min(map(float, capsys.readouterr().out.strip("[] \n").split())) > 0.999
