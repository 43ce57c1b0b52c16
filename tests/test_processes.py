"""Processes that train together do what one would do with as many times the batches in a step, and speak with one voice."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import call
from conftest import PATIENCE, BackboneMaker, write_corpus
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from text2token.errors import UsageError
from text2token.recipe import StageSettings
from text2token.training.processes import together
from text2token.training.schedule import plan

# "--multi_gpu" is accelerate's word for several processes on a machine; with "--cpu" it starts only one without MPI
LAUNCHERS = {
    "torchrun": ("torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
    "accelerate": ("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--mixed_precision", "no"),
}
STAGE = ("lora.dropout=0", "stage1.max_tokens=5000", "stage1.tokens_per_batch=300", "stage1.steps_per_checkpoint=6")


def train(*launcher: str, text: Path, backbone: Path, output: Path, settings: tuple[str, ...]) -> str:
    """Train by the command line and return what it printed."""
    words = [word for setting in settings for word in ("--set", setting)]
    command = [*launcher, "text2token", "train", str(text), "--backbone", str(backbone), "--output", str(output), "--json"]
    finished = subprocess.run([sys.executable, "-m", *command, *words], capture_output=True, text=True, timeout=PATIENCE)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "docs.txt")


@pytest.fixture(scope="module")
def one(make_backbone: BackboneMaker, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process that takes twice the batches in a step."""
    output = tmp_path_factory.mktemp("one") / "one"
    words = [word for setting in (*STAGE, "stage1.accumulate=2") for word in ("--set", setting)]
    done = call("train", corpus, "--backbone", make_backbone("llama_tied"), "--output", output, "--quiet", *words)
    assert done.returncode == 0, done.stderr
    return output.with_name("one.run")


@pytest.mark.parametrize("launcher", LAUNCHERS.values(), ids=LAUNCHERS)
def test_two_processes_end_at_the_weights_of_one_with_twice_the_batches(
    make_backbone: BackboneMaker, corpus: Path, one: Path, tmp_path: Path, launcher: tuple[str, ...]
) -> None:
    backbone = make_backbone("llama_tied")
    printed = train(*launcher, "-m", text=corpus, backbone=backbone, output=tmp_path / "two", settings=STAGE)
    result = json.loads(printed)  # once, not by each
    assert result["stages"]["stage1"]["steps"] > 6
    alone, two = (load_file(run / "stages" / "stage1" / "weights.safetensors") for run in (one, tmp_path / "two.run"))
    assert alone.keys() == two.keys()
    for name, value in alone.items():
        assert torch.allclose(value, two[name], rtol=1e-4, atol=1e-6), name
    expected = json.loads((one / "results.json").read_text(encoding="utf-8"))["stages"]["stage1"]
    for name in ("steps", "tokens", "texts", "first_loss", "last_loss"):
        assert result["stages"]["stage1"][name] == pytest.approx(expected[name], abs=1e-4), name
    assert SentenceTransformer(str(tmp_path / "two")).encode("a girl").shape == (32,)


def test_alone_there_is_nobody_to_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    alone = together()
    assert (alone.first, alone.count) == (True, 1)
    with alone.first_alone():
        assert alone.from_first("own") == "own"


def test_a_run_whose_weights_would_be_cut_into_shards_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    together.cache_clear()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UsageError, match="FSDP shards the weights"):
        together()


@given(st.integers(2, 9), st.integers(1, 3), st.integers(0, 3))
def test_every_process_takes_as_many_batches_and_all_are_counted(processes: int, accumulate: int, seed: int) -> None:
    lengths = np.random.default_rng(seed).integers(5, 60, size=150)
    stage = StageSettings(tokens_per_batch=200, accumulate=accumulate, epochs=2, contrast=0)
    schedule = plan(lengths, stage, seed, processes=processes)
    taken = [batches for batches, _ in zip(schedule.steps_in_order(), range(schedule.steps), strict=False)]
    assert all(len(batches) % processes == 0 for batches in taken)
    assert max(map(len, taken)) == accumulate * processes
    an_epoch = [number for batches in taken[: schedule.steps // 2] for number in batches]
    assert len(set(an_epoch)) == len(an_epoch)
    assert len(schedule.batches) - processes < len(an_epoch) <= len(schedule.batches)
    assert schedule.tokens_to_see == sum(schedule.batch_tokens[batches].sum() for batches in taken)


def test_a_token_budget_is_that_of_all_processes() -> None:
    lengths = np.full(1000, 10)
    stage = StageSettings(tokens_per_batch=100, max_tokens=4000, contrast=0)
    alone, four = plan(lengths, stage, 0), plan(lengths, stage, 0, processes=4)
    assert (alone.tokens_to_see, alone.steps) == (4000, 40)
    assert (four.tokens_to_see, four.steps) == (4000, 10)
    with pytest.raises(UsageError, match="too few for 200 processes"):
        plan(lengths, stage, 0, processes=200)
