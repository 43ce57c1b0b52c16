"""What a user types: help at once, one line and an exit code for each mistake, nothing half-written."""

import gzip
import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import COMMAND, call
from conftest import PATIENCE, TEXTS, BackboneMaker
from test_suite import write_suite

from text2token.export.folder import export_embedder
from text2token.model.backbone import embed, load_embedder
from text2token.model.whitening import fit_postprocessing
from text2token.recipe import BackboneSettings, recipe_names

FAST = ["--set", "stage1.tokens_per_batch=512", "--set", "corpus.held_out=10", "--set", "lora.rank=4"]


@pytest.mark.parametrize(
    "command",
    [
        "",
        "train",
        "targets",
        "static",
        "export",
        "index",
        "search",
        "export onnx",
        "export sparse",
        "lens",
        "lens read",
        "lens pair",
        "lens fit",
        "lens score",
        "report",
        "serve",
        "embed",
        "evaluate",
    ],
)
def test_help_imports_nothing_heavy(command: str) -> None:
    run_help = f"from text2token.cli.main import app; app({[*command.split(), '--help']!r}, standalone_mode=False)"
    script = f"import sys; {run_help}; print('modules:', *sys.modules)"
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert "Usage:" in output
    loaded = {name.partition(".")[0] for name in output.partition("modules:")[2].split()}
    assert not loaded & {"torch", "transformers", "sentence_transformers", "datasets", "pyarrow", "sklearn", "numpy", "mteb"}


def test_the_version_is_that_of_the_package() -> None:
    result = call("--version")
    assert result.returncode == 0
    assert result.stdout == f"text2token {importlib.metadata.version('text2token')}\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("nonsense", "text2token: No such command 'nonsense'. See text2token --help\n"),
        ("--nonsense", "text2token: No such option: --nonsense. See text2token --help\n"),
        ("lens read", "text2token: Missing argument 'model'. See text2token lens read --help\n"),
    ],
)
def test_what_is_no_command_is_one_line_that_says_where_to_look(words: str, said: str) -> None:
    result = call(*words.split())
    assert (result.returncode, result.stderr) == (2, said)


def test_a_text_that_looks_like_an_option_is_told_how_to_be_given() -> None:
    for words in (("-1 degree",), ("--over the top",), ("-5°C",)):
        result = call("search", "index", *words)
        assert result.returncode == 2
        assert "Put -- before a text that begins with -. See text2token search --help" in result.stderr
    assert "Put --" not in call("search", "index", "--mod", "dense").stderr


def test_train_then_search(make_backbone: BackboneMaker, text_file: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    trained = call("train", text_file, "--backbone", make_backbone("llama_tied"), "--output", model, "--json", *FAST)
    assert trained.returncode == 0, trained.stderr
    assert json.loads(trained.stdout)["stages"]["stage1"]["steps"] > 1
    assert "Traceback" not in trained.stderr
    assert re.search(r"Training: [\d,]+/[\d,]+ tokens, [\d.,]+/s, 0:00:00 left", trained.stderr)
    for _ in range(2):  # the second time from kept vectors
        found = call("search", model, text_file, "a girl with a guitar", "-k", "2", "--json", "--quiet")
        assert found.returncode == 0, found.stderr
        assert len(json.loads(found.stdout)) == 2
        assert found.stderr == ""


def test_static_then_search(make_backbone: BackboneMaker, text_file: Path, tmp_path: Path) -> None:
    wanted = ("static", text_file, "--backbone", make_backbone("llama"), "--output", tmp_path / "table")
    made = call(*wanted, "--dimensions", "8")
    assert made.returncode == 0, made.stderr
    assert "Corpus:" in made.stderr
    found = call("search", tmp_path / "table", text_file, TEXTS[1], "-k", "1", "--json", "--quiet")
    assert "guitar" in json.loads(found.stdout)[0]["text"]
    assert call(*wanted).returncode == 6  # the folder is taken
    mistaken = call(*wanted, "--overwrite", "--dimensions", "99")
    assert mistaken.returncode == 2
    assert mistaken.stderr.strip().splitlines()[-1].endswith("has 32")


def test_a_recipe_file_runs_and_runs_no_more_when_nothing_has_changed(
    make_backbone: BackboneMaker, text_file: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        f"[backbone]\nname = {str(make_backbone('llama_tied'))!r}\n[stage2]\ntargets = 'corpus_derived'\n", encoding="utf-8"
    )
    nameless = call("train", "--recipe", recipe, "--output", tmp_path / "model", *FAST)
    assert nameless.returncode == 2
    assert "names no text" in nameless.stderr
    recipe.write_text(f"sources = [{str(text_file)!r}]\n{recipe.read_text(encoding='utf-8')}", encoding="utf-8")
    first = call("train", "--recipe", recipe, "--output", tmp_path / "model", "--json", *FAST)
    assert first.returncode == 0, first.stderr
    assert list(json.loads(first.stdout)["stages"]) == ["stage1", "stage2"]
    again = call("run", recipe, "--output", tmp_path / "model", "--json", *FAST)
    assert again.stdout == first.stdout
    assert "Nothing has changed" in again.stderr
    assert "Training" not in again.stderr
    unknown = call("train", text_file, "--recipe", "two_stag", "--output", tmp_path / "other")
    assert unknown.returncode == 2
    assert f"those that come along are {', '.join(recipe_names())}" in unknown.stderr


def test_targets_to_look_at_are_of_the_passages_that_training_sees(
    make_backbone: BackboneMaker, text_file: Path, tmp_path: Path
) -> None:
    for settings, texts in (([], 240), (["--set", "corpus.halves_from=0"], 120)):
        made = call(
            "targets",
            text_file,
            "--backbone",
            make_backbone("llama_tied"),
            "--output",
            tmp_path / str(texts),
            "--json",
            *settings,
        )
        assert made.returncode == 0, made.stderr
        assert json.loads(made.stdout)["texts"] == texts


def damaged(tmp_path: Path) -> dict[str, tuple[list[str], int, str]]:
    """Each kind of damage: arguments in place of the corpus, exit code, and what the message must hold."""
    good = b'{"text": "A fine line of text."}\n'

    def file(name: str, content: bytes) -> str:
        (tmp_path / name).write_bytes(content)
        return str(tmp_path / name)

    (tmp_path / "folder").mkdir()
    whole = gzip.compress(b"".join(f"line {i} {os.urandom(9).hex()}\n".encode() for i in range(5000)))
    fine = file("fine.jsonl", good * 3)
    return {
        "bad JSON": ([file("a.jsonl", good * 4000 + b'{"text": \n' + good * 999)], 3, r"a\.jsonl:4001:10: not JSON"),
        "missing field": ([file("b.jsonl", good + b'{"x": 1}\n')], 3, r"b\.jsonl:2: no field 'text'"),
        "NUL bytes": ([file("c.txt", b"fine\nnot \0 fine\n")], 3, r"c\.txt:2:5: .*NUL"),
        "wrong encoding": ([file("d.txt", "fine\nna\xefve\n".encode("latin-1"))], 3, r"d\.txt:2:3: byte 0xEF is not UTF-8"),
        "UTF-16": ([file("e.txt", "text".encode("utf-16"))], 3, "UTF-16"),
        "empty": ([file("f.txt", b"")], 3, "holds no text"),
        "only blank lines": ([file("g.txt", b" \n\n \n")], 3, "all 3 texts are empty"),
        "1 MB line": ([file("h.txt", b"fine\n" + b"x" * 1_100_000)], 3, r"h\.txt:2: the line is longer than 1,000,000"),
        "no such file": ([str(tmp_path / "none.txt")], 3, "no such file"),
        "a folder": ([str(tmp_path / "folder")], 3, "is a folder"),
        "gz cut short": ([file("i.txt.gz", whole[: len(whole) // 2])], 3, r"i\.txt\.gz:\d+: the file is cut short"),
        "not gz": ([file("j.txt.gz", b"plain")], 3, "cut short or damaged"),
        "unknown type": ([file("k.docx", b"PK")], 3, r"unknown file type \.docx"),
        "no text field": ([file("l.jsonl", b'{"a": "x", "b": "y"}\n')], 3, "which field holds the text"),
        "short row": ([file("m.csv", b"id,text\n1,a\n2\n")], 3, r"m\.csv:3: the row has 1 fields"),
        "not parquet": ([file("n.parquet", b"PAR1")], 3, "not a readable Parquet file"),
        "unknown backbone folder": ([fine, "--backbone", str(tmp_path / "none" / "model")], 4, "no such folder"),
        "backbone without model": ([fine, "--backbone", str(tmp_path / "folder")], 4, "config.json is missing"),
        "unknown pooling": ([fine, "--pooling", "middle"], 2, "'last', 'mean', 'weighted_mean'"),
        "unknown setting": ([fine, "--set", "stage1.lr=1"], 2, "no setting 'lr'"),
        "unknown option": ([fine, "--no-such-option"], 2, "--no-such-option"),
        "unknown format": ([fine, "--format", "xml"], 2, "'--format': 'xml' is not one of 'auto', 'txt'"),
        "prompt without text": ([fine, "--prompt", "hello"], 2, r"must hold \{text\} exactly once"),
        "output is a file": ([fine, "--output", fine], 6, "is a file"),
        "output under a file": ([fine, "--output", f"{fine}/model"], 6, "Not a directory"),
    }


def test_every_kind_of_damage_is_one_clear_line_and_leaves_nothing(make_backbone: BackboneMaker, tmp_path: Path) -> None:
    cases = damaged(tmp_path)
    backbone = str(make_backbone("llama_tied"))
    before = sorted(tmp_path.rglob("*"))
    for name, (arguments, code, message) in cases.items():
        defaults = {"--backbone": backbone, "--output": str(tmp_path / "out" / "model")}
        given = [part for pair in defaults.items() if pair[0] not in arguments for part in pair]
        ended = call("train", *arguments, *given, "--quiet")
        notes = [f"{arguments[0]}: holds no document"] if name == "empty" else []  # told of each of several files
        *told, error = ended.stderr.splitlines()
        assert told == notes, (name, ended.stderr)
        assert re.search(message, error), (name, error)
        assert ended.returncode == code, (name, ended)
    left = {path.relative_to(tmp_path).as_posix() for path in set(tmp_path.rglob("*")) - set(before)}
    assert not left


def test_unknown_hub_model_is_one_line(text_file: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    result = call("train", text_file, "--backbone", "nobody/nothing", "--output", tmp_path / "m", env=environment)
    assert result.returncode == 4
    assert "nobody/nothing: no such folder, and the model hub cannot be reached" in result.stderr
    assert "Traceback" not in result.stderr


def test_commands_of_before_do_what_they_did(make_backbone: BackboneMaker, text_file: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text(f"[backbone]\nname = {str(make_backbone('llama_tied'))!r}\n", encoding="utf-8")
    made = call("run", recipe, text_file, "--output", tmp_path / "model", "--json", *FAST)
    assert made.returncode == 0, made.stderr
    again = call("train", text_file, "--recipe", recipe, "--resume", "--output", tmp_path / "model", "--json", *FAST)
    assert again.stdout == made.stdout
    assert "Nothing has changed" in again.stderr
    for now, before in (
        (["lens", "read", "model", TEXTS[0]], ["lens", "model", TEXTS[0]]),
        (["lens", "pair", "model", *TEXTS[:2]], ["lens", "--pair", *TEXTS[:2], "model"]),
        (
            ["lens", "fit", "model", "--corpus", text_file],
            ["lens", "model", "--save", "--corpus", text_file],
        ),
        (["lens", "score", "model", "--corpus", text_file], ["lens", "model", "--metrics", "--corpus", text_file]),
    ):
        first, second = (call(*words, "--json", "--quiet", cwd=tmp_path) for words in (now, before))
        assert (first.returncode, first.stderr) == (0, "")
        assert first.stdout == second.stdout
    assert call("export", "model", "--sparse", "words", cwd=tmp_path).returncode == 0
    assert call("export", "sparse", "model", "--output", "words", cwd=tmp_path).returncode == 6  # it is there


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_output(make_backbone: BackboneMaker, text_file: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    result = call("train", text_file, "--backbone", make_backbone("llama_tied"), "--output", tmp_path / "locked" / "model")
    assert result.returncode == 6
    assert "cannot be written (Permission denied)" in result.stderr


@pytest.mark.parametrize("times", [1, 2])
def test_interrupt_ends_in_one_line_and_can_be_resumed(
    make_backbone: BackboneMaker, text_file: Path, tmp_path: Path, times: int
) -> None:
    arguments = ["train", text_file, "--backbone", make_backbone("llama_tied"), "--output", tmp_path / "model", *FAST]
    arguments += ["--set", "stage1.epochs=12", "--set", "stage1.steps_per_checkpoint=3"]
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)], stderr=subprocess.PIPE, text=True, stdout=subprocess.DEVNULL
    )
    stage = tmp_path / "model.run" / "stages" / "stage1"
    deadline = time.monotonic() + PATIENCE
    while not list(stage.glob("checkpoints-*/checkpoint-*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert errors.splitlines()[-1] == "text2token: interrupted. The same command resumes"
    assert not (tmp_path / "model").exists()
    resumed = call(*arguments, "--quiet")
    assert resumed.returncode == 0, resumed.stderr
    assert (tmp_path / "model" / "model.safetensors").exists()


def test_broken_lines_can_be_skipped_and_are_counted(make_backbone: BackboneMaker, text_file: Path, tmp_path: Path) -> None:
    lines = text_file.read_bytes().splitlines(keepends=True)
    lines.insert(3, b"broken \xff line\n")
    text_file.write_bytes(b"".join(lines))
    backbone = make_backbone("llama_tied")
    result = call("targets", text_file, "--backbone", backbone, "--output", tmp_path / "t", "--on-error", "skip")
    assert result.returncode == 0, result.stderr
    assert "Left out 1 broken lines" in result.stderr
    assert "docs.txt:4:8: byte 0xFF is not UTF-8" in result.stderr


@pytest.fixture
def model(tiny: BackboneSettings, tmp_path: Path) -> Path:
    embedder = load_embedder(tiny)
    export_embedder(embedder, fit_postprocessing(embed(embedder, TEXTS)), tmp_path / "model", "# card")
    return tmp_path / "model"


def test_evaluate_with_labels_and_without(model: Path, text_file: Path, tmp_path: Path) -> None:
    suite = write_suite(tmp_path / "suite")
    common = ["--suite", suite, "--corpus", text_file, "--held-out", 20, "--cache", tmp_path / "cache"]
    wide = {**os.environ, "COLUMNS": "200"}
    shown = call("evaluate", model, model, *common, "--output", tmp_path / "scores.csv", env=wide)
    assert shown.returncode == 0, shown.stderr
    for words in ("Mean(Task)", "Mean(TaskType)", "Summaries (cosine_spearman)", "95 % interval", "anisotropy", "TF-IDF"):
        assert words in shown.stdout
    assert "Traceback" not in shown.stderr
    assert (tmp_path / "scores.csv").read_text(encoding="utf-8").count("Mean(TaskType)") == 2
    again = call("evaluate", model, *common, "--json", "--quiet")
    assert again.stderr == ""
    first, tfidf = json.loads(again.stdout)
    assert first["mean_task"] == pytest.approx(sum(task["score"] for task in first["tasks"]) / 7)
    low, high = first["label_free"]["mrr_interval"]
    assert low <= first["label_free"]["mrr_at_10"] <= high
    assert tfidf["model"] == "TF-IDF"


def test_embed_writes_vectors_and_resumes(model: Path, text_file: Path, tmp_path: Path) -> None:
    arguments = ["embed", model, text_file, "--output", tmp_path / "vectors", "--json"]
    assert json.loads(call(*arguments).stdout)["rows"] == 120
    again = call(*arguments)
    assert again.returncode == 0, again.stderr
    assert {path.name for path in (tmp_path / "vectors").iterdir()} == {"card.json", "vectors-00000.parquet"}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["."], 2, "give --suite DIR, --benchmark NAME or --corpus FILE"),
        ([".", "--suite", "nowhere"], 3, "nowhere: no such folder"),
        ([".", "--suite", ".", "--output", "scores.txt"], 2, "must end in .json or .csv"),
        ([".", "--corpus", "nowhere.txt"], 3, "nowhere.txt"),
    ],
)
def test_mistaken_evaluations_are_one_line(arguments: list[str], code: int, message: str, tmp_path: Path) -> None:
    result = call("evaluate", *arguments, cwd=tmp_path)
    assert result.returncode == code
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
