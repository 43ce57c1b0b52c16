"""Killed at any moment and started again, every command ends at the files of an uninterrupted run.

KILLS says how many kills there are, (default 12, in `make soak` 200): `KILLS=50 pytest -s tests/test_kill.py`
prints a table (docs/reliability.md). Moments are drawn with a fixed seed: half are times, uniform over an uninterrupted run;
half of them numbers of changes to the file system, uniform over those of an uninterrupted run, some of them with a short
delay, so that writing has just begun. See killing.py.
"""

import json
import os
import re
import shutil
import signal
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import BackboneMaker, write_corpus
from killing import Ended, Launcher, Moment
from safetensors.torch import load_file
from transformers.trainer_pt_utils import safe_globals

from text2token.cli.main import INTERRUPTED
from text2token.model.backbone import resolve_dtype
from text2token.model.encoder import open_encoder
from text2token.recipe import BackboneSettings, CorpusSettings, Recipe
from text2token.search.index import Index

KILLS = int(os.environ.get("KILLS", "12"))
OUTPUT_ERROR = 6  # exit code of an output error: the thing is made already, or cannot be written
FAST = ["--set", "stage1.tokens_per_batch=512", "--set", "lora.rank=4", "--set", "stage1.steps_per_checkpoint=3"]


@dataclass(frozen=True)
class Place:
    """What commands read: a corpus, a backbone, a recipe, and (made by the first run) an embedder.

    `error` is how far a vector of that embedder moves with its batch mates, because sums are rounded in another order.
    """

    corpus: Path
    backbone: Path
    recipe: Path
    model: Path
    error: float = 0.0


COMMANDS: dict[str, Callable[[Place], list[object]]] = {
    "targets": lambda at: ["targets", at.corpus, "--backbone", at.backbone, "--output", "made"],
    "train": lambda at: [
        *("train", at.corpus, "--backbone", at.backbone, "--output", "made", "--resume"),
        *("--set", "corpus.held_out=10", "--set", "stage1.epochs=2", *FAST),
    ],
    "run": lambda at: ["run", at.recipe, at.corpus, "--output", "made"],
    "index": lambda at: ["index", at.model, at.corpus, "--store", "made"],
    "export": lambda at: ["export", at.model, "--sparse", "made", "--corpus", at.corpus],
    "embed": lambda at: ["embed", at.model, at.corpus, "--output", "made", "--resume"],
}


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    launcher = Launcher({**os.environ, "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache"))})
    yield launcher
    launcher.close()


@pytest.fixture(scope="module")
def place(make_backbone: BackboneMaker, launcher: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("place")
    at = Place(write_corpus(folder / "docs.txt"), make_backbone("llama_tied"), folder / "recipe.toml", folder / "made")
    backbone = BackboneSettings(str(at.backbone), dtype="float32", max_length=64)
    settings = [
        *("stage1.targets=data_driven", "stage1.tokens_per_batch=512", "stage1.steps_per_checkpoint=3"),
        *("stage2.targets=likelihood_ratio", "stage2.tokens_per_batch=512", "stage2.steps_per_checkpoint=3"),
        *("targets.likelihood_ratio.tau=auto", "lora.rank=4", "lora.dropout=0.05"),  # taught by what the first stage made
    ]
    at.recipe.write_text(
        Recipe(backbone, corpus=CorpusSettings(held_out=10)).with_settings(settings).to_toml(), encoding="utf-8"
    )
    assert started(launcher, "train", at, folder).code == 0
    encoder = open_encoder(str(at.model), str(resolve_dtype("auto")).removeprefix("torch."))
    texts = at.corpus.read_text(encoding="utf-8").splitlines()
    alone = torch.cat([encoder.embed([text], None) for text in texts])
    return replace(at, error=float((encoder.embed(texts, None) - alone).abs().max()))


def started(launcher: Launcher, command: str, at: Place, folder: Path, moment: Moment | None = None) -> Ended:
    return launcher.run([*map(str, COMMANDS[command](at)), "--quiet"], folder, moment)


@dataclass
class Tally:
    """What happened to one command."""

    by_time: int = 0
    by_change: int = 0
    finished: int = 0
    files: int = 0
    changes: int = 0
    seconds: float = 0.0
    left: set[str] = field(default_factory=set)


@pytest.mark.parametrize("command", COMMANDS)
def test_killed_at_any_moment_a_command_ends_at_the_same_files(
    command: str, launcher: Launcher, place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kills = max(2, KILLS // len(COMMANDS) + (list(COMMANDS).index(command) < KILLS % len(COMMANDS)))
    random = np.random.default_rng([7, list(COMMANDS).index(command)])
    whole = tmp_path / "whole"
    whole.mkdir()
    reference = started(launcher, command, place, whole)
    assert reference.code == 0, reference.said
    complete(whole)
    expected, tally = contents(whole, command), Tally(changes=reference.changes, seconds=reference.seconds)
    chain = 0
    while tally.by_time + tally.by_change < kills or chain:
        folder = tmp_path / f"killed{tally.finished}"
        folder.mkdir(exist_ok=True)
        by_time = random.random() < 0.5
        moment = Moment(seconds=random.uniform(0, reference.seconds))
        if not by_time:
            delay = random.uniform(0, 0.02) if random.random() < 0.5 else 0.0
            moment = Moment(changes=int(random.integers(1, reference.changes + 1)), delay=delay)
        enough = chain == 4 or tally.by_time + tally.by_change == kills
        ended = started(launcher, command, place, folder, None if enough else moment)
        tally.files += complete(folder)
        if ended.code == -signal.SIGKILL:
            tally.by_time, tally.by_change, chain = tally.by_time + by_time, tally.by_change + (not by_time), chain + 1
            continue
        made_before = ended.code == OUTPUT_ERROR and "exists and is not empty" in ended.said
        assert ended.code == 0 or (chain and made_before), ended.said
        same(contents(folder, command), expected, place.error)
        tally.left |= {re.sub(r"\.\w+\.unfinished", ".….unfinished", path.name) for path in unfinished(folder)}
        tally.finished, chain = tally.finished + 1, 0
    with capsys.disabled():
        if "KILLS" in os.environ:
            print(f"\n{command}: {tally}; vectors vary by {place.error:.1e}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("command", ["embed", "targets"])
def test_told_to_stop_at_any_moment_once_or_twice_a_command_says_so_in_one_line(
    command: str, number: int, launcher: Launcher, place: Place, tmp_path: Path
) -> None:
    random = np.random.default_rng([11, number])
    for attempt, again in enumerate((None, 0.01)):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        moment = Moment(changes=int(random.integers(1, 12)), number=number, again=again)
        ended = started(launcher, command, place, folder, moment)
        complete(folder)
        assert "Traceback" not in ended.said
        if ended.code:  # it may have finished before it was told
            assert ended.code == INTERRUPTED, ended.said
            assert len(ended.said.splitlines()) == 1
        assert not unfinished(folder)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("disk", "said"), [("size=16k", "No space left on device"), ("ro", "Read-only file system")])
def test_a_disk_that_refuses_is_one_line_and_nothing_half_made_is_left(
    command: str, disk: str, said: str, launcher: Launcher, place: Place, small_disk: Callable[[str], Path]
) -> None:
    refused(started(launcher, command, place, folder := small_disk(disk)), said)
    complete(folder)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_may_not_be_written_is_one_line(
    command: str, launcher_without_privilege: Launcher, place: Place, tmp_path: Path
) -> None:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o500)
    refused(started(launcher_without_privilege, command, place, folder), "Permission denied")
    assert list(folder.iterdir()) == []


@pytest.fixture(scope="module")
def launcher_without_privilege(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """A launcher whose commands must heed the permissions of files, even if root runs the tests."""
    through: tuple[str, ...] = ()
    if not os.geteuid():
        if not shutil.which("setpriv"):
            pytest.skip("root may write everywhere, and setpriv is not installed")
        through = ("setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override")
    launcher = Launcher({**os.environ, "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache"))}, through)
    yield launcher
    launcher.close()


def refused(ended: Ended, said: str) -> None:
    assert ended.code == OUTPUT_ERROR, ended.said
    assert len(ended.said.splitlines()) == 1, ended.said
    assert said in ended.said


def hidden(path: Path, folder: Path) -> bool:
    """Say whether a name says that it is not final: ours begin with a point or end in .unfinished, `datasets` has others."""
    return any(
        part.startswith(".") or part.endswith((".unfinished", ".incomplete", ".lock", ".said")) or ".incomplete" in part
        for part in path.relative_to(folder).parts
    )


def unfinished(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if "unfinished" in path.name or "replaced" in path.name]


def complete(folder: Path) -> int:
    """Open every file under a final name to its end and return how many there were.

    The exception is a checkpoint, which belongs to the trainer: it counts from when its trainer_state.json can be read. A
    history grows line by line, so its last line may be torn. The engine's files under shard/ are opened by who goes on.
    """
    opened = 0
    for path in sorted(folder.rglob("*")):
        if path.is_dir() or hidden(path, folder) or "shard" in path.parts or not counts(path):
            continue
        if path.suffix == ".parquet":
            pq.read_table(path).validate(full=True)
        elif path.suffix == ".arrow":
            with pa.OSFile(str(path)) as file:
                pa.ipc.open_stream(file).read_all().validate(full=True)
        elif path.suffix == ".safetensors":
            load_file(path)
        elif path.suffix in (".pt", ".pth"):
            with safe_globals():
                torch.load(path, weights_only=True)
        elif path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".toml":
            tomllib.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".jsonl":
            for line in path.read_text(encoding="utf-8").splitlines()[:-1]:
                json.loads(line)
        else:
            assert path.suffix == ".md" or path.name == "lock" or path.name.startswith("events.out"), path
        opened += 1
    return opened


def counts(path: Path) -> bool:
    if not path.parent.name.startswith("checkpoint-"):
        return True
    try:
        json.loads((path.parent / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def contents(folder: Path, command: str) -> dict[str, Any]:
    """Return what a command has made, but for what a clock writes: seconds, logs of TensorBoard, locks."""
    if command == "index":
        return indexed(folder / "made")
    found: dict[str, Any] = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or hidden(path, folder) or path.name == "lock":
            continue
        if "/cache/" in name or path.name.startswith("events.out"):
            continue
        if "/checkpoint-" in name and path.name != "trainable.safetensors":  # zip files, and logs with speeds
            continue
        content: Any = path.read_bytes()
        if path.suffix in (".md", ".json"):
            content = re.sub(rb'"seconds": ([\d.]+|\{[^}]*\})|[\d.,]+ s; loss', b"", content)
        found[name] = content
    return found


def same(found: dict[str, Any], expected: dict[str, Any], error: float) -> None:
    """Assert that everything is bit for bit the same, but for vectors in an index: a resumed filling embeds what is missing
    with other batch mates, so they may be off by twice the model's own `error`.
    """
    assert found.keys() == expected.keys()
    for name, content in expected.items():
        if isinstance(content, tuple):
            payload, dense, words = found[name]
            assert (payload, words) == (content[0], content[2])
            assert np.abs(np.subtract(dense, content[1])).max() <= 2 * error
        else:
            assert found[name] == content, name


def indexed(store: Path) -> dict[str, Any]:
    """Return every document of an index with its vectors; the engine's files differ in names that are drawn at random."""
    found: dict[str, Any] = {"card": (store / "card.json").read_bytes()}
    with Index.open(store) as index:
        for record in index.store.shard.retrieve(list(index.store.numbers()), True, True):
            words = record.vector["words"]
            weights = dict(zip(words.indices, words.values, strict=True))
            found[str(record.id)] = (record.payload, record.vector["dense"], weights)
        assert len(found) == index.count + 1
    return found
