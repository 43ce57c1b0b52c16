"""Standard output may be a pipe that closes, a full disk, or of another encoding: one line at most, and nothing is lost."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import BackboneMaker
from test_cli import COMMAND
from typer.testing import CliRunner

from text2token.cli.main import app

# runs the command line on results that are made at once: what is tested is the way out
PRINT = """
import sys
from text2token.cli import main as cli
from text2token.errors import UsageError
@cli.app.command("print")
def print_(lines: int, text: str = "dough … 生 \\U0001f600", fail: bool = False) -> None:
    for _ in range(lines):
        print(text)
    if fail:
        raise UsageError("a setting … 生 cannot be")
cli.main()
"""


def printed(*words: object, stdout: object = subprocess.PIPE, **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-c", PRINT, "print", *map(str, words)]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, env={**os.environ, **environment})  # type: ignore[call-overload]


@pytest.mark.parametrize("lines", [1, 100_000])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_behind_standard_output_is_one_line(lines: int, unbuffered: str) -> None:
    with Path("/dev/full").open("wb") as full:
        result = printed(lines, stdout=full, PYTHONUNBUFFERED=unbuffered)
    assert result.returncode == 6
    assert result.stderr == b"text2token: standard output: cannot be written (No space left on device)\n"


@pytest.mark.parametrize("lines", [1, 100_000])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_stops_is_no_error(lines: int, unbuffered: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as closed:
        result = printed(lines, stdout=closed, PYTHONUNBUFFERED=unbuffered)
    assert (result.returncode, result.stderr) == (141, b"")


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "ascii", "utf-8", "utf-16"])
def test_what_an_encoding_lacks_becomes_a_mark(encoding: str) -> None:
    result = printed(2, PYTHONIOENCODING=encoding)
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout.decode(encoding).count("dough ") == 2


def test_what_was_printed_before_an_error_is_there() -> None:
    result = printed(3, "--fail", PYTHONIOENCODING="latin-1")
    assert result.returncode == 2
    assert result.stdout.count(b"dough") == 3
    assert len(result.stderr.splitlines()) == 1


def test_json_and_hits_survive_a_terminal_of_another_encoding(tmp_path: Path, make_backbone: BackboneMaker) -> None:
    rows = [{"text": f"The dough … rises, 生 number {i}, and the bread is good."} for i in range(30)]
    source = tmp_path / "docs.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    table = tmp_path / "table"
    made = CliRunner().invoke(
        app, ["static", str(source), "--backbone", str(make_backbone("llama_tied")), "--output", str(table)]
    )
    assert made.exit_code == 0, made.exception
    for more in ([], ["--json"]):
        command = [*COMMAND, "search", str(table), str(source), "dough", "--quiet", *more]
        result = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "latin-1"})
        assert (result.returncode, result.stderr) == (0, b"")
        if more:  # for programs, which get every letter
            hits = json.loads(result.stdout.decode("latin-1"))
            assert len(hits) == 5
            assert all(hit["text"].startswith("The dough … rises, 生 number") for hit in hits)
        else:
            assert b"dough ? rises" in result.stdout


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_what_is_laid_out_in_tables_ends_in_the_same_way(unbuffered: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    for stdout, code in ((writing, 141), (os.open("/dev/full", os.O_WRONLY), 6)):
        with os.fdopen(stdout, "wb") as file:
            given = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
            done = subprocess.run([*COMMAND, "--version"], stdout=file, stderr=subprocess.PIPE, env=given, check=False)
        assert done.returncode == code, done.stderr
        assert done.stderr.count(b"\n") == (code == 6)
