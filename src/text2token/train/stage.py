"""One training stage on the stock SentenceTransformerTrainer: targets in, an adapted embedder out.

Ours are only the collator that carries targets beside texts, the sampler that counts tokens, and checkpoints that hold
what changes (the trainable weights) instead of the whole model. Batches are fixed once and only their order is shuffled:
the token loss compares no texts with each other, so who shares a batch does not matter, and equal lengths waste no padding.
A contrastive term beside it does compare: texts then meet at random, pairs together. Among strangers of their own length
they learnt less: retrieval was six points lower (LOG.md). So that this costs no padding, a batch of many lengths goes
through the model in several passes of similar ones (`passes_of`), and its loss is taken over all of them.
"""

import json
import multiprocessing
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from text2token.errors import OutputError, UsageError
from text2token.files import writing
from text2token.model.backbone import batches_of, token_lengths, tokenizer_of
from text2token.progress import Progress
from text2token.recipe import StageSettings
from text2token.train.processes import together

TRAINABLE_WEIGHTS = "trainable.safetensors"
TRAINER_STATE = "trainer_state.json"
# What a forward and backward pass costs before its first token, in tokens that would cost as much: some 80 for a 135M
# model in bfloat16 on a CPU, which packs all weights anew each time (LOG.md 2026-11-24), and 25 in float32, where the tokens
# themselves cost three times as much; on an H100 it is the wait for kernels, 4,200 for a model of 1.1 billion
# weights and 17,000 for 135M (LOG.md 2026-11-26).
PASS_COST_CPU, PASS_COST_FLOAT32, PASS_COST_GPU = 80, 25, 4096
CHECKPOINTS_KEPT = 2  # the newest, and the one before it while the newest is being written


@dataclass(frozen=True)
class StageResult:
    """What a stage did: optimiser steps, tokens and texts processed, wall time, first and last logged loss."""

    steps: int
    tokens: int
    texts: int
    seconds: float
    first_loss: float
    last_loss: float


@dataclass(frozen=True)
class Schedule:
    """Which batches a stage will see: `batches` of row numbers, `batch_tokens` beside them, and how many `steps`."""

    batches: list[NDArray[np.int64]]
    batch_tokens: NDArray[np.int64]
    steps: int
    seed: int
    accumulate: int
    processes: int = 1

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Return the order of the batches in one epoch, which several processes take in turn, each as many."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.batches))
        return order[: self.batches_an_epoch]

    @property
    def batches_an_epoch(self) -> int:
        """How many batches an epoch has: what does not go round all processes is left to another one."""
        return len(self.batches) // self.processes * self.processes

    def steps_in_order(self) -> Iterator[list[int]]:
        """Yield the numbers of the batches of each optimiser step, of all processes, epoch after epoch, without end.

        As in the trainer, a step never straddles two epochs.
        """
        epoch, size = 0, self.accumulate * self.processes
        while True:
            order = self.order(epoch).tolist()
            for start in range(0, len(order), size):
                yield order[start : start + size]
            epoch += 1

    @property
    def tokens_to_see(self) -> int:
        """The number of tokens that all steps together process, padding left out."""
        return sum(int(self.batch_tokens[batches].sum()) for batches in islice(self.steps_in_order(), self.steps))

    @property
    def rows_to_see(self) -> NDArray[np.int64]:
        """The numbers of the rows that all steps together process, ascending, each once."""
        batches = {batch for step in islice(self.steps_in_order(), self.steps) for batch in step}
        return np.unique(np.concatenate([self.batches[batch] for batch in sorted(batches)]))


def plan(
    lengths: NDArray[np.int64],
    settings: StageSettings,
    seed: int,
    *,
    documents: NDArray[np.int64] | None = None,
    by_length: bool = True,
    processes: int = 1,
) -> Schedule:
    """Group rows of similar length into batches within `tokens_per_batch` (and `texts_per_batch`), and count the steps.

    `lengths` has shape (rows,): tokens of each text as the model sees it. A row longer than the budget is a batch of
    its own. No batch holds more padding than the differences of neighbouring lengths. Without `by_length` rows meet at
    random, for losses that compare the texts of a batch; padding then counts towards the bound. A contrastive term is
    such a loss. `documents`, shape (rows,), says which document each row was cut from: for that term two successive rows
    of one are a pair, which shares a batch. A step takes
    `accumulate` batches for each of `processes`, and `max_tokens` counts those of all. Raises `UsageError` where there are
    fewer batches than processes.
    """
    follows = np.zeros(len(lengths), dtype=bool)
    if settings.contrast and documents is not None:
        follows = _second_of_pairs(documents)
    first = np.random.default_rng(seed).permutation(np.flatnonzero(~follows))
    if by_length and not follows.any():
        first = first[np.argsort(lengths[first], kind="stable")]
    order = np.repeat(first, 1 + np.append(follows[1:], False)[first])
    second = np.append(False, order[1:] == order[:-1])
    order = order + second
    batches = batches_of(order, lengths, settings.tokens_per_batch, second, settings.texts_per_batch)
    tokens = np.array([int(lengths[batch].sum()) for batch in batches], dtype=np.int64)
    if len(batches) < processes:
        raise UsageError(
            f"{len(batches)} batches of {settings.tokens_per_batch} tokens are too few for {processes} processes"
        )
    schedule = Schedule(batches, tokens, 0, seed, settings.accumulate, processes)
    steps_an_epoch = -(-schedule.batches_an_epoch // (settings.accumulate * processes))
    schedule = replace(schedule, steps=settings.epochs * steps_an_epoch)
    if settings.max_tokens is None:
        return schedule
    seen = 0
    for step, numbers in enumerate(islice(schedule.steps_in_order(), schedule.steps), start=1):
        seen += int(tokens[numbers].sum())
        if seen >= settings.max_tokens:
            return replace(schedule, steps=step)
    return schedule


def _second_of_pairs(documents: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which rows end a pair: every second one of the successive rows of a document."""
    rows = np.arange(len(documents))
    begins = np.append(True, documents[1:] != documents[:-1])
    ends: NDArray[np.bool_] = (rows - np.maximum.accumulate(np.where(begins, rows, 0))) % 2 == 1
    return ends


def pass_cost(dtype: torch.dtype) -> int:
    """Return what a pass costs in training in `dtype` before its first token, in tokens that would cost as much."""
    if torch.cuda.is_available():
        return PASS_COST_GPU
    return PASS_COST_FLOAT32 if dtype == torch.float32 else PASS_COST_CPU


def one_worker() -> dict[str, Any]:
    """Return the trainer's settings for a process that makes the batches, where there is a GPU and processes can be forked.

    Other ways to start one (that of Windows, and the default from Python 3.14 on) would send it the whole model.
    """
    if not torch.cuda.is_available() or "fork" not in multiprocessing.get_all_start_methods():
        return {"dataloader_num_workers": 0}
    return {"dataloader_num_workers": 1, "dataloader_multiprocessing_context": "fork"}


def on_one_device(arguments: TrainingArguments) -> None:
    """Keep the trainer from wrapping the model in `nn.DataParallel` where it sees several GPUs and there is one process.

    The schedule counts a process as one device. Several are used with torchrun (docs/scale.md).
    """
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # as the trainer itself does where a model is spread over GPUs


def passes_of(lengths: NDArray[np.int64], cost: int) -> list[NDArray[np.int64]]:
    """Split the rows of a batch into passes through the model, so that padding and passes together cost least.

    `lengths` has shape (rows,). A pass costs its rows times its longest, and `cost` tokens more. Returns the row numbers of
    each pass, the short ones first.
    """
    order = np.argsort(lengths, kind="stable")
    least = np.zeros(len(order) + 1)  # of the first rows in that order
    begin = np.zeros(len(order) + 1, dtype=np.int64)  # where the last pass of that optimum begins
    for end in range(1, len(order) + 1):
        costs = least[:end] + (end - np.arange(end)) * lengths[order[end - 1]] + cost
        begin[end] = np.argmin(costs)
        least[end] = costs[begin[end]]
    passes: list[NDArray[np.int64]] = []
    end = len(order)
    while end:
        passes.append(order[begin[end] : end])
        end = int(begin[end])
    return passes[::-1]


def text_lengths(embedder: SentenceTransformer, rows: Dataset, column: str = "text") -> NDArray[np.int64]:
    """Return how many tokens the model sees of each text, prompt included and truncated; shape (rows,)."""
    return token_lengths(tokenizer_of(embedder), (batch[column] for batch in rows.iter(2048)))


def train_stage(
    embedder: SentenceTransformer,
    loss: nn.Module,
    rows: Dataset,
    schedule: Schedule,
    settings: StageSettings,
    folder: Path,
    *,
    collator: SentenceTransformerDataCollator | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> StageResult:
    """Train the weights of `embedder` that require gradients on `rows` by `schedule` (from `plan`), in place.

    `rows` are targets for `TokenTargetLoss`, unless another `collator` prepares them for another `loss`. `folder` takes
    checkpoints and TensorBoard logs. With `resume`, training goes on from the last complete checkpoint there, to the
    same weights as if it had never stopped; without, an old one is an `OutputError`. Several processes
    (`processes.together`) share every step. `progress` is called with the number of tokens after every step; `callbacks`
    are the trainer's. Raises `TrainingDiverged` when the loss is not finite.
    """
    with together().first_alone():
        checkpoint = last_checkpoint(folder)
    if checkpoint and not resume:
        raise OutputError(f"{folder}: holds checkpoints of an earlier run. Go on with --resume, or delete the folder")
    counter = _TokenCounter(schedule, progress)
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        max_steps=schedule.steps,
        learning_rate=settings.learning_rate,
        warmup_steps=round(settings.warmup * schedule.steps),  # its first step has rate 0: none for a handful of steps
        lr_scheduler_type="linear",
        weight_decay=0.0,
        max_grad_norm=1.0,
        gradient_accumulation_steps=schedule.accumulate,
        batch_sampler=lambda dataset, **_: ScheduledBatches(dataset, schedule),
        seed=schedule.seed,
        save_steps=settings.steps_per_checkpoint,
        logging_steps=steps_per_log(schedule.steps, settings.steps_per_checkpoint),
        logging_nan_inf_filter=False,
        report_to=["tensorboard"],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        # making a batch takes a processor as long as a GPU takes to train a small model on it
        **one_worker(),
        use_cpu=not torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
        dataloader_drop_last=together().count > 1,  # the schedule's doing; else the library would say so
    )
    on_one_device(arguments)
    trainer = StageTrainer(
        model=embedder,
        args=arguments,
        train_dataset=rows if collator else rows.add_column("row", np.arange(len(rows))),
        loss=loss,
        data_collator=collator
        or TargetCollator(embedder.preprocess, pass_cost=pass_cost(next(embedder.parameters()).dtype)),
        callbacks=[counter, *callbacks],
    )
    trainer.remove_callback(_callback_named(trainer, "PrinterCallback"))
    with writing(folder):
        output = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    embedder.eval()
    return StageResult(
        steps=trainer.state.global_step,
        tokens=counter.tokens,
        texts=counter.texts,
        seconds=round(output.metrics["train_runtime"], 1),
        first_loss=round(losses[0], 4),
        last_loss=round(losses[-1], 4),
    )


def steps_per_log(steps: int, steps_per_checkpoint: int) -> int:
    """Return every how many steps the loss is logged: up to ten, at least five times in `steps`, and at every checkpoint.

    A logged loss is the mean since the last log. A resumed run knows none from before its checkpoint, so where a checkpoint
    falls between two logs the next one is another than without the interruption.
    """
    at_most = max(1, min(10, steps // 5))
    return max(number for number in range(1, at_most + 1) if steps_per_checkpoint % number == 0)


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint, deleting what a killed run left half-written; None where there is none."""
    complete: list[tuple[int, Path]] = []
    for path in folder.glob("checkpoint-*"):
        try:  # the trainer writes its state last
            complete.append((json.loads((path / TRAINER_STATE).read_text(encoding="utf-8"))["global_step"], path))
        except (OSError, ValueError, KeyError):
            shutil.rmtree(path, ignore_errors=True)
    return max(complete)[1] if complete else None


def forget_old_checkpoints(folder: Path) -> None:
    """Delete all checkpoints but the two of the most steps.

    The trainer's own way goes by the time of their files: where the clock is set back it deletes the newest (seen with
    transformers 5.24), and a killed run starts from long ago.
    """
    numbers = sorted(int(path.name.rpartition("-")[2]) for path in folder.glob("checkpoint-*"))
    for number in numbers[:-CHECKPOINTS_KEPT]:
        old = folder / f"checkpoint-{number}"
        (old / TRAINER_STATE).unlink(missing_ok=True)  # first, so that a half-deleted one does not count as complete
        shutil.rmtree(old, ignore_errors=True)


class ScheduledBatches(DefaultBatchSampler):
    """Hands the trainer the schedule's batches, in a new order every epoch (`set_epoch` is the trainer's).

    Of several processes each takes every so-manieth batch; that is accelerate's doing, which drops batches of another
    size than `batch_size`, and none only where that is None.
    """

    batch_size: int | None  # type: ignore[assignment]

    def __init__(self, dataset: Dataset, schedule: Schedule) -> None:
        super().__init__(range(len(dataset)), batch_size=1, drop_last=False)
        self.batch_size = None
        self.schedule = schedule

    def __iter__(self) -> Iterator[list[int]]:
        for number in self.schedule.order(self.epoch):
            yield self.schedule.batches[number].tolist()

    def __len__(self) -> int:
        return self.schedule.batches_an_epoch


@dataclass
class TargetCollator(SentenceTransformerDataCollator):
    """Tokenises the texts as usual and hands the targets to the loss as `label`, padded with tokens of weight 0.

    The texts come out as one set of features for each pass through the model (`passes_of`, at `pass_cost`), and all that
    is in `label` in the same order.
    """

    pass_cost: int = PASS_COST_CPU

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        tokenised: dict[str, Any] = super().__call__([{"text": row["text"]} for row in features])
        mask = tokenised["text_attention_mask"]
        passes = passes_of(mask.sum(1).numpy(), self.pass_cost)
        batch: dict[str, Any] = {}
        for number, rows in enumerate(passes):
            used = mask[rows].any(0)  # whichever side the padding is on
            for name, value in tokenised.items():
                each_token = isinstance(value, Tensor) and value.shape == mask.shape
                batch[f"pass_{number}_{name.removeprefix('text_')}"] = value[rows][:, used] if each_token else value
        features = [features[row] for rows in passes for row in rows]
        width = max(len(row["token_ids"]) for row in features)
        token_ids = torch.zeros(len(features), width, dtype=torch.long)
        weights = torch.zeros(len(features), width)
        for index, row in enumerate(features):
            token_ids[index, : len(row["token_ids"])] = torch.as_tensor(row["token_ids"])
            weights[index, : len(row["weights"])] = torch.as_tensor(row["weights"])
        labels = {"token_ids": token_ids, "weights": weights, "rows": torch.tensor([row["row"] for row in features])}
        numbers: dict[str, int] = {}
        labels["texts"] = torch.tensor([numbers.setdefault(row["text"], len(numbers)) for row in features])
        if "document" in features[0]:
            labels["documents"] = torch.tensor([row["document"] for row in features])
        return {**batch, "label": labels}


class StageTrainer(SentenceTransformerTrainer):
    """The stock trainer, but a checkpoint holds only what training changes: a model's copy a minute would fill disks."""

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Add none: it would embed examples for a card that is never written; `model_card` makes ours."""

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_file(trainable_weights(self.model), folder / TRAINABLE_WEIGHTS)

    def _save_checkpoint(self, *arguments: Any, **options: Any) -> None:
        super()._save_checkpoint(*arguments, **options)
        if self.args.should_save:
            forget_old_checkpoints(Path(str(self.args.output_dir)))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_trainable(self.model, load_file(Path(resume_from_checkpoint) / TRAINABLE_WEIGHTS))


def trainable_weights(embedder: nn.Module) -> dict[str, Tensor]:
    """Return the weights that training changes, by name."""
    return {name: value.detach().contiguous() for name, value in embedder.named_parameters() if value.requires_grad}


def load_trainable(embedder: nn.Module, weights: dict[str, Tensor]) -> None:
    """Put `weights`, from `trainable_weights`, into `embedder`, in place."""
    with torch.no_grad():
        for name, parameter in embedder.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(weights[name])


class _TokenCounter(TrainerCallback):
    """Counts the tokens and texts of every step, resumed ones included, and reports them."""

    def __init__(self, schedule: Schedule, progress: Progress | None) -> None:
        self.schedule = schedule
        self.progress = progress
        self.tokens = 0
        self.texts = 0
        self.remaining = schedule.steps_in_order()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        for _step in range(state.global_step):
            self._advance()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._advance()

    def _advance(self) -> None:
        batches = next(self.remaining)
        tokens = int(self.schedule.batch_tokens[batches].sum())
        self.tokens += tokens
        self.texts += sum(len(self.schedule.batches[batch]) for batch in batches)
        if self.progress:
            self.progress(tokens)


def _callback_named(trainer: SentenceTransformerTrainer, name: str) -> type:
    return next(type(callback) for callback in trainer.callback_handler.callbacks if type(callback).__name__ == name)
