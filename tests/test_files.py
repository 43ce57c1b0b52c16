"""Nothing half-written stands under its final name, and what the system refuses is one line."""

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import call
from conftest import BackboneMaker
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_cli import FAST

from text2token.errors import OutputError
from text2token.export.folder import check_output
from text2token.files import MADE, alone_in, atomic_file, atomic_folder, check_ours, claim, forget
from text2token.search.index import Index


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def fail_half_way() -> None:
        with atomic_folder(tmp_path / "made") as unfinished:
            (unfinished / "half").write_text("x", encoding="utf-8")
            assert not (tmp_path / "made").exists()
            raise ValueError("in between")

    with pytest.raises(ValueError, match="in between"):
        fail_half_way()
    assert list(tmp_path.iterdir()) == []
    for content in ("first", "second"):
        with atomic_folder(tmp_path / "made") as unfinished:
            (unfinished / "file").write_text(content, encoding="utf-8")
        assert (tmp_path / "made" / "file").read_text(encoding="utf-8") == content
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    assert os.stat(tmp_path / "made").st_mode & 0o777 == 0o755


def test_a_file_is_replaced_whole_or_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old", encoding="utf-8")

    def be_interrupted() -> None:
        with atomic_file(tmp_path / "file") as path:
            path.write_text("half", encoding="utf-8")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        be_interrupted()
    assert (tmp_path / "file").read_text(encoding="utf-8") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_in_the_way_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(OutputError, match="file/made: cannot be written"), atomic_folder(tmp_path / "file" / "made"):
        pass


def test_a_place_that_cannot_be_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to("circle")
    impossible = (tmp_path / "circle", tmp_path / ("n" * 300))
    for place in (*impossible, *(path / "made" for path in impossible)):

        def alone(place: Path = place) -> None:
            with alone_in(place, record="card.json"):
                (place / "file").touch()

        def whole(place: Path = place) -> None:
            with atomic_folder(place):
                pass

        for write in (alone, whole):
            with pytest.raises(OutputError, match="cannot be written"):
                write()
        with pytest.raises(OutputError, match="holds no index"):
            Index.open(place)
    with pytest.raises(OutputError, match="cannot be written"):
        check_output(impossible[1], overwrite=True)
    with pytest.raises(OutputError, match="cannot be written"):
        Index.create(impossible[1], "no model is asked", ["a text"])
    assert [path.name for path in tmp_path.iterdir()] == ["circle"]


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
    (tmp_path / ".made.abc.replaced" / "made" / ".card.json.unfinished").write_text("half", encoding="utf-8")
    (tmp_path / ".made.abc.replaced" / "made" / "card.json").write_text("whole", encoding="utf-8")
    with alone_in(folder, beside=True):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"made", ".other.abc.unfinished"}
    assert [path.name for path in folder.iterdir()] == ["card.json"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


names = st.sampled_from(["card.json", "thesis.txt", "lens/reader.json", "deep/er/thesis.txt", "model.safetensors"])
trees = st.dictionaries(names, st.binary(min_size=1, max_size=4), max_size=4)


def written(root: Path, tree: dict[str, bytes]) -> None:
    for name, content in tree.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=trees, theirs=trees, second=trees)
def test_no_file_that_was_not_made_here_is_ever_lost(
    tmp_path_factory: pytest.TempPathFactory, first: dict[str, bytes], theirs: dict[str, bytes], second: dict[str, bytes]
) -> None:
    """Whatever stood there and whatever is written: somebody's file is there afterwards, under its name, as it was."""
    folder = tmp_path_factory.mktemp("law") / "made"
    with atomic_folder(folder) as unfinished:
        written(unfinished, first)
    theirs = {name: content for name, content in theirs.items() if name not in first}
    written(folder, theirs)
    in_the_way = bool(set(theirs) & set(second))
    with pytest.raises(OutputError) if in_the_way else contextlib.nullcontext(), atomic_folder(folder) as unfinished:
        written(unfinished, second)
    expected = {**theirs, **(first if in_the_way else second)}
    made = contents(folder)
    del made[MADE]
    assert made == expected
    forget(folder)
    assert contents(folder) == {**theirs, MADE: b""} if theirs else not folder.exists()
    assert [path.name for path in folder.parent.iterdir() if path != folder] == []


@pytest.mark.parametrize("tree", [{"thesis.txt": b"years"}, {"deep/er/thesis.txt": b"years"}, {"card.json": b"{}"}])
def test_a_folder_of_somebody_else_is_refused_before_anything_is_written(tmp_path: Path, tree: dict[str, bytes]) -> None:
    folder = tmp_path / "theirs"
    written(folder, tree)
    for use in (lambda: atomic_folder(folder).__enter__(), lambda: claim(folder), lambda: check_ours(folder)):
        with pytest.raises(OutputError, match="theirs: was not made by text2token") as refused:
            use()
        assert "\n" not in str(refused.value)
    forget(folder)
    assert contents(tmp_path) == {f"theirs/{name}": content for name, content in tree.items()}


def test_a_list_of_files_that_names_others_deletes_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years", encoding="utf-8")
    folder = tmp_path / "strange"
    folder.mkdir()
    (folder / MADE).write_text(f"../thesis.txt\n{tmp_path / 'thesis.txt'}\n", encoding="utf-8")
    forget(folder)
    assert contents(tmp_path) == {"thesis.txt": b"years"}


def test_the_current_folder_is_refused_and_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in" / "side").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "in" / "side")
    for place in (".", "..", "../../in", str(tmp_path)):
        with (
            pytest.raises(OutputError, match="cannot be replaced while it is the current folder"),
            atomic_folder(Path(place)),
        ):
            pass
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["in", "side"]


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "file") as one, atomic_file(tmp_path / "file") as other:
        one.write_text("one", encoding="utf-8")
        other.write_text("other", encoding="utf-8")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "one"  # the last to finish, whole
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_another_process_is_at_inside_a_folder_is_not_tidied_away(tmp_path: Path) -> None:
    for name in (".model.x.unfinished", ".old.x.unfinished", ".made.y.scratch"):
        (tmp_path / "run" / name).mkdir(parents=True)
    (tmp_path / ".run.z.scratch").mkdir()
    (tmp_path / "run" / ".model.lock").touch()
    with alone_in(tmp_path / "run"):
        pass
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".model.lock", ".model.x.unfinished", "run"]


def test_who_waits_for_a_place_finds_what_the_other_made(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path / "made"), "True"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout
        assert other.stdin
        assert other.stdout.readline() == "held\n"
        threading.Timer(0.2, other.stdin.close).start()
        with alone_in(tmp_path / "made", beside=True, wait=True):
            assert other.wait() == 0


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
