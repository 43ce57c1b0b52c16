"""The site is whole and loads nothing from elsewhere, and its reference says what the code does."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import typer
from reference import FOLDER, names_page, settings_page

from text2token.cli import app

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
    built = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert built.returncode == 0, built.stderr
    return out / "html"


class Loaded(HTMLParser):
    """Collects what a page loads by itself; links that a reader may follow are no matter."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.feed(page.read_text())

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
    styles = "".join(style.read_text() for style in site.rglob("*.css"))
    assert re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", styles) == []


def test_pages_name_only_files_that_there_are() -> None:
    for page in FOLDER.glob("*.md"):
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (FOLDER / link).exists(), (page.name, link)


@pytest.mark.parametrize(("page", "written"), [("settings.md", settings_page), ("python.md", names_page)])
def test_the_reference_is_what_the_code_says(page: str, written) -> None:  # type: ignore[no-untyped-def]
    assert (FOLDER / page).read_text() == written(), "run python docs/reference.py"


def test_the_reference_has_every_command_option_and_help() -> None:
    _, program, *sections = re.split(r"^## text2token", (FOLDER / "cli.md").read_text(), flags=re.MULTILINE)
    told = {section.split()[0]: section for section in sections}
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert list(told) == list(commands)
    for name, command in commands.items():
        assert name in program
        options = {option for parameter in command.params for option in parameter.opts if option.startswith("-")}
        assert set(re.findall(r"^  (?:-\w, )?(--?[\w-]+)", told[name], re.MULTILINE)) - {"--help"} == options, name
        words = " ".join(told[name].split())
        for parameter in command.params:
            assert " ".join((parameter.help or "").split()) in words, (name, parameter.name, "run python docs/reference.py")
