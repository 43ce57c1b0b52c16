"""No command deletes or replaces what it did not make, whatever names that has and however the command is given."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import BackboneMaker
from test_cli import FAST
from test_files import contents, written
from typer.testing import CliRunner

from text2token.cli.main import app
from text2token.errors import OutputError, Text2TokenError

# the names that commands use below their folders, and those by which our own results are told
PROJECT = {
    "thesis.txt": b"years",
    "corpus/docs.txt": b"years",
    "targets/stage1/thesis.txt": b"years",
    "stages/stage1/thesis.txt": b"years",
    "cache/thesis.txt": b"years",
    "runs/quickstart/0-0.json": b"{}",
    "recipe.toml": b"[backbone]",
    "results.json": b"{}",
    "model/modules.json": b"[]",
}


def called(*arguments: object) -> Text2TokenError | None:
    """Return the error that the command ended in, or None."""
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == 0 or isinstance(result.exception, Text2TokenError), (result.output, result.exception)
    return result.exception if isinstance(result.exception, Text2TokenError) else None


@pytest.fixture
def train(make_backbone: BackboneMaker, text_file: Path) -> Callable[..., Text2TokenError | None]:
    backbone = make_backbone("llama_tied")
    fast = [*FAST, "--max-tokens", "600", "--set", "stage1.targets=data_driven", "--quiet"]
    return lambda *more: called("train", text_file, "--backbone", backbone, *fast, *more)


def foreign(folder: Path) -> Path:
    written(folder, PROJECT)
    return folder


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_a_run_is_refused_in_a_folder_that_no_run_began(tmp_path: Path, train: Any, overwrite: list[str]) -> None:
    project = foreign(tmp_path / "project")
    refused = train("--run-folder", project, "--output", tmp_path / "model", *overwrite)
    assert isinstance(refused, OutputError)
    assert "holds cache and no steps.json" in str(refused)
    refused = called("quickstart", "--folder", project, "--quiet", *overwrite)
    assert "holds cache and no steps.json" in str(refused)
    assert contents(project) == PROJECT
    assert not (tmp_path / "model").exists()


def test_what_is_put_into_a_run_or_a_model_stays_there(tmp_path: Path, train: Any, text_file: Path) -> None:
    assert train("--output", tmp_path / "model") is None
    theirs = {
        "model/thesis.txt": b"years",
        "model/lens/thesis.txt": b"years",
        "model.run/thesis.txt": b"years",
        "model.run/corpus/thesis.txt": b"years",
        "model.run/targets/stage1/thesis.txt": b"years",
        "model.run/targets/thesis/card.json": b"{}",
        "model.run/stages/thesis/result.json": b"{}",
    }
    written(tmp_path, theirs)
    text_file.write_text(text_file.read_text(encoding="utf-8") + "A lighthouse.\n", encoding="utf-8")
    assert train("--output", tmp_path / "model", "--overwrite") is None
    assert json.loads((tmp_path / "model.run" / "corpus" / "summary.json").read_text(encoding="utf-8"))["documents"] == 121
    assert theirs.items() <= contents(tmp_path).items()


@pytest.mark.parametrize("name", ["cache", "targets/stage1", "stages/stage1", "corpus"])
def test_a_folder_with_the_name_of_a_step_is_refused_before_the_run(tmp_path: Path, train: Any, name: str) -> None:
    written(tmp_path / "model.run", {"steps.json": b"{}", f"{name}/thesis.txt": b"years"})
    refused = train("--output", tmp_path / "model", "--overwrite")
    assert f"{name}: was not made by text2token" in str(refused)
    assert (tmp_path / "model.run" / name / "thesis.txt").read_bytes() == b"years"
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("command", ["train", "targets", "static"])
def test_overwriting_takes_what_was_made_here_and_refuses_all_else(
    tmp_path: Path, make_backbone: BackboneMaker, text_file: Path, command: str
) -> None:
    more = [*FAST, "--max-tokens", "600"] if command == "train" else []
    more += ["--set", "stage1.targets=data_driven"] if command != "static" else []
    given = [command, text_file, "--backbone", make_backbone("llama_tied"), "--quiet", *more]
    refused = called(*given, "--output", foreign(tmp_path / "theirs"), "--overwrite")
    assert isinstance(refused, OutputError)
    assert "theirs: was not made by text2token" in str(refused)
    assert contents(tmp_path / "theirs") == PROJECT
    assert called(*given, "--output", tmp_path / "ours") is None
    again = called(*given, "--output", tmp_path / "ours")
    assert (again is None) == (command == "train")  # a run resumes, and nothing has changed
    assert called(*given, "--output", tmp_path / "ours", "--overwrite") is None


@pytest.mark.parametrize("form", ["--sparse", "--onnx"])
def test_an_export_is_refused_over_what_is_not_ours(tmp_path: Path, form: str) -> None:
    refused = called("export", "nothing", form, foreign(tmp_path / "theirs"), "--overwrite", "--quiet")
    assert "theirs: was not made by text2token" in str(refused)
    assert contents(tmp_path / "theirs") == PROJECT


def test_no_model_is_replaced_by_what_is_made_of_it(tmp_path: Path, make_backbone: BackboneMaker, text_file: Path) -> None:
    table = tmp_path / "models" / "table"
    assert called("static", text_file, "--backbone", make_backbone("llama_tied"), "--output", table, "--quiet") is None
    (tmp_path / "models" / ".text2token").write_text("*\n", encoding="utf-8")  # as if the folder around it were ours
    (tmp_path / "link").symlink_to(table)
    before = contents(tmp_path)
    for command, option in (
        ("export", "--onnx"),
        ("export", "--sparse"),
        ("static", "--output"),
        ("targets", "--output"),
        ("train", "--output"),
    ):
        for place in (table, table.parent, tmp_path / "link"):
            given = [table] if command == "export" else [text_file, "--backbone", table]
            refused = called(command, *given, option, place, "--overwrite", "--quiet")
            assert isinstance(refused, OutputError)
            assert "holds the model that is read" in str(refused)
            assert contents(tmp_path) == before


def test_a_single_file_replaces_its_like_alone_and_is_refused_before_the_work(
    tmp_path: Path, train: Any, text_file: Path
) -> None:
    assert train("--output", tmp_path / "model") is None
    page = ["report", tmp_path / "model.run", "--map-texts", "0", "--quiet", "--output"]
    scores = ["evaluate", tmp_path / "model", "--corpus", text_file, "--held-out", "20", "--quiet", "--output"]
    for command, name in ((page, "page.html"), (scores, "scores.csv"), (scores, "scores.json")):
        place = tmp_path / name
        for theirs in ("years", '[\n  {\n    "idx": 0\n  }\n]', "text,label\n", "<!DOCTYPE html>\n<html>\n"):
            place.write_text(theirs, encoding="utf-8")
            refused = called(*["nothing" if given == tmp_path / "model" else given for given in command], place)
            assert isinstance(refused, OutputError)
            assert f"{name}: exists and was not made by this command" in str(refused)
            assert place.read_text(encoding="utf-8") == theirs
        place.unlink()
        place.mkdir()
        assert "is a folder" in str(called(*command, place))
        place.rmdir()
        for _ in range(2):
            assert called(*command, place) is None
        assert place.stat().st_size > 100


def test_vectors_are_not_written_among_other_things(tmp_path: Path, text_file: Path, make_backbone: BackboneMaker) -> None:
    assert called("static", text_file, "--backbone", make_backbone("llama_tied"), "--output", tmp_path / "table") is None
    for resume in ([], ["--resume"]):
        refused = called("embed", tmp_path / "table", text_file, "--output", foreign(tmp_path / "theirs"), *resume)
        assert isinstance(refused, OutputError)
        assert contents(tmp_path / "theirs") == PROJECT


def test_the_current_folder_is_no_output(
    tmp_path: Path, make_backbone: BackboneMaker, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for overwrite in ([], ["--overwrite"]):
        refused = called("static", text_file, "--backbone", make_backbone("llama_tied"), "--output", ".", *overwrite)
        assert "cannot be replaced while it is the current folder" in str(refused)
        assert not list((tmp_path / "here").iterdir())
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
