"""Nothing half-written stands under its final name, and what the system refuses is one line."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import BackboneMaker
from test_cli import FAST, call

from text2token.errors import OutputError
from text2token.files import alone_in, atomic_file, atomic_folder


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def fail_half_way() -> None:
        with atomic_folder(tmp_path / "made") as unfinished:
            (unfinished / "half").write_text("x")
            assert not (tmp_path / "made").exists()
            raise ValueError("in between")

    with pytest.raises(ValueError, match="in between"):
        fail_half_way()
    assert list(tmp_path.iterdir()) == []
    for content in ("first", "second"):
        with atomic_folder(tmp_path / "made") as unfinished:
            (unfinished / "file").write_text(content)
        assert (tmp_path / "made" / "file").read_text() == content
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    assert os.stat(tmp_path / "made").st_mode & 0o777 == 0o755


def test_a_file_is_replaced_whole_or_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")

    def be_interrupted() -> None:
        with atomic_file(tmp_path / "file") as path:
            path.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        be_interrupted()
    assert (tmp_path / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_in_the_way_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file/made: cannot be written"), atomic_folder(tmp_path / "file" / "made"):
        pass


HOLD = """
import sys
from pathlib import Path
from text2token.files import alone_in
with alone_in(Path(sys.argv[1]), beside=sys.argv[2] == "True"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("beside", [False, True])
def test_a_second_process_in_a_folder_is_told_and_a_killed_one_is_no_hindrance(tmp_path: Path, beside: bool) -> None:
    folder = tmp_path / "runs" / "run"
    command = [sys.executable, "-c", HOLD, str(folder), str(beside)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout
        assert other.stdout.readline() == "held\n"
        with pytest.raises(OutputError, match="run: another process is writing to it"), alone_in(folder, beside=beside):
            pass
        other.kill()
    with alone_in(folder, beside=beside):
        pass
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_what_a_killed_process_left_is_tidied_up_and_an_old_folder_gets_its_name_back(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    (tmp_path / ".made.abc.unfinished").mkdir()
    (tmp_path / ".other.abc.unfinished").mkdir()  # somebody else's
    (tmp_path / ".made.abc.replaced" / "made").mkdir(parents=True)
    (tmp_path / ".made.abc.replaced" / "made" / ".card.json.unfinished").write_text("half")
    (tmp_path / ".made.abc.replaced" / "made" / "card.json").write_text("whole")
    with alone_in(folder, beside=True):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"made", ".other.abc.unfinished"}
    assert [path.name for path in folder.iterdir()] == ["card.json"]


@pytest.mark.parametrize("size", ["16k", "64k", "256k"])
def test_a_full_disk_is_one_line_at_every_step(
    small_disk: Callable[[str], Path], make_backbone: BackboneMaker, text_file: Path, size: str
) -> None:
    disk = small_disk(f"size={size}")
    backbone = make_backbone("llama_tied")
    result = call("train", text_file, "--backbone", backbone, "--output", disk / "model", "--quiet", *FAST)
    assert result.returncode == 6, result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert "cannot be written (No space left on device)" in result.stderr
    assert not (disk / "model").exists()
    assert not [path for path in disk.rglob("*") if "unfinished" in path.name]
