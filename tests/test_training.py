"""A stage learns, counts its tokens, and goes on after any interruption as if there had been none."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import PATIENCE, TEXTS, with_others_targets
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from text2token.errors import OutputError, TrainingDiverged, UsageError
from text2token.model.adapters import add_lora
from text2token.model.backbone import embed, load_embedder, tokenizer_of
from text2token.model.head import load_head
from text2token.recipe import BackboneSettings, DataDrivenSettings, LoraSettings, StageSettings
from text2token.targets.data_driven import DataDrivenTargets
from text2token.tokens.vocabulary import TargetVocabulary
from text2token.training.checkpoints import last_checkpoint
from text2token.training.collate import PASS_COST_GPU, TargetCollator, pass_cost, passes_of
from text2token.training.objective import TokenTargetLoss
from text2token.training.schedule import Schedule, plan
from text2token.training.stage import StageResult, on_one_device, one_worker, steps_per_log, text_lengths, train_stage

STAGE = StageSettings(learning_rate=2e-2, epochs=4, tokens_per_batch=256, steps_per_checkpoint=5)
CORPUS = [f"{text} Number {number}." for number in range(6) for text in TEXTS]


def prepare(settings: BackboneSettings, dropout: float = 0.1) -> tuple[SentenceTransformer, TokenTargetLoss, Dataset]:
    embedder = load_embedder(settings)
    head = load_head(embedder, settings.name)
    vocabulary = TargetVocabulary.from_tokenizer(tokenizer_of(embedder))
    targets = DataDrivenTargets(tokenizer_of(embedder), vocabulary, DataDrivenSettings(weight="uniform"))
    rows = Dataset(pa.Table.from_batches(targets.transform(CORPUS)))
    centre = embed(embedder, CORPUS[:20]).mean(0)
    add_lora(embedder, LoraSettings(rank=4, dropout=dropout), seed=0)
    return embedder, TokenTargetLoss(embedder, head, centre, contrast=0), rows


def train(
    settings: BackboneSettings, folder: Path, stage: StageSettings = STAGE, **options: object
) -> tuple[SentenceTransformer, StageResult]:
    embedder, loss, targets = prepare(settings)
    schedule = plan(text_lengths(embedder, targets), stage, seed=0)
    return embedder, train_stage(embedder, loss, targets, schedule, stage, folder, **options)  # type: ignore[arg-type]


def trainable(embedder: SentenceTransformer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in embedder.named_parameters() if value.requires_grad}


@given(st.lists(st.integers(1, 5), min_size=1, max_size=40), st.integers(40, 900), st.integers(1, 8), st.booleans())
def test_no_batch_has_more_texts_than_it_may_but_pairs_stay_together(
    passages_of: list[int], budget: int, texts: int, contrast: bool
) -> None:
    documents = np.repeat(np.arange(len(passages_of)), passages_of)
    lengths = 10 + np.arange(len(documents)) % 7
    stage = StageSettings(tokens_per_batch=budget, texts_per_batch=texts, contrast=0.5 * contrast)
    schedule = plan(lengths, stage, seed=0, documents=documents)
    assert sorted(np.concatenate(schedule.batches)) == list(range(len(documents)))
    for batch in schedule.batches:
        assert len(batch) <= (max(texts, 2) if contrast else texts)
    alone = plan(lengths, replace(stage, texts_per_batch=None), seed=0, documents=documents)
    if texts >= max(map(len, alone.batches)):
        assert all(np.array_equal(*both) for both in zip(schedule.batches, alone.batches, strict=True))


@given(st.lists(st.integers(1, 90), min_size=1, max_size=200), st.integers(40, 300), st.integers(1, 3))
def test_every_row_is_in_one_batch_and_no_batch_exceeds_its_tokens(lengths: list[int], budget: int, accumulate: int) -> None:
    stage = StageSettings(tokens_per_batch=budget, accumulate=accumulate, epochs=2)
    schedule = plan(np.array(lengths), stage, seed=3)
    rows = np.concatenate(schedule.batches)
    assert sorted(rows) == list(range(len(lengths)))
    for batch, tokens in zip(schedule.batches, schedule.batch_tokens, strict=True):
        sizes = np.array(lengths)[batch]
        assert sizes.sum() == tokens
        assert len(batch) == 1 or len(batch) * sizes.max() <= budget
    assert schedule.tokens_to_see == 2 * sum(lengths)
    assert schedule.steps == 2 * -(-len(schedule.batches) // accumulate)


@given(st.integers(1, 4000), st.integers(1, 3))
def test_a_token_budget_is_met_and_hardly_exceeded(budget: int, accumulate: int) -> None:
    lengths = np.random.default_rng(0).integers(5, 60, size=100)
    stage = StageSettings(tokens_per_batch=200, accumulate=accumulate, epochs=2, max_tokens=budget)
    schedule = plan(lengths, stage, seed=0)
    assert min(budget, 2 * lengths.sum()) <= schedule.tokens_to_see < budget + 200 * accumulate or schedule.steps == 1


def mean_spread(lengths: np.ndarray, schedule: Schedule) -> float:
    return float(np.mean([np.ptp(lengths[batch]) for batch in schedule.batches]))


def test_texts_that_are_compared_meet_whatever_their_length() -> None:
    lengths = np.random.default_rng(0).integers(5, 60, size=400)
    stage = StageSettings(tokens_per_batch=400, contrast=0.5)
    at_random = plan(lengths, stage, 0, documents=np.arange(400) // 2)
    alone = plan(lengths, replace(stage, contrast=0.0), 0)
    assert mean_spread(lengths, alone) < 5 < mean_spread(lengths, at_random)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=60), st.integers(40, 300), st.integers(0, 5))
def test_neighbouring_passages_share_a_batch(passages_of: list[int], budget: int, seed: int) -> None:
    documents = np.repeat(np.arange(len(passages_of)), passages_of)
    lengths = np.random.default_rng(seed).integers(1, 90, size=len(documents))
    stage = StageSettings(tokens_per_batch=budget, contrast=0.3)
    schedule = plan(lengths, stage, seed, documents=documents)
    assert sorted(np.concatenate(schedule.batches)) == list(range(len(documents)))
    assert schedule.tokens_to_see == lengths.sum()
    batch_of = {row: number for number, batch in enumerate(schedule.batches) for row in batch.tolist()}
    first = np.cumsum([0, *passages_of[:-1]])
    for start, count in zip(first.tolist(), passages_of, strict=True):
        for row in range(start, start + count - 1, 2):
            assert batch_of[row] == batch_of[row + 1]
    for batch in schedule.batches:
        pair = len(batch) == 2 and documents[batch[0]] == documents[batch[1]]
        assert len(batch) == 1 or pair or len(batch) * lengths[batch].max() <= budget


def test_documents_of_one_passage_keep_their_tight_batches() -> None:
    lengths = np.random.default_rng(0).integers(5, 60, size=200)
    stage = StageSettings(tokens_per_batch=400, contrast=0.3)
    plain = plan(lengths, replace(stage, contrast=0.0), 0)
    for documents in (np.arange(200), None):
        schedule = plan(lengths, stage, 0, documents=documents)
        assert all(map(np.array_equal, schedule.batches, plain.batches))


def test_lengths_are_what_the_model_sees(tiny: BackboneSettings) -> None:
    embedder, _, targets = prepare(tiny)
    expected = [len(embedder.preprocess([text])["input_ids"][0]) for text in targets["text"]]
    assert text_lengths(embedder, targets).tolist() == expected
    long = Dataset.from_dict({"text": ["girl " * 500]})
    assert text_lengths(embedder, long).tolist() == [tiny.max_length]


@given(st.lists(st.integers(1, 200), min_size=1, max_size=40), st.integers(0, 300))
def test_passes_read_every_row_once_and_cost_no_more_than_one_pass_or_one_a_row(lengths: list[int], cost: int) -> None:
    rows = np.array(lengths)
    passes = passes_of(rows, cost)
    assert sorted(np.concatenate(passes)) == list(range(len(rows)))
    spent = sum(len(one) * rows[one].max() + cost for one in passes)
    assert spent <= min(len(rows) * rows.max() + cost, rows.sum() + len(rows) * cost)


@pytest.mark.parametrize("side", ["left", "right"])
def test_collator_keeps_each_target_beside_its_text(tiny: BackboneSettings, side: str) -> None:
    embedder, _, targets = prepare(tiny)
    tokenizer_of(embedder).padding_side = side
    rows = [{**targets[i], "row": i} for i in (7, 2, 5)]
    batch = TargetCollator(embedder.preprocess, pass_cost=0)(rows)
    read = [
        tokens[mask.bool()].tolist()
        for number in range(3)
        if f"pass_{number}_input_ids" in batch
        for tokens, mask in zip(batch[f"pass_{number}_input_ids"], batch[f"pass_{number}_attention_mask"], strict=True)
    ]
    assert f"pass_{len({len(tokens) for tokens in read}) - 1}_input_ids" in batch  # one for each length
    labels = batch["label"]
    assert sorted(labels["rows"].tolist()) == [2, 5, 7]
    for index, row in enumerate(labels["rows"].tolist()):
        kept = labels["weights"][index] > 0
        assert labels["token_ids"][index][kept].tolist() == targets[row]["token_ids"]
        assert read[index] == tokenizer_of(embedder)(targets[row]["text"])["input_ids"]


def test_collator_gives_equal_texts_the_same_number(tiny: BackboneSettings) -> None:
    embedder, _, targets = prepare(tiny)
    texts = ["Sent from my phone", "a much longer text about bread", "Sent from my phone", "another"]
    rows = [{**targets[i], "row": i, "text": text} for i, text in enumerate(texts)]
    labels = TargetCollator(embedder.preprocess, pass_cost=0)(rows)["label"]
    same = {(a, b) for a in range(4) for b in range(4) if labels["texts"][a] == labels["texts"][b]}
    rows_of = labels["rows"].tolist()
    assert {(rows_of[a], rows_of[b]) for a, b in same} == {(0, 0), (1, 1), (2, 2), (3, 3), (0, 2), (2, 0)}


@pytest.mark.parametrize("contrast", [0.0, 0.5])
def test_loss_and_gradients_are_those_of_one_padded_pass(tiny: BackboneSettings, contrast: float) -> None:
    embedder, loss, targets = prepare(tiny, dropout=0.0)
    loss.contrast = contrast
    rows = [{**targets[i], "row": i, "document": i // 2} for i in range(12)]
    gradients: list[dict[str, torch.Tensor]] = []
    losses: list[float] = []
    for cost in (0, 1_000_000):
        batch = TargetCollator(embedder.preprocess, pass_cost=cost)(rows)
        passes = sum(name.endswith("_input_ids") for name in batch)
        assert (passes == 1) == (cost > 0)
        features = [
            {name: batch[f"pass_{number}_{name}"] for name in ("input_ids", "attention_mask")} for number in range(passes)
        ]
        embedder.zero_grad()
        value = loss(features, batch["label"])
        value.backward()
        losses.append(value.item())
        gradients.append({n: p.grad.clone() for n, p in embedder.named_parameters() if p.grad is not None})
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert gradients[0]
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-3, atol=1e-5)


def test_training_lowers_the_loss_and_moves_only_the_adapters(tiny: BackboneSettings, tmp_path: Path) -> None:
    frozen = {name: value.clone() for name, value in load_embedder(tiny).named_parameters()}
    reported: list[int] = []
    stage = replace(STAGE, epochs=12, learning_rate=3e-3)
    embedder, result = train(tiny, tmp_path, stage, progress=reported.append)
    assert result.last_loss < result.first_loss - 1
    assert result.tokens == sum(reported) == stage.epochs * text_lengths(embedder, Dataset.from_dict({"text": CORPUS})).sum()
    assert result.texts == stage.epochs * len(CORPUS)
    for name, value in embedder.named_parameters():
        if "lora_" not in name:
            original = name.replace("base_model.model.", "").replace("base_layer.", "")
            assert torch.equal(value, frozen[original]), name
    assert list(tmp_path.rglob("events.out.tfevents*"))


def test_shuffled_targets_leave_a_higher_loss(tiny: BackboneSettings, tmp_path: Path) -> None:
    # random attention hardly carries the text to the last position, so the mean is pooled
    settings, stage = replace(tiny, pooling="mean"), replace(STAGE, epochs=12, learning_rate=1e-2)
    _, own = train(settings, tmp_path / "own", stage)
    embedder, loss, targets = prepare(settings)
    shuffled = with_others_targets(targets)
    schedule = plan(text_lengths(embedder, targets), stage, seed=0)
    control = train_stage(embedder, loss, shuffled, schedule, stage, tmp_path / "shuffled")
    assert own.last_loss < control.last_loss - 0.3


@pytest.mark.parametrize("accumulate", [1, 2])
def test_resumed_training_ends_at_the_same_weights(tiny: BackboneSettings, tmp_path: Path, accumulate: int) -> None:
    stage = replace(STAGE, accumulate=accumulate)
    uninterrupted, expected = train(tiny, tmp_path / "whole", stage)

    def interrupt(tokens: int, seen: list[int] = []) -> None:  # noqa: B006
        seen.append(tokens)
        if len(seen) == expected.steps - 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tiny, tmp_path / "part", stage, progress=interrupt)
    assert last_checkpoint(tmp_path / "part") is not None
    resumed, result = train(tiny, tmp_path / "part", stage, resume=True)
    assert (result.steps, result.tokens, result.texts) == (expected.steps, expected.tokens, expected.texts)
    for name, value in trainable(uninterrupted).items():
        assert torch.equal(value, trainable(resumed)[name]), name


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_training import train, trainable
from text2token.recipe import BackboneSettings
from safetensors.torch import save_file
embedder, _ = train(BackboneSettings({backbone!r}, dtype="float32", max_length=64), Path({folder!r}), resume=True)
save_file(trainable(embedder), {out!r})
"""


def test_kill_nine_then_resume_gives_the_same_weights(tiny: BackboneSettings, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    uninterrupted, _ = train(tiny, tmp_path / "whole")
    script = KILLED.format(
        tests=str(Path(__file__).parent),
        backbone=tiny.name,
        folder=str(tmp_path / "run"),
        out=str(tmp_path / "out.safetensors"),
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + PATIENCE
    while not list((tmp_path / "run").glob("checkpoint-*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    assert process.poll() is None, "the run ended before it could be killed"
    process.kill()  # often in the middle of writing the first checkpoint
    process.wait()
    assert not (tmp_path / "out.safetensors").exists()
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    saved = load_file(tmp_path / "out.safetensors")
    for name, value in trainable(uninterrupted).items():
        assert torch.equal(value, saved[name]), name


def test_half_written_checkpoints_are_passed_over(tmp_path: Path) -> None:
    for step, state in ((5, '{"global_step": 5}'), (10, '{"global_step": 10}'), (15, '{"glob'), (20, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state:
            (folder / "trainer_state.json").write_text(state, encoding="utf-8")
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert not (tmp_path / "checkpoint-20").exists()


class SetBack(TrainerCallback):
    """A clock that is set back after every checkpoint."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        moment = 4e9 - 1000 * state.global_step
        os.utime(Path(str(args.output_dir)) / f"checkpoint-{state.global_step}", (moment, moment))


def test_the_newest_checkpoints_stay_when_the_clock_is_set_back(tiny: BackboneSettings, tmp_path: Path) -> None:
    _, result = train(tiny, tmp_path, callbacks=[SetBack()])
    last = {result.steps, (result.steps - 1) // STAGE.steps_per_checkpoint * STAGE.steps_per_checkpoint}
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {f"checkpoint-{step}" for step in last}


@given(st.integers(1, 5000), st.integers(1, 200))
def test_every_checkpoint_falls_on_a_logged_loss(steps: int, steps_per_checkpoint: int) -> None:
    every = steps_per_log(steps, steps_per_checkpoint)
    assert steps_per_checkpoint % every == 0
    assert 1 <= every <= 10
    assert steps // every >= min(steps, 5)


def test_an_earlier_run_is_not_overwritten(tiny: BackboneSettings, tmp_path: Path) -> None:
    train(tiny, tmp_path)
    with pytest.raises(OutputError, match="resume=True"):
        train(tiny, tmp_path)


def test_a_loss_that_is_not_a_number_stops_training(tiny: BackboneSettings, tmp_path: Path) -> None:
    with pytest.raises(TrainingDiverged, match=r"rows \[\d+"):
        train(tiny, tmp_path, replace(STAGE, learning_rate=1e38))


@pytest.mark.parametrize("field", ["learning_rate", "epochs", "tokens_per_batch", "max_tokens"])
def test_impossible_settings_are_refused(field: str) -> None:
    with pytest.raises(UsageError, match=field):
        StageSettings(**{field: 0})


def test_a_schedule_is_the_same_every_time() -> None:
    lengths = np.random.default_rng(0).integers(5, 60, size=100)

    def order(schedule: Schedule) -> list[int]:
        return [int(row) for number in schedule.order(1) for row in schedule.batches[number]]

    assert order(plan(lengths, STAGE, 0)) == order(plan(lengths, STAGE, 0)) != order(plan(lengths, STAGE, 1))


def test_several_gpus_in_one_process_are_not_made_one_model_in_parallel(tmp_path: Path) -> None:
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    assert arguments.n_gpu == 0
    arguments._n_gpu = 4  # what the trainer finds without torchrun on a machine with four
    on_one_device(arguments)
    assert arguments.n_gpu == 1


@pytest.mark.parametrize(
    ("gpu", "methods", "workers"), [(True, ["fork", "spawn"], 1), (True, ["spawn"], 0), (False, ["fork"], 0)]
)
def test_batches_are_made_beside_only_where_no_model_is_sent_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gpu: bool, methods: list[str], workers: int
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr("multiprocessing.get_all_start_methods", lambda: methods)
    settings = one_worker()
    assert settings["dataloader_num_workers"] == workers
    assert settings.get("dataloader_multiprocessing_context") == ("fork" if workers else None)
    for dtype in (torch.float32, torch.bfloat16):  # not what the model lies on before training: MPS trains on the CPU
        assert (pass_cost(dtype) == PASS_COST_GPU) == gpu
